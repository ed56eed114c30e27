# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Builds ADE20K's panoptic annotations from its public semantic and instance files (ADEChallengeData2016)."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from modeling_densevlm import CategorySet
from modeling_densevlm.image_processing_densevlm import load_image

from .folders import find_files, index_by_name, warn_skipped_files
from .semantic_maps import raw_mode, read_index


CATEGORIES = CategorySet.load("ade20k_panoptic_150")
IS_THING = CATEGORIES.things()
THINGS = np.flatnonzero(IS_THING)
"""Ids of the things, ascending; instance files number them by position in this list, from 1."""

JPEG_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif"})


def panoptic_segments(semantic: np.ndarray, instances: np.ndarray) -> tuple[np.ndarray, list[dict[str, Any]]]:
    r"""
    Combines stuff from the semantic file, one segment per category, with things from the instance file, painted over
    it. As in the public converter, area and box of stuff are computed before things are painted over it, and pixels
    that are a thing in the semantic file but in no instance belong to no segment.

    Args:
        semantic (`np.ndarray` of shape `(height, width)`): categories from 1; 0 is unlabelled.
        instances (`np.ndarray` of shape `(height, width, 3)`):
            First channel: category among the things, from 1; second channel: number of the instance.

    Returns:
        The segment ids, `(height, width)`, 0 for none, and COCO's `segments_info`.

    Raises:
        `ValueError` if the shapes differ or values are out of range.
    """
    if instances.ndim != 3 or instances.shape[:2] != semantic.shape:
        raise ValueError(f"{semantic.shape} semantic pixels, but {instances.shape} of instances")
    kinds, numbers = instances[..., 0].astype(int), instances[..., 1].astype(int)
    for values, count in ((semantic, len(CATEGORIES)), (kinds, len(THINGS))):
        if values.max() > count:
            raise ValueError(f"a category {values.max()}, of {count}")
    ids = np.zeros(semantic.shape, dtype=np.int64)
    segments: list[dict[str, Any]] = []

    def add(mask: np.ndarray, category: int) -> None:
        ids[mask] = len(segments) + 1
        y, x = np.nonzero(mask)
        box = [x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1]
        segments.append(
            {
                "id": len(segments) + 1,
                "category_id": category,
                "area": int(mask.sum()),
                "bbox": [int(value) for value in box],
                "iscrowd": 0,
            }
        )

    for value in np.unique(semantic[semantic > 0]).tolist():
        if not IS_THING[value - 1]:
            add(semantic == value, value - 1)
    for number in np.unique(numbers[numbers > 0]).tolist():
        mask = numbers == number
        (kind, *others) = np.unique(kinds[mask]).tolist()
        if others or kind == 0:
            raise ValueError(f"instance {number} has the categories {[kind, *others]}, expected exactly one")
        add(mask, int(THINGS[kind - 1]))
    visible = set(np.unique(ids).tolist())
    return ids, [segment for segment in segments if segment["id"] in visible]


def convert(images: Path, semantic: Path, instances: Path, output: Path) -> dict[str, Any]:
    """
    Converts the annotations of all images in a folder and its subfolders.

    Args:
        images (path): folder of the images.
        semantic (path): folder of the semantic PNGs, named like the images.
        instances (path): folder of the instance PNGs, named like the images.
        output (path): folder of the panoptic PNGs to write; the JSON is written beside it.

    Returns:
        The content of the JSON, in COCO's panoptic format.

    Raises:
        `ValueError` or `FileNotFoundError` that names the image or folder and the reason. No image and no PNG is
        skipped, because an incomplete set would silently change the metrics.
    """
    for folder in (images, semantic, instances):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is not a folder.")
    files = _files_by_name(images, JPEG_SUFFIXES, "images")
    if not files:
        raise ValueError(f"{images} holds no .jpg.")
    folders = {"semantic": semantic, "instances": instances}
    annotated = {field: _files_by_name(folder, {".png"}, field) for field, folder in folders.items()}
    for field, folder in folders.items():
        if left_out := sorted(annotated[field].keys() - files.keys()):
            raise ValueError(
                f"{len(left_out)} PNGs of {folder} have no image in {images}, e.g. {left_out[0]}: they would be left "
                "out. Add the images or remove the PNGs."
            )
    output.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    for index, name in enumerate(CATEGORIES.names):
        content["categories"].append({"id": index, "name": name, "isthing": int(IS_THING[index])})
    for name, file in tqdm(files.items(), desc="panoptic", disable=None, leave=False):
        pngs = [annotated[field].get(name, folder / f"{name}.png") for field, folder in folders.items()]
        try:
            ids, segments = panoptic_segments(read_index(pngs[0]), read_instances(pngs[1]))
            width, height = load_image(file).size  # after the EXIF rotation, as in the evaluation
            if ids.shape != (height, width):
                raise ValueError(f"{width} x {height} pixels, but {ids.shape[1]} x {ids.shape[0]} annotated")
        except (OSError, ValueError) as error:
            raise ValueError(f"{file}: {error}") from error
        channels = np.stack([ids % 256, ids // 256, np.zeros_like(ids)], axis=2)
        png = output / f"{name}.png"
        png.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(channels.astype(np.uint8)).save(png)
        file_name = file.relative_to(images).as_posix()
        content["images"].append({"id": name, "file_name": file_name, "width": width, "height": height})
        content["annotations"].append({"image_id": name, "file_name": f"{name}.png", "segments_info": segments})
    json_of(output).write_text(json.dumps(content), encoding="utf-8")
    return content


def read_instances(file: Path) -> np.ndarray:
    """Pixels of an instance file, `(height, width, 3)`."""
    with Image.open(file) as png:
        raw_mode(png)
        return np.asarray(png)


def json_of(output: Path) -> Path:
    """The JSON beside the folder of PNGs: `NAME.json` for `NAME`, which may contain dots."""
    return output.with_name(f"{output.name}.json")


def _files_by_name(folder: Path, suffixes: Collection[str], field: str) -> dict[str, Path]:
    files, skipped = find_files(folder, suffixes)
    warn_skipped_files(folder, skipped)
    return index_by_name(files, folder, field)


__all__ = ["CATEGORIES", "IS_THING", "THINGS", "convert", "json_of", "panoptic_segments", "read_instances"]
