# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Images in, `{"pixel_values", "boxes", ...}` out: the regions that are aligned are the cells of a random grid. No
annotation is read, only which images there are.
"""

import hashlib
from collections.abc import Sequence
from io import BytesIO
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from modeling_densevlm import DenseVLMImageProcessor
from modeling_densevlm.canvas import content_extent, pad_image, scaled
from modeling_densevlm.image_processing_densevlm import load_image, load_reduced
from modeling_densevlm.region_pooling import grid_boxes
from modeling_densevlm.worker_batches import to_shared_memory

from .images.sources import UnreadableImage, as_index, name_of, read_bytes


SMALLEST_SIDE = 10
"""Images with a shorter side (in pixels) are skipped: a grid over them shows nothing."""


class LoadedImage(NamedTuple):
    """An image of an index and the grid that is drawn over it."""

    name: str
    image: Image.Image
    size: tuple[int, int]
    """Width and height in the file; `image` may have been decoded smaller."""
    content: bytes
    """The file."""
    grid: tuple[int, int]
    """Rows and columns."""
    rng: np.random.Generator


class RegionDataset(torch.utils.data.Dataset):
    r"""
    One sample per image: its pixels and the boxes of a random grid.

    Args:
        index ([`datasets.Dataset`]): of [`open_source`], or several joined.
        image_processor ([`DenseVLMImageProcessor`]): the student's.
        teacher_image_processor ([`DenseVLMImageProcessor`], *optional*):
            Given where the teacher's differs (size, mean, standard deviation).
        max_grid (`int`, *optional*, defaults to 6): rows and columns are drawn from 1..`max_grid`.
        crops (`int`, *optional*, defaults to 0):
            Keep N random boxes and give the image cut to each as well (CLIPSelf needs them, DenseVLM does not).
        seed (`int`, *optional*, defaults to 0): with the visit and the sample's id, the source of every choice.
        decoded_side (`int`, *optional*, defaults to 0): decode for a use at this many pixels at least.
    """

    def __init__(
        self,
        index: datasets.Dataset,
        image_processor: DenseVLMImageProcessor,
        teacher_image_processor: DenseVLMImageProcessor | None = None,
        max_grid: int = 6,
        crops: int = 0,
        seed: int = 0,
        decoded_side: int = 0,
    ):
        self.index = index
        self.side = image_processor.size["longest_edge"]
        self.teacher_side = (teacher_image_processor or image_processor).size["longest_edge"]
        self.decoded_side = None if crops else max(self.side, self.teacher_side, decoded_side)
        self.max_grid = max_grid
        self.crops = crops
        self.seed = seed

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """
        The sample of `(visit, index)`, the pairs of [`EpochSampler`]: `pixel_values` `(3, side, side)` in bytes,
        `boxes` `(regions, 4)`, `num_regions`, `name`, and where needed `teacher_pixel_values` and `crop_pixel_values`
        `(regions, 3, side, side)`; or `{"skipped": "file: reason"}`; or `{}` for index -1.
        """
        visit, number = key
        if number < 0:
            return {}
        try:
            return self.to_sample(self.load(visit, number))
        except UnreadableImage as error:
            return {"skipped": str(error)}

    def load(self, visit: int, number: int) -> LoadedImage:
        """Reads an image and draws its grid; `UnreadableImage` where that cannot be."""
        row = self.index[number]
        image, size, content = read_image(row, self.decoded_side)
        rng = sample_rng(self.seed, visit, row["id"])
        return LoadedImage(name_of(row), image, size, content, grid_shape(rng, self.max_grid), rng)

    def to_sample(self, loaded: LoadedImage) -> dict[str, Any]:
        image = loaded.image
        boxes = content_grid(*loaded.grid, content_extent(*loaded.size))
        sample: dict[str, Any] = {"name": loaded.name, "pixel_values": to_bytes(image, self.side)}
        if self.teacher_side != self.side:
            sample["teacher_pixel_values"] = to_bytes(image, self.teacher_side)
        if self.crops:
            boxes = boxes[torch.from_numpy(np.sort(loaded.rng.permutation(len(boxes))[: self.crops]))]
            crops = [to_bytes(crop, self.teacher_side) for crop in cut(image, boxes)]
            sample["crop_pixel_values"] = torch.stack(crops)
        return sample | {"num_regions": len(boxes), "boxes": boxes}

    def blank(self) -> dict[str, Any]:
        """A black image without a box."""

        def black(side: int) -> Tensor:
            return torch.zeros(side, side, 3, dtype=torch.uint8).permute(2, 0, 1)

        sample = {"name": "", "num_regions": 0, "pixel_values": black(self.side), "boxes": torch.zeros(0, 4)}
        if self.teacher_side != self.side:
            sample["teacher_pixel_values"] = black(self.teacher_side)
        if self.crops:
            sample["crop_pixel_values"] = black(self.teacher_side)[None][:0]
        return sample


def sample_rng(seed: int, epoch: int, sample_id: str) -> np.random.Generator:
    """
    Random numbers that belong to one sample in one epoch. They depend neither on the worker or rank that reads the
    sample nor on what was read before, so that a resumed or differently distributed run draws the same.
    """
    number = int.from_bytes(hashlib.blake2b(str(sample_id).encode(), digest_size=8).digest(), "big")
    return np.random.default_rng((seed, epoch, number))


def grid_shape(rng: np.random.Generator, max_grid: int = 6) -> tuple[int, int]:
    """Rows and columns, drawn independently from 1..`max_grid` (Sec. 3.2)."""
    rows, columns = (int(n) for n in rng.integers(1, max_grid + 1, size=2))
    return rows, columns


def content_grid(rows: int, columns: int, content_extent: tuple[float, float]) -> Tensor:
    """
    The cells of a grid over an image's content.

    Args:
        content_extent (`tuple[float, float]`):
            Width and height of the image's content as fractions of the padded square; the grid spans it exactly.

    Returns:
        `Tensor` of shape `(rows * columns, 4)`: xyxy as fractions of the square.
    """
    width, height = content_extent
    boxes = grid_boxes(rows, columns)
    return boxes * boxes.new_tensor([width, height, width, height])


def as_region_dataset(
    train_dataset: Any,
    image_processor: DenseVLMImageProcessor,
    teacher_image_processor: DenseVLMImageProcessor | None = None,
    **options: Any,
) -> torch.utils.data.Dataset:
    """A [`RegionDataset`] over a [`datasets.Dataset`]; anything else as it stands."""
    if train_dataset is None:
        raise ValueError("`train_dataset` is missing: images in a `datasets.Dataset`, or an index of `open_source`.")
    if not isinstance(train_dataset, datasets.Dataset):
        return train_dataset
    return RegionDataset(as_index(train_dataset), image_processor, teacher_image_processor, **options)


def read_image(row: dict[str, Any], side: int | None) -> tuple[Image.Image, tuple[int, int], bytes]:
    """
    The image of a row of an index, decoded for a use at `side` pixels (in full where None), its size in the file, and
    the file itself.

    Raises:
        `UnreadableImage` that names the image and the reason, whatever the reason is.
    """
    try:
        content = read_bytes(row)
        if side is not None:
            image, size = load_reduced(BytesIO(content), side)
        else:
            image = load_image(BytesIO(content))
            size = image.size
    except Exception as error:  # a damaged file can raise anything in a decoder
        raise UnreadableImage(f"{name_of(row)}: {type(error).__name__}: {error}") from error
    if min(size) < SMALLEST_SIDE:
        raise UnreadableImage(f"{name_of(row)}: {size[0]} x {size[1]} pixels are too few")
    return image, size, content


def to_bytes(image: Image.Image, side: int) -> Tensor:
    """
    What [`DenseVLMImageProcessor`] makes of an image, before it makes floats of it: longest side to `side`, padded to
    a square, uint8 `(3, side, side)`, a view of rows of RGB pixels. Bytes are a quarter of what floats are on the way
    from the workers to the GPU, which is faster than they are at making floats of them.

    The resize is torch's, four times as fast as Pillow's and of the same filter: a pixel differs by one or two grey
    levels at most, and hardly any does.
    """
    width, height = (scaled(length, side / max(image.size)) for length in image.size)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    resized = interpolate(pixels, (height, width), mode="bicubic", antialias=True)[0]
    return pad_image(resized, side, side)


def cut(image: Image.Image, boxes: Tensor) -> list[Image.Image]:
    """The parts of an image under boxes given as fractions of its padded square, each stretched to a square."""
    longest = max(image.size)
    crops = [image.crop(_whole_pixels(box * longest, image.size)) for box in boxes]
    return [crop.resize((max(crop.size),) * 2, Image.Resampling.BICUBIC) for crop in crops]


def _whole_pixels(box: Tensor, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box on whole pixels of the image, one at least."""
    x0, y0, x1, y1 = (round(value) for value in box.tolist())
    x0, y0 = min(x0, size[0] - 1), min(y0, size[1] - 1)
    return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)


class RegionCollator:
    """
    Stacks samples: images into one tensor, `boxes` as a list, `skipped` as a list of messages. A batch in which every
    sample was skipped becomes one black image without a box, so that all ranks take part in every step; its loss and
    gradients are zero.

    Args:
        dataset ([`RegionDataset`], or one around it): gives that image, by its `blank()`.
    """

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        good = [sample for sample in samples if "pixel_values" in sample] or [self.dataset.blank()]
        batch: dict[str, Any] = {"skipped": [sample["skipped"] for sample in samples if "skipped" in sample]}
        for key, first in good[0].items():
            values = [sample[key] for sample in good]
            if isinstance(first, dict):
                batch[key] = {name: torch.cat([value[name] for value in values]) for name in first}
            elif key == "crop_pixel_values":
                batch[key] = torch.cat(values)
            else:
                batch[key] = torch.stack(values) if "pixel_values" in key else values
        return to_shared_memory(batch)


__all__ = ["RegionCollator", "RegionDataset", "as_region_dataset", "read_image"]
