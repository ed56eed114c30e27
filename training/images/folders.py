"""What lies in a folder of the disk: images, tars, Parquet files, and what is passed over, counted by its kind."""

import os
import re
from collections import Counter
from dataclasses import dataclass, field

from .addresses import COMPRESSED_TARS, suffix_of


IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".gif", ".bmp", ".dib"),
    *(".tif", ".tiff", ".jp2", ".j2k", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".tga", ".qoi"),
}

LITTER = {
    *("__macosx", "@eadir", "@__thumb", "@recycle", "#recycle", "#snapshot", "@recently-snapshot", "lost+found"),
    *("$recycle.bin", "system volume information", "__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
}
"""What systems leave in folders, besides hidden files: previews, bins, caches."""

HIDDEN = "hidden or of a system"
AGAIN = "folders linked again"
NO_FILE = "pipes, sockets or devices"


def is_litter(name: str) -> bool:
    """Whether a file or folder is hidden (`._x.jpg`, `.ipynb_checkpoints`) or one that systems leave."""
    return name.startswith(".") or name.lower() in LITTER


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
    """
    Everything under a folder. Linked folders are entered, each folder once; those of the tree first, so that their
    names do not depend on who links to them. Of each file the name and type are read alone.
    """
    found, entered, waiting, links = Folder(), set(), [""], []
    while waiting or links:
        place = waiting.pop() if waiting else links.pop(links.index(min(links)))
        try:
            status = os.stat(os.path.join(root, place))
            if (status.st_dev, status.st_ino) in entered:
                found.passed_over[AGAIN] += 1
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(os.path.join(root, place)) as entries:
                for entry in entries:
                    _take(entry, os.path.join(place, entry.name), found, waiting, links)
        except OSError as error:
            found.unreadable[place] = f"{type(error).__name__}: {error}"
    for files in (found.images, found.tars, found.parquet, found.compressed):
        files.sort(key=lambda file: file.replace("/", "\0"))  # folder by folder
    return found


def _take(entry: os.DirEntry, place: str, found: Folder, waiting: list[str], links: list[str]) -> None:
    try:
        is_folder, is_file = entry.is_dir(), entry.is_file()
    except OSError:  # a link to itself
        is_folder = is_file = False
    if is_litter(entry.name):
        found.passed_over[HIDDEN] += 1
    elif is_folder:
        (links if entry.is_symlink() else waiting).append(place)
    elif is_file or entry.is_symlink():  # a link that leads nowhere is said when it is read
        found.add(place)
    else:
        found.passed_over[NO_FILE] += 1


__all__ = ["HIDDEN", "IMAGE_SUFFIXES", "Folder", "is_litter", "kind_of", "walk_folder"]
