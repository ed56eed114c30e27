"""Semantic segmentation without training: at every pixel the category whose embedding is nearest to the dense map."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from modeling_densevlm import DenseVLMModel


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


def label_pixels(
    cosines: Tensor,
    size: tuple[int, int],
    background: int | None = None,
    threshold: float = 0.0,
    temperature: float = 0.01,
) -> Tensor:
    r"""
    The best category of every pixel: cosines enlarged bilinearly, then the maximum.

    Args:
        cosines (`Tensor` of shape `(categories, height, width)`): of a padded square.
        size (`(int, int)`): height and width of the image in it.
        background (`int`, *optional*):
            A category that is not looked for by its name: it is what all others are unsure of, where the best
            probability (softmax of cosines over `temperature`) is below `threshold`.

    Returns:
        `Tensor` of shape `size`, int64: indices of categories.
    """
    side = max(size)
    others = [index for index in range(len(cosines)) if index != background]
    best = cosines.new_full(size, -torch.inf)
    labels = torch.zeros(size, dtype=torch.long, device=cosines.device)
    total = cosines.new_full(size, -torch.inf)
    for chosen in torch.tensor(others, device=cosines.device).split(16):  # all at once would fill the memory
        large = interpolate(cosines[chosen][None], size=(side, side), mode="bilinear", align_corners=False)
        large = large[0, :, : size[0], : size[1]]
        values, indices = large.max(0)
        labels = torch.where(values > best, chosen[indices], labels)
        best = torch.maximum(best, values)
        if background is not None:
            total = torch.logaddexp(total, (large / temperature).logsumexp(0))
    if background is not None:
        labels[(best / temperature - total).exp() < threshold] = background
    return labels


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
