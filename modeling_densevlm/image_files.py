# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Image files of a folder on disk: which files are images, and which entries are no data."""

import os
from collections.abc import Iterator
from pathlib import Path


IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".gif", ".bmp", ".dib"),
        *(".tif", ".tiff", ".jp2", ".j2k", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".tga", ".qoi"),
    }
)
"""Suffixes of images, in lower case."""

LITTER = frozenset(
    {
        *("__macosx", "@eadir", "@__thumb", "@recycle", "#recycle", "#snapshot", "@recently-snapshot", "lost+found"),
        *("$recycle.bin", "system volume information", "__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini"),
        "icon\r",
    }
)
"""Files and folders that operating systems create, besides hidden ones: previews, bins, caches."""

HIDDEN = "hidden or of a system"
LINKED_AGAIN = "folders linked again"
LOOP = "links to a folder above"
NO_FILE = "pipes, sockets or devices"
"""Why entries are passed over, besides their suffixes."""


def is_litter(name: str) -> bool:
    """Whether a file or folder is hidden (`._x.jpg`, `.ipynb_checkpoints`) or created by an operating system."""
    return name.startswith(".") or name.lower() in LITTER


def walk_files(root: str | Path, each_once: bool = False) -> Iterator[tuple[str, str | OSError | None]]:
    """
    Everything below a folder, linked folders included. No file is opened; a link that leads nowhere is a file.

    Args:
        each_once (`bool`, *optional*, defaults to `False`):
            Whether a folder with several links to it is entered once: those of the tree come first, so that names do
            not depend on the links. By default it is entered under each of its names, unless it is one of its parents.

    Yields:
        Paths relative to `root`, with `None` for a file, else the reason why there is none: an `OSError` for a folder
        that cannot be read, or why the entry is passed over.
    """
    waiting, links, entered = [("", frozenset())], [], set()
    while waiting or links:
        place, above = waiting.pop() if waiting else links.pop(links.index(min(links, key=lambda link: link[0])))
        folder = os.path.join(root, place)
        try:
            status = os.stat(folder)
            identity = (status.st_dev, status.st_ino)
            if identity in (entered if each_once else above):
                yield place, LINKED_AGAIN if each_once else LOOP
                continue
            with os.scandir(folder) as entries:
                entries = sorted(entries, key=lambda entry: entry.name)
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
            if is_litter(entry.name):
                yield path, HIDDEN
            elif is_folder:
                (links if each_once and entry.is_symlink() else waiting).append((path, above | {identity}))
            else:
                yield path, None if is_file or entry.is_symlink() else NO_FILE


__all__ = ["HIDDEN", "IMAGE_SUFFIXES", "LINKED_AGAIN", "LITTER", "LOOP", "NO_FILE", "is_litter", "walk_files"]
