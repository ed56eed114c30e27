# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Synthetic pictures with exact masks, in which foreground bias can be observed on a laptop.

In a *scene*, one to three of twelve stuff categories (textures) fill wavy bands, and up to four of sixteen thing
categories are placed on them, some cut by the border or partly hidden. Each thing has a *home* among the stuff (sky:
kite, airplane ...). A *close-up* shows one large thing, as most captioned pictures of the web do. Captions mention
every thing but rarely the stuff, as people's captions do: a CLIP trained on them predicts "kite" where there is only
sky.

    python -m training.sandbox.scenes --output runs/sandbox/data

writes training scenes (a folder), a validation and a test split and pictures of single things (COCO panoptic
annotations), and `categories.json`. Every picture is a pure function of (seed, split, index).
"""

import argparse
import json
import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from modeling_densevlm import CategorySet

from .stuff import texture
from .things import sprite


SIZES = ((192, 192), (192, 144), (144, 192), (192, 128))
"""Widths and heights of pictures in pixels, equally often. The longest side is twice what U was pre-trained with."""

HOMES = {
    "kite": "sky",
    "airplane": "sky",
    "boat": "water",
    "surfboard": "water",
    "skis": "snow",
    "snowman": "snow",
    "sheep": "field",
    "frisbee": "grass",
    "car": "road",
    "bus": "road",
    "umbrella": "sand",
    "bucket": "tiles",
    "clock": "wall",
    "painting": "curtain",
    "bear": "forest",
    "tent": "gravel",
}
THINGS = tuple(HOMES)
STUFF = tuple(dict.fromkeys(HOMES.values()))
CATEGORIES = CategorySet.load(Path(__file__).parent / "categories.json")
CATEGORY_IDS = dict(zip(CATEGORIES.names, CATEGORIES.ids or ()))

SMALL, LARGE = (44, 104), (88, 180)
"""Least and largest side in pixels of things in scenes and in close-ups."""

LEAST_AREA = 250
"""Segments with fewer visible pixels are not annotated."""


@dataclass
class Split:
    """
    How the pictures of a split are drawn.

    Args:
        number (`int`): distinguishes the splits' random numbers.
        home_probability (`float`): share of the things that are on their home.
        close_ups (`float`, *optional*, defaults to 0): share of the pictures that are close-ups.
        grounds (`float`, *optional*, defaults to 0): share of the other pictures that show stuff alone, from nearby.
        landscapes (`float`, *optional*, defaults to 0.04): share of the remaining pictures that show no thing.
        nearest (`float`, *optional*, defaults to 1):
            How much larger than in a scene stuff is shown at most, in close-ups and where it is alone.
        single (`bool`, *optional*, defaults to `False`): whether scenes show exactly one thing.
    """

    number: int
    home_probability: float
    close_ups: float = 0.0
    grounds: float = 0.0
    landscapes: float = 0.04
    nearest: float = 1.0
    single: bool = False


ANYWHERE = 1 / len(STUFF)
"""With this probability of home, things are on any stuff: the background tells nothing about them."""

SPLITS = {
    "pretrain_u": Split(0, 0.5, close_ups=0.5),
    "pretrain_p": Split(5, 0.5, close_ups=0.4, grounds=0.2, landscapes=0.1, nearest=2.5),
    "train": Split(1, 0.5),
    "val": Split(2, ANYWHERE),
    "test": Split(3, ANYWHERE),
    "single": Split(4, ANYWHERE, close_ups=0.5, single=True),
}


@dataclass
class Scene:
    """
    A picture with its annotation.

    Args:
        image (`np.ndarray` of shape `(height, width, 3)`, uint8): RGB.
        segment_ids (`np.ndarray` of shape `(height, width)`, int32): the segment of each pixel, from 1; 0 for none.
        names (`list[str]`): the category per segment.
        at_home (`list[bool]`): per segment, whether it is a thing on its home.
        close_up (`bool`): whether it shows one large thing.
    """

    image: np.ndarray
    segment_ids: np.ndarray
    names: list[str]
    at_home: list[bool]
    close_up: bool


def make_scene(seed: int, split: str, index: int) -> Scene:
    """Draws picture `index` of a split."""
    settings = SPLITS[split]
    rng = np.random.default_rng((seed, settings.number, index))
    width, height = SIZES[rng.integers(len(SIZES))]
    close_up = bool(rng.random() < settings.close_ups)
    ground = bool(not close_up and settings.grounds and rng.random() < settings.grounds)
    nearness = rng.uniform(1, settings.nearest) if settings.nearest > 1 and (close_up or ground) else 1.0
    kinds = rng.choice([1, 2, 3], p=[0.6, 0.4, 0] if close_up or ground else [0.3, 0.4, 0.3])
    names = [str(name) for name in rng.choice(STUFF, size=kinds, replace=False)]
    segment_ids = _wavy_bands(rng, kinds, height, width)
    image = np.zeros((height, width, 3), np.float32)
    for number, name in enumerate(names, 1):
        where = segment_ids == number
        image[where] = seen_from(nearness, partial(texture, rng, name), height, width)[where]
    scene = Scene(image, segment_ids, names, [False] * kinds, close_up)
    if close_up or settings.single:
        count = 1
    else:
        count = (
            0 if ground or rng.random() < settings.landscapes else rng.choice([1, 2, 3, 4], p=[0.35, 0.3, 0.2, 0.15])
        )
    bands = segment_ids.copy()
    for _ in range(count):
        _place_thing(rng, scene, bands, settings.home_probability)
    image += rng.normal(0, 3, image.shape)
    scene.image = image.clip(0, 255).astype(np.uint8)
    return _drop_hidden(scene)


def caption(scene: Scene, rng: np.random.Generator, stuff_probability: float) -> str:
    """A caption that mentions all things, and each stuff category with `stuff_probability`."""
    things = [name for name in scene.names if name in THINGS]
    stuff = [name for name in scene.names if name in STUFF]
    named = sorted(set(things)) + [name for name in stuff if not things or rng.random() < stuff_probability]
    rng.shuffle(named)
    return "this is a photo of " + " and ".join(f"{'an' if n[0] in 'aeiou' else 'a'} {n}" for n in named)


def seen_from(nearness: float, draw: Callable[[int, int], np.ndarray], height: int, width: int) -> np.ndarray:
    """A texture of a height and width in pixels `(height, width, 3)`, enlarged by `nearness`."""
    if nearness == 1:
        return draw(height, width)
    pixels = draw(math.ceil(height / nearness), math.ceil(width / nearness)).clip(0, 255).astype(np.uint8)
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC), np.float32)


def _wavy_bands(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """Band numbers `(height, width)`, 1..count from top to bottom, with slanted and wavy borders."""
    x = np.arange(width)
    y = np.arange(height)[:, None]
    bands = np.ones((height, width), np.int32)
    for border in range(1, count):
        middle = height * (border / count + rng.uniform(-0.08, 0.08))
        wave = rng.uniform(3, 11) * np.sin(2 * np.pi * (x / rng.uniform(80, 200) + rng.random()))
        bands += y >= middle + wave + rng.uniform(-0.12, 0.12) * (x - width / 2)
    return bands


def _place_thing(rng: np.random.Generator, scene: Scene, bands: np.ndarray, home_probability: float) -> None:
    """Draws a thing where there is room, and adds it to the annotation."""
    spot = _find_spot(rng, scene, int(bands.max()))
    if spot is None:
        return
    x, y, side = spot
    height, width = bands.shape
    ground = scene.names[bands[min(max(y + side // 2, 0), height - 1), min(max(x + side // 2, 0), width - 1)] - 1]
    at_home = [thing for thing, home in HOMES.items() if home == ground]
    home = bool(rng.random() < home_probability)
    name = str(rng.choice(at_home if home else [thing for thing in THINGS if thing not in at_home]))
    # The part of the square within the picture.
    top, left, bottom, right = max(y, 0), max(x, 0), min(y + side, height), min(x + side, width)
    drawn = sprite(rng, name, side)[top - y : bottom - y, left - x : right - x]
    alpha = drawn[..., 3:] / 255
    patch = scene.image[top:bottom, left:right]
    patch[:] = patch * (1 - alpha) + drawn[..., :3] * alpha
    scene.names.append(name)
    scene.at_home.append(home)
    scene.segment_ids[top:bottom, left:right][alpha[..., 0] > 0.5] = len(scene.names)


def _find_spot(rng: np.random.Generator, scene: Scene, kinds_of_stuff: int) -> tuple[int, int, int] | None:
    """
    (x, y, side) of a square for a thing, or None. One in five reaches over the border, and one in five may hide a
    third of what it lies on; the others touch things already placed only at their rims.
    """
    height, width = scene.segment_ids.shape
    least, largest = LARGE if scene.close_up else SMALL
    beyond = 0.3 if rng.random() < 0.2 else 0.0
    hidden = 0.35 if rng.random() < 0.2 else 0.08
    for _ in range(10):
        side = int(rng.integers(least, min(largest, min(height, width)) + 1))
        out = int(beyond * side)
        x = int(rng.integers(-out, width - side + out + 1))
        y = int(rng.integers(-out, height - side + out + 1))
        square = scene.segment_ids[max(y, 0) : y + side, max(x, 0) : x + side]
        if (square > kinds_of_stuff).mean() < hidden:
            return x, y, side
    return None


def _drop_hidden(scene: Scene) -> Scene:
    """Drops segments with fewer than `LEAST_AREA` visible pixels and renumbers the others."""
    areas = np.bincount(scene.segment_ids.ravel(), minlength=len(scene.names) + 1)[1:]
    kept = [number for number, area in enumerate(areas) if area >= LEAST_AREA]
    new = np.zeros(len(areas) + 1, np.int32)
    new[[number + 1 for number in kept]] = np.arange(1, len(kept) + 1)
    scene.segment_ids = new[scene.segment_ids]
    scene.names = [scene.names[number] for number in kept]
    scene.at_home = [scene.at_home[number] for number in kept]
    return scene


# Files


def write_scenes(folder: Path, seed: int, split: str, count: int) -> None:
    """
    Writes `folder/split/images/*.jpg`; for all splits but the training split also `panoptic.json` and
    `panoptic/*.png` in COCO's format, with the additional fields `at_home` per segment and `close_up` per image.
    """
    annotated = split != "train"
    for name in ("images", "panoptic") if annotated else ("images",):
        (folder / split / name).mkdir(parents=True, exist_ok=True)
    for stale in (folder / split / "images").glob("??????.jpg"):  # left by an earlier, larger set
        if int(stale.stem) >= count:
            stale.unlink()
    write = partial(_write_scene, folder / split, seed, split, annotated)
    with ProcessPoolExecutor() as pool:
        written = list(pool.map(write, range(count), chunksize=64))
    if not annotated:
        return
    content = {
        "images": [image for image, _ in written],
        "annotations": [annotation for _, annotation in written],
        "categories": [
            {"id": CATEGORY_IDS[name], "name": name, "isthing": int(name in THINGS)} for name in CATEGORIES.names
        ],
    }
    (folder / split / "panoptic.json").write_text(json.dumps(content))


def _write_scene(folder: Path, seed: int, split: str, annotated: bool, index: int) -> tuple[dict, dict]:
    scene = make_scene(seed, split, index)
    height, width = scene.segment_ids.shape
    name = f"{index:06d}"
    Image.fromarray(scene.image).save(folder / "images" / f"{name}.jpg", quality=95)
    image = {"id": index, "file_name": f"{name}.jpg", "width": width, "height": height, "close_up": scene.close_up}
    if not annotated:
        return image, {}
    colours = np.zeros((height, width, 3), np.uint8)
    colours[..., 0] = scene.segment_ids  # COCO: id = R + 256 G + 256² B
    Image.fromarray(colours).save(folder / "panoptic" / f"{name}.png")
    segments = [_segment(scene, number) for number in range(1, len(scene.names) + 1)]
    return image, {"image_id": index, "file_name": f"{name}.png", "segments_info": segments}


def _segment(scene: Scene, number: int) -> dict:
    rows, columns = np.nonzero(scene.segment_ids == number)
    x, y = int(columns.min()), int(rows.min())
    return {
        "id": number,
        "category_id": CATEGORY_IDS[scene.names[number - 1]],
        "area": len(rows),
        "bbox": [x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y],
        "iscrowd": 0,
        "at_home": scene.at_home[number - 1],
    }


COUNTS = {
    "train": (4_000, "training images"),
    "val": (400, "validation images (the offset δ is chosen on them)"),
    "test": (1_200, "test images (nothing is chosen on them)"),
    "single": (640, "pictures of a single thing, half of them close-ups, for the recognition of whole images"),
}


def main() -> None:
    """Parses the command line and writes all splits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="of all scenes")
    for split, (count, purpose) in COUNTS.items():
        parser.add_argument(f"--{split}", type=int, default=count, help=f"number of {purpose}")
    arguments = parser.parse_args()
    for split in COUNTS:
        if getattr(arguments, split) < 1:
            parser.error(f"--{split} is a number of images, from 1 on; got {getattr(arguments, split)}.")
    try:
        arguments.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--output: the folder cannot be created: {error}")
    for split in COUNTS:
        count = getattr(arguments, split)
        write_scenes(arguments.output, arguments.seed, split, count)
        print(f"{count} {split} scenes in {arguments.output / split}")
    CATEGORIES.save(arguments.output / "categories.json")  # last: it marks a complete set


if __name__ == "__main__":
    main()
