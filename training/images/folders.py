# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The contents of a local folder: images, tars, Parquet files, and the numbers of skipped files per kind."""

import re
from collections import Counter
from dataclasses import dataclass, field

from modeling_densevlm.image_files import IMAGE_SUFFIXES, walk_files

from .addresses import COMPRESSED_TARS, suffix_of


def kind_of(name: str) -> str:
    """The kind under which a skipped file is counted: its suffix, or `others`."""
    suffix = suffix_of(name)
    return suffix if re.fullmatch(r"(\.[a-z0-9_]{1,9}){1,2}", suffix) and not suffix[1:].isdigit() else "others"


@dataclass
class Folder:
    """The files of a folder as paths relative to it, in a fixed order, and the numbers of skipped files per kind."""

    images: list[str] = field(default_factory=list)
    tars: list[str] = field(default_factory=list)
    parquet: list[str] = field(default_factory=list)
    compressed: list[str] = field(default_factory=list)
    passed_over: Counter = field(default_factory=Counter)
    unreadable: dict[str, str] = field(default_factory=dict)  # folder → reason

    def add(self, file: str) -> None:
        """Adds a file by its suffix."""
        suffix = suffix_of(file)
        if suffix in IMAGE_SUFFIXES:
            self.images.append(file)
        elif suffix == ".tar":
            self.tars.append(file)
        elif suffix == ".parquet":
            self.parquet.append(file)
        elif suffix in COMPRESSED_TARS:
            self.compressed.append(file)
        else:
            self.passed_over[kind_of(file)] += 1


def walk_folder(root: str) -> Folder:
    """Lists everything below a folder, following links, each folder once. No file is opened."""
    found = Folder()
    for path, reason in walk_files(root, visit_once=True):
        if isinstance(reason, OSError):
            found.unreadable[path] = f"{type(reason).__name__}: {reason}"
        elif reason is not None:
            found.passed_over[reason] += 1
        else:
            found.add(path)
    for files in (found.images, found.tars, found.parquet, found.compressed):
        files.sort(key=lambda file: file.replace("/", "\0"))  # folder by folder
    return found


__all__ = ["Folder", "kind_of", "walk_folder"]
