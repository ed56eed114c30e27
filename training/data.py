"""Images in, `{"pixel_values", "boxes", ...}` out. No annotation is read, only which images there are."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from modeling_densevlm import DenseVLMImageProcessor
from modeling_densevlm.canvas import content_extent, pad_image, scaled
from modeling_densevlm.image_processing_densevlm import load_image, load_reduced
from modeling_densevlm.worker_batches import to_shared_memory

from .images.sources import UnreadableImage, name_of, read_bytes
from .regions import content_grid, grid_shape, sample_rng
from .teacher_cache import TeacherCache


SMALLEST_SIDE = 10
"""Images with a shorter side (in pixels) are skipped: a grid over them shows nothing."""


class RegionDataset(torch.utils.data.Dataset):
    r"""
    One sample an image: its pixels and the boxes of a random grid.

    Args:
        index ([`datasets.Dataset`]): of [`open_source`], or several joined.
        image_processor ([`DenseVLMImageProcessor`]): the student's.
        teacher_image_processor ([`DenseVLMImageProcessor`], *optional*):
            Given where the teacher's differs (size, mean, standard deviation).
        max_grid (`int`, *optional*, defaults to 6): rows and columns are drawn from 1..`max_grid`.
        crops (`int`, *optional*, defaults to 0):
            Keep so many random boxes and give the image cut to each as well (CLIPSelf needs them, DenseVLM does not).
        retrieval ([`TeacherCache`], *optional*): what the teacher said of each image, found before the run.
        seed (`int`, *optional*, defaults to 0): with the visit and the sample's id, the source of every choice.
    """

    def __init__(
        self,
        index: datasets.Dataset,
        image_processor: DenseVLMImageProcessor,
        teacher_image_processor: DenseVLMImageProcessor | None = None,
        max_grid: int = 6,
        crops: int = 0,
        retrieval: TeacherCache | None = None,
        seed: int = 0,
    ):
        self.index = index
        self.image_processor = image_processor
        self.teacher_image_processor = teacher_image_processor
        self.max_grid = max_grid
        self.crops = crops
        self.retrieval = retrieval
        self.seed = seed

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """
        The sample of `(visit, index)`, the pairs of [`EpochSampler`]: `pixel_values` `(3, side, side)` in bytes,
        `boxes` `(regions, 4)`, `num_regions`, `name`, and where asked for `teacher_pixel_values`, `crop_pixel_values`
        `(regions, 3, side, side)` and `retrieved`; or `{"skipped": "file: reason"}`; or `{}` for index -1.
        """
        visit, number = key
        if number < 0:
            return {}
        row = self.index[number]
        try:
            image, size, content = read_image(row, None if self.crops else self._largest_side())
            rng = sample_rng(self.seed, visit, row["id"])
            rows, columns = grid_shape(rng, self.max_grid)
            found = self.retrieval.look_up(number, content, rows, columns) if self.retrieval else None
        except UnreadableImage as error:
            return {"skipped": str(error)}
        boxes = content_grid(rows, columns, content_extent(*size))
        sample: dict[str, Any] = {"name": name_of(row), "pixel_values": to_bytes(image, self._side())}
        if self._side("teacher") != self._side():
            sample["teacher_pixel_values"] = to_bytes(image, self._side("teacher"))
        if self.crops:
            boxes = boxes[torch.from_numpy(np.sort(rng.permutation(len(boxes))[: self.crops]))]
            crops = [to_bytes(crop, self._side("teacher")) for crop in cut(image, boxes)]
            sample["crop_pixel_values"] = torch.stack(crops)
        sample |= {"num_regions": len(boxes), "boxes": boxes}
        if found is not None:
            kept, sample["retrieved"] = found
            sample["boxes"] = boxes[kept]
        return sample

    def _largest_side(self) -> int:
        """Of all who look or have looked: kept answers change nothing of what the student is shown."""
        asked = self.retrieval.description.get("teacher_image_size", 0) if self.retrieval else 0
        return max(self._side(), self._side("teacher"), asked)

    def _side(self, role: str = "student") -> int:
        teacher = self.teacher_image_processor if role == "teacher" else None
        return (teacher or self.image_processor).size["longest_edge"]


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
    """

    def __init__(self, dataset: RegionDataset):
        self.dataset = dataset

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        good = [sample for sample in samples if "pixel_values" in sample] or [self._blank()]
        batch: dict[str, Any] = {"skipped": [sample["skipped"] for sample in samples if "skipped" in sample]}
        for key in good[0]:
            values = [sample[key] for sample in good]
            if key == "retrieved":
                batch[key] = {name: torch.cat([value[name] for value in values]) for name in values[0]}
            elif key == "crop_pixel_values":
                batch[key] = torch.cat(values)
            else:
                batch[key] = torch.stack(values) if "pixel_values" in key else values
        return to_shared_memory(batch)

    def _blank(self) -> dict[str, Any]:
        def black(side: int) -> Tensor:
            return torch.zeros(side, side, 3, dtype=torch.uint8).permute(2, 0, 1)

        side, teacher_side = self.dataset._side(), self.dataset._side("teacher")
        sample = {"name": "", "num_regions": 0, "pixel_values": black(side), "boxes": torch.zeros(0, 4)}
        if teacher_side != side:
            sample["teacher_pixel_values"] = black(teacher_side)
        if self.dataset.crops:
            sample["crop_pixel_values"] = black(teacher_side)[None][:0]
        if self.dataset.retrieval is not None:
            sample["retrieved"] = self.dataset.retrieval.nothing()
        return sample


__all__ = ["RegionCollator", "RegionDataset", "read_image"]
