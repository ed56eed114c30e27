# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Synthetic scenes with exact masks, in which foreground bias can be observed on a laptop.

One to three of eight stuff categories (textures) fill wavy bands; up to four of sixteen thing categories are placed on
them. Each stuff category is the *home* of two thing categories (sky: kite, airplane ...). Captions mention every thing
but rarely the stuff, as people's captions do: a CLIP trained on them predicts "kite" where there is only sky.

    python -m training.sandbox.scenes --output runs/sandbox/data

writes training images (a folder), a validation and a test split (COCO panoptic annotations) and `categories.json`.
Every scene is a pure function of (seed, split, index).
"""

import argparse
import json
import math
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from modeling_densevlm import CategorySet


SIZE = 96
"""Side of a scene in pixels."""

HOMES = {
    "sky": ("kite", "airplane"),
    "water": ("boat", "surfboard"),
    "snow": ("skis", "snowman"),
    "grass": ("sheep", "frisbee"),
    "road": ("car", "bus"),
    "sand": ("umbrella", "bucket"),
    "wall": ("clock", "painting"),
    "forest": ("bear", "tent"),
}
STUFF = tuple(HOMES)
THINGS = tuple(thing for things in HOMES.values() for thing in things)
CATEGORIES = CategorySet.load(Path(__file__).parent / "categories.json")
CATEGORY_IDS = dict(zip(CATEGORIES.names, CATEGORIES.ids or ()))

TRAIN_HOME_PROBABILITY = 0.5
"""Share of the things in training scenes that are on their home."""
TEST_HOME_PROBABILITY = 2 / len(THINGS)
"""In validation and test scenes, things are on any stuff with equal probability: the background is uninformative."""

SPLITS = {
    "pretrain": (0, TRAIN_HOME_PROBABILITY),
    "train": (1, TRAIN_HOME_PROBABILITY),
    "val": (2, TEST_HOME_PROBABILITY),
    "test": (3, TEST_HOME_PROBABILITY),
}


@dataclass
class Scene:
    """
    A scene with its annotation.

    Args:
        image (`np.ndarray` of shape `(96, 96, 3)`, uint8): RGB.
        segment_ids (`np.ndarray` of shape `(96, 96)`, int32): the segment of each pixel, from 1.
        names (`list[str]`): the category per segment.
        at_home (`list[bool]`): per segment, whether it is a thing on its home.
    """

    image: np.ndarray
    segment_ids: np.ndarray
    names: list[str]
    at_home: list[bool]


def make_scene(seed: int, split: str, index: int) -> Scene:
    """Generates scene `index` of a split."""
    number, home_probability = SPLITS[split]
    rng = np.random.default_rng((seed, number, index))
    names = list(rng.choice(STUFF, size=rng.choice([1, 2, 3], p=[0.35, 0.4, 0.25]), replace=False))
    segment_ids = _wavy_bands(rng, len(names))
    image = np.zeros((SIZE, SIZE, 3), np.float32)
    for number, name in enumerate(names, 1):
        where = segment_ids == number
        image[where] = _texture(rng, name)[where]
    at_home = [False] * len(names)
    bands = segment_ids.copy()
    # 4 % of the scenes contain no thing.
    count = 0 if rng.random() < 0.04 else rng.choice([1, 2, 3, 4], p=[0.4, 0.3, 0.2, 0.1])
    for _ in range(count):
        spot = _free_spot(rng, segment_ids, len(at_home) - sum(n in THINGS for n in names))
        if spot is None:
            continue
        x, y, side = spot
        ground = names[bands[y + side // 2, x + side // 2] - 1]
        home = rng.random() < home_probability
        name = str(rng.choice(HOMES[ground] if home else [t for t in THINGS if t not in HOMES[ground]]))
        sprite = np.asarray(_sprite(rng, name, side), np.float32)
        alpha = sprite[..., 3:] / 255
        patch = image[y : y + side, x : x + side]
        patch[:] = patch * (1 - alpha) + sprite[..., :3] * alpha
        names.append(name)
        at_home.append(home)
        segment_ids[y : y + side, x : x + side][alpha[..., 0] > 0.5] = len(names)
    image += rng.normal(0, 3, image.shape)
    return _drop_hidden(Scene(image.clip(0, 255).astype(np.uint8), segment_ids, [str(n) for n in names], at_home))


def caption(scene: Scene, rng: np.random.Generator, stuff_probability: float) -> str:
    """A caption that mentions all things, and each stuff category with `stuff_probability`."""
    things = [name for name in scene.names if name in THINGS]
    stuff = [name for name in scene.names if name in STUFF]
    named = sorted(set(things)) + [name for name in stuff if not things or rng.random() < stuff_probability]
    rng.shuffle(named)
    return "this is a photo of " + " and ".join(f"{'an' if n[0] in 'aeiou' else 'a'} {n}" for n in named)


def _wavy_bands(rng: np.random.Generator, count: int) -> np.ndarray:
    """Band numbers `(96, 96)`, 1..count from top to bottom."""
    x = np.arange(SIZE)
    y = np.arange(SIZE)[:, None]
    bands = np.ones((SIZE, SIZE), np.int32)
    for border in range(1, count):
        middle = SIZE * (border / count + rng.uniform(-0.08, 0.08))
        wave = rng.uniform(2, 6) * np.sin(2 * np.pi * (x / rng.uniform(40, 100) + rng.random()))
        bands += y >= middle + wave
    return bands


def _free_spot(rng: np.random.Generator, segment_ids: np.ndarray, stuff_count: int) -> tuple[int, int, int] | None:
    """(x, y, side) of a square of 18 to 44 pixels that covers little of the things already placed, or None."""
    for _ in range(10):
        side = int(rng.integers(18, 45))
        x, y = rng.integers(0, SIZE - side + 1, size=2)
        if (segment_ids[y : y + side, x : x + side] > stuff_count).mean() < 0.1:
            return int(x), int(y), side
    return None


def _drop_hidden(scene: Scene, min_area: int = 40) -> Scene:
    """Drops segments with fewer than `min_area` visible pixels and renumbers the others."""
    areas = np.bincount(scene.segment_ids.ravel(), minlength=len(scene.names) + 1)[1:]
    kept = [i for i, area in enumerate(areas) if area >= min_area]
    new = np.zeros(len(areas) + 1, np.int32)
    new[[i + 1 for i in kept]] = np.arange(1, len(kept) + 1)
    return Scene(scene.image, new[scene.segment_ids], [scene.names[i] for i in kept], [scene.at_home[i] for i in kept])


# --- stuff ----------------------------------------------------------------------------------------------------


def _noise(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Smooth noise in about -1..1, `(96, 96, 1)`."""
    coarse = Image.fromarray(rng.normal(0, 0.5, (rows, columns)).astype(np.float32))
    return np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC))[..., None]


def _texture(rng: np.random.Generator, name: str) -> np.ndarray:
    """The texture of a stuff category, `(96, 96, 3)`, float 0..255."""
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    fine = rng.normal(0, 1, (SIZE, SIZE, 1))
    colour = np.array(_COLOURS[name], np.float32) + rng.normal(0, 12, 3)
    if name == "sky":
        return colour + 25 * (y / SIZE)[..., None] + 45 * np.maximum(_noise(rng, 4, 5), 0)
    if name == "water":
        ripples = np.sin(2 * np.pi * (y / rng.uniform(5, 8) + 0.6 * _noise(rng, 6, 6)[..., 0]))
        return colour + 22 * ripples[..., None]
    if name == "snow":
        return colour + 10 * _noise(rng, 3, 3) + 25 * (fine > 2.2) - 12 * np.maximum(_noise(rng, 5, 5), 0)
    if name == "grass":
        blades = np.asarray(rng.normal(0, 1, (SIZE // 4, SIZE))).repeat(4, axis=0)
        return colour + 22 * blades[..., None]
    if name == "road":
        lane = (np.abs((x + y * rng.uniform(-0.4, 0.4)) % 32 - 16) < 1.5) & (y % 20 < 11)
        return np.where(lane[..., None], 225, colour + 10 * fine)
    if name == "sand":
        dunes = np.sin(2 * np.pi * (x + 2 * y + 12 * _noise(rng, 4, 4)[..., 0]) / rng.uniform(14, 20))
        return colour + 9 * dunes[..., None] - 30 * (fine > 1.9)
    if name == "wall":
        height = int(rng.integers(8, 12))
        row = y // height
        joint = (y % height < 1.5) | ((x + (row % 2) * height) % (2 * height) < 1.5)
        return np.where(joint[..., None], 205, colour + 8 * fine)
    crowns = _noise(rng, 14, 14)
    return colour + 55 * np.maximum(crowns, -0.2) + 6 * fine


_COLOURS = {
    "sky": (110, 165, 225),
    "water": (45, 110, 160),
    "snow": (228, 234, 242),
    "grass": (85, 150, 60),
    "road": (95, 95, 100),
    "sand": (215, 190, 140),
    "wall": (165, 90, 70),
    "forest": (35, 75, 40),
}


# --- things ----------------------------------------------------------------------------------------------------


def _sprite(rng: np.random.Generator, name: str, side: int) -> Image.Image:
    """A thing on a transparent square, randomly mirrored and rotated, RGBA."""
    scale = 1.28
    image = Image.new("RGBA", (128, 128), (0, 0, 0, 0))
    main, second = _colour(rng), _colour(rng)
    _Pen(ImageDraw.Draw(image), scale).draw(name, main, second, rng)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = image.rotate(rng.uniform(-15, 15), Image.Resampling.BILINEAR)
    return image.resize((side, side), Image.Resampling.BOX if side < 32 else Image.Resampling.BILINEAR)


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    """A saturated colour of random hue, RGB."""
    hue = rng.random() * 6
    channels = [np.clip(abs((hue + shift) % 6 - 3) - 1, 0, 1) for shift in (0, 4, 2)]
    light = rng.uniform(150, 255)
    red, green, blue = (int(light * (0.15 + 0.85 * c)) for c in channels)
    return red, green, blue


class _Pen:
    """Draws things on a square of 100 x 100 units."""

    def __init__(self, draw: ImageDraw.ImageDraw, scale: float):
        self.canvas, self.scale = draw, scale

    def _at(self, points: tuple[float, ...]) -> list[float]:
        return [p * self.scale for p in points]

    def ellipse(self, colour, *box: float) -> None:
        self.canvas.ellipse(self._at(box), fill=colour)

    def rectangle(self, colour, *box: float) -> None:
        self.canvas.rectangle(self._at(box), fill=colour)

    def polygon(self, colour, *points: float) -> None:
        self.canvas.polygon(self._at(points), fill=colour)

    def line(self, colour, width: float, *points: float) -> None:
        self.canvas.line(self._at(points), fill=colour, width=max(round(width * self.scale), 1))

    def draw(self, name: str, main, second, rng: np.random.Generator) -> None:
        """Draws a thing category in two colours."""
        dark, white = (30, 30, 35), (245, 245, 245)
        if name == "kite":
            self.polygon(main, 50, 2, 84, 34, 50, 72, 16, 34)
            self.polygon(second, 50, 2, 84, 34, 50, 34)
            self.line(dark, 4, 50, 70, 40, 80, 56, 88, 46, 98)
        elif name == "airplane":
            self.polygon(second, 44, 48, 62, 48, 40, 92, 28, 92)
            self.polygon(second, 46, 52, 60, 52, 44, 14, 34, 14)
            self.ellipse(main, 6, 40, 98, 62)
            self.polygon(main, 6, 50, 2, 24, 16, 24, 28, 46)
        elif name == "boat":
            self.polygon(main, 4, 66, 96, 66, 80, 92, 20, 92)
            self.line(dark, 4, 50, 66, 50, 6)
            self.polygon(white, 54, 8, 54, 60, 90, 60)
            self.polygon(second, 46, 16, 46, 60, 18, 60)
        elif name == "surfboard":
            self.ellipse(main, 34, 2, 66, 98)
            self.line(second, 6, 50, 4, 50, 96)
        elif name == "skis":
            for x in (28, 60):
                self.rectangle(main, x, 12, x + 11, 98)
                self.polygon(main, x, 12, x + 11, 12, x + 14, 2, x + 6, 2)
                self.rectangle(dark, x, 50, x + 11, 62)
        elif name == "snowman":
            self.ellipse((250, 250, 252), 20, 48, 80, 99)
            self.ellipse((242, 244, 248), 28, 22, 72, 60)
            self.ellipse((250, 250, 252), 35, 4, 65, 32)
            self.rectangle(dark, 34, 0, 66, 8)
            self.polygon((240, 130, 30), 50, 18, 70, 21, 50, 24)
            self.line(main, 6, 32, 33, 68, 33)
            for y in (44, 58, 72):
                self.ellipse(dark, 47, y, 53, y + 6)
        elif name == "sheep":
            for x in (28, 44, 58, 70):
                self.rectangle(dark, x, 66, x + 6, 94)
            for x, y in ((14, 34), (30, 26), (48, 28), (22, 46), (42, 46), (54, 38)):
                self.ellipse((238, 234, 224), x, y, x + 32, y + 30)
            self.ellipse((60, 50, 48), 74, 22, 98, 52)
        elif name == "frisbee":
            self.ellipse(main, 2, 34, 98, 68)
            self.ellipse(second, 22, 40, 78, 60)
        elif name == "car":
            self.polygon(main, 2, 52, 22, 50, 36, 30, 72, 30, 84, 50, 98, 54, 98, 74, 2, 74)
            self.polygon((190, 220, 240), 30, 50, 40, 35, 54, 35, 54, 50)
            self.polygon((190, 220, 240), 58, 50, 58, 35, 70, 35, 77, 50)
            for x in (16, 64):
                self.ellipse(dark, x, 62, x + 22, 84)
        elif name == "bus":
            self.rectangle(main, 2, 22, 98, 78)
            for x in (8, 26, 44, 62, 80):
                self.rectangle((190, 220, 240), x, 30, x + 13, 48)
            self.rectangle(second, 2, 56, 98, 62)
            for x in (16, 66):
                self.ellipse(dark, x, 68, x + 20, 88)
        elif name == "umbrella":
            self.canvas.pieslice(self._at((4, 6, 96, 94)), 180, 360, fill=main)
            self.canvas.pieslice(self._at((32, 6, 68, 94)), 180, 360, fill=second)
            self.line(dark, 5, 50, 48, 50, 92)
            self.line(dark, 5, 50, 92, 62, 92)
        elif name == "bucket":
            self.canvas.arc(self._at((22, 4, 78, 64)), 180, 360, fill=dark, width=5)
            self.polygon(main, 14, 34, 86, 34, 72, 96, 28, 96)
            self.ellipse(second, 14, 28, 86, 42)
        elif name == "clock":
            self.ellipse(main, 4, 4, 96, 96)
            self.ellipse(white, 14, 14, 86, 86)
            angle = rng.uniform(0, 2 * math.pi)
            for length, turn in ((30, angle), (20, angle * 5)):
                self.line(dark, 6, 50, 50, 50 + length * math.sin(turn), 50 - length * math.cos(turn))
        elif name == "painting":
            self.rectangle((130, 90, 35), 4, 12, 96, 88)
            self.rectangle(main, 14, 22, 86, 78)
            self.polygon(second, 14, 78, 40, 44, 60, 64, 70, 52, 86, 78)
            self.ellipse((250, 230, 120), 62, 28, 76, 42)
        elif name == "bear":
            brown = tuple(int(c + rng.normal(0, 10)) for c in (125, 80, 45))
            self.ellipse(brown, 16, 6, 40, 30)
            self.ellipse(brown, 60, 6, 84, 30)
            self.ellipse(brown, 18, 44, 82, 99)
            self.ellipse(brown, 20, 12, 80, 66)
            self.ellipse((215, 180, 140), 36, 38, 64, 62)
            for box in ((34, 28, 42, 36), (58, 28, 66, 36), (46, 40, 54, 48)):
                self.ellipse(dark, *box)
        else:
            self.polygon(main, 50, 8, 98, 92, 2, 92)
            self.polygon(second, 50, 8, 62, 30, 38, 30)
            self.polygon(dark, 50, 42, 66, 92, 34, 92)


# --- files ----------------------------------------------------------------------------------------------------


def write_scenes(folder: Path, seed: int, split: str, count: int) -> None:
    """
    Writes `folder/split/images/*.jpg`; for validation and test also `panoptic.json` and `panoptic/*.png` in COCO's
    format, with the additional field `at_home` per segment.
    """
    annotated = split in ("val", "test")
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
    name = f"{index:06d}"
    Image.fromarray(scene.image).save(folder / "images" / f"{name}.jpg", quality=95)
    image = {"id": index, "file_name": f"{name}.jpg", "width": SIZE, "height": SIZE}
    if not annotated:
        return image, {}
    colours = np.zeros((SIZE, SIZE, 3), np.uint8)
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


def main() -> None:
    """Parses the command line and writes all splits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="of all scenes")
    parser.add_argument("--train", type=int, default=10_000, help="number of training images")
    parser.add_argument(
        "--val", type=int, default=600, help="number of validation images (the offset δ is chosen on them)"
    )
    parser.add_argument("--test", type=int, default=1_200, help="number of test images (nothing is chosen on them)")
    arguments = parser.parse_args()
    for split in ("train", "val", "test"):
        if getattr(arguments, split) < 1:
            parser.error(f"--{split} is a number of images, from 1 on; got {getattr(arguments, split)}.")
    try:
        arguments.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--output: the folder cannot be created: {error}")
    for split in ("train", "val", "test"):
        count = getattr(arguments, split)
        write_scenes(arguments.output, arguments.seed, split, count)
        print(f"{count} {split} scenes in {arguments.output / split}")
    CATEGORIES.save(arguments.output / "categories.json")  # last: it marks a complete set


if __name__ == "__main__":
    main()
