# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Semantic segmentation without training: at every pixel the category whose embedding is nearest to the dense map."""

from collections.abc import Sequence

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
    The cosine of every location with every category.

    Args:
        pixel_values (`Tensor` of shape `(batch, 3, side, side)`).
        text_embeds (`Tensor` of shape `(categories, dim)`): unit norm.
        window, stride (`int`, *optional*):
            Look at windows of so many pixels, so many pixels apart, instead of at the whole image at once, and take
            the mean where they overlap. The last ones end at the border.

    Returns:
        `Tensor` of shape `(batch, categories, height, width)`: at the map's resolution, or at the image's where there
        are windows.
    """
    if window is None:
        return torch.einsum("bdhw,cd->bchw", model.get_dense_features(pixel_values).float(), text_embeds)
    side = pixel_values.shape[-1]
    stride = window if stride is None else stride
    if not 0 < stride <= window <= side:
        raise ValueError(
            f"`stride` {stride} is at most `window` {window}, and that at most the image's {side} pixels."
        )
    starts = [*range(0, side - window, stride), side - window]
    total = pixel_values.new_zeros(len(pixel_values), len(text_embeds), side, side, dtype=torch.float32)
    seen = total.new_zeros(side, side)
    for y in starts:
        for x in starts:
            place = (..., slice(y, y + window), slice(x, x + window))
            cosines = dense_cosines(model, pixel_values[place], text_embeds)
            total[place] += interpolate(cosines, size=(window, window), mode="bilinear", align_corners=False)
            seen[place] += 1
    return total.div_(seen)


def segment(
    model: DenseVLMModel,
    pixel_values: Tensor,
    text_embeds: Tensor,
    sizes: Sequence[tuple[int, int]],
    window: int | None = None,
    stride: int | None = None,
    **options: int | float | None,
) -> list[Tensor]:
    """[`label_pixels`] of each image of a batch of padded squares, whose images have these `sizes` in pixels."""
    if window is not None:
        # At the resolution of the image: one at a time, or a batch of them would fill the memory.
        one_each = (dense_cosines(model, one[None], text_embeds, window, stride)[0] for one in pixel_values)
        return [label_pixels(cosines, size, **options) for cosines, size in zip(one_each, sizes)]
    cosines = dense_cosines(model, pixel_values, text_embeds)
    return [label_pixels(one, size, **options) for one, size in zip(cosines, sizes)]


__all__ = ["dense_cosines", "label_pixels", "segment"]
