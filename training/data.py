# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
From rows of an index to `{"pixel_values", "boxes", ...}`: the regions are the cells of a random grid per image (Sec.
3.2). No annotations are needed.
"""

import hashlib
from collections.abc import Sequence
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from fsspec.core import url_to_fs
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from modeling_densevlm import DenseVLMImageProcessor
from modeling_densevlm.canvas import content_extent, pad_image, scaled
from modeling_densevlm.image_processing_densevlm import load_image, load_reduced
from modeling_densevlm.region_pooling import grid_boxes
from modeling_densevlm.worker_batches import to_shared_memory

from .images.addresses import is_address
from .images.parquet_rows import read_parquet
from .images.sources import UnreadableImage, as_index


SMALLEST_SIDE = 10
"""Images with a shorter side (in pixels) are skipped: they are too small for a grid."""


class LoadedImage(NamedTuple):
    """An image of an index with its random grid."""

    name: str
    image: Image.Image
    size: tuple[int, int]
    """Width and height in the file; `image` may have been decoded at a lower resolution."""
    content: bytes
    """The encoded file."""
    grid: tuple[int, int]
    """Rows and columns."""
    rng: np.random.Generator


class RegionDataset(torch.utils.data.Dataset):
    r"""
    One sample per image: its pixels and the boxes of a random grid.

    Args:
        index ([`datasets.Dataset`]): an index of [`open_source`], or several concatenated.
        image_processor ([`DenseVLMImageProcessor`]): of the student.
        teacher_image_processor ([`DenseVLMImageProcessor`], *optional*):
            Of the teacher, if its size differs from the student's.
        max_grid (`int`, *optional*, defaults to 6):
            The number of rows and of columns is drawn from 1..`max_grid`.
        crops (`int`, *optional*, defaults to 0):
            If positive, keep that many random boxes and return the crop of each (for CLIPSelf).
        crop_size (`int`, *optional*): side of the crops in pixels. Defaults to that of the teacher's images.
        seed (`int`, *optional*, defaults to 0):
            Every random choice is derived from the seed, the visit and the sample's id.
        decoded_side (`int`, *optional*, defaults to 0):
            Least side in pixels at which images are decoded, where that exceeds both models' sides.
    """

    def __init__(
        self,
        index: datasets.Dataset,
        image_processor: DenseVLMImageProcessor,
        teacher_image_processor: DenseVLMImageProcessor | None = None,
        max_grid: int = 6,
        crops: int = 0,
        crop_size: int | None = None,
        seed: int = 0,
        decoded_side: int = 0,
    ):
        self.index = index
        self.side = image_processor.size["longest_edge"]
        self.teacher_side = (teacher_image_processor or image_processor).size["longest_edge"]
        self.decoded_side = None if crops else max(self.side, self.teacher_side, decoded_side)
        self.max_grid = max_grid
        self.crops = crops
        self.crop_size = crop_size or self.teacher_side
        self.seed = seed

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """
        The sample of `(visit, index)`, the pairs of [`EpochSampler`].

        Returns:
            `pixel_values` `(3, side, side)` uint8, `boxes` `(regions, 4)`, `num_regions`, `name`, and where needed
            `teacher_pixel_values` `(3, teacher_side, teacher_side)` and `crop_pixel_values` `(regions, 3, crop_size,
            crop_size)`; or `{"skipped": "file: reason"}`; or `{}` for index -1.
        """
        visit, number = key
        if number < 0:
            return {}
        try:
            return self.to_sample(self.load(visit, number))
        except UnreadableImage as error:
            return {"skipped": str(error)}

    def load(self, visit: int, number: int) -> LoadedImage:
        """Reads an image and draws its grid. Raises `UnreadableImage` if it cannot be read."""
        row = self.index[number]
        image, size, content = read_image(row, self.decoded_side)
        rng = sample_rng(self.seed, visit, row["id"])
        return LoadedImage(image_name(row), image, size, content, grid_shape(rng, self.max_grid), rng)

    def to_sample(self, loaded: LoadedImage) -> dict[str, Any]:
        """Resizes, pads and crops a loaded image into the sample described in `__getitem__`."""
        image = loaded.image
        boxes = content_grid(*loaded.grid, content_extent(*loaded.size))
        sample: dict[str, Any] = {"name": loaded.name, "pixel_values": resize_and_pad(image, self.side)}
        if self.teacher_side != self.side:
            sample["teacher_pixel_values"] = resize_and_pad(image, self.teacher_side)
        if self.crops:
            boxes = boxes[torch.from_numpy(np.sort(loaded.rng.permutation(len(boxes))[: self.crops]))]
            crops = [resize_and_pad(crop, self.crop_size) for crop in crop_boxes(image, boxes)]
            sample["crop_pixel_values"] = torch.stack(crops)
        return sample | {"num_regions": len(boxes), "boxes": boxes}

    def blank(self) -> dict[str, Any]:
        """The sample of a black image without boxes."""

        def black(side: int) -> Tensor:
            return torch.zeros(side, side, 3, dtype=torch.uint8).permute(2, 0, 1)

        sample = {"name": "", "num_regions": 0, "pixel_values": black(self.side), "boxes": torch.zeros(0, 4)}
        if self.teacher_side != self.side:
            sample["teacher_pixel_values"] = black(self.teacher_side)
        if self.crops:
            sample["crop_pixel_values"] = black(self.crop_size)[None][:0]
        return sample


def sample_rng(seed: int, epoch: int, sample_id: str) -> np.random.Generator:
    """
    The random generator of one sample in one epoch. It depends neither on the worker or rank that reads the sample nor
    on the samples before it, so that a resumed or differently distributed run draws the same numbers.
    """
    number = int.from_bytes(hashlib.blake2b(str(sample_id).encode(), digest_size=8).digest(), "big")
    return np.random.default_rng((seed, epoch, number))


def grid_shape(rng: np.random.Generator, max_grid: int = 6) -> tuple[int, int]:
    """The numbers of rows and columns, drawn independently from 1..`max_grid` (Sec. 3.2)."""
    rows, columns = (int(n) for n in rng.integers(1, max_grid + 1, size=2))
    return rows, columns


def content_grid(rows: int, columns: int, content_extent: tuple[float, float]) -> Tensor:
    """
    The boxes of a grid over an image's content.

    Args:
        rows (`int`): number of rows.
        columns (`int`): number of columns.
        content_extent (`tuple[float, float]`):
            Width and height of the image's content as fractions of the canvas; the grid spans exactly that.

    Returns:
        `Tensor` of shape `(rows * columns, 4)`: xyxy as fractions of the map, which covers the canvas.
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
    """Wraps a [`datasets.Dataset`] in a [`RegionDataset`]; returns any other dataset unchanged."""
    if train_dataset is None:
        raise ValueError("`train_dataset` is missing: images in a `datasets.Dataset`, or an index of `open_source`.")
    if isinstance(train_dataset, str | PathLike):
        source = f"open_source(Source({str(train_dataset)!r}))"
        raise ValueError(f"`train_dataset` is a dataset, got {train_dataset!r}: open the images by `{source}`.")
    if not isinstance(train_dataset, datasets.Dataset):
        return train_dataset
    return RegionDataset(as_index(train_dataset), image_processor, teacher_image_processor, **options)


def read_image(row: dict[str, Any], side: int | None) -> tuple[Image.Image, tuple[int, int], bytes]:
    """
    Reads and decodes the image of a row of an index.

    Args:
        row (`dict`): a row of an index of [`open_source`].
        side (`int`, *optional*): pixels at which the image will be used. JPEGs may be decoded at a lower resolution
            that is at least this; None decodes in full.

    Returns:
        The image, its (width, height) in the file, and the encoded file.

    Raises:
        `UnreadableImage` that names the image and the reason, for any kind of failure.
    """
    try:
        content = read_bytes(row)
        if side is not None:
            image, size = load_reduced(BytesIO(content), side)
        else:
            image = load_image(BytesIO(content))
            size = image.size
    except Exception as error:  # decoders raise all kinds of errors for damaged files
        raise UnreadableImage(f"{image_name(row)}: {type(error).__name__}: {error}") from error
    if min(size) < SMALLEST_SIDE:
        raise UnreadableImage(f"{image_name(row)}: {size[0]} x {size[1]} pixels are too few")
    return image, size, content


def read_bytes(row: dict[str, Any]) -> bytes:
    """Reads the encoded image of a row of an index. Raises `OSError` or `ValueError` if that fails."""
    if "image" in row:
        return row["image"]["bytes"] or Path(row["image"]["path"]).read_bytes()
    if row["error"]:
        raise OSError(row["error"])
    if row["column"]:
        return read_parquet(row["file"], row["group"], row["offset"], row["column"])
    if not is_address(row["file"]):
        with open(row["file"], "rb") as file:
            if row["size"] < 0:
                return file.read()
            file.seek(row["offset"])
            content = file.read(row["size"])
    else:
        files, path = url_to_fs(row["file"])
        if row["size"] < 0:
            return files.cat_file(path)
        content = files.cat_file(path, start=row["offset"], end=row["offset"] + row["size"])
    if len(content) < row["size"]:
        raise OSError(f"{len(content)} bytes of {row['size']} are there: the file has shrunk since it was indexed")
    return content


def image_name(row: dict[str, Any]) -> str:
    """The name of an image in messages: its file, and its id in a tar or Parquet file."""
    is_part = "image" not in row and (row["size"] >= 0 or row["column"])
    return f"{row['file']}: {row['id']}" if is_part else row["file"]


def resize_and_pad(image: Image.Image, side: int) -> Tensor:
    """
    The geometric steps of [`DenseVLMImageProcessor`]: resizes the longest side to `side` and pads to a square, uint8
    `(3, side, side)`. Normalisation is left to the GPU: uint8 is a quarter of the bytes to transfer.

    The resize is torch's, which is four times as fast as Pillow's with the same filter; few pixels differ, by one or
    two grey levels at most.
    """
    width, height = (scaled(length, side / max(image.size)) for length in image.size)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    resized = interpolate(pixels, (height, width), mode="bicubic", antialias=True)[0]
    return pad_image(resized, side, side)


def crop_boxes(image: Image.Image, boxes: Tensor) -> list[Image.Image]:
    """Crops an image to each box (fractions of the map) and stretches the crops to squares."""
    longest = max(image.size)
    crops = [image.crop(_whole_pixels(box * longest, image.size)) for box in boxes]
    return [crop.resize((max(crop.size),) * 2, Image.Resampling.BICUBIC) for crop in crops]


def _whole_pixels(box: Tensor, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box rounded to pixels of the image, at least one pixel wide and high."""
    x0, y0, x1, y1 = (round(value) for value in box.tolist())
    x0, y0 = min(x0, size[0] - 1), min(y0, size[1] - 1)
    return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)


class RegionCollator:
    """
    Collates samples: images are stacked, `boxes` is a list of tensors, `skipped` a list of messages. A batch in which
    every sample was skipped becomes one black image without boxes, so that all ranks take part in every step; its loss
    and gradients are zero.

    Args:
        dataset ([`RegionDataset`] or a dataset around it): its method `blank` provides that image.
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


__all__ = ["RegionCollator", "RegionDataset", "as_region_dataset", "image_name", "read_bytes", "read_image"]
