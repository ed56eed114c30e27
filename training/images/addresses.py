# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Paths and URLs: opening, suffixes, errors. A path is taken literally, whatever characters it contains."""

import os
from typing import BinaryIO
from urllib.parse import urlsplit

import fsspec


COMPRESSED_TARS = {
    *(".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.lz4", ".tar.z"),
}


def is_address(place: str) -> bool:
    """Whether a string is a URL for fsspec (`s3://...`, `zip://*::/a.zip`); anything else is a path."""
    return "://" in place


def open_binary(place: str, **options) -> BinaryIO:
    """Opens a seekable file. `options` are passed to fsspec for a URL."""
    return fsspec.open(place, "rb", **options).open() if is_address(place) else open(place, "rb")


def suffix_of(place: str) -> str:
    """`.tar` for `a.tar`, `A.TAR` and a signed link `https://host/a.tar?signature=...`; `.tar.gz` for `a.tar.gz`."""
    path = urlsplit(place).path if place.startswith(("http://", "https://")) else place
    stem, _, last = path.rsplit("/", 1)[-1].lower().rpartition(".")
    if stem.endswith(".tar") and f".tar.{last}" in COMPRESSED_TARS:
        return f".tar.{last}"
    return f".{last}" if stem else ""


def is_missing(error: Exception) -> bool:
    """
    Whether an error means that a file does not exist. For a URL, fsspec raises `FileNotFoundError` for any response of
    a server and for timeouts: only 404 and 410 mean that the file does not exist.
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
    """The type and message of an error; of the server's error where a `FileNotFoundError` hides it."""
    actual = error if is_missing(error) else error.__cause__ or error
    return f"{type(actual).__name__}: {actual}"


def printable(name: str) -> str:
    r"""A file name as a valid string; bytes that are not UTF-8 are escaped as `\xe9`."""
    if name.isascii():
        return name
    try:
        return os.fsencode(name).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a lone surrogate, which JSON can contain
        return name.encode("utf-8", "backslashreplace").decode()


NOT_UTF8 = "its name is not UTF-8: rename it"


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
