"""Which regions of an image are aligned: the cells of a random grid over its content."""

import hashlib

import numpy as np
from torch import Tensor

from modeling_densevlm.region_pooling import grid_boxes


def sample_rng(seed: int, epoch: int, sample_id: str) -> np.random.Generator:
    """
    Random numbers that belong to one sample in one epoch. They depend neither on the worker or rank that reads the
    sample nor on what was read before, so that a resumed or differently distributed run draws the same.
    """
    number = int.from_bytes(hashlib.blake2b(str(sample_id).encode(), digest_size=8).digest(), "big")
    return np.random.default_rng((seed, epoch, number))


def grid_shape(rng: np.random.Generator, max_grid: int = 6) -> tuple[int, int]:
    """Rows and columns, drawn independently from 1..`max_grid` (Sec. 3.2)."""
    rows, columns = (int(n) for n in rng.integers(1, max_grid + 1, size=2))
    return rows, columns


def content_grid(rows: int, columns: int, content_extent: tuple[float, float]) -> Tensor:
    """
    The cells of a grid over an image's content.

    Args:
        content_extent (`tuple[float, float]`):
            Width and height of the image's content as fractions of the padded square; the grid spans it exactly.

    Returns:
        `Tensor` of shape `(rows * columns, 4)`: xyxy as fractions of the square.
    """
    width, height = content_extent
    boxes = grid_boxes(rows, columns)
    return boxes * boxes.new_tensor([width, height, width, height])
