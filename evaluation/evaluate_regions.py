"""
How well the dense features of a model classify regions: Boxes, Masks-T and Masks-S of the paper, and the two errors
between things and stuff.

    python -m evaluation.evaluate_regions --model MODEL --annotations panoptic_val2017.json --images val2017 \\
        --panoptic panoptic_val2017 --output metrics.json
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers.utils import logging

from modeling_densevlm import CategoryEmbeddings, CategorySet, DenseVLMModel
from modeling_densevlm.categories import TEMPLATES, encoder_fingerprint, is_thing_group
from modeling_densevlm.processing_densevlm import load_processing
from modeling_densevlm.region_pooling import pool_boxes, pool_masks

from .panoptic import PanopticRegions, collate_regions
from .region_accuracy.accuracy import NO_CATEGORY, region_accuracy


logger = logging.get_logger(__name__)


@dataclass
class RegionScores:
    r"""
    The cosines of every region with every category.

    Args:
        image_ids, segment_ids, labels (`np.ndarray` of shape `(regions,)`): which region, and its category's index.
        boxes, masks (`np.ndarray` of shape `(regions, categories)`): cosines of the feature pooled over the region's
            box and over its mask. NaN where there is no feature: a small mask can be empty on the map.
        images, skipped_regions (`int`): images evaluated, regions too small or too large.
        skipped_images (`list[str]`): "file: reason" of each image that could not be evaluated.
    """

    image_ids: np.ndarray
    segment_ids: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    masks: np.ndarray
    images: int
    skipped_regions: int
    skipped_images: list[str]


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
) -> RegionScores:
    r"""
    One forward pass an image; boxes and masks are pooled from the same map.

    Args:
        model ([`DenseVLMModel`]): on its device, in its dtype.
        regions ([`PanopticRegions`]): the annotated images.
        embeddings ([`CategoryEmbeddings`]): of `regions.categories` in the model's space.

    Returns:
        [`RegionScores`] in the order of the image ids.

    Raises:
        `ValueError` where no image could be evaluated.
    """
    embeddings.check(regions.categories, model.config.projection_dim)
    model.eval()
    text_embeds = embeddings.embeds.to(model.device, torch.float32)
    loader = DataLoader(regions, batch_size, num_workers=num_workers, collate_fn=collate_regions)
    columns: dict[str, list[np.ndarray]] = {k: [] for k in ("image_ids", "segment_ids", "labels", "boxes", "masks")}
    images, skipped_regions, skipped_images = 0, 0, []
    for batch in tqdm(loader, desc="regions", disable=None, leave=False):
        skipped_images += batch["skipped"]
        if "pixel_values" not in batch:
            continue
        dense = model.get_dense_features(batch["pixel_values"].to(model.device, model.dtype))
        columns["boxes"].append(_cosines(pool_boxes(dense, batch["boxes"]), text_embeds))
        columns["masks"].append(_cosines(pool_masks(dense, batch["masks"]), text_embeds))
        columns["labels"].append(torch.cat(batch["labels"]).numpy())
        columns["segment_ids"].append(torch.cat(batch["segment_ids"]).numpy())
        columns["image_ids"].append(np.repeat(batch["image_id"], [len(labels) for labels in batch["labels"]]))
        images += len(batch["image_id"])
        skipped_regions += sum(batch["skipped_regions"])
    for message in skipped_images:
        logger.warning(f"Skipped: {message}")
    if images == 0:
        raise ValueError(f"None of the {len(regions)} images could be evaluated, e.g. {skipped_images[0]}")
    joined = {key: np.concatenate(values) for key, values in columns.items()}
    return RegionScores(**joined, images=images, skipped_regions=skipped_regions, skipped_images=skipped_images)


def _cosines(region_embeds: Tensor, text_embeds: Tensor) -> np.ndarray:
    cosines = normalize(region_embeds.float(), dim=-1) @ text_embeds.T
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
        `stuff_boxes_*` those of stuff. `foreground_bias` and `background_bias` are those of the masks. Numbers of a
        group without regions are left out. The `empty_masks`, too small for the map, are misses.
    """
    category_is_thing = np.array([is_thing_group(flag) for flag in categories.require_flags("thing / stuff metrics")])
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


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.evaluate_regions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="folder or Hub name of a DenseVLM or a CLIP")
    parser.add_argument("--annotations", required=True, help="COCO-panoptic JSON")
    parser.add_argument("--images", required=True, help="root of the images")
    parser.add_argument("--panoptic", required=True, help="root of the panoptic PNGs")
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    parser.add_argument("--categories", help="built-in set or JSON file; the annotation file's own by default")
    parser.add_argument("--templates", default="vild", choices=TEMPLATES, help="prompt templates")
    parser.add_argument("--embeddings", help="category embeddings (safetensors); computed by default")
    parser.add_argument("--image_size", type=int, help="input side in pixels; the processor's by default")
    parser.add_argument("--thing_offset", type=float, default=0.0, help="subtracted from the cosine of every thing")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--num_workers", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    arguments = parser.parse_args(argv)
    model = DenseVLMModel.from_pretrained(arguments.model, dtype=torch.float32).to(arguments.device).eval()
    image_processor, tokenizer = load_processing(arguments.model)
    if arguments.image_size:
        image_processor.size = {"longest_edge": arguments.image_size}
    side = image_processor.size["longest_edge"]
    categories = CategorySet.load(arguments.categories) if arguments.categories else None
    regions = PanopticRegions(
        arguments.annotations,
        arguments.images,
        arguments.panoptic,
        image_processor,
        map_side(model, side),
        categories,
    )
    regions.categories.require_flags("thing / stuff metrics")
    has_text = model.text_model is not None and tokenizer is not None
    if arguments.embeddings:
        embeddings = CategoryEmbeddings.load(arguments.embeddings)
        encoder = encoder_fingerprint(model, tokenizer) if has_text else None
        source = f"--embeddings {arguments.embeddings}"
        embeddings.check(regions.categories, model.config.projection_dim, encoder, source=source)
    elif not has_text:
        parser.error(f"{arguments.model} has no text tower or no tokenizer: give --embeddings")
    else:
        templates = TEMPLATES[arguments.templates]
        embeddings = CategoryEmbeddings.compute(regions.categories, model, tokenizer, templates)
    model = model.to(getattr(torch, arguments.dtype))  # after the texts were embedded in float32
    scores = evaluate_regions(model, regions, embeddings, arguments.batch_size, arguments.num_workers)
    metrics = region_metrics(scores, regions.categories, arguments.thing_offset)
    metrics |= {"model": arguments.model, "image_size": side, "templates": len(embeddings.templates)}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(metrics, indent=2) + "\n")
    for key, value in metrics.items():
        print(f"{key:20} {value:.4f}" if isinstance(value, float) else f"{key:20} {value}")


if __name__ == "__main__":
    main()
