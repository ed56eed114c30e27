"""COCO-panoptic annotations as regions: boxes, masks on the dense map, labels."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad
from transformers.image_transforms import rgb_to_id

from modeling_densevlm import CategorySet, DenseVLMImageProcessor
from modeling_densevlm.categories import is_thing_group
from modeling_densevlm.image_processing_densevlm import load_image


SMALLEST_AREA, LARGEST_AREA = 8**2, 1024**2
"""Segments whose bounding box has fewer or more pixels (width x height) are skipped, as in the reference."""


NEEDED = {"images": ("id", "file_name"), "annotations": ("image_id", "file_name"), "categories": ("id", "name")}
"""Fields that the rows of an annotation file need; segments have theirs."""


class PanopticRegions(torch.utils.data.Dataset):
    r"""
    One sample an annotated image: its pixels and its segments.

    Args:
        annotations (`str` or path): COCO's `panoptic_*.json`.
        images (`str` or path): root of the images' `file_name`s.
        panoptic (`str` or path): root of the PNGs that hold the segments' ids.
        image_processor ([`DenseVLMImageProcessor`]): makes the padded square the model sees.
        map_side (`int`): side of the model's dense map for that square, in cells.
        categories ([`CategorySet`], *optional*): the categories to tell apart; the annotation file's own by default.
            Segments find theirs by id where the set has ids, else by name.

    Raises:
        `ValueError` or `FileNotFoundError` naming the file and what it lacks.
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
                raise FileNotFoundError(f"`{field}`: {folder} is no folder.")
        self.image_processor = image_processor
        self.map_side = map_side
        self.categories = categories or _own_categories(annotations, content)
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

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """
        `pixel_values` `(3, side, side)`, `boxes` `(n, 4)`, `masks` bool `(n, map_side, map_side)`, `labels` `(n,)`,
        `segment_ids` `(n,)`, `at_home` `(n,)` (see [`RegionScores`]), `image_id` (the place among the ids in their
        order, where they are no whole numbers), `skipped_regions`; or `{"skipped": "file: reason"}`.
        """
        record = self.records[index]
        if record["image_file"] is None:
            return {"skipped": f"image {record['image_id']}: annotated but not listed among the images"}
        file = self.images / record["image_file"]
        try:
            image = load_image(file)
            with Image.open(self.panoptic / record["file_name"]) as png:
                ids = rgb_to_id(np.array(png.convert("RGB")))
        except Exception as error:  # a damaged file can raise anything in a decoder
            return {"skipped": f"{file}: {type(error).__name__}: {error}"}
        if ids.shape != (image.height, image.width):
            return {"skipped": f"{file}: {image.size} pixels, but its panoptic PNG has {ids.shape[::-1]}"}
        segments, present = record["segments_info"], set(np.unique(ids).tolist())
        # Id 0 is what belongs to no segment.
        unknown = sorted(present - {segment["id"] for segment in segments} - {0})
        if unknown:
            return {"skipped": f"{file}: its panoptic PNG has the ids {unknown[:5]}, of no segment of the annotations"}
        labels = torch.tensor([self.label_of[s["category_id"]] for s in segments], dtype=torch.long)
        segment_ids = torch.tensor([s["id"] for s in segments], dtype=torch.long)
        told = [segment.get("at_home") for segment in segments]
        at_home = torch.tensor([-1 if flag is None else int(flag) for flag in told], dtype=torch.long)
        boxes = pixel_boxes([s["bbox"] for s in segments], self.is_stuff[labels])
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        seen = torch.tensor([segment["id"] in present for segment in segments], dtype=torch.bool)
        kept = (areas >= SMALLEST_AREA) & (areas <= LARGEST_AREA) & seen
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
    COCO's xywh to xyxy in pixels, `(n, 4)` float64. As in the reference, boxes of stuff end where their last pixel
    begins, one pixel before those of things; kept so that figures compare. (The paper's "Boxes" are those of things.)
    """
    boxes = torch.tensor(bboxes, dtype=torch.float64).reshape(-1, 4)
    return torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:] - is_stuff[:, None].double()], dim=1)


def segment_masks(segment_ids: Tensor, ids: np.ndarray, map_side: int) -> Tensor:
    """
    Bool `(n, map_side, map_side)`: each segment at the map's resolution. One bicubic resize of the full mask to the
    content's size on the map, without antialias, padded with 0; a cell belongs to the mask where the result is above
    0. (With antialias, as newer torchvision does by default, the masks would be others: mean IoU 0.27.)
    """
    height, width = ids.shape
    masks = torch.from_numpy(ids)[None] == segment_ids[:, None, None]
    scale = map_side / max(height, width)
    content = tuple(max(int(side * scale + 0.5), 1) for side in (height, width))
    if len(masks) == 0:
        return torch.zeros(0, map_side, map_side, dtype=torch.bool)
    small = interpolate(masks[:, None].float(), size=content, mode="bicubic", align_corners=False)[:, 0] > 0
    return pad(small, (0, map_side - content[1], 0, map_side - content[0]))


def collate_regions(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stacks the images, keeps the rest as lists."""
    good = [sample for sample in samples if "skipped" not in sample]
    batch: dict[str, Any] = {key: [sample[key] for sample in good] for key in good[0]} if good else {}
    if good:
        batch["pixel_values"] = torch.stack(batch["pixel_values"])
    batch["skipped"] = [sample["skipped"] for sample in samples if "skipped" in sample]
    return batch


def read_annotations(annotations: Path) -> dict[str, Any]:
    if not annotations.is_file():
        raise FileNotFoundError(f"`annotations`: there is no file {annotations}.")
    try:
        content = json.loads(annotations.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"`annotations`: {annotations} is no JSON: {error}") from None
    for field in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(field), list):
            raise ValueError(f"`annotations`: {annotations} has no list `{field}`: is it COCO's panoptic format?")
    if any("segments_info" not in record for record in content["annotations"]):
        raise ValueError(f"`annotations`: {annotations} has annotations without `segments_info`: not panoptic.")
    for list_name, needed in NEEDED.items():
        for place, row in enumerate(content[list_name]):
            _require(row, needed, f"`annotations`: {annotations}, `{list_name}`, place {place}")
    for record in content["annotations"]:
        for segment in record["segments_info"]:
            where = f"`annotations`: {annotations}, image {record['image_id']}: a segment"
            _require(segment, ("id", "category_id", "bbox"), where)
    return content


def _require(row: dict[str, Any], fields: tuple[str, ...], where: str) -> None:
    for field in fields:
        if field not in row:
            raise ValueError(f"{where} without `{field}`.")


def _own_categories(annotations: str | Path, content: dict[str, Any]) -> CategorySet:
    rows = content["categories"]
    flags = [bool(row["isthing"]) for row in rows] if all("isthing" in row for row in rows) else None
    return CategorySet(Path(annotations).stem, [row["name"] for row in rows], flags, [row["id"] for row in rows])


def _labels(annotations: str | Path, content: dict[str, Any], categories: CategorySet) -> dict[int, int]:
    """The index in the set of each category id that the segments use."""
    names = {row["id"]: row["name"] for row in content["categories"]}
    keys = categories.names if categories.ids is None else categories.ids
    index_of = {key: index for index, key in enumerate(keys)}
    labels = {}
    for number in {s["category_id"] for record in content["annotations"] for s in record["segments_info"]}:
        key = names.get(number) if categories.ids is None else number
        if key not in index_of:
            raise ValueError(
                f"{annotations}: segments are of category {number} ({names.get(number, 'not listed')}), which the set "
                f"{categories.name} does not have. Add it, or evaluate with the file's own categories."
            )
        labels[number] = index_of[key]
        listed, ours = names.get(number), categories.names[labels[number]]
        if listed not in (None, ours):
            raise ValueError(
                f"{annotations} calls category {number} {listed!r}, the set {categories.name} {ours!r}: these are not "
                "the same categories. Give a set with the file's ids, or one without ids, to match by name."
            )
    return labels
