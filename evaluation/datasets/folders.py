# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Listing of the data files in a folder, with the other files counted by kind."""

from collections.abc import Collection
from pathlib import Path

from transformers.utils import logging

from modeling_densevlm.image_files import walk_files


logger = logging.get_logger(__name__)


def find_files(root: Path, suffixes: Collection[str]) -> tuple[list[Path], dict[str, list[Path]]]:
    """
    Lists the files below a folder with one of the given suffixes, case-insensitive and sorted. Symbolic links to
    folders are followed, except for cycles; a broken link counts as a file, so that opening it fails.

    Args:
        root (path): the folder.
        suffixes (collection of `str`): lower-case suffixes with the dot.

    Returns:
        The files, and the skipped files by kind: a suffix, or a reason given by [`walk_files`].

    Raises:
        `OSError` if a folder cannot be read.
    """
    found: list[Path] = []
    skipped: dict[str, list[Path]] = {}
    for place, reason in walk_files(root):
        if isinstance(reason, OSError):
            raise reason
        path = root / place
        suffix = path.suffix.lower()
        if reason is None and suffix in suffixes:
            found.append(path)
        else:
            skipped.setdefault(reason or suffix or "files without a suffix", []).append(path)
    return sorted(found), skipped


def warn_skipped_files(root: Path, skipped: dict[str, list[Path]]) -> None:
    """Warns once of the files of a folder that are not data: their number by kind, with an example each."""
    if kinds := [
        f"{len(paths)} {kind} (e.g. {paths[0].relative_to(root)})" for kind, paths in skipped.items() if paths
    ]:
        logger.warning_once(f"{root}: passed over {', '.join(kinds)}.")


def index_by_name(files: list[Path], root: Path, field: str) -> dict[str, Path]:
    """Maps relative paths without suffix to files; raises a `ValueError` if two files share one."""
    named: dict[str, Path] = {}
    for file in files:
        name = relative_name(file, root)
        if name in named:
            raise ValueError(
                f"`{field}`: {named[name]} and {file} have the same name: which is meant? Remove or rename one."
            )
        named[name] = file
    return named


def relative_name(file: Path, root: Path) -> str:
    """Path of a file relative to a folder, without its last suffix."""
    return file.relative_to(root).with_suffix("").as_posix()


__all__ = ["find_files", "index_by_name", "relative_name", "warn_skipped_files"]
