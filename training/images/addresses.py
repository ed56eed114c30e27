# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Files of the disk and behind addresses: a path is opened as it stands, whatever signs its name holds."""

import os
from typing import BinaryIO
from urllib.parse import urlsplit

import fsspec


COMPRESSED_TARS = {
    *(".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.lz4", ".tar.z"),
}


def is_address(place: str) -> bool:
    """Whether fsspec is to open it (`s3://...`, `zip://*::/a.zip`); anything else is a path."""
    return "://" in place


def open_binary(place: str, **options) -> BinaryIO:
    """A file to read from, at any place in it. `options` are those of an address's file system."""
    return fsspec.open(place, "rb", **options).open() if is_address(place) else open(place, "rb")


def suffix_of(place: str) -> str:
    """`.tar` of `a.tar`, `A.TAR` and of a signed link `https://host/a.tar?signature=...`; `.tar.gz` of `a.tar.gz`."""
    path = urlsplit(place).path if place.startswith(("http://", "https://")) else place
    stem, _, last = path.rsplit("/", 1)[-1].lower().rpartition(".")
    if stem.endswith(".tar") and f".tar.{last}" in COMPRESSED_TARS:
        return f".tar.{last}"
    return f".{last}" if stem else ""


def is_missing(error: Exception) -> bool:
    """
    Whether a file is not there. Of an address, a `FileNotFoundError` may stand for anything that a server has
    answered, or for its silence: only 404 and 410 say that there is no such file.
    """
    if not isinstance(error, FileNotFoundError):
        return False
    cause = error.__cause__
    while cause is not None:
        status = getattr(cause, "status", None) or getattr(getattr(cause, "response", None), "status_code", None)
        if status is not None:
            return status in (404, 410)
        if not isinstance(cause, FileNotFoundError | LookupError):
            return False
        cause = cause.__cause__
    return True


def reason_of(error: Exception) -> str:
    """What went wrong, in the words of the server where a `FileNotFoundError` hides them."""
    said = error if is_missing(error) else error.__cause__ or error
    return f"{type(said).__name__}: {said}"


def printable(name: str) -> str:
    r"""A name as text; bytes of it that are no UTF-8 as `\xe9`."""
    if name.isascii():
        return name
    try:
        return os.fsencode(name).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a character, as JSON can write it
        return name.encode("utf-8", "backslashreplace").decode()


NOT_UTF8 = "its name is no UTF-8: rename it"


__all__ = [
    "COMPRESSED_TARS",
    "NOT_UTF8",
    "is_address",
    "is_missing",
    "open_binary",
    "printable",
    "reason_of",
    "suffix_of",
]
