# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The sixteen things of the sandbox: shapes in random colours and poses."""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw


Colour = tuple[int, int, int]

DARK, WHITE, GLASS = (30, 30, 35), (245, 245, 245), (190, 220, 240)


def sprite(rng: np.random.Generator, name: str, side: int) -> np.ndarray:
    """
    A thing on a transparent square: mirrored at random, rotated by up to 25 degrees, stretched by up to a quarter.

    Returns:
        `np.ndarray` of shape `(side, side, 4)`, float32: RGBA, 0..255.
    """
    pen = Pen()
    DRAWINGS[name](pen, random_colour(rng), random_colour(rng), rng)
    image = pen.image
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = image.rotate(rng.uniform(-25, 25), Image.Resampling.BILINEAR)
    shorter = round(side * rng.uniform(0.75, 1))
    size = (side, shorter) if rng.random() < 0.5 else (shorter, side)
    stretched = Image.new("RGBA", (side, side))
    stretched.paste(image.resize(size, Image.Resampling.BOX), ((side - size[0]) // 2, (side - size[1]) // 2))
    return np.asarray(stretched, np.float32)


def random_colour(rng: np.random.Generator) -> Colour:
    """A colour of random hue, saturation and lightness, RGB."""
    hue = rng.random() * 6
    channels = [np.clip(abs((hue + shift) % 6 - 3) - 1, 0, 1) for shift in (0, 4, 2)]
    light, saturation = rng.uniform(110, 255), rng.uniform(0.5, 0.9)
    red, green, blue = (int(light * (1 - saturation + saturation * channel)) for channel in channels)
    return red, green, blue


class Pen:
    """Draws on a transparent square of 100 x 100 units."""

    SIDE = 192
    """Pixels of the square: the largest a thing is shown at, so that it is only ever reduced."""

    def __init__(self) -> None:
        self.image = Image.new("RGBA", (self.SIDE, self.SIDE))
        self.canvas = ImageDraw.Draw(self.image)

    def _at(self, points: tuple[float, ...]) -> list[float]:
        return [point * self.SIDE / 100 for point in points]

    def _width(self, units: float) -> int:
        return max(round(units * self.SIDE / 100), 1)

    def ellipse(self, colour: Colour, *box: float) -> None:
        self.canvas.ellipse(self._at(box), fill=colour)

    def rectangle(self, colour: Colour, *box: float) -> None:
        self.canvas.rectangle(self._at(box), fill=colour)

    def polygon(self, colour: Colour, *points: float) -> None:
        self.canvas.polygon(self._at(points), fill=colour)

    def upper_half(self, colour: Colour, *box: float) -> None:
        self.canvas.pieslice(self._at(box), 180, 360, fill=colour)

    def upper_arc(self, colour: Colour, width: float, *box: float) -> None:
        self.canvas.arc(self._at(box), 180, 360, fill=colour, width=self._width(width))

    def line(self, colour: Colour, width: float, *points: float) -> None:
        self.canvas.line(self._at(points), fill=colour, width=self._width(width))


def _kite(pen: Pen, main: Colour, second: Colour, rng: np.random.Generator) -> None:
    pen.polygon(main, 50, 2, 84, 34, 50, 72, 16, 34)
    pen.polygon(second, 50, 2, 84, 34, 50, 34)
    pen.line(DARK, 4, 50, 70, 40, 80, 56, 88, 46, 98)


def _airplane(pen: Pen, main: Colour, second: Colour, rng: np.random.Generator) -> None:
    pen.polygon(second, 44, 48, 62, 48, 40, 92, 28, 92)
    pen.polygon(second, 46, 52, 60, 52, 44, 14, 34, 14)
    pen.ellipse(main, 6, 40, 98, 62)
    pen.polygon(main, 6, 50, 2, 24, 16, 24, 28, 46)


def _boat(pen: Pen, main: Colour, second: Colour, rng: np.random.Generator) -> None:
    pen.polygon(main, 4, 66, 96, 66, 80, 92, 20, 92)
    pen.line(DARK, 4, 50, 66, 50, 6)
    pen.polygon(WHITE, 54, 8, 54, 60, 90, 60)
    pen.polygon(second, 46, 16, 46, 60, 18, 60)


def _surfboard(pen: Pen, main: Colour, second: Colour, rng: np.random.Generator) -> None:
    pen.ellipse(main, 32, 2, 68, 98)
    pen.line(second, 6, 50, 4, 50, 96)


def _skis(pen: Pen, main: Colour, second: Colour, rng: np.random.Generator) -> None:
    for x in (24, 58):
        pen.rectangle(main, x, 12, x + 15, 98)
        pen.polygon(main, x, 12, x + 15, 12, x + 17, 2, x + 6, 2)
        pen.rectangle(DARK, x, 50, x + 15, 62)


def _snowman(pen: Pen, main: Colour, second: Colour, rng: np.random.Generator) -> None:
    pen.ellipse((250, 250, 252), 20, 48, 80, 99)
    pen.ellipse((242, 244, 248), 28, 22, 72, 60)
    pen.ellipse((250, 250, 252), 35, 4, 65, 32)
    pen.rectangle(second, 34, 0, 66, 8)
    pen.polygon((240, 130, 30), 50, 18, 70, 21, 50, 24)
    pen.line(main, 6, 32, 33, 68, 33)
    for y in (44, 58, 72):
        pen.ellipse(DARK, 46, y, 54, y + 7)


def _sheep(pen: Pen, main: Colour, second: Colour, rng: np.random.Generator) -> None:
    light = int(rng.uniform(170, 245))
    for x in (28, 44, 58, 70):
        pen.rectangle(DARK, x, 66, x + 6, 94)
    for x, y in ((14, 34), (30, 26), (48, 28), (22, 46), (42, 46), (54, 38)):
        pen.ellipse((light, light - 4, light - 14), x, y, x + 32, y + 30)
    pen.ellipse((60, 50, 48), 74, 22, 98, 52)


def _frisbee(pen: Pen, main: Colour, second: Colour, rng: np.random.Generator) -> None:
    pen.ellipse(main, 2, 30, 98, 72)
    pen.ellipse(second, 22, 38, 78, 62)


def _car(pen: Pen, main: Colour, second: Colour, rng: np.random.Generator) -> None:
    pen.polygon(main, 2, 52, 22, 50, 36, 30, 72, 30, 84, 50, 98, 54, 98, 74, 2, 74)
    pen.polygon(GLASS, 30, 50, 40, 35, 54, 35, 54, 50)
    pen.polygon(GLASS, 58, 50, 58, 35, 70, 35, 77, 50)
    for x in (16, 64):
        pen.ellipse(DARK, x, 62, x + 22, 84)


def _bus(pen: Pen, main: Colour, second: Colour, rng: np.random.Generator) -> None:
    pen.rectangle(main, 2, 22, 98, 78)
    for x in (8, 26, 44, 62, 80):
        pen.rectangle(GLASS, x, 30, x + 13, 48)
    pen.rectangle(second, 2, 56, 98, 62)
    for x in (16, 66):
        pen.ellipse(DARK, x, 68, x + 20, 88)


def _umbrella(pen: Pen, main: Colour, second: Colour, rng: np.random.Generator) -> None:
    pen.upper_half(main, 4, 6, 96, 94)
    pen.upper_half(second, 32, 6, 68, 94)
    pen.line(DARK, 5, 50, 48, 50, 92)
    pen.line(DARK, 5, 50, 92, 62, 92)


def _bucket(pen: Pen, main: Colour, second: Colour, rng: np.random.Generator) -> None:
    pen.upper_arc(DARK, 4, 22, 4, 78, 64)
    pen.polygon(main, 14, 34, 86, 34, 72, 96, 28, 96)
    pen.ellipse(second, 14, 28, 86, 42)


def _clock(pen: Pen, main: Colour, second: Colour, rng: np.random.Generator) -> None:
    pen.ellipse(main, 4, 4, 96, 96)
    pen.ellipse(WHITE, 14, 14, 86, 86)
    angle = rng.uniform(0, 2 * math.pi)
    for length, turn in ((30, angle), (20, angle * 5)):
        pen.line(DARK, 6, 50, 50, 50 + length * math.sin(turn), 50 - length * math.cos(turn))


def _painting(pen: Pen, main: Colour, second: Colour, rng: np.random.Generator) -> None:
    pen.rectangle((130, 90, 35), 4, 12, 96, 88)
    pen.rectangle(main, 14, 22, 86, 78)
    pen.polygon(second, 14, 78, 40, 44, 60, 64, 70, 52, 86, 78)
    pen.ellipse((250, 230, 120), 62, 28, 76, 42)


def _bear(pen: Pen, main: Colour, second: Colour, rng: np.random.Generator) -> None:
    fur = [int(channel * rng.uniform(0.6, 1.2)) for channel in (125, 80, 45)]
    brown = (fur[0], fur[1], fur[2])
    for box in ((16, 6, 40, 30), (60, 6, 84, 30), (18, 44, 82, 99), (20, 12, 80, 66)):
        pen.ellipse(brown, *box)
    pen.ellipse((215, 180, 140), 36, 38, 64, 62)
    for box in ((34, 28, 42, 36), (58, 28, 66, 36), (46, 40, 54, 48)):
        pen.ellipse(DARK, *box)


def _tent(pen: Pen, main: Colour, second: Colour, rng: np.random.Generator) -> None:
    pen.polygon(main, 50, 8, 98, 92, 2, 92)
    pen.polygon(second, 50, 8, 62, 30, 38, 30)
    pen.polygon(DARK, 50, 42, 66, 92, 34, 92)


DRAWINGS: dict[str, Callable[[Pen, Colour, Colour, np.random.Generator], None]] = {
    "kite": _kite,
    "airplane": _airplane,
    "boat": _boat,
    "surfboard": _surfboard,
    "skis": _skis,
    "snowman": _snowman,
    "sheep": _sheep,
    "frisbee": _frisbee,
    "car": _car,
    "bus": _bus,
    "umbrella": _umbrella,
    "bucket": _bucket,
    "clock": _clock,
    "painting": _painting,
    "bear": _bear,
    "tent": _tent,
}
"""Draws a thing in a main and a second colour."""
