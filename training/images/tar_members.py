# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Where in a tar its images are, read off the headers alone."""

import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from typing import Any

from modeling_densevlm.image_files import HIDDEN, IMAGE_SUFFIXES, is_system_file

from .addresses import NOT_UTF8, is_missing, open_binary, printable, reason_of, suffix_of
from .folders import kind_of


RETRY_LATER = -1
"""In place of an offset: no index is to be made yet."""

PADDING = 20 * 512
"""Zeros at the end of a tar: they fill its last record. More are a hole that should hold members."""

PAGE = 16 * 1024
"""What is read from a server at a time: headers, and little of the images behind them."""


def walk_tars(tars: list[str]) -> Iterator[dict[str, Any]]:
    """
    Rows of an index: the first byte and the size of each image. For each stretch of a tar that cannot be read there
    is a row whose `error` says so, and for a tar without an image; what follows the stretch is found again. Of a tar
    that is there and cannot be read now, there is a row at `RETRY_LATER`. The last row of a tar says what was passed
    over.
    """
    for tar in tars:
        passed_over, last = Counter(), None
        for row in _rows_of(tar, passed_over):
            if last is not None:
                yield last
            last = row
        yield last | {"passed_over": json.dumps(passed_over) if passed_over else None}


def _rows_of(tar: str, passed_over: Counter) -> Iterator[dict[str, Any]]:
    row = {"file": printable(tar), "offset": 0, "size": 0, "group": 0, "column": None, "error": None}
    row["passed_over"] = None
    if row["file"] != tar:
        yield row | {"id": "whole tar", "error": NOT_UTF8}
        return
    empty = True
    try:
        with open_binary(tar, block_size=PAGE) as stream:
            for found in _walk(stream, passed_over):
                empty = False
                yield row | found
    except Exception as error:  # every kind of address has its own; what is wrong within a tar is a row
        reason = reason_of(error)
        if is_missing(error):
            yield row | {"id": "whole tar", "error": reason}
        else:
            yield row | {"id": "whole tar", "offset": RETRY_LATER, "error": f"it cannot be read ({reason})"}
    else:
        if empty:
            yield row | {"id": "whole tar", "error": "the tar holds no image"}


def _walk(stream: Any, passed_over: Counter) -> Iterator[dict[str, Any]]:
    length = stream.seek(0, os.SEEK_END)
    expected, cut_off = 0, False
    for member, end in _members(stream, length):
        yield from _gap(stream, expected, member.offset)
        expected = end
        kind = _passed_over(member)
        if kind is not None:
            passed_over.update([kind] if kind else [])
            continue
        image = {"offset": member.offset_data, "size": member.size, "id": printable(member.name)}
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


def _passed_over(member: tarfile.TarInfo) -> str | None:
    """The kind of a member that is no image; empty for a folder, which holds nothing itself."""
    if any(is_system_file(part) for part in member.name.split("/") if part not in (".", "..")):
        return HIDDEN
    if member.isdir():
        return ""
    if not member.isfile():
        return "links and other members without content"
    return None if suffix_of(member.name) in IMAGE_SUFFIXES else kind_of(member.name)


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


__all__ = ["RETRY_LATER", "walk_tars"]
