# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
r"""
Evaluates region classification with dense features: Boxes, Masks-T and Masks-S of the paper, foreground and background
bias, and the balance curve between things (countable objects) and stuff (amorphous background regions).

    python -m evaluation.evaluate_regions --model MODEL --annotations panoptic_val2017.json --images val2017 \
        --panoptic panoptic_val2017 --output metrics.json
    accelerate launch -m evaluation.evaluate_regions --models A B C --image_size 224 512 ... --output comparison.json

The scores of all regions are written beside the output, for figures and reports. Running the same command again
resumes an interrupted evaluation.
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

from .balance import Margins, balance_metrics, held_out_balance
from .datasets.panoptic import PanopticRegions, collate_regions
from .models import EvaluatedModel, digest, files_digest, run_evaluation, summary
from .region_accuracy.accuracy import NO_CATEGORY, class_mean, region_accuracy
from .scores import RegionScores
from .shards import in_shards, warn_skipped


logger = logging.get_logger(__name__)


def map_side(model: DenseVLMModel, image_side: int) -> int:
    """
    Measures the side of a model's dense map with a blank image.

    Args:
        model ([`DenseVLMModel`]): the model.
        image_side (`int`): side of the square image in pixels.

    Returns:
        The side of the map in locations.
    """
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
    Computes the region scores of a model: one forward pass per image; boxes and masks are pooled from the same map.

    Args:
        model ([`DenseVLMModel`]): the model, on its device and in its dtype.
        regions ([`PanopticRegions`]): the annotated images.
        embeddings ([`CategoryEmbeddings`]): embeddings of `regions.categories` in the model's space.
        batch_size (`int`, *optional*, defaults to 8): images per forward pass.
        num_workers (`int`, *optional*, defaults to 2): data loading processes.
        rows (sequence of `int`, *optional*): indices of the images to evaluate; all by default.

    Returns:
        [`RegionScores`], ordered by image id.

    Raises:
        `ValueError` if `rows` is `None` and no image could be evaluated.
    """
    assert model.config.projection_dim is not None  # set by the configuration
    embeddings.check(regions.categories, model.config.projection_dim)
    model.eval()
    text_embeds = embeddings.embeds.to(model.device, torch.float32)
    selected = regions if rows is None else Subset(regions, rows)
    loader = DataLoader(selected, batch_size, num_workers=num_workers, collate_fn=collate_regions)
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
    warn_skipped(skipped_images)
    if images == 0:
        if rows is None:
            raise ValueError(f"None of the {len(regions)} images could be evaluated, e.g. {skipped_images[0]}")
        empty = _empty_arrays(len(regions.categories))
        return RegionScores(**empty, images=0, skipped_regions=0, skipped_images=skipped_images)
    joined: dict[str, Any] = {key: np.concatenate(values) for key, values in columns.items()}
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
    """
    Runs [`evaluate_regions`] over all images, distributed over the processes and resumable.

    Args:
        model ([`DenseVLMModel`]): the model, on its device and in its dtype.
        regions ([`PanopticRegions`]): the annotated images.
        embeddings ([`CategoryEmbeddings`]): embeddings of `regions.categories` in the model's space.
        file (path): safetensors file of the scores, see [`in_shards`].
        provenance (`dict`): model, data and settings, see [`in_shards`].
        shard_size (`int`, *optional*, defaults to 128): images per shard.
        options: `batch_size` and `num_workers` of [`evaluate_regions`].

    Returns:
        [`RegionScores`] of all images, on all processes.
    """

    def evaluate(rows: range) -> RegionScores:
        return evaluate_regions(model, regions, embeddings, rows=rows, **options)

    return in_shards(RegionScores, evaluate, len(regions), file, provenance, shard_size)


def _empty_arrays(categories: int) -> dict[str, Any]:
    cosines = {name: np.zeros((0, categories), dtype=np.float32) for name in ("boxes", "masks")}
    return {name: np.zeros(0, dtype=np.int64) for name in RegionScores.ARRAYS} | cosines


def _cosines(region_embeds: Tensor, text_embeds: Tensor) -> np.ndarray:
    cosines = region_cosines(region_embeds, text_embeds)
    cosines[(region_embeds == 0).all(dim=-1)] = torch.nan
    return cosines.cpu().numpy()


def region_metrics(scores: RegionScores, categories: CategorySet, thing_offset: float = 0.0) -> dict[str, float]:
    r"""
    Computes the metrics of an evaluation from its scores.

    Args:
        scores ([`RegionScores`]): the output of [`evaluate_regions`].
        categories ([`CategorySet`]): the evaluated categories, with thing / stuff flags.
        thing_offset (`float`, *optional*, defaults to 0):
            Offset subtracted from the cosines of all things; shifts the balance between things and stuff only.

    Returns:
        A flat `dict` of metrics in 0..1 and counts. `boxes_*` are computed on the boxes of things, as in the paper;
        `stuff_boxes_*` on those of stuff. `foreground_bias` and `background_bias` are computed on masks, and so are
        the metrics of the balance, which do not depend on the offset: `balance_area`, `balance_relative_area` and
        `balance_auroc` of [`balance_metrics`], and `held_out_thing`, `held_out_stuff` and `held_out_harmonic_mean` of
        [`held_out_balance`]. Where the annotations provide it, `masks_thing_home_top1` and `masks_thing_away_top1` are
        the accuracies of things on their usual training background and on other backgrounds. Metrics of a group
        without regions are omitted. Masks that are empty at map resolution (`empty_masks`) count as misses.
    """
    if not np.isfinite(thing_offset):
        raise ValueError(f"`thing_offset` is a finite number, got {thing_offset}.")
    category_is_thing = np.array(categories.things("thing / stuff metrics"))
    is_thing = category_is_thing[scores.labels]
    by_kind = {
        kind: region_accuracy(
            top_categories(getattr(scores, kind) - thing_offset * category_is_thing),
            scores.labels,
            is_thing,
            category_is_thing,
        )
        for kind in ("boxes", "masks")
    }
    prefixes = {
        "boxes": ("boxes", "thing"),
        "stuff_boxes": ("boxes", "stuff"),
        "masks_thing": ("masks", "thing"),
        "masks_stuff": ("masks", "stuff"),
    }
    metrics = {
        f"{name}_{top}": by_kind[kind][f"{group}_{top}"]
        for name, (kind, group) in prefixes.items()
        for top in ("top1", "top5")
        if f"{group}_{top}" in by_kind[kind]
    }
    of_masks = by_kind["masks"]
    metrics |= {bias: of_masks[bias] for bias in ("foreground_bias", "background_bias") if bias in of_masks}
    hits = top_categories(scores.masks - thing_offset * category_is_thing, 1)[:, 0] == scores.labels
    for name, flag in (("home", 1), ("away", 0)):
        rows = is_thing & (scores.at_home == flag)
        if rows.any():
            metrics[f"masks_thing_{name}_top1"] = class_mean(hits[rows], scores.labels[rows])
    if is_thing.any() and not is_thing.all():
        margins = Margins.from_scores(scores, category_is_thing)
        balance, held_out = balance_metrics(margins), held_out_balance(margins)
        reported = ("area", "relative_area", "auroc")
        metrics |= {f"balance_{name}": balance[name] for name in reported if np.isfinite(balance[name])}
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
    The categories with the largest cosines.

    Args:
        cosines (`np.ndarray` of shape `(regions, categories)`): NaN for regions without a feature.
        count (`int`, *optional*, defaults to 5): number of categories per region, at most all of them.

    Returns:
        `np.ndarray` of shape `(regions, count)`: category indices, best first; -1 (no prediction) for NaN.
    """
    best = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
    return np.where(np.isnan(cosines).any(axis=1, keepdims=True), NO_CATEGORY, best)


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Evaluates each model at each image size; returns one row of metrics per evaluation."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.evaluate_regions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--annotations", type=Path, required=True, help="COCO panoptic JSON")
    parser.add_argument("--images", required=True, help="root folder of the images")
    parser.add_argument("--panoptic", required=True, help="root folder of the panoptic PNGs")
    parser.add_argument("--categories", help="built-in set or JSON file; by default those of the annotation file")
    parser.add_argument(
        "--thing_offset", type=finite_number(), default=0.0, help="subtracted from the cosines of all things"
    )
    return run_evaluation(parser, evaluate_model_on_regions, argv)


def evaluate_model_on_regions(evaluated: EvaluatedModel, arguments: argparse.Namespace) -> dict[str, Any]:
    """Metrics of a model at one image size."""
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
    PartialState().destroy_process_group()  # its threads would otherwise outlive the interpreter
