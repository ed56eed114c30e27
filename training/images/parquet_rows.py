# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Encoded images in the rows of Parquet files, read row by row."""

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow
import pyarrow.parquet

from .addresses import NOT_UTF8, is_missing, open_binary, printable, reason_of
from .tar_members import RETRY_LATER


def walk_parquet(files: Sequence[str], column: str) -> Iterator[dict[str, Any]]:
    """
    The rows of an index, from the files' footers: each has its row group and its row number in the group. A damaged or
    empty file yields one row with an `error`. A file without the column, or one that exists but cannot be read at the
    moment, yields one row at `RETRY_LATER`.
    """
    for file in files:
        row: dict[str, Any] = {
            "file": printable(file),
            "offset": 0,
            "size": -1,
            "group": 0,
            "column": column,
            "error": None,
        }
        row["passed_over"] = None
        name = row["file"].rsplit("/", 1)[-1]
        if row["file"] != file:
            yield row | {"id": name, "error": NOT_UTF8}
            continue
        try:
            with _open(file) as parquet:
                names, footer = parquet.schema_arrow.names, parquet.metadata
                groups = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
        except Exception as error:  # every file system has its own errors
            reason = reason_of(error)
            if isinstance(error, pyarrow.ArrowException) or is_missing(error):
                yield row | {"id": name, "error": reason}
            else:
                yield row | {"id": name, "offset": RETRY_LATER, "error": f"it cannot be read ({reason})"}
            continue
        if column not in names:
            yield row | {
                "id": name,
                "offset": RETRY_LATER,
                "error": f"there is no `column` {column!r}, but {', '.join(names)}",
            }
            continue
        if sum(groups) == 0:
            yield row | {"id": name, "error": "the file holds no row"}
        number = 0
        for group, count in enumerate(groups):
            for offset in range(count):
                yield row | {"group": group, "offset": offset, "id": f"{name}:{number + offset}"}
            number += count


def has_column(file: str, column: str) -> bool:
    """Whether a Parquet file has the column; True if it cannot be read, which is reported later."""
    try:
        with _open(file) as parquet:
            return column in parquet.schema_arrow.names
    except (OSError, pyarrow.ArrowException):
        return True


def read_parquet(file: str, group: int, row: int, column: str) -> bytes:
    """Reads the encoded image in a row of a row group, stored as `{"bytes": ...}` (as by `datasets`) or as bytes."""
    value = _cursors.read(file, group, row, column)
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        raise ValueError(f"column {column!r} holds no encoded image there, but {type(content).__name__}")
    return content


def _open(file: str) -> pyarrow.parquet.ParquetFile:
    # Buffered: a row group is read in parts as its rows are requested, not as a whole.
    return pyarrow.parquet.ParquetFile(open_binary(file), buffer_size=1 << 20)


class _Cursor:
    """Reads the rows of one row group sequentially; holds one page in memory, not the whole group."""

    def __init__(self, file: str, group: int, column: str):
        self.row = 0  # the next row to read
        self.parquet = _open(file)
        self.batches = self.parquet.iter_batches(batch_size=1, row_groups=[group], columns=[column])

    def read(self, row: int) -> Any:
        while self.row < row:
            next(self.batches)
            self.row += 1
        self.row += 1
        return next(self.batches).column(0)[0].as_py()


class _Cursors:
    """
    The most recently used cursors of this process: forks must not share an open file, since they would share its
    position. A row group that is read at several positions alternately has several cursors.
    """

    MAX_CURSORS = 1024

    def __init__(self) -> None:
        self.process = os.getpid()
        self.cursors: OrderedDict[tuple[str, int, str, int], _Cursor] = OrderedDict()

    def read(self, file: str, group: int, row: int, column: str) -> Any:
        if self.process != os.getpid():
            self.__init__()
        cursor = self._take((file, group, column), row) or _Cursor(file, group, column)
        value = cursor.read(row)
        self.cursors[file, group, column, cursor.row] = cursor
        if len(self.cursors) > self.MAX_CURSORS:
            self.cursors.popitem(last=False)
        return value

    def _take(self, group: tuple[str, int, str], row: int) -> _Cursor | None:
        """Removes and returns the cursor at the row, or else the nearest one before it."""
        exact = self.cursors.pop((*group, row), None)
        if exact is not None:
            return exact
        before = [key for key in self.cursors if key[:3] == group and key[3] < row]
        return self.cursors.pop(max(before, key=lambda key: key[3])) if before else None


_cursors = _Cursors()


__all__ = ["has_column", "read_parquet", "walk_parquet"]
