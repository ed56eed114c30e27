"""Where in a tar its images are, read off the headers alone."""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec


IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"}


NOT_NOW = -1
"""In place of an offset: no index is to be made yet."""

PADDING = 20 * 512
"""Zeros at the end of a tar: they fill its last record. More are a hole that should hold members."""

PAGE = 16 * 1024
"""What is asked of a server at a time: headers, and little of the images behind them."""


def walk_tars(tars: list[str]) -> Iterator[dict[str, Any]]:
    """
    Rows of an index: the first byte and the size of each image. For each stretch of a tar that cannot be read there
    is a row whose `error` says so, and for a tar without an image; what follows the stretch is found again. Of a tar
    that is there and cannot be read now, there is a row at `NOT_NOW`.
    """
    for tar in tars:
        row = {"file": tar, "offset": 0, "size": 0, "group": 0, "column": None, "error": None}
        empty = True
        try:
            with fsspec.open(tar, "rb", block_size=PAGE) as stream:
                for found in _walk(stream):
                    empty = False
                    yield row | found
        except FileNotFoundError as error:
            yield row | {"id": "whole tar", "error": f"FileNotFoundError: {error}"}
        except Exception as error:  # every kind of address has its own; what is wrong within a tar is a row
            message = f"it cannot be read ({type(error).__name__}: {error})"
            yield row | {"id": "whole tar", "offset": NOT_NOW, "error": message}
        else:
            if empty:
                yield row | {"id": "whole tar", "error": "the tar holds no image"}


def _walk(stream: Any) -> Iterator[dict[str, Any]]:
    length = stream.seek(0, os.SEEK_END)
    expected, cut_off = 0, False
    for member, end in _members(stream, length):
        yield from _gap(stream, expected, member.offset)
        expected = end
        if not member.isfile() or Path(member.name).suffix.lower() not in IMAGE_SUFFIXES:
            continue
        image = {"offset": member.offset_data, "size": member.size, "id": member.name}
        if member.offset_data + member.size > length:
            cut_off = True
            image["error"] = f"cut off: the tar ends at byte {length}"
        yield image
    if expected <= length:
        yield from _gap(stream, expected, length)
        if expected == length:
            yield {"id": "end", "error": f"the tar ends at byte {length} without its end mark: it may be cut off"}
    elif not cut_off:
        yield {"id": "end", "error": f"cut off: the tar ends at byte {length}, within a file or right behind it"}


def _members(stream: Any, length: int) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """Each member, and where the next one is due. Blocks that are no header are passed over until one is."""
    start = 0
    while start < length:
        stream.seek(start)
        try:
            with tarfile.open(fileobj=stream, mode="r:", ignore_zeros=True) as members:
                for member in members:
                    yield member, members.offset
            return
        # Of an empty file, of a last member longer than the tar, and of a long name whose own member is damaged:
        # what follows that is looked for right behind it.
        except (tarfile.TarError, ValueError, EOFError):
            start = max(-(-stream.tell() // 512) * 512, start + 512)


def _gap(stream: Any, start: int, end: int) -> Iterator[dict[str, Any]]:
    """A few zeros between members are tars joined into one, or the end; anything else was a member once."""
    stream.seek(start)
    damaged = (end - start) % 512 > 0  # cut within a block
    for place in range(start, end, 1 << 20):
        damaged = damaged or any(stream.read(min(1 << 20, end - place)))
    if damaged:
        yield {"id": f"byte {start}", "error": f"bytes {start} to {end} are no file: damaged"}
    elif end - start > PADDING + 2 * 512:
        yield {"id": f"byte {start}", "error": f"bytes {start} to {end} are zeros: were they never written?"}


__all__ = ["IMAGE_SUFFIXES", "NOT_NOW", "walk_tars"]
