"""Folders of images and of PNGs that hold each pixel's category, as COCO-Stuff, ADE20K and PASCAL have them."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.utils import logging

from modeling_densevlm import CategorySet, DenseVLMImageProcessor
from modeling_densevlm.image_processing_densevlm import load_image


logger = logging.get_logger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class Layout:
    """What the values of a PNG mean: `id = value + offset`, and the `ignored` values nothing."""

    offset: int
    ignored: tuple[int, ...]


LAYOUTS = {
    "ids": Layout(0, (255,)),  # the categories' ids, PASCAL VOC with its background among them
    "ade20k": Layout(-1, (0, 255)),  # 1 to 150; 0 is what was not annotated
    "coco_stuff": Layout(1, (255,)),  # COCO's ids less 1
    "pascal_things": Layout(0, (0, 255)),  # PASCAL VOC without its background
}


class IndexPngs(torch.utils.data.Dataset):
    r"""
    One sample an annotated image.

    Args:
        images (`str` or path): folder of the images.
        annotations (`str` or path): folder of the PNGs, with the same names but for the suffix.
        categories ([`CategorySet`]): the categories to tell apart; their ids, or their places where the set has none.
        image_processor ([`DenseVLMImageProcessor`]): makes the padded square the model sees.
        layout ([`Layout`] or one of `LAYOUTS`, *optional*, defaults to `"ids"`).

    Raises:
        `ValueError` or `FileNotFoundError` naming the folder and what it lacks.
    """

    def __init__(
        self,
        images: str | Path,
        annotations: str | Path,
        categories: CategorySet,
        image_processor: DenseVLMImageProcessor,
        layout: Layout | str = "ids",
    ):
        self.images, self.annotations = Path(images), Path(annotations)
        for field, path in (("images", self.images), ("annotations", self.annotations)):
            if not path.is_dir():
                raise FileNotFoundError(f"`{field}`: {path} is no folder.")
        self.files = sorted(self.annotations.rglob("*.png"))
        if not self.files:
            raise ValueError(f"`annotations`: {annotations} holds no PNG.")
        annotated = set(self.files)
        self.image_of: dict[str, Path] = {}
        for path in sorted(self.images.rglob("*")):
            name = path.relative_to(self.images).with_suffix("").as_posix()
            if path.suffix.lower() not in IMAGE_SUFFIXES or path in annotated:
                continue
            if name in self.image_of:
                raise ValueError(f"`images`: {self.image_of[name]} and {path} have the same name: which is meant?")
            self.image_of[name] = path
        named = {file.relative_to(self.annotations).with_suffix("").as_posix() for file in self.files}
        unannotated = sorted(self.image_of.keys() - named)
        if unannotated:
            logger.warning(f"{len(unannotated)} images have no PNG and are left out, e.g. {unannotated[0]}.")
        self.categories = categories
        self.image_processor = image_processor
        layout = LAYOUTS[layout] if isinstance(layout, str) else layout
        ids = list(range(len(categories))) if categories.ids is None else categories.ids
        # The index of each value's category; -1 for values that mean nothing, -2 for those no one knows.
        self.label_of = np.full(2**16, -2, dtype=np.int64)
        for index, number in enumerate(ids):
            if number - layout.offset >= 0:
                self.label_of[number - layout.offset] = index
        self.label_of[list(layout.ignored)] = -1

    @staticmethod
    def names(files: Iterable[Path], root: Path) -> list[str]:
        """Their paths below a folder."""
        return [file.relative_to(root).as_posix() for file in files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """
        `pixel_values` `(3, side, side)`, `labels` `(height, width)` int64; or `{"skipped": "file: reason"}`, or
        `{"refused": message}` where the annotations are not of these categories: nothing is to be reckoned of them.
        """
        file = self.files[index]
        name = file.relative_to(self.annotations).with_suffix("").as_posix()
        if name not in self.image_of:
            return {"skipped": f"{file}: there is no image of that name"}
        try:
            image = load_image(self.image_of[name])
            with Image.open(file) as png:
                values = np.array(png)
        except Exception as error:  # a damaged file can raise anything in a decoder
            return {"skipped": f"{file}: {type(error).__name__}: {error}"}
        if values.shape != (image.height, image.width) or values.dtype.kind not in "ui":
            return {"skipped": f"{file}: {values.shape} {values.dtype}, no index of the image's {image.size} pixels"}
        labels = self.label_of[values]  # a PNG has 16 bits at most
        if (labels == -2).any():
            unknown = np.unique(values[labels == -2])[:5].tolist()
            return {
                "refused": f"{file}: values {unknown} are of no category of {self.categories.name} and not among "
                f"those to be ignored. Is another `--layout` meant ({', '.join(LAYOUTS)})?"
            }
        return {"pixel_values": self.image_processor(image)["pixel_values"][0], "labels": labels}


def collate_pixels(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stacks the images, keeps the labels as a list."""
    good = [sample for sample in samples if "pixel_values" in sample]
    batch: dict[str, Any] = {
        name: [sample[name] for sample in samples if name in sample] for name in ("skipped", "refused")
    }
    if good:
        batch["pixel_values"] = torch.stack([sample["pixel_values"] for sample in good])
        batch["labels"] = [sample["labels"] for sample in good]
    return batch


__all__ = ["LAYOUTS", "IndexPngs", "Layout", "collate_pixels"]
