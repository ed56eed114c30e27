# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""JPEGs with the entropy of photographs, drawn from a seed: noise at every scale, the finer the fainter."""

import io

import numpy as np
from PIL import Image


PHOTO = (640, 480, 0.85)
"""About 230 KB, as the larger photographs of COCO."""
LARGE_PHOTO = (2250, 1500, 0.75)
"""About 700 KB, as those of SA-1B."""


def draw_jpeg(seed: int, width: int, height: int, persistence: float) -> bytes:
    """
    Args:
        persistence (`float`): contrast of each scale over that of the scale twice as coarse.
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
