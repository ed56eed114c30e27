# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""What the programs share: values of options, outputs checked before the work, errors as one line."""

import argparse
import contextlib
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError


OUT_OF_MEMORY = (
    *("allocate memory", "out of memory", "enough memory", "Unable to allocate", "MemoryError"),
    *("Storage size calculation overflowed", "array is too big", "Maximum allowed dimension exceeded"),
)
"""What torch, NumPy and Pillow say where something is too large."""


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """
    Ends a program with one line instead of a traceback where the user's files, options or machine are the reason; used
    as a decorator of its `main`.
    """
    try:
        yield
    except (ValueError, OSError, ImportError, SafetensorError, RuntimeError, MemoryError, OverflowError) as error:
        line = as_one_line(error)
        if isinstance(error, MemoryError | OverflowError) or any(words in line for words in OUT_OF_MEMORY):
            line = f"Not enough memory ({line}): give a smaller `--image_size` or `--batch_size`."
        elif isinstance(error, RuntimeError):
            raise  # a fault of this code, not of its user
        raise SystemExit(line) from error


def as_one_line(error: BaseException) -> str:
    """The message of an error on one line, with the file that it is about."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}."
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if len(lines) > 1 and lines[0].startswith("Caught ") and "Traceback" in lines[1]:
        return lines[-1]  # of a worker of a loader: its own message stands below the traceback
    return " ".join(lines)


def whole_number(least: int = 1) -> Callable[[str], int]:
    """A type for options of `argparse`: a whole number, `least` or more."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < least:
            raise argparse.ArgumentTypeError(f"expected a whole number, {least} or more, got {text!r}")
        return value

    return read


def finite_number(above: float = -math.inf) -> Callable[[str], float]:
    """A type for options of `argparse`: a finite number larger than `above`."""
    wanted = "a finite number" if above == -math.inf else f"a finite number above {above:g}"

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value <= above:
            raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}")
        return value

    return read


def check_output(path: Path, folder: bool = False, option: str = "--output") -> None:
    """
    Raises a `ValueError` that names the option where no file, or no folder, can be written at a path: found before an
    evaluation and not after it. Folders on the way need not be there; nothing is made.
    """
    try:
        if path.exists() and path.is_dir() != folder:
            kinds = ("folder", "file") if folder else ("file", "folder")
            raise ValueError(f"{option}: a {kinds[0]} is to be written at {path}, where a {kinds[1]} is.")
        if path.exists() and not folder:
            path.open("ab").close()  # leaves it as it is
            return
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.lstat()  # a name that is too long
        nearest = path if folder else path.parent
        while not nearest.exists() and not nearest.is_symlink():
            nearest = nearest.parent
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise ValueError(f"{option}: nothing can be written at {path}: {error.strerror}. Give another path.") from None


__all__ = ["as_one_line", "check_output", "finite_number", "one_line_errors", "whole_number"]
