# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The files of a folder: what is data, and what systems leave among it."""

from collections.abc import Collection
from pathlib import Path

from transformers.utils import logging

from modeling_densevlm.image_files import walk_files


logger = logging.get_logger(__name__)


def find_files(root: Path, suffixes: Collection[str]) -> tuple[list[Path], dict[str, list[Path]]]:
    """
    The files below a folder that have one of these suffixes, in any case, in order. Linked folders are entered, but
    not one that leads back to where the walk came from. A link that leads nowhere is a file: opening it fails.

    Returns:
        The files, and what was passed over by kind: a suffix, or a reason of [`walk_files`].
    """
    found: list[Path] = []
    passed: dict[str, list[Path]] = {}
    for place, reason in walk_files(root):
        if isinstance(reason, OSError):
            raise reason
        path = root / place
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


__all__ = ["by_name", "find_files", "name_of", "warn_of_passed_over"]
