"""
Where images lie: folders, COCO annotation files, tar shards (SA-1B), Parquet datasets (Hub), on a disk or behind an
address. Whatever the source, it becomes an *index*, a [`datasets.Dataset`] with one row an image that says where its
bytes are. So every source is read at random, split among any number of processes and resumed exactly, and nothing
that was seen already is read again.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import datasets
import fsspec
from fsspec.core import url_to_fs

from .parquet_rows import read_parquet, walk_parquet
from .tar_members import IMAGE_SUFFIXES, walk_tars


FEATURES = datasets.Features(
    {
        "file": datasets.Value("string"),  # of an image, of a tar, or of a Parquet file
        "offset": datasets.Value("int64"),  # first byte of the image in it; in a Parquet file its row
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
        if not isinstance(source.weight, int | float) or not 0 < source.weight < float("inf"):
            raise ValueError(f"`sources`: the `weight` of {source.images} is a number above 0, got {source.weight!r}.")
        return source


def open_source(source: Source) -> datasets.Dataset:
    """
    The index of a source, with the columns of `FEATURES`, in a fixed order.

    That of tars is made once, by reading their headers (not the images), and kept in the cache of `datasets` until
    a tar changes its size or date.

    Raises:
        `FileNotFoundError` or `ValueError` that names `images` or `annotations` and what is wrong there.
    """
    images = str(source.images)
    if source.annotations is not None:
        index = _index_of_annotations(Path(images), Path(source.annotations))
    elif images.endswith(".txt"):
        index = _index_of_tars(_lines(images))
    elif images.startswith("hf://") or _holds(images, ".parquet"):
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
        return read_parquet(row["file"], row["offset"], row["column"])
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
    columns = {"file": files, "offset": [0] * count, "size": [-1] * count, "id": ids}
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
    versions = [_version(tar) for tar in tars]
    index = datasets.Dataset.from_generator(
        walk_tars,
        features=FEATURES,
        gen_kwargs={"tars": list(tars)},
        num_proc=min(len(tars), os.cpu_count() or 1),
        fingerprint=hashlib.blake2b(json.dumps([FORMAT, versions]).encode(), digest_size=16).hexdigest(),
    )
    return _with_an_image(index, tars)


FORMAT = 1
"""Changes with what [`walk_tars`] yields, so that an index of an older version is made again."""


def _version(address: str) -> tuple[str, int | None, str]:
    files, path = url_to_fs(address)
    try:
        info = files.info(path)
    except OSError as error:
        return address, None, type(error).__name__
    return address, info.get("size"), str(info.get("mtime") or info.get("ETag") or info.get("last_modified") or "")


def _index_of_parquet(files: Sequence[str], column: str) -> datasets.Dataset:
    return _with_an_image(datasets.Dataset.from_list(list(walk_parquet(files, column)), features=FEATURES), files)


def _with_an_image(index: datasets.Dataset, files: Sequence[str]) -> datasets.Dataset:
    if all(row["error"] is not None for row in index):
        raise ValueError(f"`images`: no image is in {', '.join(files[:3])}: {index[0]['error']}.")
    return index


# Addresses


def _holds(images: str, suffix: str) -> bool:
    """Whether a folder of the disk holds files of this kind, and no images beside them."""
    folder = Path(images)
    if not folder.is_dir():
        return False
    pattern = f"**/*{suffix}" if suffix == ".parquet" else f"*{suffix}"
    return any(folder.glob(pattern)) and not any(p.suffix.lower() in IMAGE_SUFFIXES for p in folder.iterdir())


def _glob(pattern: str) -> list[str]:
    """Addresses that a pattern stands for, sorted; one without a star stands for itself."""
    if not any(sign in pattern for sign in "*?["):
        files = [pattern]
        if not url_to_fs(pattern)[0].exists(url_to_fs(pattern)[1]):
            raise FileNotFoundError(f"`images`: there is no {pattern}.")
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
    files = datasets.load_dataset_builder(name, revision=revision or None).config.data_files or {}
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
