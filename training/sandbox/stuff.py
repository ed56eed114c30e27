# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
The twelve kinds of stuff of the sandbox: textures. Colour hardly tells them apart: most share their colours with
another kind and differ from it in structure, as bricks and tiles, water and a curtain, sand and gravel, grass and a
ploughed field, an overcast sky and snow.
"""

import numpy as np
from PIL import Image


MASONRY = ((165, 90, 70), (190, 165, 145), (140, 140, 145), (205, 150, 110))
FABRIC = ((45, 110, 160), (70, 125, 130), (150, 60, 70), (150, 135, 175))
STONE = ((215, 190, 140), (190, 170, 140), (170, 162, 155))
PLANTS = ((85, 150, 60), (120, 150, 70), (150, 140, 75))
PALE = ((190, 200, 212), (205, 215, 228), (228, 234, 242))

COLOURS = {
    "sky": ((110, 165, 225), (150, 185, 222), (190, 200, 212)),
    "snow": PALE,
    "water": (*FABRIC[:2], (80, 120, 170)),
    "curtain": FABRIC,
    "grass": PLANTS,
    "field": PLANTS,
    "sand": STONE,
    "gravel": (*STONE, (130, 128, 128)),
    "road": ((95, 95, 100), (70, 72, 80), (130, 128, 128)),
    "wall": MASONRY,
    "tiles": MASONRY,
    "forest": ((35, 75, 40), (60, 90, 45), (100, 90, 45)),
}
"""The colours that a kind of stuff occurs in, RGB."""


def texture(rng: np.random.Generator, name: str, height: int, width: int) -> np.ndarray:
    """
    The texture of a kind of stuff over a whole picture.

    Returns:
        `np.ndarray` of shape `(height, width, 3)`, float32: RGB, about 0..255.
    """
    colour = np.array(COLOURS[name][rng.integers(len(COLOURS[name]))], np.float32) + rng.normal(0, 10, 3)
    colour = colour * rng.uniform(0.85, 1.1)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    light = _STRUCTURES[name](rng, x, y)
    return (colour + light[..., None]).astype(np.float32)


def noise(rng: np.random.Generator, height: int, width: int, cell: float, tall: float = 1.0) -> np.ndarray:
    """Smooth noise `(height, width)` of about -1..1; its blobs are `cell` pixels wide and `tall` times as high."""
    rows, columns = max(round(height / cell / tall), 2), max(round(width / cell), 2)
    coarse = Image.fromarray(rng.normal(0, 0.5, (rows, columns)).astype(np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def _wave(rng: np.random.Generator, along: np.ndarray, period: tuple[float, float], wobble: float) -> np.ndarray:
    """Parallel waves along a coordinate, with a period drawn from a range and bent by `wobble` pixels."""
    bend = wobble * noise(rng, *along.shape, cell=32)
    return np.sin(2 * np.pi * ((along + bend) / rng.uniform(*period) + rng.random()))


def _sky(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return 20 * y / len(y) - 20 + 45 * np.maximum(noise(rng, *x.shape, cell=44, tall=0.6), 0)


def _snow(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    drifts = noise(rng, *x.shape, cell=60, tall=0.3)
    return 25 * (noise(rng, *x.shape, cell=3) > 1.0) - 22 * np.maximum(drifts, 0)


def _water(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return 24 * _wave(rng, y, (11, 16), 10)


def _curtain(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return 24 * _wave(rng, x, (14, 22), 5)


def _grass(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return 45 * noise(rng, *x.shape, cell=3, tall=4)


def _field(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    angle = rng.uniform(0.35, 1.2) * rng.choice([-1, 1])
    furrows = _wave(rng, x * np.cos(angle) + y * np.sin(angle), (18, 26), 2)
    return 26 * np.sign(furrows) * np.sqrt(np.abs(furrows)) + 12 * noise(rng, *x.shape, cell=4)


def _sand(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return 14 * _wave(rng, 0.5 * x + y, (30, 42), 22) - 22 * (noise(rng, *x.shape, cell=2.5) > 0.9)


def _gravel(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    pebbles = noise(rng, *x.shape, cell=9)
    return 24 * pebbles - 55 * (np.abs(pebbles) < 0.1)


def _road(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    lane = np.abs((x + y * rng.uniform(-0.4, 0.4) + rng.uniform(0, 64)) % 64 - 32) < 3
    dash = (y + rng.uniform(0, 40)) % 40 < 22
    return 120 * (lane & dash) + 8 * noise(rng, *x.shape, cell=3)


def _wall(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    height = rng.uniform(15, 22)
    y, x = y + rng.uniform(0, height), x + rng.uniform(0, 2 * height)
    joint = (y % height < 3) | ((x + (y // height % 2) * height) % (2 * height) < 3)
    return 55 * joint + 8 * noise(rng, *x.shape, cell=4)


def _tiles(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    side = rng.uniform(20, 30)
    joint = ((y + rng.uniform(0, side)) % side < 3) | ((x + rng.uniform(0, side)) % side < 3)
    return 55 * joint + 8 * noise(rng, *x.shape, cell=4)


def _forest(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return 60 * np.maximum(noise(rng, *x.shape, cell=14), -0.2) + 8 * noise(rng, *x.shape, cell=3)


_STRUCTURES = {
    "sky": _sky,
    "snow": _snow,
    "water": _water,
    "curtain": _curtain,
    "grass": _grass,
    "field": _field,
    "sand": _sand,
    "gravel": _gravel,
    "road": _road,
    "wall": _wall,
    "tiles": _tiles,
    "forest": _forest,
}
