# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Finds files below a folder, and tells images from files of the operating system."""

import os
from collections.abc import Iterator
from pathlib import Path


IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".gif", ".bmp", ".dib"),
        *(".tif", ".tiff", ".jp2", ".j2k", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".tga", ".qoi"),
    }
)
"""File name suffixes of images, lower case."""

SYSTEM_FILES = frozenset(
    {
        *("__macosx", "@eadir", "@__thumb", "@recycle", "#recycle", "#snapshot", "@recently-snapshot", "lost+found"),
        *("$recycle.bin", "system volume information", "__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini"),
        "icon\r",
    }
)
"""Names, in lower case, of files and folders that operating systems create: previews, trash, caches."""

HIDDEN = "hidden or of a system"
LINKED_AGAIN = "folders linked again"
LOOP = "links to a folder above"
NO_FILE = "pipes, sockets or devices"
"""Reasons to skip an entry, besides its suffix."""


def is_system_file(name: str) -> bool:
    """Whether a file or folder is hidden (`._x.jpg`, `.ipynb_checkpoints`) or created by the operating system."""
    return name.startswith(".") or name.lower() in SYSTEM_FILES


def walk_files(root: str | Path, visit_once: bool = False) -> Iterator[tuple[str, str | OSError | None]]:
    """
    Lists all files below a folder, following links to folders. Files are not opened; a broken link counts as a file.

    Args:
        root (path): the folder.
        visit_once (`bool`, *optional*, defaults to `False`):
            Whether to visit a folder that is linked several times only once, under its own path if that is below
            `root`. By default it is visited under every path, except within itself.

    Yields:
        `tuple[str, str | OSError | None]`: a path relative to `root`, and `None` for a file; otherwise the `OSError`
        of a folder that cannot be read, or the reason why the entry is skipped.
    """
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    links: list[tuple[str, frozenset[tuple[int, int]]]] = []
    entered: set[tuple[int, int]] = set()
    while waiting or links:
        place, above = waiting.pop() if waiting else links.pop(links.index(min(links, key=lambda link: link[0])))
        folder = os.path.join(root, place)
        try:
            status = os.stat(folder)
            identity = (status.st_dev, status.st_ino)
            if identity in (entered if visit_once else above):
                yield place, LINKED_AGAIN if visit_once else LOOP
                continue
            with os.scandir(folder) as scanned:
                entries = sorted(scanned, key=lambda entry: entry.name)
        except OSError as error:
            yield place, error
            continue
        entered.add(identity)
        for entry in entries:
            path = os.path.join(place, entry.name)
            try:
                is_folder, is_file = entry.is_dir(), entry.is_file()
            except OSError:  # a link to itself
                is_folder = is_file = False
            if is_system_file(entry.name):
                yield path, HIDDEN
            elif is_folder:
                (links if visit_once and entry.is_symlink() else waiting).append((path, above | {identity}))
            else:
                yield path, None if is_file or entry.is_symlink() else NO_FILE


__all__ = [
    "HIDDEN",
    "IMAGE_SUFFIXES",
    "LINKED_AGAIN",
    "LOOP",
    "NO_FILE",
    "SYSTEM_FILES",
    "is_system_file",
    "walk_files",
]
