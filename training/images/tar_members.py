# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The positions of the images in a tar, from its headers only."""

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
"""In place of an offset: the file cannot be read at the moment, so that no index is built."""

PADDING = 20 * 512
"""Maximum number of zeros at the end of a tar, which pad its last record. More are a hole in place of members."""

PAGE = 16 * 1024
"""Bytes per request to a server: enough for headers, and little of the images after them."""


def walk_tars(tars: list[str]) -> Iterator[dict[str, Any]]:
    """
    The rows of an index: the first byte and the size of each image. A damaged range of a tar yields a row with an
    `error`, and the members after it are found; a tar without images yields one, too. A tar that exists but cannot be
    read at the moment yields a row at `RETRY_LATER`. The last row of a tar holds the numbers of skipped members per
    kind.
    """
    for tar in tars:
        passed_over: Counter[str] = Counter()
        last: dict[str, Any] = {}
        for row in _rows_of(tar, passed_over):
            if last:
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
    except Exception as error:  # every file system has its own errors; damage within a tar is a row
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
        yield from _check_gap(stream, expected, member.offset)
        expected = end
        kind = _kind_if_skipped(member)
        if kind is not None:
            passed_over.update([kind] if kind else [])
            continue
        image = {"offset": member.offset_data, "size": member.size, "id": printable(member.name)}
        if member.offset_data + member.size > length:
            cut_off = True
            image["error"] = f"cut off: the tar ends at byte {length}"
        yield image
    if expected <= length:
        yield from _check_gap(stream, expected, length)
        if expected == length:
            yield {"id": "end", "error": f"the tar ends at byte {length} without its end mark: it may be cut off"}
    elif not cut_off:
        yield {"id": "end", "error": f"cut off: the tar ends at byte {length}, within a file or right behind it"}


def _kind_if_skipped(member: tarfile.TarInfo) -> str | None:
    """The kind of a member that is not an image, None for an image; empty for a folder, which is not counted."""
    if any(is_system_file(part) for part in member.name.split("/") if part not in (".", "..")):
        return HIDDEN
    if member.isdir():
        return ""
    if not member.isfile():
        return "links and other members without content"
    return None if suffix_of(member.name) in IMAGE_SUFFIXES else kind_of(member.name)


def _members(stream: Any, length: int) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """Each member and the expected offset of the next one. Blocks are skipped until one is a header."""
    start = 0
    while start < length:
        stream.seek(start)
        try:
            with tarfile.open(fileobj=stream, mode="r:", ignore_zeros=True) as members:
                for member in members:
                    yield member, members.offset
            return
        # Raised for an empty file, for a last member longer than the tar, and for a long name whose member is damaged:
        # the search continues right after it.
        except (tarfile.TarError, ValueError, EOFError):
            start = max(-(-stream.tell() // 512) * 512, start + 512)


def _check_gap(stream: Any, start: int, end: int) -> Iterator[dict[str, Any]]:
    """Few zeros between members are the end of a tar, or of one of several concatenated; anything else is damage."""
    stream.seek(start)
    damaged = (end - start) % 512 > 0  # cut within a block
    for place in range(start, end, 1 << 20):
        damaged = damaged or any(stream.read(min(1 << 20, end - place)))
    if damaged:
        yield {"id": f"byte {start}", "error": f"bytes {start} to {end} are no file: damaged"}
    elif end - start > PADDING + 2 * 512:
        yield {"id": f"byte {start}", "error": f"bytes {start} to {end} are zeros: were they never written?"}


__all__ = ["RETRY_LATER", "walk_tars"]
