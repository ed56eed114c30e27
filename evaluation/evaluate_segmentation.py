# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
r"""
Evaluates training-free semantic segmentation with dense maps: mean intersection over union.

    python -m evaluation.evaluate_segmentation --model MODEL --images val2017 --annotations stuffthingmaps/val2017 \
        --categories coco_stuff_171 --layout coco_stuff --output metrics.json
    accelerate launch -m evaluation.evaluate_segmentation --models A B C --image_size 448 896 ... --output metrics.json

Running the same command again resumes an interrupted evaluation.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from modeling_densevlm import CategorySet, DenseVLMForSemanticSegmentation
from modeling_densevlm.command_line import finite_number, whole_number

from .confusion import Confusion, count_pairs, segmentation_metrics
from .datasets.semantic_maps import LAYOUTS, SemanticMaps, collate_pixels
from .models import EvaluatedModel, files_digest, run_evaluation, summary, whole_cells
from .shards import in_shards, warn_skipped


@torch.inference_mode()
def evaluate_segmentation(
    segmenter: DenseVLMForSemanticSegmentation,
    dataset: SemanticMaps,
    rows: Sequence[int],
    batch_size: int = 8,
    num_workers: int = 2,
) -> Confusion:
    r"""
    Segments annotated images and counts the pixels by annotated and predicted category.

    Args:
        segmenter ([`DenseVLMForSemanticSegmentation`]):
            The model with `dataset.categories` as its vocabulary, on its device and in its dtype.
        dataset ([`SemanticMaps`]): the annotated images.
        rows (sequence of `int`): indices of the images to evaluate.
        batch_size (`int`, *optional*, defaults to 8): images per forward pass.
        num_workers (`int`, *optional*, defaults to 2): data loading processes.

    Returns:
        [`Confusion`] over all pixels of these images, at the resolution of the annotations.

    Raises:
        `ValueError` if a PNG has values that belong to no category.
    """
    categories = len(dataset.categories)
    counts, images, skipped = np.zeros((categories, categories), dtype=np.int64), 0, []
    loader = DataLoader(Subset(dataset, rows), batch_size, num_workers=num_workers, collate_fn=collate_pixels)
    for batch in tqdm(loader, desc="segmentation", disable=None, leave=False):
        if batch["refused"]:
            raise ValueError(batch["refused"][0])
        skipped += batch["skipped"]
        if "pixel_values" not in batch:
            continue
        outputs = segmenter(batch["pixel_values"].to(segmenter.device, segmenter.dtype))
        sizes = [labels.shape for labels in batch["labels"]]
        predictions: Any = dataset.image_processor.post_process_semantic_segmentation(outputs, sizes)
        for labels, predicted in zip(batch["labels"], predictions):
            counts += count_pairs(labels, predicted.cpu().numpy(), categories)
        images += len(sizes)
    warn_skipped(skipped)
    return Confusion(counts=counts, images=images, skipped_images=skipped)


def evaluate_model_on_segmentation(evaluated: EvaluatedModel, arguments: argparse.Namespace) -> dict[str, Any]:
    """Metrics of a model at one image size."""
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
    assert evaluated.model.config.projection_dim is not None  # set by the configuration
    embeddings.check(categories, evaluated.model.config.projection_dim)
    segmenter = DenseVLMForSemanticSegmentation.from_densevlm(evaluated.model).set_categories(embeddings)
    config = segmenter.config
    config.window_size, config.window_stride = windows(evaluated, arguments.window, arguments.stride)
    if arguments.background is not None:
        if arguments.background not in categories.names:
            raise ValueError(f"--background: {categories.name} has no category {arguments.background!r}.")
        config.background, config.background_threshold = arguments.background, arguments.background_threshold
    options = ("window_size", "window_stride", "background", "background_threshold")
    provenance = evaluated.provenance(categories, embeddings) | {name: getattr(config, name) for name in options}
    provenance |= {"layout": arguments.layout, "ignored": arguments.ignored}
    provenance["annotations"] = files_digest(dataset.annotations, dataset.names(dataset.files, dataset.annotations))
    provenance["images"] = files_digest(dataset.images, dataset.names(dataset.image_of.values(), dataset.images))

    def evaluate(rows: range) -> Confusion:
        return evaluate_segmentation(segmenter, dataset, rows, arguments.batch_size, arguments.num_workers)

    confusion = in_shards(Confusion, evaluate, len(dataset), evaluated.file, provenance, arguments.shard_size)
    counts = {"images": confusion.images, "skipped_images": len(confusion.skipped_images)}
    return segmentation_metrics(confusion.counts) | counts | summary(provenance)


def windows(evaluated: EvaluatedModel, window: int | None, stride: int | None) -> tuple[int | None, int | None]:
    """Side and stride of windows, rounded to multiples of the model's patch; `ValueError` if they do not fit."""
    if window is None:
        if stride is not None:
            raise ValueError("--stride needs --window.")
        return None, None
    whole = whole_cells(window, evaluated.stride, evaluated.source)
    if not 0 < (window if stride is None else stride) <= window or whole > evaluated.side:
        raise ValueError(
            f"--window {window} is at most the image's {evaluated.side} pixels, and --stride at most the window."
        )
    return whole, whole if stride is None else min(whole_cells(stride, evaluated.stride, evaluated.source), whole)


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Evaluates each model at each image size; returns one row of metrics per evaluation."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.evaluate_segmentation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", required=True, help="folder of the images")
    parser.add_argument("--annotations", required=True, help="folder of the PNGs, named like the images")
    parser.add_argument("--categories", required=True, help="built-in set or JSON file")
    parser.add_argument("--layout", default="ids", choices=LAYOUTS, help="what the values of the PNGs mean")
    parser.add_argument(
        "--ignored",
        type=int,
        nargs="*",
        help="values to ignore; by default those of the layout and the largest value of the bit depth",
    )
    parser.add_argument(
        "--window", type=whole_number(), help="side of sliding windows in pixels; no windows by default"
    )
    parser.add_argument("--stride", type=whole_number(0), help="pixels between windows; the window side by default")
    parser.add_argument("--background", help="category assigned to pixels where no other category is confident")
    parser.add_argument(
        "--background_threshold",
        type=finite_number(),
        default=0.5,
        help="best probability below which a pixel is background",
    )
    return run_evaluation(parser, evaluate_model_on_segmentation, argv)


if __name__ == "__main__":
    main()
    PartialState().destroy_process_group()  # its threads would otherwise outlive the interpreter
