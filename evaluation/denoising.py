# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
What denoising drops (Sec. 3.2; Table 12 of the paper varies its threshold): the accuracy of a teacher on the cells of
random grids that it is sure of, and on those that it is not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from modeling_densevlm import CategoryEmbeddings, DenseVLMImageProcessor, DenseVLMModel
from modeling_densevlm.canvas import content_extent
from modeling_densevlm.category_embeddings import region_cosines
from modeling_densevlm.region_pooling import grid_boxes


THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
"""The thresholds of Table 12."""


@dataclass
class CellPredictions:
    r"""
    A teacher's predictions for the cells of random grids.

    Args:
        probability (`np.ndarray` of shape `(cells,)`): of the most probable category (Eq. 2).
        right (`np.ndarray` of shape `(cells,)`): bool, whether that category covers most of the cell's pixels.
    """

    probability: np.ndarray
    right: np.ndarray


@torch.inference_mode()
def predict_cells(
    model: DenseVLMModel,
    image_processor: DenseVLMImageProcessor,
    embeddings: CategoryEmbeddings,
    images: Sequence[Image.Image],
    labels: Sequence[np.ndarray],
    temperature: float,
    max_grid: int = 6,
) -> CellPredictions:
    r"""
    Classifies the cells of one random grid per image.

    Args:
        model ([`DenseVLMModel`]): the teacher.
        image_processor ([`DenseVLMImageProcessor`]): of the teacher.
        embeddings ([`CategoryEmbeddings`]): the categories in the teacher's space.
        images (sequence of `Image.Image`): the images.
        labels (sequence of `np.ndarray` of shape `(height, width)`): the category index of each pixel of an image.
        temperature (`float`): of the softmax over categories (Eq. 1).
        max_grid (`int`, *optional*, defaults to 6): largest number of rows and of columns.

    Returns:
        [`CellPredictions`].
    """
    probabilities, right = [], []
    for number, (image, label) in enumerate(zip(images, labels)):
        rows, columns = np.random.default_rng(number).integers(1, max_grid + 1, size=2)
        extent = content_extent(*image.size)
        boxes = grid_boxes(int(rows), int(columns)) * torch.tensor([*extent, *extent])
        pixel_values = image_processor(image)["pixel_values"]
        region_embeds = model.get_region_features(pixel_values, boxes=[boxes])
        probability, index = (region_cosines(region_embeds, embeddings.embeds) / temperature).softmax(-1).max(-1)
        probabilities.append(probability.numpy())
        pixels = (boxes * max(image.size)).round().int().tolist()
        cells = [label[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] for x0, y0, x1, y1 in pixels]
        covering = [np.bincount(cell.ravel()).argmax() for cell in cells]
        right.append(index.numpy() == covering)
    return CellPredictions(np.concatenate(probabilities), np.concatenate(right))


def denoising_rows(cells: CellPredictions, thresholds: Sequence[float] = THRESHOLDS) -> list[dict[str, float]]:
    """
    Per threshold: `dropped`, the share of cells whose probability does not exceed it; `kept_accuracy` and
    `dropped_accuracy`, the accuracies of the kept and of the dropped cells, left out if there are none.
    """
    rows = []
    for threshold in thresholds:
        kept = cells.probability > threshold
        row = {"threshold": threshold, "dropped": float((~kept).mean())}
        for name, part in (("kept_accuracy", kept), ("dropped_accuracy", ~kept)):
            if part.any():
                row[name] = float(cells.right[part].mean())
        rows.append(row)
    return rows
