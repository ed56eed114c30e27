"""Images in, `{"pixel_values", "boxes", ...}` out. No annotation is read, only which images there are."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from modeling_densevlm import DenseVLMImageProcessor
from modeling_densevlm.image_processing_densevlm import content_extent, load_image

from .regions import random_grid, sample_rng


IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"}
SMALLEST_SIDE = 10
"""Images with a shorter side (in pixels) are skipped: a grid over them shows nothing."""


def list_images(
    images: str | Path, annotations: str | Path | None = None, max_samples: int | None = None
) -> datasets.Dataset:
    """
    The images of a folder, or those that a COCO annotation file lists.

    Args:
        images (`str` or path): the folder; with `annotations`, the root of their `file_name`s.
        annotations (`str` or path, *optional*): a JSON with `images: [{"id", "file_name"}, ...]`.
        max_samples (`int`, *optional*): only so many, the first ones.

    Returns:
        [`datasets.Dataset`] with the columns `file` (path) and `id` (string), in a fixed order.
    """
    root = Path(images)
    if not root.is_dir():
        raise FileNotFoundError(f"`images`: {root} is no folder.")
    if annotations is None:
        files = sorted(p for p in root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        rows = [(str(file), file.relative_to(root).as_posix()) for file in files]
        if not rows:
            raise ValueError(f"`images`: {root} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}).")
    else:
        rows = [(str(root / record["file_name"]), str(record["id"])) for record in _read_records(Path(annotations))]
        if not any(Path(file).is_file() for file, _ in rows[:1000]):
            raise FileNotFoundError(
                f"`images`: none of the first images that {annotations} lists is under {root}, e.g. {rows[0][0]}."
            )
    rows = rows[:max_samples]
    return datasets.Dataset.from_dict({"file": [file for file, _ in rows], "id": [number for _, number in rows]})


def _read_records(annotations: Path) -> list[dict]:
    if not annotations.is_file():
        raise FileNotFoundError(f"`annotations`: there is no file {annotations}.")
    try:
        records = json.loads(annotations.read_text(encoding="utf-8"))["images"]
        if records and all("file_name" in record and "id" in record for record in records):
            return records
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        pass
    raise ValueError(f'`annotations`: {annotations} has no list `images` of {{"id": ..., "file_name": ...}}.')


class RegionDataset(torch.utils.data.Dataset):
    r"""
    One sample an image: its pixels and the boxes of a random grid.

    Args:
        files ([`datasets.Dataset`]): of [`list_images`].
        image_processor ([`DenseVLMImageProcessor`]): the student's.
        teacher_image_processor ([`DenseVLMImageProcessor`], *optional*):
            Given where the teacher's differs (size, mean, standard deviation).
        max_grid (`int`, *optional*, defaults to 6): rows and columns are drawn from 1..`max_grid`.
        crops (`int`, *optional*, defaults to 0):
            Keep so many random boxes and give the image cut to each as well (CLIPSelf needs them, DenseVLM does not).
        seed (`int`, *optional*, defaults to 0): with the epoch and the sample's id, the source of every choice.
    """

    def __init__(
        self,
        files: datasets.Dataset,
        image_processor: DenseVLMImageProcessor,
        teacher_image_processor: DenseVLMImageProcessor | None = None,
        max_grid: int = 6,
        crops: int = 0,
        seed: int = 0,
    ):
        self.files = files
        self.image_processor = image_processor
        self.teacher_image_processor = teacher_image_processor
        self.max_grid = max_grid
        self.crops = crops
        self.seed = seed
        # In shared memory: workers that outlive an epoch see the next one.
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """
        `pixel_values` `(3, side, side)`, `boxes` `(regions, 4)`, and where asked for `teacher_pixel_values` and
        `crop_pixel_values` `(regions, 3, side, side)`; or `{"skipped": "file: reason"}`.
        """
        row = self.files[index]
        try:
            image = load_image(row["file"])
        except Exception as error:  # a damaged file can raise anything in a decoder
            return {"skipped": f"{row['file']}: {type(error).__name__}: {error}"}
        if min(image.size) < SMALLEST_SIDE:
            return {"skipped": f"{row['file']}: {image.size[0]} x {image.size[1]} pixels are too few"}
        rng = sample_rng(self.seed, int(self.epoch), row["id"])
        boxes = random_grid(rng, content_extent(*image.size), self.max_grid)
        sample = {"pixel_values": _pixels(self.image_processor, image)}
        if self.teacher_image_processor is not None:
            sample["teacher_pixel_values"] = _pixels(self.teacher_image_processor, image)
        if self.crops:
            chosen = np.sort(rng.permutation(len(boxes))[: self.crops])
            boxes = boxes[torch.from_numpy(chosen)]
            processor = self.teacher_image_processor or self.image_processor
            sample["crop_pixel_values"] = torch.stack([_pixels(processor, crop) for crop in cut(image, boxes)])
        sample["boxes"] = boxes
        return sample


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


def _pixels(processor: DenseVLMImageProcessor, image: Image.Image) -> Tensor:
    return processor(image)["pixel_values"][0]


class RegionCollator:
    """
    Stacks samples: images into one tensor, `boxes` as a list, `skipped` as a list of messages. A batch in which every
    sample was skipped becomes one black image without a box, so that all ranks take part in every step; its loss and
    gradients are zero.
    """

    def __init__(self, dataset: RegionDataset):
        self.dataset = dataset

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        good = [sample for sample in samples if "skipped" not in sample] or [self._blank()]
        batch: dict[str, Any] = {"skipped": [sample["skipped"] for sample in samples if "skipped" in sample]}
        for key in good[0]:
            values = [sample[key] for sample in good]
            if key == "boxes":
                batch[key] = values
            else:
                batch[key] = torch.cat(values) if key == "crop_pixel_values" else torch.stack(values)
        return batch

    def _blank(self) -> dict[str, Tensor]:
        def black(processor: DenseVLMImageProcessor) -> Tensor:
            return torch.zeros(3, *[processor.size["longest_edge"]] * 2)

        student, teacher = self.dataset.image_processor, self.dataset.teacher_image_processor
        sample = {"pixel_values": black(student), "boxes": torch.zeros(0, 4)}
        if teacher is not None:
            sample["teacher_pixel_values"] = black(teacher)
        if self.dataset.crops:
            sample["crop_pixel_values"] = black(teacher or student)[None][:0]
        return sample
