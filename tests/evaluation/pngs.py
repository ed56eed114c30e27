# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""PNGs of depths that Pillow reads and does not write."""

import struct
import zlib
from pathlib import Path

import numpy as np


COLOUR_TYPES = {1: 0, 3: 2, 2: 4, 4: 6}
"""PNG's number for grey, colour, grey with alpha and colour with alpha, by their channels."""


def write_png(file: Path, bits: int, pixels: np.ndarray) -> None:
    """Whole numbers `(height, width)` or `(height, width, channels)` as they are, in 1, 2, 4, 8 or 16 bits each."""
    height, width, channels = (*pixels.shape, 1)[:3]
    rows = pixels.reshape(height, -1)
    if bits < 16:
        spread = np.unpackbits(rows.astype(np.uint8)[..., None], axis=2)[..., 8 - bits :].reshape(height, -1)
        lines = [np.packbits(row).tobytes() for row in spread]
    else:
        lines = [row.astype(">u2").tobytes() for row in rows]

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, bits, COLOUR_TYPES[channels], 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + line for line in lines))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b""))
