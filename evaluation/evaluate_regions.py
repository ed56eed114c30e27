# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
How well the dense features of models classify regions: Boxes, Masks-T and Masks-S of the paper, the two errors between
things and stuff, and the balance curve between them.

    python -m evaluation.evaluate_regions --model MODEL --annotations panoptic_val2017.json --images val2017 \\
        --panoptic panoptic_val2017 --output metrics.json
    accelerate launch -m evaluation.evaluate_regions --models A B C --image_size 224 512 ... --output comparison.json

The scores of all regions are written beside the output, for figures and reports. An interrupted evaluation resumes
where it stopped, by the same command.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm
from transformers.utils import logging

from modeling_densevlm import CategoryEmbeddings, CategorySet, DenseVLMModel
from modeling_densevlm.category_embeddings import region_cosines
from modeling_densevlm.command_line import finite_number
from modeling_densevlm.region_pooling import pool_boxes, pool_masks

from .balance import Margins, balance_numbers, held_out_balance
from .datasets.panoptic import PanopticRegions, collate_regions
from .models import EvaluatedModel, digest, files_digest, run, summary
from .region_accuracy.accuracy import NO_CATEGORY, class_mean, region_accuracy
from .scores import RegionScores
from .shards import in_shards, warn_of


logger = logging.get_logger(__name__)


def map_side(model: DenseVLMModel, image_side: int) -> int:
    """Side of the dense map of a square image, found by looking."""
    with torch.inference_mode():
        blank = torch.zeros(1, 3, image_side, image_side, device=model.device, dtype=model.dtype)
        return model.get_dense_features(blank).shape[-1]


@torch.inference_mode()
def evaluate_regions(
    model: DenseVLMModel,
    regions: PanopticRegions,
    embeddings: CategoryEmbeddings,
    batch_size: int = 8,
    num_workers: int = 2,
    rows: Sequence[int] | None = None,
) -> RegionScores:
    r"""
    One forward pass per image; boxes and masks are pooled from the same map.

    Args:
        model ([`DenseVLMModel`]): on its device, in its dtype.
        regions ([`PanopticRegions`]): the annotated images.
        embeddings ([`CategoryEmbeddings`]): of `regions.categories` in the model's space.
        rows (sequence of `int`, *optional*): only these of the images.

    Returns:
        [`RegionScores`] in the order of the image ids.

    Raises:
        `ValueError` where none of all images could be evaluated.
    """
    embeddings.check(regions.categories, model.config.projection_dim)
    model.eval()
    text_embeds = embeddings.embeds.to(model.device, torch.float32)
    images_of = regions if rows is None else Subset(regions, rows)
    loader = DataLoader(images_of, batch_size, num_workers=num_workers, collate_fn=collate_regions)
    columns: dict[str, list[np.ndarray]] = {name: [] for name in RegionScores.ARRAYS}
    images, skipped_regions, skipped_images = 0, 0, []
    for batch in tqdm(loader, desc="regions", disable=None, leave=False):
        skipped_images += batch["skipped"]
        if "pixel_values" not in batch:
            continue
        dense = model.get_dense_features(batch["pixel_values"].to(model.device, model.dtype))
        columns["boxes"].append(_cosines(pool_boxes(dense, batch["boxes"]), text_embeds))
        columns["masks"].append(_cosines(pool_masks(dense, batch["masks"]), text_embeds))
        for name in ("labels", "segment_ids", "at_home"):
            columns[name].append(torch.cat(batch[name]).numpy())
        columns["image_ids"].append(np.repeat(batch["image_id"], [len(labels) for labels in batch["labels"]]))
        images += len(batch["image_id"])
        skipped_regions += sum(batch["skipped_regions"])
    warn_of(skipped_images)
    if images == 0:
        if rows is None:
            raise ValueError(f"None of the {len(regions)} images could be evaluated, e.g. {skipped_images[0]}")
        nothing = _nothing(len(regions.categories))
        return RegionScores(**nothing, images=0, skipped_regions=0, skipped_images=skipped_images)
    joined = {key: np.concatenate(values) for key, values in columns.items()}
    return RegionScores(**joined, images=images, skipped_regions=skipped_regions, skipped_images=skipped_images)


def evaluate_in_shards(
    model: DenseVLMModel,
    regions: PanopticRegions,
    embeddings: CategoryEmbeddings,
    file: Path,
    provenance: dict[str, Any],
    shard_size: int = 128,
    **options: int,
) -> RegionScores:
    """[`evaluate_regions`] of all images on all processes, resumable: see [`in_shards`]."""

    def evaluate(rows: range) -> RegionScores:
        return evaluate_regions(model, regions, embeddings, rows=rows, **options)

    return in_shards(RegionScores, evaluate, len(regions), file, provenance, shard_size)


def _nothing(categories: int) -> dict[str, np.ndarray]:
    cosines = {name: np.zeros((0, categories), dtype=np.float32) for name in ("boxes", "masks")}
    return {name: np.zeros(0, dtype=np.int64) for name in RegionScores.ARRAYS} | cosines


def _cosines(region_embeds: Tensor, text_embeds: Tensor) -> np.ndarray:
    cosines = region_cosines(region_embeds, text_embeds)
    cosines[(region_embeds == 0).all(dim=-1)] = torch.nan
    return cosines.cpu().numpy()


def region_metrics(scores: RegionScores, categories: CategorySet, thing_offset: float = 0.0) -> dict[str, float]:
    r"""
    Args:
        scores ([`RegionScores`]): of [`evaluate_regions`].
        categories ([`CategorySet`]): with flags.
        thing_offset (`float`, *optional*, defaults to 0):
            Subtracted from the cosine of every thing: moves the balance of things and stuff, and nothing else.

    Returns:
        A flat dict of numbers in 0..1 and counts. `boxes_*` are the boxes of things, as in the paper;
        `stuff_boxes_*` those of stuff. `foreground_bias` and `background_bias` are those of the masks, and so is what
        is measured of the balance between things and stuff, which no offset changes: `balance_area`,
        `balance_relative_area` and `balance_auroc` of [`balance_numbers`], and the accuracies of
        [`held_out_balance`], `held_out_thing`, `held_out_stuff`, `held_out_harmonic_mean`. Where annotations say it,
        `masks_thing_home_top1` and `masks_thing_away_top1` are those of things on the background they often have in
        training and on others. Numbers of a group without regions are left out. The `empty_masks`, too small for the
        map, are misses.
    """
    if not np.isfinite(thing_offset):
        raise ValueError(f"`thing_offset` is a finite number, got {thing_offset}.")
    category_is_thing = np.array(categories.things("thing / stuff metrics"))
    is_thing = category_is_thing[scores.labels]
    by = {
        kind: region_accuracy(
            top_categories(getattr(scores, kind) - thing_offset * category_is_thing),
            scores.labels,
            is_thing,
            category_is_thing,
        )
        for kind in ("boxes", "masks")
    }
    named = {
        "boxes": ("boxes", "thing"),
        "stuff_boxes": ("boxes", "stuff"),
        "masks_thing": ("masks", "thing"),
        "masks_stuff": ("masks", "stuff"),
    }
    metrics = {
        f"{name}_{top}": by[kind][f"{group}_{top}"]
        for name, (kind, group) in named.items()
        for top in ("top1", "top5")
        if f"{group}_{top}" in by[kind]
    }
    metrics.update({bias: by["masks"][bias] for bias in ("foreground_bias", "background_bias") if bias in by["masks"]})
    hits = top_categories(scores.masks - thing_offset * category_is_thing, 1)[:, 0] == scores.labels
    for name, flag in (("home", 1), ("away", 0)):
        rows = is_thing & (scores.at_home == flag)
        if rows.any():
            metrics[f"masks_thing_{name}_top1"] = class_mean(hits[rows], scores.labels[rows])
    if is_thing.any() and not is_thing.all():
        margins = Margins.of(scores, category_is_thing)
        numbers, held_out = balance_numbers(margins), held_out_balance(margins)
        shown = ("area", "relative_area", "auroc")
        metrics |= {f"balance_{name}": numbers[name] for name in shown if np.isfinite(numbers[name])}
        metrics |= {f"held_out_{name}": held_out[name] for name in ("thing", "stuff", "harmonic_mean")}
    return metrics | {
        "images": scores.images,
        "thing_regions": int(is_thing.sum()),
        "stuff_regions": int((~is_thing).sum()),
        "empty_masks": int(np.isnan(scores.masks).all(1).sum()),
        "skipped_regions": scores.skipped_regions,
        "skipped_images": len(scores.skipped_images),
    }


def top_categories(cosines: np.ndarray, count: int = 5) -> np.ndarray:
    """
    The ids of the best categories, best first, `(regions, count)`; fewer where there are fewer. -1, no category, where
    the cosines are NaN.
    """
    best = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
    return np.where(np.isnan(cosines).any(axis=1, keepdims=True), NO_CATEGORY, best)


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Evaluates every model at every size; returns a row of numbers for each."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.evaluate_regions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--annotations", type=Path, required=True, help="COCO-panoptic JSON")
    parser.add_argument("--images", required=True, help="root of the images")
    parser.add_argument("--panoptic", required=True, help="root of the panoptic PNGs")
    parser.add_argument("--categories", help="built-in set or JSON file; the annotation file's own by default")
    parser.add_argument(
        "--thing_offset", type=finite_number(), default=0.0, help="subtracted from the cosine of every thing"
    )
    return run(parser, evaluate_model, argv)


def evaluate_model(evaluated: EvaluatedModel, arguments: argparse.Namespace) -> dict[str, Any]:
    """The numbers of a model at a size."""
    regions = PanopticRegions(
        arguments.annotations,
        arguments.images,
        arguments.panoptic,
        evaluated.image_processor,
        map_side(evaluated.model, evaluated.side),
        CategorySet.load(arguments.categories) if arguments.categories else None,
    )
    regions.categories.require_flags("thing / stuff metrics")
    embeddings = evaluated.embeddings(regions.categories)
    provenance = evaluated.provenance(regions.categories, embeddings)
    provenance["annotations"] = digest(arguments.annotations.read_bytes())
    provenance["images"] = files_digest(regions.images, [record["image_file"] for record in regions.records])
    provenance["panoptic"] = files_digest(regions.panoptic, [record["file_name"] for record in regions.records])
    options = {"batch_size": arguments.batch_size, "num_workers": arguments.num_workers}
    scores = evaluate_in_shards(
        evaluated.model, regions, embeddings, evaluated.file, provenance, arguments.shard_size, **options
    )
    metrics = region_metrics(scores, regions.categories, arguments.thing_offset)
    for group in ("thing", "stuff"):
        if metrics[f"{group}_regions"] == 0:
            logger.warning(f"No region is {'a thing' if group == 'thing' else 'stuff'}: its numbers are left out.")
    return metrics | {"thing_offset": arguments.thing_offset} | summary(provenance)


if __name__ == "__main__":
    main()
    PartialState().destroy_process_group()  # its threads must not outlive Python
