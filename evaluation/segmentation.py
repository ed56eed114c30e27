# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Training-free semantic segmentation: each pixel gets the category whose embedding is nearest to the dense map."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from modeling_densevlm import DenseVLMModel
from modeling_densevlm.canvas import label_pixels


def dense_cosines(
    model: DenseVLMModel,
    pixel_values: Tensor,
    text_embeds: Tensor,
    window: int | None = None,
    stride: int | None = None,
) -> Tensor:
    r"""
    The cosine of each location with each category.

    Args:
        model ([`DenseVLMModel`]): the model.
        pixel_values (`Tensor` of shape `(batch, 3, side, side)`): normalized, padded images.
        text_embeds (`Tensor` of shape `(categories, dim)`): category embeddings of unit norm.
        window (`int`, *optional*):
            Side of sliding windows in pixels, which are processed one at a time and averaged where they overlap; the
            last ones end at the border. By default the whole image is processed at once.
        stride (`int`, *optional*, defaults to `window`): distance between windows in pixels.

    Returns:
        `Tensor` of shape `(batch, categories, height, width)`, at map resolution, or at image resolution with windows.

    Raises:
        `ValueError` unless `0 < stride <= window <= side`.
    """
    if window is None:
        return torch.einsum("bdhw,cd->bchw", model.get_dense_features(pixel_values).float(), text_embeds)
    side = pixel_values.shape[-1]
    stride = window if stride is None else stride
    if not 0 < stride <= window <= side:
        raise ValueError(
            f"`stride` {stride} must be at most `window` {window}, and `window` at most the image side, {side} pixels."
        )
    starts = [*range(0, side - window, stride), side - window]
    total = pixel_values.new_zeros(len(pixel_values), len(text_embeds), side, side, dtype=torch.float32)
    coverage = total.new_zeros(side, side)
    for y in starts:
        for x in starts:
            area = (..., slice(y, y + window), slice(x, x + window))
            cosines = dense_cosines(model, pixel_values[area], text_embeds)
            total[area] += interpolate(cosines, size=(window, window), mode="bilinear", align_corners=False)
            coverage[area] += 1
    return total.div_(coverage)


def segment(
    model: DenseVLMModel,
    pixel_values: Tensor,
    text_embeds: Tensor,
    sizes: Sequence[tuple[int, int]],
    window: int | None = None,
    stride: int | None = None,
    **options: Any,
) -> list[Tensor]:
    """
    Segments a batch of images: the category with the largest cosine at each pixel.

    Args:
        model ([`DenseVLMModel`]): the model.
        pixel_values (`Tensor` of shape `(batch, 3, side, side)`): normalized, padded images.
        text_embeds (`Tensor` of shape `(categories, dim)`): category embeddings of unit norm.
        sizes (sequence of `(height, width)`): original sizes of the images in pixels.
        window (`int`, *optional*): side of sliding windows, see [`dense_cosines`].
        stride (`int`, *optional*): distance between windows, see [`dense_cosines`].
        options: keyword arguments of [`label_pixels`].

    Returns:
        List of `Tensor` of shape `(height, width)`, category indices.
    """
    if window is not None:
        # Windows give cosines at image resolution: one image at a time, to limit memory.
        per_image = (dense_cosines(model, one[None], text_embeds, window, stride)[0] for one in pixel_values)
        return [label_pixels(cosines, size, **options) for cosines, size in zip(per_image, sizes)]
    cosines = dense_cosines(model, pixel_values, text_embeds)
    return [label_pixels(one, size, **options) for one, size in zip(cosines, sizes)]


__all__ = ["dense_cosines", "label_pixels", "segment"]
