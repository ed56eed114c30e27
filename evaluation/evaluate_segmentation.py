# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
How well the dense maps of models segment images, without training: mean intersection over union.

    python -m evaluation.evaluate_segmentation --model MODEL --images val2017 --annotations stuffthingmaps/val2017 \\
        --categories coco_stuff_171 --layout coco_stuff --output metrics.json
    accelerate launch -m evaluation.evaluate_segmentation --models A B C --image_size 448 896 ... --output metrics.json

An interrupted evaluation resumes where it stopped, by the same command.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from modeling_densevlm import CategoryEmbeddings, CategorySet, DenseVLMModel
from modeling_densevlm.command_line import finite_number, whole_number

from .confusion import Confusion, count_pairs, segmentation_metrics
from .datasets.semantic_maps import LAYOUTS, SemanticMaps, collate_pixels
from .models import EvaluatedModel, files_digest, run, summary, whole_cells
from .segmentation import segment
from .shards import in_shards, warn_of


@torch.inference_mode()
def evaluate_segmentation(
    model: DenseVLMModel,
    dataset: SemanticMaps,
    embeddings: CategoryEmbeddings,
    rows: Sequence[int],
    batch_size: int = 8,
    num_workers: int = 2,
    **options: Any,
) -> Confusion:
    r"""
    Args:
        rows (sequence of `int`): which of the images.
        options: of [`segment`].

    Returns:
        [`Confusion`] of all their pixels, at the resolution of the annotations.

    Raises:
        `ValueError` where a PNG has values of no category.
    """
    embeddings.check(dataset.categories, model.config.projection_dim)
    text_embeds = embeddings.embeds.to(model.device, torch.float32)
    categories = len(dataset.categories)
    counts, images, skipped = np.zeros((categories, categories), dtype=np.int64), 0, []
    loader = DataLoader(Subset(dataset, rows), batch_size, num_workers=num_workers, collate_fn=collate_pixels)
    for batch in tqdm(loader, desc="segmentation", disable=None, leave=False):
        if batch["refused"]:
            raise ValueError(batch["refused"][0])
        skipped += batch["skipped"]
        if "pixel_values" not in batch:
            continue
        pixel_values = batch["pixel_values"].to(model.device, model.dtype)
        sizes = [labels.shape for labels in batch["labels"]]
        for labels, called in zip(batch["labels"], segment(model, pixel_values, text_embeds, sizes, **options)):
            counts += count_pairs(labels, called.cpu().numpy(), categories)
        images += len(sizes)
    warn_of(skipped)
    return Confusion(counts=counts, images=images, skipped_images=skipped)


def evaluate_model(evaluated: EvaluatedModel, arguments: argparse.Namespace) -> dict[str, Any]:
    """The numbers of a model at a size."""
    categories = CategorySet.load(arguments.categories)
    dataset = SemanticMaps(
        arguments.images,
        arguments.annotations,
        categories,
        evaluated.image_processor,
        arguments.layout,
        arguments.ignored,
    )
    embeddings = evaluated.embeddings(categories)
    window, stride = windows(evaluated, arguments.window, arguments.stride)
    options = {"window": window, "stride": stride, "background": None}
    if arguments.background is not None:
        if arguments.background not in categories.names:
            raise ValueError(f"--background: {categories.name} has no category {arguments.background!r}.")
        options["background"] = categories.names.index(arguments.background)
        options["threshold"] = arguments.background_threshold
    provenance = evaluated.provenance(categories, embeddings) | options
    provenance |= {"layout": arguments.layout, "ignored": arguments.ignored}
    provenance["annotations"] = files_digest(dataset.annotations, dataset.names(dataset.files, dataset.annotations))
    provenance["images"] = files_digest(dataset.images, dataset.names(dataset.image_of.values(), dataset.images))

    def evaluate(rows: range) -> Confusion:
        sizes = {"batch_size": arguments.batch_size, "num_workers": arguments.num_workers}
        return evaluate_segmentation(evaluated.model, dataset, embeddings, rows, **sizes, **options)

    confusion = in_shards(Confusion, evaluate, len(dataset), evaluated.file, provenance, arguments.shard_size)
    counts = {"images": confusion.images, "skipped_images": len(confusion.skipped_images)}
    return segmentation_metrics(confusion.counts) | counts | summary(provenance)


def windows(evaluated: EvaluatedModel, window: int | None, stride: int | None) -> tuple[int | None, int | None]:
    """The side of windows in whole cells of the model, and their stride; a `ValueError` where there is none."""
    if window is None:
        if stride is not None:
            raise ValueError("--stride is that of windows: give --window, too.")
        return None, None
    whole = whole_cells(window, evaluated.model.vision_model.stride, evaluated.source)
    if not 0 < (window if stride is None else stride) <= window or whole > evaluated.side:
        raise ValueError(
            f"--window {window} is at most the image's {evaluated.side} pixels, and --stride at most the window."
        )
    return whole, whole if stride is None else min(stride, whole)


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Evaluates every model at every size; returns a row of numbers for each."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.evaluate_segmentation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", required=True, help="folder of the images")
    parser.add_argument("--annotations", required=True, help="folder of the PNGs, of the same names")
    parser.add_argument("--categories", required=True, help="built-in set or JSON file")
    parser.add_argument("--layout", default="ids", choices=LAYOUTS, help="what the values of the PNGs mean")
    parser.add_argument(
        "--ignored", type=int, nargs="*", help="values that mean nothing; by default the layout's and the depth's last"
    )
    parser.add_argument("--window", type=whole_number(), help="side of sliding windows in pixels; none by default")
    parser.add_argument("--stride", type=whole_number(0), help="pixels between windows; those of a window by default")
    parser.add_argument("--background", help="category that is what no other is sure of, instead of being looked for")
    parser.add_argument(
        "--background_threshold", type=finite_number(), default=0.5, help="best probability below which it is"
    )
    return run(parser, evaluate_model, argv)


if __name__ == "__main__":
    main()
    PartialState().destroy_process_group()  # its threads must not outlive Python
