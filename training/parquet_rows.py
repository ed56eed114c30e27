"""Encoded images in the rows of Parquet files, read one at a time."""

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import fsspec
import pyarrow
import pyarrow.parquet


def walk_parquet(files: Sequence[str], column: str) -> Iterator[dict[str, Any]]:
    """
    Rows of an index, known from the files' footers. A file that cannot be read gives one row with an `error`.

    Raises:
        `ValueError` where a file has no such column.
    """
    for file in files:
        row = {"file": file, "offset": 0, "size": -1, "column": column, "error": None}
        name = file.rsplit("/", 1)[-1]
        try:
            with _open(file) as parquet:
                names, count = parquet.schema_arrow.names, parquet.metadata.num_rows
        except (OSError, pyarrow.ArrowException) as error:
            yield row | {"id": name, "error": f"{type(error).__name__}: {error}"}
            continue
        if column not in names:
            raise ValueError(f"`column`: {file} has no column {column!r}, but {', '.join(names)}.")
        yield from (row | {"offset": number, "id": f"{name}:{number}"} for number in range(count))


def read_parquet(file: str, row: int, column: str) -> bytes:
    """The encoded image in a row, `{"bytes": ...}` as `datasets` stores it, or bytes."""
    group, row = _group_of(file, row)
    cursor = _cursors.take((file, group, column))
    if cursor is None or cursor.row > row:
        cursor = _Cursor(file, group, column)
    value = cursor.read(row)
    _cursors.keep((file, group, column), cursor)
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        raise ValueError(f"column {column!r} holds no encoded image there, but {type(content).__name__}")
    return content


def _open(file: str) -> pyarrow.parquet.ParquetFile:
    # Buffered: a row group is read piece by piece as its rows are asked for, not as a whole.
    return pyarrow.parquet.ParquetFile(fsspec.open(file, "rb").open(), buffer_size=1 << 20)


class _Cursor:
    """Reads the rows of one row group in turn, holding a page of them and not the whole group."""

    def __init__(self, file: str, group: int, column: str):
        self.row = 0
        self.parquet = _open(file)
        self.batches = self.parquet.iter_batches(batch_size=1, row_groups=[group], columns=[column])

    def read(self, row: int) -> Any:
        while self.row < row:
            next(self.batches)
            self.row += 1
        self.row += 1
        return next(self.batches).column(0)[0].as_py()


class _PerProcess:
    """The last `most` values used by this process: an open file has one position, which forks must not share."""

    def __init__(self, most: int):
        self.most, self.process = most, os.getpid()
        self.values: OrderedDict[Any, Any] = OrderedDict()

    def take(self, key: Any) -> Any:
        if self.process != os.getpid():
            self.process, self.values = os.getpid(), OrderedDict()
        return self.values.pop(key, None)

    def keep(self, key: Any, value: Any) -> None:
        self.values[key] = value
        if len(self.values) > self.most:
            self.values.popitem(last=False)


_cursors = _PerProcess(most=256)
_groups = _PerProcess(most=10_000)


def _group_of(file: str, row: int) -> tuple[int, int]:
    """The row group that holds a row of the file, and the row's number in it."""
    sizes = _groups.take(file)
    if sizes is None:
        with _open(file) as parquet:
            sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.metadata.num_row_groups)]
    _groups.keep(file, sizes)
    group = 0
    while row >= sizes[group]:
        row, group = row - sizes[group], group + 1
    return group, row


__all__ = ["read_parquet", "walk_parquet"]
