"""Values of the command line, looked at before anything is evaluated."""

import argparse
import contextlib
import math
import tempfile
from collections.abc import Callable
from pathlib import Path


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


__all__ = ["check_output", "finite_number", "whole_number"]
