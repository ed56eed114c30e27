# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Synthetic JPEGs with the entropy of photographs: noise at all scales, with less contrast at finer ones."""

import io

import numpy as np
from PIL import Image


PHOTO = (640, 480, 0.85)
"""About 230 KB, like the larger photographs of COCO."""
LARGE_PHOTO = (2250, 1500, 0.75)
"""About 700 KB, like those of SA-1B."""


def draw_jpeg(seed: int, width: int, height: int, persistence: float) -> bytes:
    """
    Draws a JPEG.

    Args:
        persistence (`float`): ratio of the contrast of each scale to that of the next coarser one.
    """
    rng = np.random.default_rng(seed)
    canvas = np.full((height, width, 3), 128, dtype=np.float32)
    contrast, cells = 50.0, 4
    while cells <= min(width, 1280):
        noise = rng.normal(0, contrast, (3, max(cells * height // width, 2), cells)).astype(np.float32)
        for channel, plane in enumerate(noise):
            canvas[..., channel] += Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC)
        contrast, cells = contrast * persistence, 2 * cells
    buffer = io.BytesIO()
    Image.fromarray(canvas.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
