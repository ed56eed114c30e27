# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Tar shards in the format of SA-1B for tests, intact and damaged."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image


def jpeg(seed: int, width: int = 96, height: int = 64) -> bytes:
    """A smooth random image, different for each seed."""
    colours = np.random.default_rng(seed).integers(0, 255, (6, 9, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


def write_tar(file: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(file, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file


def sa1b_members(first: int, count: int) -> dict[str, bytes]:
    """`sa_1.jpg`, `sa_1.json`, `sa_2.jpg`, ..."""
    return {
        f"sa_{number}.{suffix}": jpeg(number) if suffix == "jpg" else b'{"annotations": []}'
        for number in range(first, first + count)
        for suffix in ("jpg", "json")
    }


def write_shards(folder: Path, counts: list[int]) -> list[Path]:
    """Intact shards with the given numbers of images."""
    folder.mkdir(parents=True, exist_ok=True)
    files, first = [], 1
    for number, count in enumerate(counts):
        files.append(write_tar(folder / f"sa_{number:06d}.tar", sa1b_members(first, count)))
        first += count
    return files


def bomb() -> bytes:
    """A decompression bomb: a short JPEG whose header claims 60,000 x 60,000 pixels."""
    content = bytearray(jpeg(0))
    at = content.index(b"\xff\xc0") + 5  # start of frame: marker, length, precision, then height and width
    content[at : at + 4] = (60_000).to_bytes(2, "big") * 2
    return bytes(content)


def damage_shards(folder: Path, files: list[Path]) -> Iterator[str]:
    """Applies every kind of damage to shards and adds damaged ones; yields what messages must name."""
    members = sa1b_members(900, 6)
    members["sa_901.jpg"] = members["sa_901.jpg"][:300]
    yield "sa_901.jpg: OSError"
    members["sa_902.jpg"] = b"this is no image"
    yield "sa_902.jpg: UnidentifiedImageError"
    members["sa_903.jpg"] = bomb()
    yield "sa_903.jpg: DecompressionBombError"
    members["sa_904.jpg"] = b""
    yield "sa_904.jpg: UnidentifiedImageError"
    write_tar(folder / "sa_000900.tar", members)
    content = files[0].read_bytes()
    files[0].write_bytes(content[: len(content) * 2 // 3])
    yield f"{files[0].name}: "
    content = bytearray(files[1].read_bytes())
    content[:512] = b"\xff" * 512
    files[1].write_bytes(content)
    yield f"{files[1].name}: byte 0"
    (folder / "sa_000901.tar").write_bytes(b"no tar at all " * 100)
    yield "sa_000901.tar: byte 0"
    (folder / "sa_000902.tar").write_bytes(b"")
    yield "sa_000902.tar: end"
