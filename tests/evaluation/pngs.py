# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""PNGs of bit depths that Pillow reads but does not write."""

import struct
import zlib
from pathlib import Path

import numpy as np


COLOUR_TYPES = {1: 0, 3: 2, 2: 4, 4: 6}
"""Colour types of PNG by number of channels: 1 grey, 2 grey and alpha, 3 colour, 4 colour and alpha."""


def write_png(file: Path, bits: int, pixels: np.ndarray) -> None:
    """Writes integers, `(height, width)` or `(height, width, channels)`, unchanged in 1, 2, 4, 8 or 16 bits."""
    height, width, channels = (*pixels.shape, 1)[:3]
    rows = pixels.reshape(height, -1)
    if bits < 16:
        unpacked = np.unpackbits(rows.astype(np.uint8)[..., None], axis=2)[..., 8 - bits :].reshape(height, -1)
        lines = [np.packbits(row).tobytes() for row in unpacked]
    else:
        lines = [row.astype(">u2").tobytes() for row in rows]

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, bits, COLOUR_TYPES[channels], 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + line for line in lines))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b""))
