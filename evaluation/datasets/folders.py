"""The files of a folder: what is data, and what systems leave among it."""

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from transformers.utils import logging


logger = logging.get_logger(__name__)

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".avif", ".jp2"),
        *(".ppm", ".pgm", ".pbm", ".pnm"),
    }
)
"""Suffixes of images, in any case."""

LITTER = frozenset({"__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found"})
"""Names of folders that systems make for themselves; hidden files and folders (`._x.png`) are no data either."""

HIDDEN, LOOP, SPECIAL = "hidden or a system's own", "links to a folder above", "no regular files"
"""Why files and folders are passed over, besides their suffixes."""


def find_files(root: Path, suffixes: Collection[str]) -> tuple[list[Path], dict[str, list[Path]]]:
    """
    The files below a folder that have one of these suffixes, in any case, in order. Linked folders are entered, but
    not one that leads back to where the walk came from. A link that leads nowhere is a file: opening it fails.

    Returns:
        The files, and what was passed over by kind: a suffix, or one of `HIDDEN`, `LOOP` and `SPECIAL`.
    """
    found: list[Path] = []
    passed: dict[str, list[Path]] = {}
    for path, reason in _walk(root, frozenset()):
        suffix = path.suffix.lower()
        if reason is None and suffix in suffixes:
            found.append(path)
        else:
            passed.setdefault(reason or suffix or "files without a suffix", []).append(path)
    return sorted(found), passed


def warn_of_passed_over(root: Path, passed: dict[str, list[Path]]) -> None:
    """Warns once how many files of a folder are no data, by kind, with an example of each."""
    if kinds := [
        f"{len(paths)} {kind} (e.g. {paths[0].relative_to(root)})" for kind, paths in passed.items() if paths
    ]:
        logger.warning_once(f"{root}: passed over {', '.join(kinds)}.")


def by_name(files: list[Path], root: Path, field: str) -> dict[str, Path]:
    """Files by their paths below a folder without the suffix; a `ValueError` where two have the same one."""
    named: dict[str, Path] = {}
    for file in files:
        name = name_of(file, root)
        if name in named:
            raise ValueError(
                f"`{field}`: {named[name]} and {file} have the same name: which is meant? Remove or rename one."
            )
        named[name] = file
    return named


def name_of(file: Path, root: Path) -> str:
    """A file's path below a folder, without its last suffix."""
    return file.relative_to(root).with_suffix("").as_posix()


def _walk(folder: Path, above: frozenset[str]) -> Iterator[tuple[Path, str | None]]:
    """Every file, and every folder that is not entered, with the reason why it is no data."""
    above = above | {os.path.realpath(folder)}
    with os.scandir(folder) as entries:
        entries = sorted(entries, key=lambda entry: entry.name)
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith(".") or entry.name.lower() in LITTER:
            yield path, HIDDEN
        elif entry.is_dir():
            if os.path.realpath(path) in above:
                yield path, LOOP
            else:
                yield from _walk(path, above)
        else:
            yield path, None if entry.is_file() or entry.is_symlink() else SPECIAL


__all__ = ["IMAGE_SUFFIXES", "by_name", "find_files", "name_of", "warn_of_passed_over"]
