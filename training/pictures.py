# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures of the teacher's retrieval: an image, its grid, and the category and probability of each cell."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from transformers.utils import logging

from .alignment import Retrieval


logger = logging.get_logger(__name__)


def save_retrieval_picture(
    file: Path, pixels: Tensor, boxes: Tensor, retrieval: Retrieval, names: Sequence[str]
) -> None:
    """
    Saves a picture of an image and its retrieved categories, unless the file exists. Logs an error if it cannot be
    written.

    Args:
        file (`Path`): where to save it.
        pixels (`Tensor` of shape `(3, side, side)`): the first image of a batch, uint8.
        boxes (`Tensor` of shape `(regions, 4)`): xyxy as fractions of the map, which covers the canvas.
        retrieval ([`Retrieval`]): of the batch; the image's regions come first.
        names (`Sequence[str]`): names of all categories.
    """
    if file.exists():
        return
    count = len(boxes)
    labels, probabilities = best_categories(retrieval.logits[:count])
    kept = retrieval.kept[:count].tolist()
    picture = draw_retrieval(pixels, boxes.cpu(), [names[label] for label in labels], probabilities, kept)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file, quality=90)
    except OSError as error:
        logger.error(f"The picture {file} could not be written: {error}. The run continues.")


def draw_retrieval(
    pixels: Tensor, boxes: Tensor, names: Sequence[str], probabilities: Sequence[float], kept: Sequence[bool]
) -> Image.Image:
    """
    Draws the outline and the retrieved category of each region. Dropped regions are darkened.

    Args:
        pixels (`Tensor` of shape `(3, side, side)`): the image, uint8.
        boxes (`Tensor` of shape `(regions, 4)`): xyxy as fractions of the map, which covers the canvas.
        names (`Sequence[str]`): retrieved category per region.
        probabilities (`Sequence[float]`): its probability per region.
        kept (`Sequence[bool]`): whether each region passes denoising.

    Returns:
        `Image.Image`: RGB, cropped to the grid.
    """
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy()).resize((768, 768))
    veil = Image.new("RGBA", image.size)
    draw = ImageDraw.Draw(veil)
    font = ImageFont.load_default(14)
    for box, name, probability, keep in zip((boxes * 768).tolist(), names, probabilities, kept):
        draw.rectangle(box, fill=None if keep else (0, 0, 0, 150), outline=(255, 255, 255, 220), width=2)
        label = f"{name} {probability:.2f}"
        place = (box[0] + 4, box[1] + 4)
        left, top, right, bottom = draw.textbbox(place, label, font=font)
        draw.rectangle((left - 2, top - 1, right + 2, bottom + 1), fill=(0, 0, 0, 170))
        draw.text(place, label, fill=(255, 255, 255, 255) if keep else (170, 170, 170, 255), font=font)
    content = (boxes[:, 2:].amax(0) * 768).ceil().int().tolist() if len(boxes) else image.size
    return Image.alpha_composite(image.convert("RGBA"), veil).convert("RGB").crop((0, 0, *content))


def best_categories(logits: Tensor) -> tuple[list[int], list[float]]:
    """The most probable category of each region and its probability."""
    probability, label = torch.softmax(logits.float(), dim=-1).max(-1)
    return label.tolist(), probability.tolist()
