# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Semantic segmentation datasets (COCO-Stuff, ADE20K, PASCAL): folders of images and of PNGs with category ids."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFile
from transformers.utils import logging

from modeling_densevlm import CategorySet, DenseVLMImageProcessor
from modeling_densevlm.image_files import IMAGE_SUFFIXES
from modeling_densevlm.image_processing_densevlm import load_image
from modeling_densevlm.worker_batches import to_shared_memory

from .folders import find_files, index_by_name, relative_name, warn_skipped_files


logger = logging.get_logger(__name__)

INDEX_SUFFIXES = frozenset({".png", ".tif", ".tiff", ".bmp"})
"""Suffixes of lossless formats for semantic maps (the full ADE20K has TIFFs)."""

IGNORED, UNKNOWN = -1, -2
"""Labels of ignored values and of values that belong to no category."""


@dataclass(frozen=True)
class ValueLayout:
    r"""
    The meaning of the values of a PNG: `id = value + offset`.

    Args:
        offset (`int`): added to a value to get the category id.
        ignored (`tuple[int, ...]`, *optional*): ignored values, even if a category has that id.
        ignore_largest (`bool`, *optional*, defaults to `True`):
            Also ignore the largest value of the bit depth, 255 for 8 bits and 65535 for 16, unless a category has it;
            and 255 in PNGs of 16 bits if all categories fit into 8 bits.
    """

    offset: int
    ignored: tuple[int, ...] = ()
    ignore_largest: bool = True


LAYOUTS = {
    "ids": ValueLayout(0),  # category ids; also PASCAL VOC with background
    "ade20k": ValueLayout(-1, (0,)),  # 1 to 150; 0 is unlabelled
    "coco_stuff": ValueLayout(1),  # COCO's ids minus 1
    "pascal_things": ValueLayout(0, (0,)),  # PASCAL VOC without background
}


class SemanticMaps(torch.utils.data.Dataset):
    r"""
    Dataset of images with semantic maps, one sample per map.

    Args:
        images (`str` or path): folder of the images.
        annotations (`str` or path): folder of the PNGs or TIFFs, named like the images up to the suffix.
        categories ([`CategorySet`]): the categories to predict, matched by id, or by index if the set has no ids.
        image_processor ([`DenseVLMImageProcessor`]): processes an image into the padded square of the model.
        layout ([`ValueLayout`] or one of `LAYOUTS`, *optional*, defaults to `"ids"`): meaning of the values.
        ignored (iterable of `int`, *optional*): ignored values, instead of those of the layout.

    Raises:
        `ValueError` or `FileNotFoundError` that names the folder and what is missing, or two files of one name.
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
                raise FileNotFoundError(f"`{field}`: {path} is not a folder.")
        self.files, skipped = find_files(self.annotations, INDEX_SUFFIXES)
        image_files, skipped_of_images = find_files(self.images, IMAGE_SUFFIXES)
        map_set, image_set = set(self.files), set(image_files)
        # Images and maps may share a folder: images are then not reported as skipped.
        skipped = {kind: [path for path in paths if path not in image_set] for kind, paths in skipped.items()}
        warn_skipped_files(self.annotations, skipped)
        warn_skipped_files(self.images, skipped_of_images)
        if not self.files:
            raise ValueError(f"`annotations`: {annotations} holds no PNG ({', '.join(sorted(INDEX_SUFFIXES))}).")
        maps = index_by_name(self.files, self.annotations, "annotations")
        self.image_of = index_by_name([path for path in image_files if path not in map_set], self.images, "images")
        unannotated = sorted(self.image_of.keys() - maps.keys())
        if unannotated:
            logger.warning(f"{len(unannotated)} images have no PNG and are left out, e.g. {unannotated[0]}.")
        self.categories = categories
        self.image_processor = image_processor
        layout = LAYOUTS[layout] if isinstance(layout, str) else layout
        self.layout = layout if ignored is None else ValueLayout(layout.offset, tuple(ignored), ignore_largest=False)
        self.label_of = {bits: label_table(categories, self.layout, bits) for bits in (8, 16)}

    @staticmethod
    def names(files: Iterable[Path], root: Path) -> list[str]:
        """Paths of files relative to a folder."""
        return [file.relative_to(root).as_posix() for file in files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """
        `pixel_values` `(3, side, side)` and `labels` `(height, width)`, -1 for ignored; or a `skipped` / `refused`
        reason.
        """
        file = self.files[index]
        name = relative_name(file, self.annotations)
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
                f"those to be ignored. Give another `--layout` ({', '.join(LAYOUTS)}), or ignore them (`--ignored`)."
            }
        return {"pixel_values": self.image_processor(image)["pixel_values"][0], "labels": labels}

    def _labels(self, values: np.ndarray) -> np.ndarray:
        label_of = self.label_of[8 if values.dtype == np.uint8 else 16]
        if values.dtype.itemsize <= 2 and values.dtype.kind == "u":
            return label_of[values]
        beyond = (values < 0) | (values >= len(label_of))  # a TIFF may have 32 bits
        labels = label_of[np.where(beyond, 0, values)]
        labels[beyond] = np.where(np.isin(values[beyond], self.layout.ignored), IGNORED, UNKNOWN)
        return labels


def label_table(categories: CategorySet, layout: ValueLayout, bits: int) -> np.ndarray:
    """Lookup table from the values of 8 or 16 bits to category indices, `IGNORED` or `UNKNOWN`, `(2**bits,)`."""
    ids = list(range(len(categories))) if categories.ids is None else categories.ids
    values = [number - layout.offset for number in ids]
    for name, value in zip(categories.names, values):
        if not 0 <= value < 2**16:
            raise ValueError(
                f"The category {name!r} of {categories.name} would be the value {value} of a PNG, which has 0 to "
                "65535. Give another `--layout`, or a set with other ids."
            )
        if value in layout.ignored or (layout.ignore_largest and value == 255):
            effect = "is ignored by this layout" if value in layout.ignored else "counts as that"
            logger.warning_once(
                f"The value {value} is the category {name!r} of {categories.name}, and {effect}. Give `--ignored` "
                "to change this."
            )
    table = np.full(2**bits, UNKNOWN, dtype=np.int64)
    if layout.ignore_largest:
        table[-1] = IGNORED
        if max(values) <= 255:
            table[255] = IGNORED
    for index, value in enumerate(values):
        if value < len(table):
            table[value] = index
    table[[value for value in layout.ignored if 0 <= value < len(table)]] = IGNORED
    return table


def read_index(file: Path) -> np.ndarray:
    """
    Reads the values of a PNG or TIFF as stored.

    Args:
        file (path): the file.

    Returns:
        `np.ndarray` of shape `(height, width)`, uint8 for up to 8 bits.

    Raises:
        `ValueError` if a pixel is not a single integer.
    """
    with Image.open(file) as png:
        scale = {"L;2": 85, "L;4": 17}.get(raw_mode(png), 1)  # Pillow scales grey values of 2 and 4 bits to 0..255
        values = np.array(png.getchannel(0) if png.mode in ("LA", "PA") else png)
        mode = png.mode
    if values.ndim != 2 or values.dtype.kind not in "uib":
        raise ValueError(f"no index: mode {mode}, expected one integer per pixel")
    return (values.astype(np.uint8) if values.dtype == bool else values) // scale


def raw_mode(image: ImageFile.ImageFile) -> str:
    """
    Storage mode of an image that was opened but not decoded; raises a `ValueError` where Pillow would reduce 16 bits
    to the upper 8, which destroys ids.
    """
    arguments = image.tile[0].args if image.tile else ""
    raw = arguments if isinstance(arguments, str) else str(arguments[0]) if arguments else ""
    if ";16" in raw and not image.mode.startswith("I"):
        raise ValueError(f"16 bits per channel ({raw}), of which only 8 can be read: save it with 8")
    return raw


def collate_pixels(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Collates samples: stacks the images; the labels remain a list."""
    good = [sample for sample in samples if "pixel_values" in sample]
    batch: dict[str, Any] = {
        name: [sample[name] for sample in samples if name in sample] for name in ("skipped", "refused")
    }
    if good:
        batch["pixel_values"] = torch.stack([sample["pixel_values"] for sample in good])
        batch["labels"] = [sample["labels"] for sample in good]
    return to_shared_memory(batch)


__all__ = ["LAYOUTS", "SemanticMaps", "ValueLayout", "collate_pixels", "label_table", "raw_mode", "read_index"]
