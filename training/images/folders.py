# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""What lies in a folder of the disk: images, tars, Parquet files, and what is passed over, counted by its kind."""

import re
from collections import Counter
from dataclasses import dataclass, field

from modeling_densevlm.image_files import IMAGE_SUFFIXES, walk_files

from .addresses import COMPRESSED_TARS, suffix_of


def kind_of(name: str) -> str:
    """How a file that is passed over is counted: by its suffix."""
    suffix = suffix_of(name)
    return suffix if re.fullmatch(r"(\.[a-z0-9_]{1,9}){1,2}", suffix) and not suffix[1:].isdigit() else "others"


@dataclass
class Folder:
    """Paths from its root, in a fixed order, and how many files of other kinds there are."""

    images: list[str] = field(default_factory=list)
    tars: list[str] = field(default_factory=list)
    parquet: list[str] = field(default_factory=list)
    compressed: list[str] = field(default_factory=list)
    passed_over: Counter = field(default_factory=Counter)
    unreadable: dict[str, str] = field(default_factory=dict)  # folders, and why

    def add(self, place: str) -> None:
        suffix = suffix_of(place)
        if suffix in IMAGE_SUFFIXES:
            self.images.append(place)
        elif suffix == ".tar":
            self.tars.append(place)
        elif suffix == ".parquet":
            self.parquet.append(place)
        elif suffix in COMPRESSED_TARS:
            self.compressed.append(place)
        else:
            self.passed_over[kind_of(place)] += 1


def walk_folder(root: str) -> Folder:
    """Everything under a folder, each folder once; no file is looked at for more than its name and type."""
    found = Folder()
    for place, reason in walk_files(root, visit_once=True):
        if isinstance(reason, OSError):
            found.unreadable[place] = f"{type(reason).__name__}: {reason}"
        elif reason is not None:
            found.passed_over[reason] += 1
        else:
            found.add(place)
    for files in (found.images, found.tars, found.parquet, found.compressed):
        files.sort(key=lambda file: file.replace("/", "\0"))  # folder by folder
    return found


__all__ = ["Folder", "kind_of", "walk_folder"]
