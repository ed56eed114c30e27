# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Encoded images in the rows of Parquet files, read one at a time."""

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
    Rows of an index, known from the files' footers: each with its row group and its number in there. A file that is
    damaged gives one row with an `error`, and so does one without a row; one without such a column, or that is there
    and cannot be read now, one at `RETRY_LATER`.
    """
    for file in files:
        row = {"file": printable(file), "offset": 0, "size": -1, "group": 0, "column": column, "error": None}
        row["passed_over"] = None
        name = row["file"].rsplit("/", 1)[-1]
        if row["file"] != file:
            yield row | {"id": name, "error": NOT_UTF8}
            continue
        try:
            with _open(file) as parquet:
                names, footer = parquet.schema_arrow.names, parquet.metadata
                groups = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
        except Exception as error:  # every kind of address has its own
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
    """Whether a Parquet file is of images; one that cannot be read may be."""
    try:
        with _open(file) as parquet:
            return column in parquet.schema_arrow.names
    except (OSError, pyarrow.ArrowException):
        return True


def read_parquet(file: str, group: int, row: int, column: str) -> bytes:
    """The encoded image in a row of a row group, `{"bytes": ...}` as `datasets` stores it, or bytes."""
    value = _cursors.read(file, group, row, column)
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        raise ValueError(f"column {column!r} holds no encoded image there, but {type(content).__name__}")
    return content


def _open(file: str) -> pyarrow.parquet.ParquetFile:
    # Buffered: a row group is read piece by piece as its rows are asked for, not as a whole.
    return pyarrow.parquet.ParquetFile(open_binary(file), buffer_size=1 << 20)


class _Cursor:
    """Reads the rows of one row group in turn, holding a page of them and not the whole group."""

    def __init__(self, file: str, group: int, column: str):
        self.row = 0  # the one that comes next
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
    The cursors used last by this process: an open file has one position, which forks must not share. A group has
    several where it is read at several places in turn.
    """

    MOST = 1024

    def __init__(self) -> None:
        self.process = os.getpid()
        self.cursors: OrderedDict[tuple[str, int, str, int], _Cursor] = OrderedDict()

    def read(self, file: str, group: int, row: int, column: str) -> Any:
        if self.process != os.getpid():
            self.__init__()
        cursor = self._take((file, group, column), row) or _Cursor(file, group, column)
        value = cursor.read(row)
        self.cursors[file, group, column, cursor.row] = cursor
        if len(self.cursors) > self.MOST:
            self.cursors.popitem(last=False)
        return value

    def _take(self, of: tuple[str, int, str], row: int) -> _Cursor | None:
        """The cursor that is at the row, else the nearest one before it."""
        exact = self.cursors.pop((*of, row), None)
        if exact is not None:
            return exact
        before = [key for key in self.cursors if key[:3] == of and key[3] < row]
        return self.cursors.pop(max(before, key=lambda key: key[3])) if before else None


_cursors = _Cursors()


__all__ = ["has_column", "read_parquet", "walk_parquet"]
