"""
Where images lie: folders, COCO annotation files, tar shards (SA-1B), Parquet datasets (Hub), on a disk or behind an
address. Whatever the source, it becomes an *index*, a [`datasets.Dataset`] with one row an image that says where its
bytes are. So every source is read at random, split among any number of processes and resumed exactly, and nothing
that was seen already is read again.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow.compute
from fsspec.core import url_to_fs

from .parquet_rows import read_parquet, walk_parquet
from .tar_members import IMAGE_SUFFIXES, NOT_NOW, walk_tars


FEATURES = datasets.Features(
    {
        "file": datasets.Value("string"),  # of an image, of a tar, or of a Parquet file
        "group": datasets.Value("int64"),  # row group of a Parquet file
        "offset": datasets.Value("int64"),  # first byte of the image in it; in a Parquet file its row in the group
        "size": datasets.Value("int64"),  # bytes; -1 for the whole file
        "id": datasets.Value("string"),
        "column": datasets.Value("string"),  # of a Parquet file
        "error": datasets.Value("string"),  # what is broken there, found while the index was made
    }
)


class UnreadableImage(Exception):
    """Says which image cannot be used and why."""


@dataclass(frozen=True)
class Source:
    r"""
    One source of images.

    Args:
        images (`str`):
            A folder of images; a tar, an address or a pattern of tars (`sa1b/*.tar`, `s3://bucket/sa_*.tar`), a folder
            of tars, or a text file that lists tars, one a line; a Parquet file or a pattern of them, or a dataset of
            the Hub or of a folder (`hf://datasets/owner/name`, a folder of Parquet files).
        annotations (`str`, *optional*):
            A COCO annotation file with `images: [{"id", "file_name"}, ...]`; `images` is the root of its file names.
        split (`str`, *optional*, defaults to `"train"`): of a dataset.
        column (`str`, *optional*, defaults to `"image"`): of a dataset, where its images are.
        max_samples (`int`, *optional*): only so many, the first ones.
        weight (`float`, *optional*, defaults to 1.0): share of the source in a mix.
    """

    images: str
    annotations: str | None = None
    split: str = "train"
    column: str = "image"
    max_samples: int | None = None
    weight: float = 1.0

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Source":
        known = [field.name for field in fields(cls)]
        if not isinstance(values, dict) or "images" not in values:
            raise ValueError(f"`sources`: each is {{images: ..., weight: ...}}, got {values!r}.")
        for key in values:
            if key not in known:
                raise ValueError(f"`sources`: unknown key `{key}`; known are {', '.join(known)}.")
        source = cls(**values)
        if source.max_samples is not None and (type(source.max_samples) is not int or source.max_samples < 1):
            raise ValueError(
                f"`sources`: the `max_samples` of {source.images} is a whole number from 1 on, got "
                f"{source.max_samples!r}."
            )
        if not isinstance(source.weight, int | float) or not 0 < source.weight < float("inf"):
            raise ValueError(f"`sources`: the `weight` of {source.images} is a number above 0, got {source.weight!r}.")
        return source


def open_source(source: Source) -> datasets.Dataset:
    """
    The index of a source, with the columns of `FEATURES`, in a fixed order.

    That of tars and Parquet files is made once, by reading their headers and footers (not the images), and kept in
    the cache of `datasets` until a file changes its size or date.

    Raises:
        `FileNotFoundError` or `ValueError` that names `images` or `annotations` and what is wrong there.
    """
    images = str(source.images)
    if source.annotations is not None:
        index = _index_of_annotations(Path(images), Path(source.annotations))
    elif images.endswith(".txt"):
        index = _index_of_tars(_lines(images))
    elif _holds(images, ".parquet") or (images.startswith("hf://") and not images.endswith((".parquet", ".tar"))):
        index = _index_of_parquet(_files_of_dataset(images, source.split), source.column)
    elif _holds(images, ".tar"):
        index = _index_of_tars(_glob(f"{images.rstrip('/')}/*.tar"))
    elif Path(images).is_dir():
        index = _index_of_folder(Path(images))
    elif images.endswith(".parquet"):
        index = _index_of_parquet(_glob(images), source.column)
    elif images.endswith(".tar"):
        index = _index_of_tars(_glob(images))
    elif images.endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")):
        raise ValueError(f"`images`: {images} is compressed: no image in it can be read alone. Unpack it to a .tar.")
    else:
        raise FileNotFoundError(f"`images`: {images} is no folder, no .tar, no .parquet and no list of tars (.txt).")
    if source.max_samples is not None and source.max_samples < len(index):
        index = index.select(range(source.max_samples))
    return index


def read_bytes(row: dict[str, Any]) -> bytes:
    """The file of one image, as the index says where it is; `OSError` or `ValueError` where it is not."""
    if row["error"]:
        raise OSError(row["error"])
    if row["column"]:
        return read_parquet(row["file"], row["group"], row["offset"], row["column"])
    files, path = url_to_fs(row["file"])
    if row["size"] < 0:
        return files.cat_file(path)
    content = files.cat_file(path, start=row["offset"], end=row["offset"] + row["size"])
    if len(content) < row["size"]:
        raise OSError(f"{len(content)} bytes of {row['size']} are there: the file has shrunk since it was indexed")
    return content


def name_of(row: dict[str, Any]) -> str:
    """How messages name an image: its file, and its place in there where it is a part."""
    return f"{row['file']}: {row['id']}" if row["size"] >= 0 or row["column"] else row["file"]


def fingerprint(index: datasets.Dataset) -> str:
    """Of which images an index lists in which order, wherever they lie."""
    digest = hashlib.blake2b(digest_size=8)
    for chunk in index.with_format("arrow").iter(batch_size=10_000):
        digest.update("\n".join(chunk["id"].to_pylist()).encode())
    return digest.hexdigest()


# Folders and annotation files


def _rows(files: Sequence[str], ids: Sequence[str]) -> datasets.Dataset:
    """The index of images that are files of their own."""
    count = len(files)
    columns = {"file": files, "group": [0] * count, "offset": [0] * count, "size": [-1] * count, "id": ids}
    columns |= {"column": [None] * count, "error": [None] * count}
    return datasets.Dataset.from_dict(columns, features=FEATURES)


def _index_of_folder(root: Path) -> datasets.Dataset:
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise ValueError(f"`images`: {root} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}) and no .tar.")
    return _rows([str(file) for file in files], [file.relative_to(root).as_posix() for file in files])


def _index_of_annotations(root: Path, annotations: Path) -> datasets.Dataset:
    if not root.is_dir():
        raise FileNotFoundError(f"`images`: {root} is no folder.")
    records = _read_records(annotations)
    index = _rows([str(root / record["file_name"]) for record in records], [str(record["id"]) for record in records])
    first = index[: min(len(index), 1000)]["file"]
    if not any(Path(file).is_file() for file in first):
        raise FileNotFoundError(
            f"`images`: none of the first images that {annotations} lists is under {root}, e.g. {first[0]}."
        )
    return index


def _read_records(annotations: Path) -> list[dict]:
    if not annotations.is_file():
        raise FileNotFoundError(f"`annotations`: there is no file {annotations}.")
    try:
        records = json.loads(annotations.read_text(encoding="utf-8"))["images"]
        if records and all(isinstance(r["file_name"], str) and isinstance(r["id"], int | str) for r in records):
            return records
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise ValueError(f'`annotations`: {annotations} has no list `images` of {{"id": ..., "file_name": ...}}.')


# Tars and Parquet files


def _index_of_tars(tars: Sequence[str]) -> datasets.Dataset:
    return _kept_index(walk_tars, {"tars": list(tars)}, tars)


def _index_of_parquet(files: Sequence[str], column: str) -> datasets.Dataset:
    return _kept_index(walk_parquet, {"files": list(files), "column": column}, files)


def _kept_index(walk: Callable, arguments: dict[str, Any], files: Sequence[str]) -> datasets.Dataset:
    """What a walk over the files yields, made by several processes, and kept until a file changes."""
    versions = [_version(file) for file in files]
    key = json.dumps([FORMAT, walk.__name__, arguments, versions])
    index = datasets.Dataset.from_generator(
        walk,
        features=FEATURES,
        gen_kwargs=arguments,
        num_proc=min(len(files), os.cpu_count() or 1),
        fingerprint=hashlib.blake2b(key.encode(), digest_size=16).hexdigest(),
    )
    places = index.data["offset"]
    if pyarrow.compute.min(places).as_py() == NOT_NOW:  # to keep it would be to lack the file for good
        row = index[pyarrow.compute.index(places, NOT_NOW).as_py()]
        shutil.rmtree(Path(index.cache_files[0]["filename"]).parent)
        raise ValueError(f"`images`: {row['file']}: {row['error']}. Mend that, or take the file out of the source.")
    if all(row["error"] is not None for row in index):
        raise ValueError(f"`images`: no image is in {', '.join(files[:3])}: {index[0]['error']}.")
    return index


FORMAT = 2
"""Changes with what the walks yield, so that an index of an older version is made again."""


def _version(address: str) -> tuple[str, int | None, str]:
    files, path = url_to_fs(address)
    try:
        info = files.info(path)
    except Exception as error:  # every kind of address has its own; the walk will say it
        return address, None, type(error).__name__
    return address, info.get("size"), str(info.get("mtime") or info.get("ETag") or info.get("last_modified") or "")


# Addresses


def _holds(images: str, suffix: str) -> bool:
    """Whether a folder of the disk holds files of this kind, and no image."""
    folder = Path(images)
    pattern = f"**/*{suffix}" if suffix == ".parquet" else f"*{suffix}"
    if not folder.is_dir() or not any(folder.glob(pattern)):
        return False
    return not any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.rglob("*"))


def _glob(pattern: str) -> list[str]:
    """Addresses that a pattern stands for, sorted; one without a star stands for itself."""
    if not any(sign in pattern for sign in "*?["):
        files, (system, path) = [pattern], url_to_fs(pattern)
        try:
            system.info(path)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"`images`: there is no {pattern}.") from error
        except Exception as error:  # every kind of address has its own
            raise ValueError(f"`images`: {pattern} cannot be read ({type(error).__name__}: {error}).") from error
    else:
        system, path = url_to_fs(pattern)
        files = sorted(system.unstrip_protocol(file) if "://" in pattern else file for file in system.glob(path))
    if not files:
        raise FileNotFoundError(f"`images`: nothing fits {pattern}.")
    return files


def _lines(file: str) -> list[str]:
    try:
        with fsspec.open(file, "rt", encoding="utf-8") as stream:
            lines = [line.strip() for line in stream]
    except (OSError, UnicodeDecodeError) as error:
        raise FileNotFoundError(f"`images`: the list {file} cannot be read: {error}") from error
    tars = [line for line in lines if line and not line.startswith("#")]
    for tar in tars:
        if not tar.endswith(".tar"):
            raise ValueError(f"`images`: {file} lists tars, one a line; {tar[:100]!r} is none.")
    if not tars:
        raise ValueError(f"`images`: {file} lists no tar.")
    return tars


def _files_of_dataset(images: str, split: str) -> list[str]:
    """The Parquet files of a split; which they are `datasets` knows."""
    name, _, revision = images.removeprefix("hf://datasets/").partition("@")
    try:
        files = datasets.load_dataset_builder(name, revision=revision or None).config.data_files or {}
    except (ValueError, OSError, datasets.exceptions.DatasetNotFoundError) as error:
        raise ValueError(
            f"`images`: the files of {images} could not be listed: {error}. One configuration of several is given by "
            "its folder or its files, e.g. hf://datasets/owner/name/configuration/*.parquet."
        ) from error
    if split not in files:
        raise ValueError(f"`split`: {images} has no split {split!r}, but {', '.join(map(str, files)) or 'none'}.")
    for file in files[split]:
        if not file.endswith(".parquet"):
            raise ValueError(
                f"`images`: {images} is no Parquet dataset ({file}). The Hub keeps a Parquet version of most: "
                f"hf://datasets/{name}@refs/convert/parquet"
            )
    return list(files[split])


__all__ = ["Source", "UnreadableImage", "fingerprint", "name_of", "open_source", "read_bytes"]
