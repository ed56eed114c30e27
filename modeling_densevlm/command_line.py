# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Shared by the command-line programs: option types, the vocabulary, classes by import path, output paths, errors on one
line.
"""

import argparse
import contextlib
import importlib
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError

from .categories import CategorySet
from .templates import DEFAULT_TEMPLATES, TEMPLATES


OUT_OF_MEMORY = (
    *("allocate memory", "out of memory", "enough memory", "Unable to allocate", "MemoryError"),
    *("Storage size calculation overflowed", "array is too big", "Maximum allowed dimension exceeded"),
)
"""Parts of the messages of torch, NumPy and Pillow for allocations that fail."""


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """
    Replaces the traceback by one line for errors caused by the user's files, options or machine. Used as a decorator
    of the `main` of a program.
    """
    try:
        yield
    except (ValueError, OSError, ImportError, SafetensorError, RuntimeError, MemoryError, OverflowError) as error:
        line = as_one_line(error)
        if isinstance(error, MemoryError | OverflowError) or any(words in line for words in OUT_OF_MEMORY):
            line = f"Not enough memory ({line}): give a smaller `--image_size` or `--batch_size`."
        elif isinstance(error, RuntimeError):
            raise  # a bug, not a user error
        raise SystemExit(line) from error


def as_one_line(error: BaseException) -> str:
    """The message of an error on one line, with its file."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}."
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if len(lines) > 1 and lines[0].startswith("Caught ") and "Traceback" in lines[1]:
        return lines[-1]  # raised in a DataLoader worker: the message follows the traceback
    return " ".join(lines)


def whole_number(least: int = 1) -> Callable[[str], int]:
    """An `argparse` type: an integer of at least `least`."""

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
    """An `argparse` type: a finite number greater than `above`."""
    expected = "a finite number" if above == -math.inf else f"a finite number above {above:g}"

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value <= above:
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return value

    return read


def add_vocabulary_options(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """Adds `--words`, `--categories` and `--templates`."""
    vocabulary = parser.add_mutually_exclusive_group(required=required)
    vocabulary.add_argument("--words", help='names of the categories, separated by commas: "boat, water, sky"')
    vocabulary.add_argument("--categories", help="built-in set or JSON file of categories")
    parser.add_argument("--templates", default=DEFAULT_TEMPLATES, choices=TEMPLATES, help="prompt templates")


def read_vocabulary(arguments: argparse.Namespace) -> CategorySet | None:
    """The categories of `--words` or `--categories`; `None` if neither is given."""
    if arguments.words is not None:
        return CategorySet("words", [word.strip() for word in arguments.words.split(",") if word.strip()])
    return None if arguments.categories is None else CategorySet.load(arguments.categories)


def check_output(path: Path, folder: bool = False, option: str = "--output") -> None:
    """
    Checks before a long computation that its output can be written. Nothing is created; missing parent folders are
    fine.

    Args:
        path (`Path`): of the output.
        folder (`bool`, *optional*, defaults to `False`): whether the output is a folder rather than a file.
        option (`str`, *optional*, defaults to `"--output"`): the user's name of the path, for messages.

    Raises:
        `ValueError` that names the option.
    """
    try:
        if path.exists() and path.is_dir() != folder:
            kinds = ("folder", "file") if folder else ("file", "folder")
            raise ValueError(f"{option}: the output is a {kinds[0]}, but {path} is a {kinds[1]}.")
        if path.exists() and not folder:
            path.open("ab").close()  # does not change it
            return
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.lstat()  # raises for a name that is too long
        nearest = path if folder else path.parent
        while not nearest.exists() and not nearest.is_symlink():
            nearest = nearest.parent
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise ValueError(f"{option}: {path} cannot be written: {error.strerror}. Give another path.") from None


def import_class(option: str, path: str, base: type) -> type:
    """Imports the class `my_package.my_module:MyClass`. Raises a `ValueError` that names the option if it is none."""
    module, _, name = path.partition(":")
    if os.getcwd() not in sys.path:  # as under `python -m`, so that the console command finds the same modules
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"`{option}` {path} cannot be imported ({error}). Is its folder on PYTHONPATH?") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"`{option}` {path} is not a subclass of {base.__name__}.")
    return found


__all__ = [
    "add_vocabulary_options",
    "as_one_line",
    "check_output",
    "finite_number",
    "import_class",
    "one_line_errors",
    "read_vocabulary",
    "whole_number",
]
