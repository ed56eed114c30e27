# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""COCO panoptic annotations as regions: boxes, masks at map resolution, labels."""

import json
import posixpath
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.image_transforms import rgb_to_id
from transformers.utils import logging

from modeling_densevlm import CategorySet, DenseVLMImageProcessor
from modeling_densevlm.canvas import masks_to_map, scaled
from modeling_densevlm.categories import is_thing_group
from modeling_densevlm.image_processing_densevlm import load_image
from modeling_densevlm.worker_batches import to_shared_memory

from .semantic_maps import raw_mode


logger = logging.get_logger(__name__)

SMALLEST_AREA, LARGEST_AREA = 8**2, 1024**2
"""Segments whose bounding box has fewer or more pixels (width x height) are skipped, as in the reference."""


LARGEST_ID = 256**3 - 1
"""Largest segment id: a PNG stores ids in three channels of 8 bits."""


class PanopticRegions(torch.utils.data.Dataset):
    r"""
    Dataset of images with panoptic segments, one sample per annotated image.

    Args:
        annotations (`str` or path): COCO's `panoptic_*.json`.
        images (`str` or path): root folder of the images.
        panoptic (`str` or path): root folder of the PNGs with the segment ids.
        image_processor ([`DenseVLMImageProcessor`]): processes an image into the padded square of the model.
        map_side (`int`): side of the model's dense map for that square, in locations.
        categories ([`CategorySet`], *optional*):
            The categories to predict; those of the annotation file by default. Segments are matched by id if the set
            has ids, else by name.

    Raises:
        `ValueError` or `FileNotFoundError` that names the file, image and field.
    """

    def __init__(
        self,
        annotations: str | Path,
        images: str | Path,
        panoptic: str | Path,
        image_processor: DenseVLMImageProcessor,
        map_side: int,
        categories: CategorySet | None = None,
    ):
        content = read_annotations(Path(annotations))
        self.images, self.panoptic = Path(images), Path(panoptic)
        for field, folder in (("images", self.images), ("panoptic", self.panoptic)):
            if not folder.is_dir():
                raise FileNotFoundError(f"`{field}`: {folder} is not a folder.")
        self.image_processor = image_processor
        self.map_side = map_side
        self.categories = categories or _categories_of_file(annotations, content)
        self.label_of = _labels(annotations, content, self.categories)
        flags = self.categories.is_thing
        if flags is None:
            flags = [True] * len(self.categories)
        self.is_stuff = torch.tensor([not is_thing_group(flag) for flag in flags])
        files = {image["id"]: image["file_name"] for image in content["images"]}
        self.records = [
            {**record, "image_file": files.get(record["image_id"])}
            for record in sorted(content["annotations"], key=lambda record: record["image_id"])
        ]
        if not self.records:
            raise ValueError(f"{annotations} annotates no image.")
        if unannotated := sorted(files.keys() - {record["image_id"] for record in self.records}):
            logger.warning_once(
                f"{annotations}: {len(unannotated)} images have no annotation and are left out, e.g. {unannotated[0]}."
            )

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """
        `pixel_values` `(3, side, side)`, `boxes` `(n, 4)`, `masks` bool `(n, map_side, map_side)`, `labels` `(n,)`,
        `segment_ids` `(n,)`, `at_home` `(n,)` (see [`RegionScores`]), `image_id` (the position in the sorted ids if
        these are not integers), `skipped_regions`; or `{"skipped": "file: reason"}`.
        """
        record = self.records[index]
        if record["image_file"] is None:
            return {"skipped": f"image {record['image_id']}: annotated but not listed among the images"}
        file = self.images / record["image_file"]
        try:
            image = load_image(file)
            ids = read_ids(self.panoptic / record["file_name"])
        except Exception as error:  # a damaged file can raise anything in a decoder
            return {"skipped": f"{file}: {type(error).__name__}: {error}"}
        if ids.shape != (image.height, image.width):
            return {"skipped": f"{file}: {image.size} pixels, but its panoptic PNG has {ids.shape[::-1]}"}
        segments, present = record["segments_info"], set(np.unique(ids).tolist())
        # Pixels with id 0 belong to no segment.
        unknown = sorted(present - {segment["id"] for segment in segments} - {0})
        if unknown:
            return {"skipped": f"{file}: its panoptic PNG has the ids {unknown[:5]}, of no segment of the annotations"}
        labels = torch.tensor([self.label_of[s["category_id"]] for s in segments], dtype=torch.long)
        segment_ids = torch.tensor([s["id"] for s in segments], dtype=torch.long)
        flags = [segment.get("at_home") for segment in segments]
        at_home = torch.tensor([-1 if flag is None else int(flag) for flag in flags], dtype=torch.long)
        boxes = pixel_boxes([s["bbox"] for s in segments], self.is_stuff[labels])
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        visible = torch.tensor([segment["id"] in present for segment in segments], dtype=torch.bool)
        kept = (areas >= SMALLEST_AREA) & (areas <= LARGEST_AREA) & visible
        return {
            "image_id": record["image_id"] if isinstance(record["image_id"], int) else index,
            "pixel_values": self.image_processor(image)["pixel_values"][0],
            "boxes": (boxes[kept] / max(image.size)).float(),
            "masks": segment_masks(segment_ids[kept], ids, self.map_side),
            "labels": labels[kept],
            "segment_ids": segment_ids[kept],
            "at_home": at_home[kept],
            "skipped_regions": int((~kept).sum()),
        }


def pixel_boxes(bboxes: list[list[float]], is_stuff: Tensor) -> Tensor:
    """
    Converts boxes from COCO's xywh to xyxy.

    As in the reference, boxes of stuff end one pixel earlier than those of things, at the start of their last pixel,
    for comparable metrics. (The paper's "Boxes" are of things.)

    Args:
        bboxes (list of `[x, y, width, height]`): boxes in pixels.
        is_stuff (`Tensor` of bool, `(n,)`): whether each segment is stuff.

    Returns:
        `Tensor` of shape `(n, 4)`, float64: xyxy in pixels.
    """
    boxes = torch.tensor(bboxes, dtype=torch.float64).reshape(-1, 4)
    return torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:] - is_stuff[:, None].double()], dim=1)


def segment_masks(segment_ids: Tensor, ids: np.ndarray, map_side: int) -> Tensor:
    """
    Resizes segments to the dense map, see [`masks_to_map`].

    Args:
        segment_ids (`Tensor` of shape `(n,)`): ids of the segments.
        ids (`np.ndarray` of shape `(height, width)`): segment id of each pixel.
        map_side (`int`): side of the map of the padded square, in locations.

    Returns:
        `Tensor` of bool, `(n, map_side, map_side)`.
    """
    masks = torch.from_numpy(ids)[None] == segment_ids[:, None, None]
    (height, width), scale = ids.shape, map_side / max(ids.shape)
    return masks_to_map(masks, (scaled(height, scale), scaled(width, scale)), (map_side, map_side))


def collate_regions(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Collates samples: stacks the images; all other fields remain lists."""
    good = [sample for sample in samples if "skipped" not in sample]
    batch: dict[str, Any] = {key: [sample[key] for sample in good] for key in good[0]} if good else {}
    if good:
        batch["pixel_values"] = torch.stack(batch["pixel_values"])
    batch["skipped"] = [sample["skipped"] for sample in samples if "skipped" in sample]
    return to_shared_memory(batch)


def read_ids(file: Path) -> np.ndarray:
    """Reads the segment ids of a PNG, `(height, width)`; raises a `ValueError` unless it has channels of 8 bits."""
    with Image.open(file) as png:
        raw_mode(png)
        # Losslessly compressed PNGs may be grey or have a palette; their colours are the same.
        if png.mode not in ("RGB", "RGBA", "P", "PA", "L", "LA", "1"):
            raise ValueError(f"{file} has the mode {png.mode}: ids are stored in red, green and blue of 8 bits")
        return rgb_to_id(np.array(png.convert("RGB")))


def read_annotations(annotations: Path) -> dict[str, Any]:
    """
    Reads and validates COCO's panoptic JSON, so that malformed rows fail here rather than in a worker. Integers stored
    as floats (1.0) become `int`.

    Raises:
        `ValueError` that names the file, the row and the field that is missing, has a wrong type or is duplicated;
        `FileNotFoundError` if there is no such file.
    """
    where = f"`annotations`: {annotations}"
    if not annotations.is_file():
        raise FileNotFoundError(f"`annotations`: there is no file {annotations}.")
    try:
        content = json.loads(annotations.read_bytes())  # any UTF encoding, with or without byte order mark
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{where} is not valid JSON: {error}. Is it truncated?") from None
    for field in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(field), list):
            raise ValueError(f"{where} has no list `{field}`: is it COCO's panoptic format?")
        for place, row in enumerate(content[field]):
            if not isinstance(row, dict):
                raise ValueError(f"{where}, `{field}`, place {place}: expected an object, got {_shown(row)}.")
    if any("segments_info" not in record for record in content["annotations"]):
        raise ValueError(f"{where} has annotations without `segments_info`: not panoptic.")
    kinds: set[type] = set()
    for list_name, key in (("images", "id"), ("annotations", "image_id")):
        for place, row in enumerate(content[list_name]):
            here = f"{where}, `{list_name}`, place {place}"
            row[key] = _id(row, key, here, text=True)
            _text(row, "file_name", here)
            kinds.add(type(row[key]))
            if len(kinds) > 1:
                raise ValueError(
                    f"{here}: `{key}` is {_shown(row[key])}, other ids of images are "
                    f"{'texts' if isinstance(row[key], int) else 'numbers'}. Write all in the same way."
                )
        _refuse_twice(content[list_name], key, f"{where}, `{list_name}`", "are two sets joined? Number them again")
        _refuse_twice(content[list_name], "file_name", f"{where}, `{list_name}`", "remove one")
    _check_categories(content["categories"], where)
    for record in content["annotations"]:
        _check_segments(record, f"{where}, image {record['image_id']}")
    return content


def _check_categories(rows: list[dict[str, Any]], where: str) -> None:
    for place, row in enumerate(rows):
        here = f"{where}, `categories`, place {place}"
        row["id"] = _id(row, "id", here)
        _text(row, "name", here)
        if "isthing" in row:
            _flag(row, "isthing", here)
        elif any("isthing" in other for other in rows):
            raise ValueError(f"{here} ({row['name']!r}) without `isthing`, which others have.")
    _refuse_twice(rows, "id", f"{where}, `categories`", "remove one")
    for flag in (True, False):
        group = [row for row in rows if row.get("isthing", True) == flag]
        _refuse_twice(group, "name", f"{where}, `categories`", "remove or rename one")


def _check_segments(record: dict[str, Any], where: str) -> None:
    if not isinstance(record["segments_info"], list):
        raise ValueError(f"{where}: `segments_info` is a list, got {_shown(record['segments_info'])}.")
    for place, row in enumerate(record["segments_info"]):
        here = f"{where}: a segment"
        if not isinstance(row, dict):
            raise ValueError(f"{where}, segment {place}: expected an object, got {_shown(row)}.")
        row["id"] = _id(row, "id", here)
        here = f"{where}, segment {row['id']}" if "category_id" in row and "bbox" in row else here
        if not 0 <= row["id"] <= LARGEST_ID:
            raise ValueError(f"{here}: `id` is 0 to {LARGEST_ID}, the range of the colours of a PNG.")
        row["category_id"] = _id(row, "category_id", here)
        if "bbox" not in row:
            raise ValueError(f"{here} without `bbox`.")
        box = row["bbox"]
        if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)) and min(box[2:]) >= 0):
            raise ValueError(
                f"{here}: `bbox` is [x, y, width, height] in finite numbers, none of the last two negative, got "
                f"{_shown(box)}."
            )
        for field in ("at_home", "iscrowd"):
            if row.get(field) is not None:
                _flag(row, field, here)
    _refuse_twice(record["segments_info"], "id", where, "a segment counts once", of="segment")


def _refuse_twice(rows: list[dict[str, Any]], field: str, where: str, remedy: str, of: str = "") -> None:
    values = [posixpath.normpath(row[field]) if field == "file_name" else row[field] for row in rows]
    if len(set(values)) == len(values):
        return
    value, count = Counter(values).most_common(1)[0]
    raise ValueError(f"{where}: the {f'{of} ' if of else ''}`{field}` {value!r} occurs {count} times: {remedy}.")


def _id(row: dict[str, Any], field: str, where: str, text: bool = False) -> int | str:
    """An integer of 64 bits, or a string where ids may be strings."""
    if field not in row:
        raise ValueError(f"{where} without `{field}`.")
    value = row[field]
    if text and isinstance(value, str) and value:
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int or not -(2**63) <= value < 2**63:
        kinds = "a whole number or a text" if text else "a whole number"
        raise ValueError(f"{where}: `{field}` is {kinds}, got {_shown(row[field])}.")
    return value


def _text(row: dict[str, Any], field: str, where: str) -> None:
    if field not in row:
        raise ValueError(f"{where} without `{field}`.")
    if not isinstance(row[field], str) or not row[field].strip():
        raise ValueError(f"{where}: `{field}` is a text, got {_shown(row[field])}.")


def _flag(row: dict[str, Any], field: str, where: str) -> None:
    if not isinstance(row[field], int | float) or row[field] not in (0, 1):
        raise ValueError(f"{where}: `{field}` is 0, 1, true or false, got {_shown(row[field])}.")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 2**53


def _shown(value: Any, max_shown: int = 60) -> str:
    """A value as JSON, truncated if long."""
    text = json.dumps(value)
    return text if len(text) <= max_shown else f"{text[:max_shown]}…"


def _categories_of_file(annotations: str | Path, content: dict[str, Any]) -> CategorySet:
    rows = content["categories"]
    flags = [bool(row["isthing"]) for row in rows] if rows and "isthing" in rows[0] else None  # all, or none
    return CategorySet(Path(annotations).stem, [row["name"] for row in rows], flags, [row["id"] for row in rows])


def _labels(annotations: str | Path, content: dict[str, Any], categories: CategorySet) -> dict[int, int]:
    """Maps the category ids of the segments to indices in the category set."""
    rows = {row["id"]: row for row in content["categories"]}
    labels = {}
    used: dict[int, int | str] = {}
    for record in content["annotations"]:
        for segment in record["segments_info"]:
            used.setdefault(segment["category_id"], record["image_id"])
    for number, image_id in used.items():
        row = rows.get(number, {})
        name = row.get("name")
        if categories.ids is not None:
            found = [index for index, other in enumerate(categories.ids) if other == number]
        else:
            found = _find_name(categories, name, row.get("isthing"))
        if not found:
            raise ValueError(
                f"{annotations}: segments are of category {number} ({name or 'not listed'}), which the set "
                f"{categories.name} does not have (the first in image {image_id}). Add it, or evaluate with the "
                "file's own categories."
            )
        if len(found) > 1:
            raise ValueError(
                f"{annotations}: category {number} ({name}) is in several groups of the set {categories.name}, "
                "and the file's categories have no `isthing` to tell them apart."
            )
        labels[number] = found[0]
        set_name = categories.names[found[0]]
        if name not in (None, set_name):
            raise ValueError(
                f"{annotations} calls category {number} {name!r}, the set {categories.name} {set_name!r}: these are "
                "not the same categories. Give a set with the file's ids, or one without ids, to match by name."
            )
    return labels


def _find_name(categories: CategorySet, name: str | None, is_thing: int | None) -> list[int]:
    """Indices of a name in the category set; several if it is in both groups and `is_thing` does not decide."""
    found = [index for index, other in enumerate(categories.names) if other == name]
    if len(found) > 1 and is_thing is not None and categories.is_thing is not None:
        found = [index for index in found if is_thing_group(categories.is_thing[index]) == is_thing]
    return found
