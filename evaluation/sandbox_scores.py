# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""What is computed of each model of the sandbox: scores of regions, recognition, segmentation, denoising."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from transformers.image_transforms import rgb_to_id

from modeling_densevlm import CategoryEmbeddings, DenseVLMForSemanticSegmentation, DenseVLMModel, DenseVLMProcessor
from modeling_densevlm.categories import CategorySet
from modeling_densevlm.image_processing_densevlm import load_image

from .confusion import count_pairs, segmentation_metrics
from .datasets.panoptic import PanopticRegions, read_annotations
from .denoising import CellPredictions, denoising_rows, predict_cells
from .evaluate_regions import evaluate_regions, map_side
from .models import code_digest, commit
from .scores import RegionScores


SANDBOX_TEMPLATES = "short"
"""Prompt templates that the sandbox models are trained with (`training/recipes/sandbox.yaml`)."""

SANDBOX_TEMPERATURE = 0.1
"""Temperature of the softmax over categories there."""


@dataclass
class SplitScores:
    """Scores of one model on the regions of both splits, and its metrics on whole images and on pixels."""

    val: RegionScores
    test: RegionScores
    further: dict[str, float]


def load(folder: Path, categories: CategorySet) -> tuple[DenseVLMModel, DenseVLMProcessor, CategoryEmbeddings]:
    """The model of a folder, its processor, and the categories in its space."""
    model = DenseVLMModel.from_pretrained(folder, dtype=torch.float32).eval()
    processor = DenseVLMProcessor.from_pretrained(folder)
    return model, processor, CategoryEmbeddings.compute(categories, model, processor.tokenizer, SANDBOX_TEMPLATES)


def score_splits(folder: Path, data: Path, categories: CategorySet) -> SplitScores:
    """Evaluates the model of a folder on the regions of both splits, on pixels, and on pictures of single things."""
    loaded = load(folder, categories)
    val, test = (score(folder, *loaded, data / split, categories) for split in ("val", "test"))
    images = recognise_images(*loaded, data / "single", categories)
    return SplitScores(val, test, images | segment_scenes(*loaded, data / "test", categories))


def score(
    folder: Path,
    model: DenseVLMModel,
    processor: DenseVLMProcessor,
    embeddings: CategoryEmbeddings,
    split: Path,
    categories: CategorySet,
) -> RegionScores:
    """Evaluates the model of a folder on the regions of a split."""
    side = map_side(model, processor.image_processor.size["longest_edge"])
    regions = PanopticRegions(
        split / "panoptic.json", split / "images", split / "panoptic", processor.image_processor, side, categories
    )
    scores = evaluate_regions(model, regions, embeddings, batch_size=50, num_workers=1)
    scores.provenance = {
        "model": str(folder),
        "fingerprint": model.fingerprint(),
        "categories": list(categories.names),
        "is_thing": categories.require_flags("the sandbox"),
        "templates": len(embeddings.templates),
        "split": split.name,
        "code": code_digest(),
        "commit": commit(),
    }
    return scores


def recognise_images(
    model: DenseVLMModel,
    processor: DenseVLMProcessor,
    embeddings: CategoryEmbeddings,
    split: Path,
    categories: CategorySet,
) -> dict[str, float]:
    """
    Accuracies of the image features on pictures of a single thing: which of the things it is. Dense training does not
    train them, and may spoil them.

    Returns:
        `dict`: `images_close_up_top1` and `images_small_top1`, for close-ups and for small things in a scene.
    """
    content = read_annotations(split / "panoptic.json")
    is_thing = dict(zip(ids_of(categories), categories.things()))
    things = [index for index, flag in enumerate(categories.things()) if flag]
    hits: dict[str, list[bool]] = {"images_close_up_top1": [], "images_small_top1": []}
    for image, record in zip(content["images"], content["annotations"]):
        labels = [one["category_id"] for one in record["segments_info"] if is_thing[one["category_id"]]]
        if not labels:  # almost all of it lies beyond the border
            continue
        pixel_values = processor.image_processor(load_image(split / "images" / image["file_name"]))["pixel_values"]
        with torch.inference_mode():
            cosines = model.get_image_features(pixel_values).pooler_output @ embeddings.embeds[things].T
        predicted = ids_of(categories)[things[int(cosines.argmax())]]
        hits["images_close_up_top1" if image["close_up"] else "images_small_top1"].append(predicted == labels[0])
    return {key: float(np.mean(values)) for key, values in hits.items() if values}


def segment_scenes(
    model: DenseVLMModel,
    processor: DenseVLMProcessor,
    embeddings: CategoryEmbeddings,
    split: Path,
    categories: CategorySet,
    batch_size: int = 40,
) -> dict[str, float]:
    """Segments the scenes of a split. Returns `segmentation_miou`, over all categories."""
    content = read_annotations(split / "panoptic.json")
    segmenter = DenseVLMForSemanticSegmentation.from_densevlm(model).set_categories(embeddings)
    counts = np.zeros((len(categories), len(categories)), np.int64)
    rows = list(zip(content["images"], content["annotations"]))
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        images = [load_image(split / "images" / image["file_name"]) for image, _ in batch]
        for (_, record), labels in zip(batch, segment(segmenter, processor, images)):
            counts += count_pairs(true_labels(split, record, categories), labels.numpy(), len(categories))
    return {"segmentation_miou": segmentation_metrics(counts)["miou"]}


@torch.inference_mode()
def segment(
    segmenter: DenseVLMForSemanticSegmentation, processor: DenseVLMProcessor, images: Sequence[Image.Image]
) -> list[torch.Tensor]:
    """The category of each pixel of images, `(height, width)` each."""
    sizes = [(image.height, image.width) for image in images]
    outputs = segmenter(**processor(images=list(images)))
    return cast(list[torch.Tensor], processor.post_process_semantic_segmentation(outputs, target_sizes=sizes))


def denoise_cells(folders: Sequence[Path], split: Path, categories: CategorySet) -> list[dict[str, float]]:
    """What each threshold drops of the cells of a split's scenes, over all teachers: [`denoising_rows`]."""
    content = read_annotations(split / "panoptic.json")
    images = [load_image(split / "images" / image["file_name"]) for image in content["images"]]
    labels = [true_labels(split, record, categories) for record in content["annotations"]]
    of_teachers = []
    for folder in folders:
        model, processor, embeddings = load(folder, categories)
        cells = predict_cells(model, processor.image_processor, embeddings, images, labels, SANDBOX_TEMPERATURE)
        of_teachers.append(cells)
    return denoising_rows(
        CellPredictions(
            np.concatenate([cells.probability for cells in of_teachers]),
            np.concatenate([cells.right for cells in of_teachers]),
        )
    )


def ids_of(categories: CategorySet) -> list[int]:
    """The ids of the sandbox's categories."""
    assert categories.ids is not None  # `training.sandbox.scenes` writes them
    return categories.ids


def true_labels(split: Path, record: dict, categories: CategorySet) -> np.ndarray:
    """The category index of each pixel of an annotated scene, `(height, width)`."""
    with Image.open(split / "panoptic" / record["file_name"]) as png:
        ids = rgb_to_id(np.array(png.convert("RGB")))
    # The few pixels of almost entirely occluded segments are assigned to the first segment.
    category_ids = ids_of(categories)
    labels = np.full(ids.shape, category_ids.index(record["segments_info"][0]["category_id"]))
    for info in record["segments_info"]:
        labels[ids == info["id"]] = category_ids.index(info["category_id"])
    return labels
