# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Where an image lies on the canvas that the model sees, and boxes, masks and labels from one to the other."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad


LARGEST_CHUNK = 2**26
"""Numbers that are held at a time while the scores of all categories are enlarged."""

FEW_PIXELS = 4
"""Boxes within 0..1 on an image with a longer side than this are fractions, not pixels."""


def content_extent(width: int, height: int) -> tuple[float, float]:
    """
    Which part of the padded square an image covers: `(width, height) / longest side`. The exact fraction, not a
    rounded number of pixels, so that it is the same place for every tower whatever its input size.
    """
    longest = max(width, height)
    return width / longest, height / longest


def scaled(length: int, scale: float) -> int:
    """A side of an image at another scale, in whole pixels (or cells of a map), one at least."""
    return max(int(length * scale + 0.5), 1)


def pad_image(content: Tensor, height: int, width: int) -> Tensor:
    """`(channels, h, w)` with black to the right and below: a view of rows of pixels, as convolutions like it."""
    canvas = content.new_zeros(height, width, len(content)).permute(2, 0, 1)
    canvas[:, : content.shape[1], : content.shape[2]] = content
    return canvas


def masks_to_map(masks: Tensor, content: tuple[int, int], map_size: tuple[int, int]) -> Tensor:
    r"""
    Masks at the resolution of the dense map. One bicubic resize of the full mask to the content's size on the map,
    without antialias, padded with 0; a cell belongs to the mask where the result is above 0. (With antialias, as newer
    torchvision does by default, the masks would be others: mean IoU 0.27.)

    Args:
        masks (`Tensor` of shape `(n, height, width)`): bool, at the image's resolution.
        content (`(int, int)`): height and width of the image on the map.
        map_size (`(int, int)`): height and width of the map.

    Returns:
        `Tensor` of shape `(n, *map_size)`, bool.
    """
    if len(masks) == 0:
        return masks.new_zeros(0, *map_size, dtype=torch.bool)
    small = interpolate(masks[:, None].float(), size=content, mode="bicubic", align_corners=False)[:, 0] > 0
    return pad(small, (0, map_size[1] - content[1], 0, map_size[0] - content[0]))


def boxes_on_canvas(
    boxes: Sequence[Any], sizes: Sequence[tuple[int, int]], canvases: Sequence[tuple[int, int]]
) -> list[Tensor]:
    r"""
    Boxes in pixels as fractions of the canvas.

    Args:
        boxes (sequence with an array `(n_i, 4)` for each image): xyxy in pixels of the image.
        sizes (sequence of `(int, int)`): width and height of each image.
        canvases (sequence of `(int, int)`): width and height of each canvas, in pixels of its image.

    Returns:
        List of tensors `(n_i, 4)`, float32.

    Raises:
        `ValueError` that names the image, the box and the remedy.
    """
    _check_one_per_image("boxes", boxes, len(sizes), "boxes=[[[x0, y0, x1, y1], …], …]")
    found = []
    for number, (given, size, canvas) in enumerate(zip(boxes, sizes, canvases)):
        message = f"image {number}: `boxes[{number}]` is no list of boxes [x0, y0, x1, y1]"
        pixels = torch.from_numpy(_as_array(given, message).astype(np.float64))
        if pixels.numel() == 0:
            pixels = pixels.reshape(0, 4)
        if pixels.ndim != 2 or pixels.shape[1] != 4:
            raise ValueError(
                f"image {number}: `boxes[{number}]` has the shape {tuple(pixels.shape)}. There is one list of boxes "
                "for each image, also for a single one: boxes=[[[x0, y0, x1, y1], …], …]."
            )
        _check_boxes(pixels, size, number)
        inside = torch.minimum(pixels.clamp(min=0), pixels.new_tensor([*size, *size]))
        found.append((inside / inside.new_tensor([*canvas, *canvas])).float())
    return found


def masks_on_canvas(
    masks: Sequence[Any],
    sizes: Sequence[tuple[int, int]],
    canvases: Sequence[tuple[int, int]],
    map_sizes: Sequence[tuple[int, int]],
) -> list[Tensor]:
    r"""
    Masks in pixels at the resolution of the dense map.

    Args:
        masks (sequence with an array `(n_i, height, width)` for each image): bool or 0 and 1, as large as the image.
        sizes, canvases: as of [`boxes_on_canvas`].
        map_sizes (sequence of `(int, int)`): height and width of the map of each canvas.

    Returns:
        List of tensors `(n_i, *map_size)`, bool.

    Raises:
        `ValueError` that names the image, the mask and the remedy.
    """
    _check_one_per_image("masks", masks, len(sizes), "masks=[array (n, height, width), …]")
    found = []
    for number, (given, size, canvas, map_size) in enumerate(zip(masks, sizes, canvases, map_sizes)):
        full = _as_masks(given, size, number)
        content = tuple(scaled(size[1 - axis], map_size[axis] / canvas[1 - axis]) for axis in (0, 1))
        small = masks_to_map(full, content, map_size)
        vanished = (~small.flatten(1).any(1)).nonzero().flatten().tolist()
        if vanished:
            raise ValueError(
                f"image {number}, mask {vanished[0]}: it covers no cell of the {map_size[1]} x {map_size[0]} map. "
                "Give its box, or a larger `size`."
            )
        found.append(small)
    return found


def label_pixels(
    scores: Tensor,
    size: tuple[int, int],
    background: int | None = None,
    threshold: float = 0.0,
    temperature: float = 0.01,
    content: tuple[float, float] | None = None,
) -> Tensor:
    r"""
    The best category of every pixel: scores enlarged bilinearly, then the maximum, a few categories at a time.

    Args:
        scores (`Tensor` of shape `(categories, height, width)`): of a canvas (cosines or logits).
        size (`(int, int)`): height and width of the image on it.
        background (`int`, *optional*):
            A category that is not looked for by its name: it is what all others are unsure of, where the best
            probability (softmax of scores over `temperature`) is below `threshold`.
        content (`(float, float)`, *optional*):
            The part of the canvas that the image covers, width and height; by default that of a padded square.

    Returns:
        `Tensor` of shape `size`, int64: indices of categories.
    """
    canvas = canvas_of(size, content)
    others = [index for index in range(len(scores)) if index != background]
    best = scores.new_full(size, -torch.inf)
    labels = torch.zeros(size, dtype=torch.long, device=scores.device)
    total = scores.new_full(size, -torch.inf)
    count = max(min(16, LARGEST_CHUNK // (canvas[0] * canvas[1])), 1)  # all at once would fill the memory
    for chosen in torch.tensor(others, device=scores.device).split(count):
        large = enlarge(scores[chosen], size, canvas)
        values, indices = large.max(0)
        labels = torch.where(values > best, chosen[indices], labels)
        best = torch.maximum(best, values)
        if background is not None:
            total = torch.logaddexp(total, (large / temperature).logsumexp(0))
    if background is not None:
        labels[(best / temperature - total).exp() < threshold] = background
    return labels


def canvas_of(size: tuple[int, int], content: tuple[float, float] | None = None) -> tuple[int, int]:
    """Height and width of the canvas of an image of this height and width, in pixels of the image."""
    if content is None:
        return max(size), max(size)
    return round(size[0] / float(content[1])), round(size[1] / float(content[0]))


def enlarge(scores: Tensor, size: tuple[int, int], canvas: tuple[int, int]) -> Tensor:
    """Scores `(categories, height, width)` of a canvas at the resolution of the image, without the padding."""
    large = interpolate(scores[None], size=canvas, mode="bilinear", align_corners=False)
    return large[0, :, : size[0], : size[1]]


def _check_one_per_image(name: str, given: Any, images: int, form: str) -> None:
    if not hasattr(given, "__len__") or isinstance(given, str | dict):
        raise ValueError(f"`{name}` has one entry for each image, {form}; got {type(given).__name__}.")
    if len(given) != images:
        raise ValueError(
            f"{images} image{'s' * (images != 1)}, but `{name}` for {len(given)}. There is one entry for each image, "
            f"an empty one where there is none: {form}."
        )


def _as_array(given: Any, message: str) -> np.ndarray:
    if isinstance(given, Tensor):
        return given.detach().cpu().numpy()
    try:
        array = np.array(given)  # a list of lists of different lengths is an error
        if array.dtype.kind not in "buif":
            raise ValueError(f"values of type {array.dtype}")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{message}: {str(error).splitlines()[0]}") from None
    return array


def _check_boxes(boxes: Tensor, size: tuple[int, int], number: int) -> None:
    """Raises a `ValueError` for the first of an image's boxes `(n, 4)` that is none in pixels of the image."""

    def refuse(wrong: Tensor, reason: str) -> None:
        index = int(wrong.nonzero()[0])
        values = ", ".join(f"{value:g}" for value in boxes[index].tolist())
        raise ValueError(f"image {number}, box {index} [{values}]: {reason}")

    width, height = size
    x0, y0, x1, y1 = boxes.unbind(-1)
    if (wrong := ~boxes.isfinite().all(-1)).any():
        refuse(wrong, "its coordinates are not finite. Leave it out.")
    if len(boxes) and max(size) > FEW_PIXELS and boxes.min() >= 0 and boxes.max() <= 1:
        refuse(
            torch.ones(len(boxes)),
            f"these look like fractions, and boxes are in pixels: multiply x by {width} and y by {height}.",
        )
    if (wrong := (x1 < x0) | (y1 < y0)).any():
        refuse(
            wrong,
            "it is reversed. Boxes are x0, y0, x1, y1: swap its corners, or if it is x, y, width, height, add x to "
            "the width and y to the height.",
        )
    if (wrong := (x0 <= -1) | (y0 <= -1) | (x1 >= width + 1) | (y1 >= height + 1)).any():
        refuse(
            wrong,
            f"it reaches outside the image of {width} x {height} pixels (as seen after EXIF turning). Clip it, or "
            "give it in pixels of this image and not of a resized one.",
        )
    # A detector may round by less than a pixel over the border; what counts is what lies inside.
    inside = torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height, width, height]))
    if (wrong := ((inside[:, 2:] - inside[:, :2]) < 1 - 1e-6).any(-1)).any():
        refuse(wrong, "it is smaller than a pixel. Leave it out, or enlarge it.")


def _as_masks(given: Any, size: tuple[int, int], number: int) -> Tensor:
    """The masks of an image, bool `(n, height, width)`; a `ValueError` for what is none."""
    width, height = size
    masks = _as_array(given, f"image {number}: `masks[{number}]` is no array (n, height, width)")
    if masks.shape[:1] == (0,):
        return torch.zeros(0, height, width, dtype=torch.bool)
    if masks.ndim != 3:
        raise ValueError(
            f"image {number}: `masks[{number}]` has the shape {masks.shape}. There is one array (n, height, width) "
            "for each image, also for a single mask: masks=[mask[None]]."
        )
    if masks.shape[1:] != (height, width):
        turned = " They are transposed." if masks.shape[1:] == (width, height) else ""
        raise ValueError(
            f"image {number}: its masks are {masks.shape[1]} x {masks.shape[2]} (height x width), the image as seen "
            f"after EXIF turning is {height} x {width}.{turned} Give masks at the image's resolution."
        )
    for index, mask in enumerate(masks):
        if mask.dtype != bool and not np.isin(mask, (0, 1)).all():
            raise ValueError(
                f"image {number}, mask {index}: values from {mask.min():g} to {mask.max():g}. A mask is bool, or 0 "
                "and 1: give `mask > 0`, or `probabilities > 0.5`."
            )
        if not mask.any():
            raise ValueError(f"image {number}, mask {index}: it is empty. Leave it out.")
    return torch.from_numpy(masks.astype(bool))


__all__ = [
    "boxes_on_canvas",
    "canvas_of",
    "content_extent",
    "enlarge",
    "label_pixels",
    "masks_on_canvas",
    "masks_to_map",
    "pad_image",
    "scaled",
]
