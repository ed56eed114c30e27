# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Coordinates of an image on its canvas, the padded image that the model receives, and the conversion of boxes, masks and
labels between the two.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad


MAX_CHUNK_ELEMENTS = 2**26
"""Limit on the elements in memory while the scores of all categories are upsampled, a chunk at a time."""

MAX_TINY_SIDE = 4
"""In pixels. On images with a longer side than this, boxes within 0..1 are taken for fractions and refused."""


def content_extent(width: int, height: int) -> tuple[float, float]:
    """
    Fraction of the padded square that an image covers, `(width, height) / longest side`. It is exact rather than
    derived from rounded pixels, so that it denotes the same place for every tower and input size.

    Args:
        width (`int`): of the image, in pixels.
        height (`int`): of the image, in pixels.

    Returns:
        `tuple[float, float]`: fractions of the canvas's width and height.
    """
    longest = max(width, height)
    return width / longest, height / longest


def scaled(length: int, scale: float) -> int:
    """A side length in pixels (or cells of a map) at another scale, rounded, at least 1."""
    return max(int(length * scale + 0.5), 1)


def pad_image(content: Tensor, height: int, width: int) -> Tensor:
    """Pads `(channels, h, w)` with zeros at the right and bottom; the result is channels-last in memory."""
    canvas = content.new_zeros(height, width, len(content)).permute(2, 0, 1)
    canvas[:, : content.shape[1], : content.shape[2]] = content
    return canvas


def masks_to_map(masks: Tensor, content: tuple[int, int], map_size: tuple[int, int]) -> Tensor:
    r"""
    Resizes masks to the resolution of the dense map.

    As in the reference, the full mask is resized once, bicubically and without antialiasing, to the size
    of the image on the map, and cells with a value above 0 belong to the mask. (Antialiasing, the default of newer
    torchvision, gives clearly different masks: mean IoU 0.27.)

    Args:
        masks (`torch.Tensor` of shape `(n, height, width)`): bool, at the resolution of the image.
        content (`tuple[int, int]`): height and width of the image on the map, in cells.
        map_size (`tuple[int, int]`): height and width of the map, in cells.

    Returns:
        `torch.Tensor` of shape `(n, *map_size)`, bool; the padding is `False`.
    """
    if len(masks) == 0:
        return masks.new_zeros(0, *map_size, dtype=torch.bool)
    small = interpolate(masks[:, None].float(), size=content, mode="bicubic", align_corners=False)[:, 0] > 0
    return pad(small, (0, map_size[1] - content[1], 0, map_size[0] - content[0]))


def boxes_on_canvas(
    boxes: Sequence[Any], sizes: Sequence[tuple[int, int]], canvases: Sequence[tuple[int, int]]
) -> list[Tensor]:
    r"""
    Converts boxes from pixels of the image to fractions of the map, which covers the canvas.

    Args:
        boxes (sequence of one array of shape `(n_i, 4)` per image): xyxy in pixels of the image.
        sizes (sequence of `tuple[int, int]`): width and height of each image, in pixels.
        canvases (sequence of `tuple[int, int]`): width and height of each canvas, in pixels of its image.

    Returns:
        `list[torch.Tensor]`: one tensor of shape `(n_i, 4)` per image, float32.

    Raises:
        `ValueError` for an invalid box, naming the image, the box and the remedy.
    """
    _check_one_per_image("boxes", boxes, len(sizes), "boxes=[[[x0, y0, x1, y1], …], …]")
    converted = []
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
        converted.append((inside / inside.new_tensor([*canvas, *canvas])).float())
    return converted


def masks_on_canvas(
    masks: Sequence[Any],
    sizes: Sequence[tuple[int, int]],
    canvases: Sequence[tuple[int, int]],
    map_sizes: Sequence[tuple[int, int]],
) -> list[Tensor]:
    r"""
    Converts masks from the resolution of the image to that of the dense map.

    Args:
        masks (sequence of one array of shape `(n_i, height, width)` per image):
            bool or 0 and 1, at the resolution of the image.
        sizes (sequence of `tuple[int, int]`): width and height of each image, in pixels.
        canvases (sequence of `tuple[int, int]`): width and height of each canvas, in pixels of its image.
        map_sizes (sequence of `tuple[int, int]`): height and width of each dense map, in cells.

    Returns:
        `list[torch.Tensor]`: one tensor of shape `(n_i, *map_size)` per image, bool.

    Raises:
        `ValueError` for an invalid mask, naming the image, the mask and the remedy.
    """
    _check_one_per_image("masks", masks, len(sizes), "masks=[array (n, height, width), …]")
    converted = []
    for number, (given, size, canvas, map_size) in enumerate(zip(masks, sizes, canvases, map_sizes)):
        full = _as_masks(given, size, number)
        content = scaled(size[1], map_size[0] / canvas[1]), scaled(size[0], map_size[1] / canvas[0])
        small = masks_to_map(full, content, map_size)
        vanished = (~small.flatten(1).any(1)).nonzero().flatten().tolist()
        if vanished:
            raise ValueError(
                f"image {number}, mask {vanished[0]}: it covers no cell of the {map_size[1]} x {map_size[0]} map. "
                "Give its box, or a larger `size`."
            )
        converted.append(small)
    return converted


def label_pixels(
    scores: Tensor,
    size: tuple[int, int],
    background: int | None = None,
    threshold: float = 0.0,
    temperature: float = 0.01,
    content: tuple[float, float] | None = None,
    upsampling: str = "bilinear",
) -> Tensor:
    r"""
    Predicts the category of every pixel: upsampling of the scores, then the argmax, a chunk of categories at
    a time.

    Args:
        scores (`torch.Tensor` of shape `(categories, height, width)`): scores (cosines or logits) of a whole canvas.
        size (`tuple[int, int]`): height and width of the image, in pixels.
        background (`int`, *optional*):
            Index of a background category, whose own scores are ignored: a pixel gets it where the highest probability
            of all other categories is below `threshold`.
        threshold (`float`, *optional*, defaults to 0.0): minimum probability of the other categories.
        temperature (`float`, *optional*, defaults to 0.01): of the softmax that gives these probabilities.
        content (`tuple[float, float]`, *optional*):
            Fractions of the canvas's width and height that the image covers; by default those of a padded square.
        upsampling (`str`, *optional*, defaults to `"bilinear"`): as in [`upsample`].

    Returns:
        `torch.Tensor` of shape `size`, int64: category indices.
    """
    canvas = canvas_size(size, content)
    others = [index for index in range(len(scores)) if index != background]
    best = scores.new_full(size, -torch.inf)
    labels = torch.zeros(size, dtype=torch.long, device=scores.device)
    total = scores.new_full(size, -torch.inf)
    count = max(min(16, MAX_CHUNK_ELEMENTS // (canvas[0] * canvas[1])), 1)  # all at once could exhaust memory
    for chunk in torch.tensor(others, device=scores.device).split(count):
        upsampled = upsample(scores[chunk], size, canvas, upsampling)
        values, indices = upsampled.max(0)
        labels = torch.where(values > best, chunk[indices], labels)
        best = torch.maximum(best, values)
        if background is not None:
            total = torch.logaddexp(total, (upsampled / temperature).logsumexp(0))
    if background is not None:
        labels[(best / temperature - total).exp() < threshold] = background
    return labels


def canvas_size(size: tuple[int, int], content: tuple[float, float] | None = None) -> tuple[int, int]:
    """Height and width of the canvas of an image of size `(height, width)`, in pixels of the image."""
    if content is None:
        return max(size), max(size)
    return round(size[0] / float(content[1])), round(size[1] / float(content[0]))


UPSAMPLING = ("bilinear", "bicubic", "nearest")


def upsample(scores: Tensor, size: tuple[int, int], canvas: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """
    Scores `(categories, height, width)` of a canvas at the resolution of the image, with the padding cropped; `mode`
    is one of `UPSAMPLING`.
    """
    if mode not in UPSAMPLING:
        raise ValueError(f"`upsampling` is one of {', '.join(UPSAMPLING)}, got {mode!r}.")
    exact = {"mode": "nearest-exact"} if mode == "nearest" else {"mode": mode, "align_corners": False}
    upsampled = interpolate(scores[None], size=canvas, **exact)
    return upsampled[0, :, : size[0], : size[1]]


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
        array = np.array(given)  # raises for lists of different lengths
        if array.dtype.kind not in "buif":
            raise ValueError(f"values of type {array.dtype}")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{message}: {str(error).splitlines()[0]}") from None
    return array


def _check_boxes(boxes: Tensor, size: tuple[int, int], number: int) -> None:
    """Raises a `ValueError` for the first invalid box of an image, of `(n, 4)` in pixels."""

    def refuse(wrong: Tensor, reason: str) -> None:
        index = int(wrong.nonzero()[0])
        values = ", ".join(f"{value:g}" for value in boxes[index].tolist())
        raise ValueError(f"image {number}, box {index} [{values}]: {reason}")

    width, height = size
    x0, y0, x1, y1 = boxes.unbind(-1)
    if (wrong := ~boxes.isfinite().all(-1)).any():
        refuse(wrong, "its coordinates are not finite. Leave it out.")
    if len(boxes) and max(size) > MAX_TINY_SIDE and boxes.min() >= 0 and boxes.max() <= 1:
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
    # Detectors may exceed the border by rounding, by less than a pixel: only the part inside the image matters.
    inside = torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height, width, height]))
    if (wrong := ((inside[:, 2:] - inside[:, :2]) < 1 - 1e-6).any(-1)).any():
        refuse(wrong, "it is smaller than a pixel. Leave it out, or enlarge it.")


def _as_masks(given: Any, size: tuple[int, int], number: int) -> Tensor:
    """The masks of an image as bool `(n, height, width)`; raises a `ValueError` for invalid ones."""
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
    "canvas_size",
    "content_extent",
    "label_pixels",
    "masks_on_canvas",
    "masks_to_map",
    "pad_image",
    "scaled",
    "upsample",
]
