# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
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
from modeling_densevlm.image_files import IMAGE_SUFFIXES
from modeling_densevlm.image_processing_densevlm import load_image
from modeling_densevlm.worker_batches import to_shared_memory

from .folders import by_name, find_files, name_of, warn_of_passed_over


logger = logging.get_logger(__name__)

INDEX_SUFFIXES = frozenset({".png", ".tif", ".tiff", ".bmp"})
"""Suffixes of files that may hold indices: PNGs, and what else is without loss (the full ADE20K's are TIFFs)."""

NOTHING, UNKNOWN = -1, -2
"""Labels of values that mean nothing, and of values of no category."""


@dataclass(frozen=True)
class ValueLayout:
    r"""
    What the values of a PNG mean: `id = value + offset`.

    Args:
        offset (`int`).
        ignored (`tuple[int, ...]`, *optional*): values that mean nothing, even if there is a category of that id.
        last (`bool`, *optional*, defaults to `True`):
            The last value of the PNG's depth means nothing as well, 255 of 8 bits and 65535 of 16, unless there is a
            category of that value. 255 of 16 bits, too, where all categories would have room in 8.
    """

    offset: int
    ignored: tuple[int, ...] = ()
    last: bool = True


LAYOUTS = {
    "ids": ValueLayout(0),  # the categories' ids, PASCAL VOC with its background among them
    "ade20k": ValueLayout(-1, (0,)),  # 1 to 150; 0 is what was not annotated
    "coco_stuff": ValueLayout(1),  # COCO's ids less 1
    "pascal_things": ValueLayout(0, (0,)),  # PASCAL VOC without its background
}


class SemanticMaps(torch.utils.data.Dataset):
    r"""
    One sample per annotated image.

    Args:
        images (`str` or path): folder of the images.
        annotations (`str` or path): folder of the PNGs (or TIFFs), with the same names but for the suffix.
        categories ([`CategorySet`]): the categories to predict; their ids, or their places where the set has none.
        image_processor ([`DenseVLMImageProcessor`]): makes the padded square the model sees.
        layout ([`ValueLayout`] or one of `LAYOUTS`, *optional*, defaults to `"ids"`).
        ignored (sequence of `int`, *optional*): the values that mean nothing, instead of those of the layout.

    Raises:
        `ValueError` or `FileNotFoundError` naming the folder and what is missing there, or two files of one name.
    """

    def __init__(
        self,
        images: str | Path,
        annotations: str | Path,
        categories: CategorySet,
        image_processor: DenseVLMImageProcessor,
        layout: ValueLayout | str = "ids",
        ignored: Iterable[int] | None = None,
    ):
        self.images, self.annotations = Path(images), Path(annotations)
        for field, path in (("images", self.images), ("annotations", self.annotations)):
            if not path.is_dir():
                raise FileNotFoundError(f"`{field}`: {path} is no folder.")
        self.files, passed = find_files(self.annotations, INDEX_SUFFIXES)
        found, passed_of_images = find_files(self.images, IMAGE_SUFFIXES)
        annotated, pictures = set(self.files), set(found)
        # One folder may hold both: then neither is passed over for the other.
        passed = {kind: [path for path in paths if path not in pictures] for kind, paths in passed.items()}
        warn_of_passed_over(self.annotations, passed)
        warn_of_passed_over(self.images, passed_of_images)
        if not self.files:
            raise ValueError(f"`annotations`: {annotations} holds no PNG ({', '.join(sorted(INDEX_SUFFIXES))}).")
        named = by_name(self.files, self.annotations, "annotations")
        self.image_of = by_name([path for path in found if path not in annotated], self.images, "images")
        unannotated = sorted(self.image_of.keys() - named.keys())
        if unannotated:
            logger.warning(f"{len(unannotated)} images have no PNG and are left out, e.g. {unannotated[0]}.")
        self.categories = categories
        self.image_processor = image_processor
        layout = LAYOUTS[layout] if isinstance(layout, str) else layout
        self.layout = layout if ignored is None else ValueLayout(layout.offset, tuple(ignored), last=False)
        self.label_of = {bits: label_table(categories, self.layout, bits) for bits in (8, 16)}

    @staticmethod
    def names(files: Iterable[Path], root: Path) -> list[str]:
        """Their paths below a folder."""
        return [file.relative_to(root).as_posix() for file in files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`pixel_values` `(3, side, side)` and `labels` `(height, width)`, -1 for nothing; or why there are none."""
        file = self.files[index]
        name = name_of(file, self.annotations)
        if name not in self.image_of:
            return {"skipped": f"{file}: there is no image of that name in {self.images}"}
        try:
            image = load_image(self.image_of[name])
            values = read_index(file)
        except Exception as error:  # a damaged file can raise anything in a decoder
            return {"skipped": f"{file}: {type(error).__name__}: {error}"}
        if values.shape != (image.height, image.width):
            return {"skipped": f"{file}: {values.shape[::-1]} pixels, but the image has {image.size}"}
        labels = self._labels(values)
        if (labels == UNKNOWN).any():
            unknown = np.unique(values[labels == UNKNOWN])[:5].tolist()
            return {
                "refused": f"{file}: values {unknown} are of no category of {self.categories.name} and not among "
                f"those to be ignored. Is another `--layout` meant ({', '.join(LAYOUTS)}), or do they mean nothing "
                "(`--ignored`)?"
            }
        return {"pixel_values": self.image_processor(image)["pixel_values"][0], "labels": labels}

    def _labels(self, values: np.ndarray) -> np.ndarray:
        label_of = self.label_of[8 if values.dtype == np.uint8 else 16]
        if values.dtype.itemsize <= 2 and values.dtype.kind == "u":
            return label_of[values]
        beyond = (values < 0) | (values >= len(label_of))  # a TIFF may have 32 bits
        labels = label_of[np.where(beyond, 0, values)]
        labels[beyond] = np.where(np.isin(values[beyond], self.layout.ignored), NOTHING, UNKNOWN)
        return labels


def label_table(categories: CategorySet, layout: ValueLayout, bits: int) -> np.ndarray:
    """
    The index of the category of each value of 8 or 16 bits; `NOTHING` for values that mean nothing, `UNKNOWN` for
    others.
    """
    ids = list(range(len(categories))) if categories.ids is None else categories.ids
    values = [number - layout.offset for number in ids]
    for name, value in zip(categories.names, values):
        if not 0 <= value < 2**16:
            raise ValueError(
                f"The category {name!r} of {categories.name} would be the value {value} of a PNG, which has 0 to "
                "65535. Is another `--layout` meant, or a set with other ids?"
            )
        if value in layout.ignored or (layout.last and value == 255):
            counts = "means nothing here, and is not counted" if value in layout.ignored else "counts as that"
            logger.warning_once(
                f"The value {value} is the category {name!r} of {categories.name}, and {counts}. Give `--ignored` "
                "where another is meant."
            )
    table = np.full(2**bits, UNKNOWN, dtype=np.int64)
    if layout.last:
        table[-1] = NOTHING
        if max(values) <= 255:
            table[255] = NOTHING
    for index, value in enumerate(values):
        if value < len(table):
            table[value] = index
    table[[value for value in layout.ignored if 0 <= value < len(table)]] = NOTHING
    return table


def read_index(file: Path) -> np.ndarray:
    """
    The values of a PNG's pixels as they are in the file, `(height, width)`, uint8 where they have 8 bits or fewer.

    Raises:
        `ValueError` where a pixel is no single whole number.
    """
    with Image.open(file) as png:
        spread = {"L;2": 85, "L;4": 17}.get(raw_mode(png), 1)  # Pillow spreads 2 and 4 bits of grey over 0 to 255
        values = np.array(png.getchannel(0) if png.mode in ("LA", "PA") else png)
        mode = png.mode
    if values.ndim != 2 or values.dtype.kind not in "uib":
        raise ValueError(f"no index: of the mode {mode}, where a pixel is to be one whole number")
    return (values.astype(np.uint8) if values.dtype == bool else values) // spread


def raw_mode(image: Image.Image) -> str:
    """
    How an image that was opened, and not yet decoded, is stored; a `ValueError` where Pillow would keep the upper 8
    bits of 16, in which ids are not.
    """
    arguments = image.tile[0].args if image.tile else ""
    raw = arguments if isinstance(arguments, str) else str(arguments[0]) if arguments else ""
    if ";16" in raw and not image.mode.startswith("I"):
        raise ValueError(f"16 bits a channel ({raw}), of which only 8 can be read: save it with 8")
    return raw


def collate_pixels(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stacks the images, keeps the labels as a list."""
    good = [sample for sample in samples if "pixel_values" in sample]
    batch: dict[str, Any] = {
        name: [sample[name] for sample in samples if name in sample] for name in ("skipped", "refused")
    }
    if good:
        batch["pixel_values"] = torch.stack([sample["pixel_values"] for sample in good])
        batch["labels"] = [sample["labels"] for sample in good]
    return to_shared_memory(batch)


__all__ = ["LAYOUTS", "SemanticMaps", "ValueLayout", "collate_pixels", "label_table", "raw_mode", "read_index"]
