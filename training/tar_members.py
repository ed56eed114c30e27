"""Where in a tar its images are, read off the headers alone."""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec


IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"}


def walk_tars(tars: list[str]) -> Iterator[dict[str, Any]]:
    """
    Rows of an index: the first byte and the size of each image. For each stretch of a tar that cannot be read there
    is a row whose `error` says so; what follows the stretch is found again.
    """
    for tar in tars:
        row = {"file": tar, "offset": 0, "size": 0, "column": None, "error": None}
        try:
            with fsspec.open(tar, "rb") as stream:
                for found in _walk(stream):
                    yield row | found
        except (OSError, tarfile.TarError, ValueError, EOFError) as error:
            yield row | {"id": "whole tar", "error": f"{type(error).__name__}: {error}"}


def _walk(stream: Any) -> Iterator[dict[str, Any]]:
    length = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    expected, cut_off = 0, False
    try:
        # Blocks that are no header are passed over until one is; the gap tells of them.
        with tarfile.open(fileobj=stream, mode="r:", ignore_zeros=True) as members:
            for member in members:
                yield from _gap(stream, expected, member.offset)
                expected = members.offset
                if not member.isfile() or Path(member.name).suffix.lower() not in IMAGE_SUFFIXES:
                    continue
                image = {"offset": member.offset_data, "size": member.size, "id": member.name}
                if member.offset_data + member.size > length:
                    cut_off = True
                    image["error"] = f"cut off: the tar ends at byte {length}"
                yield image
    except tarfile.ReadError:  # of an empty file, and where the last member is longer than the tar
        pass
    if expected <= length:
        yield from _gap(stream, expected, length)
        if expected == length:
            yield {"id": "end", "error": f"the tar ends at byte {length} without its end mark: it may be cut off"}
    elif not cut_off:
        yield {"id": "end", "error": f"cut off: the tar ends at byte {length}, within a file or right behind it"}


def _gap(stream: Any, start: int, end: int) -> Iterator[dict[str, Any]]:
    """Zeros between members are tars joined into one, or the end; anything else was a member once."""
    stream.seek(start)
    damaged = (end - start) % 512 > 0  # cut within a block
    for place in range(start, end, 1 << 20):
        damaged = damaged or any(stream.read(min(1 << 20, end - place)))
    if damaged:
        yield {"id": f"byte {start}", "error": f"bytes {start} to {end} are no file: damaged"}


__all__ = ["IMAGE_SUFFIXES", "walk_tars"]
