# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""ADE20K's panoptic annotations, made of its public semantic and instance files (ADEChallengeData2016)."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from modeling_densevlm import CategorySet
from modeling_densevlm.image_processing_densevlm import load_image

from .folders import by_name, find_files, warn_of_passed_over
from .semantic_maps import raw_mode, read_index


CATEGORIES = CategorySet.load("ade20k_panoptic_150")
THINGS = np.flatnonzero(CATEGORIES.is_thing)
"""The things in the order of their ids; the instance files number them so, from 1."""

JPEG_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif"})


def panoptic_segments(semantic: np.ndarray, instances: np.ndarray) -> tuple[np.ndarray, list[dict[str, Any]]]:
    r"""
    Stuff from the semantic file, a segment a category; things from the instance file, laid over it. As the converter
    in public use has it, area and box of stuff are those before things are laid over it; and pixels that are a thing
    in the semantic file and in no instance belong to no segment.

    Args:
        semantic (`(height, width)` array): categories from 1; 0 is nothing.
        instances (`(height, width, 3)` array): the things' categories from 1, and the number of the instance.

    Returns:
        The segments' ids, `(height, width)`, 0 for none, and COCO's `segments_info`.

    Raises:
        `ValueError` where the two do not fit or hold values that they should not.
    """
    if instances.ndim != 3 or instances.shape[:2] != semantic.shape:
        raise ValueError(f"{semantic.shape} semantic pixels, but {instances.shape} of instances")
    kinds, numbers = instances[..., 0].astype(int), instances[..., 1].astype(int)
    for values, count in ((semantic, len(CATEGORIES)), (kinds, len(THINGS))):
        if values.max() > count:
            raise ValueError(f"a category {values.max()}, of {count}")
    ids, segments = np.zeros(semantic.shape, dtype=np.int64), []

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
        if not CATEGORIES.is_thing[value - 1]:
            add(semantic == value, value - 1)
    for number in np.unique(numbers[numbers > 0]).tolist():
        mask = numbers == number
        (kind, *others) = np.unique(kinds[mask]).tolist()
        if others or kind == 0:
            raise ValueError(f"instance {number} is of the categories {[kind, *others]}, and should be of one")
        add(mask, int(THINGS[kind - 1]))
    visible = set(np.unique(ids).tolist())
    return ids, [segment for segment in segments if segment["id"] in visible]


def convert(images: Path, semantic: Path, instances: Path, output: Path) -> dict[str, Any]:
    """
    Writes the annotations of all images in a folder, those of its subfolders as well; returns the JSON.

    Raises:
        `ValueError` or `FileNotFoundError` that names the image or the folder and what is wrong with it. Nothing is
        left out, neither an image nor a PNG: annotations with images missing would silently give other numbers.
    """
    for folder in (images, semantic, instances):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is no folder.")
    files = _named(images, JPEG_SUFFIXES, "images")
    if not files:
        raise ValueError(f"{images} holds no .jpg.")
    folders = {"semantic": semantic, "instances": instances}
    annotated = {field: _named(folder, {".png"}, field) for field, folder in folders.items()}
    for field, folder in folders.items():
        if left_out := sorted(annotated[field].keys() - files.keys()):
            raise ValueError(
                f"{len(left_out)} PNGs of {folder} have no image in {images}, e.g. {left_out[0]}: they would be left "
                "out. Put the images there, or take the PNGs away."
            )
    output.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    for index, name in enumerate(CATEGORIES.names):
        content["categories"].append({"id": index, "name": name, "isthing": int(CATEGORIES.is_thing[index])})
    for name, file in tqdm(files.items(), desc="panoptic", disable=None, leave=False):
        pngs = [annotated[field].get(name, folder / f"{name}.png") for field, folder in folders.items()]
        try:
            ids, segments = panoptic_segments(read_index(pngs[0]), read_instances(pngs[1]))
            width, height = load_image(file).size  # turned as its EXIF says, as it is evaluated
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
    """The pixels of an instance file, `(height, width, 3)`."""
    with Image.open(file) as png:
        raw_mode(png)
        return np.asarray(png)


def json_of(output: Path) -> Path:
    """The JSON beside the folder of PNGs: `NAME.json` for `NAME`, whatever dots that has."""
    return output.with_name(f"{output.name}.json")


def _named(folder: Path, suffixes: Collection[str], field: str) -> dict[str, Path]:
    files, passed = find_files(folder, suffixes)
    warn_of_passed_over(folder, passed)
    return by_name(files, folder, field)


__all__ = ["CATEGORIES", "THINGS", "convert", "json_of", "panoptic_segments", "read_instances"]
