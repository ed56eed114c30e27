# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Where images lie: folders, COCO annotation files, tar shards (SA-1B), Parquet datasets (Hub), on a disk or behind an
address. Whatever the source, it becomes an *index*, a [`datasets.Dataset`] with one row an image that says where its
bytes are. So every source is read at random, split among any number of processes and resumed exactly, and nothing
that was seen already is read again.
"""

import glob
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import datasets
import pyarrow.compute
from fsspec.core import url_to_fs
from transformers.utils import logging

from modeling_densevlm.image_files import IMAGE_SUFFIXES, is_system_file

from .addresses import COMPRESSED_TARS, NOT_UTF8, is_address, is_missing, open_binary, printable, reason_of, suffix_of
from .folders import Folder, walk_folder
from .parquet_rows import has_column, read_parquet, walk_parquet
from .tar_members import RETRY_LATER, walk_tars


logger = logging.get_logger(__name__)


FEATURES = datasets.Features(
    {
        "file": datasets.Value("string"),  # of an image, of a tar, or of a Parquet file
        "group": datasets.Value("int64"),  # row group of a Parquet file
        "offset": datasets.Value("int64"),  # first byte of the image in it; in a Parquet file its row in the group
        "size": datasets.Value("int64"),  # bytes; -1 for the whole file
        "id": datasets.Value("string"),
        "column": datasets.Value("string"),  # of a Parquet file
        "error": datasets.Value("string"),  # what is broken there, found while the index was made
        "passed_over": datasets.Value("string"),  # on a tar's last row: how many members of which kinds, as JSON
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
            A folder of images, or a pattern of them (`photos/**/*.png`); a tar, an address or a pattern of tars
            (`sa1b/*.tar`, `s3://bucket/sa_*.tar`), a folder of tars, or a text file that lists tars, one per line; a
            Parquet file or a pattern of them, or a dataset of the Hub or of a folder (`hf://datasets/owner/name`, a
            folder of Parquet files). A path that exists is meant as it stands, whatever signs are in it.
        annotations (`str`, *optional*):
            A COCO annotation file with `images: [{"id", "file_name"}, ...]`; `images` is the root of its file names.
        split (`str`, *optional*, defaults to `"train"`): of a dataset.
        column (`str`, *optional*, defaults to `"image"`): of a dataset, where its images are.
        max_samples (`int`, *optional*): only the first N.
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
    images = str(source.images).removeprefix("file://")
    try:
        index, counts = _open(images, source)
    except ImportError as error:
        package = getattr(error.__cause__, "name", None)
        remedy = f" `pip install {package}`" if package else ""
        raise ValueError(f"`images`: {images} cannot be read: {error}.{remedy}") from error
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"`images`: {images} cannot be read ({type(error).__name__}: {error}).") from error
    counts += _passed_over_in(index)
    index.info.description = json.dumps(counts)
    if counts:
        logger.warning(f"`images`: {printable(images)}: passed over: {in_words(counts)}.")
    if source.max_samples is not None and source.max_samples < len(index):
        index = index.select(range(source.max_samples))
    return index


def passed_over(index: datasets.Dataset) -> dict[str, int]:
    """How many files of which kinds the source of an index has besides its images, by [`open_source`]."""
    return json.loads(index.info.description or "{}")


def in_words(counts: dict[str, int], max_shown: int = 12) -> str:
    """`24 .json, 2 .heic`, the commonest first."""
    kinds = Counter(counts).most_common()
    rest = sum(count for _, count in kinds[max_shown:])
    named = [f"{count} {kind}" for kind, count in kinds[:max_shown]]
    return ", ".join(named + [f"{rest} of {len(kinds) - max_shown} other kinds"] * (rest > 0))


def _passed_over_in(index: datasets.Dataset) -> Counter:
    """Of all tars, as their last rows say."""
    counted = index.data["passed_over"].drop_null().to_pylist()
    return sum((Counter(json.loads(counts)) for counts in counted), Counter())


def _open(images: str, source: Source) -> tuple[datasets.Dataset, Counter]:
    suffix, nothing = suffix_of(images), Counter()
    if source.annotations is not None:
        return _index_of_annotations(images, Path(source.annotations)), nothing
    if not is_address(images) and os.path.isdir(images):
        return _index_of_folder(images, source)
    if images.startswith("hf://") and suffix not in (".parquet", ".tar", *IMAGE_SUFFIXES):
        return _index_of_parquet(_files_of_dataset(images, source.split), source.column), nothing
    if suffix == ".txt":
        return _index_of_tars(_lines(images)), nothing
    if suffix == ".tar":
        return _index_of_tars(_files(images)), nothing
    if suffix == ".parquet":
        return _index_of_parquet(_files(images), source.column), nothing
    if suffix in IMAGE_SUFFIXES:
        files, folder = _files(images), _fixed(images)
        return _rows(files, [file.removeprefix(f"{folder}/") for file in files]), nothing
    if suffix in COMPRESSED_TARS:
        raise ValueError(f"`images`: {images} is compressed: no image in it can be read alone. Unpack it to a .tar.")
    raise FileNotFoundError(
        f"`images`: {images} is no folder, no .tar, no .parquet, no list of tars (.txt) and no pattern of images."
    )


def as_index(dataset: datasets.Dataset, column: str = "image") -> datasets.Dataset:
    """
    An index of the images in a column of a dataset, whatever they came from: encoded, decoded or as paths. One that
    is an index already is given back as it stands.
    """
    if set(FEATURES) <= set(dataset.column_names):
        return dataset
    if column not in dataset.column_names:
        raise ValueError(f"`train_dataset` has no column `{column}`, but {', '.join(dataset.column_names)}.")
    try:
        images = dataset.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    except (TypeError, ValueError, pyarrow.ArrowException) as error:
        raise ValueError(f"`train_dataset`: its column `{column}` holds no images: {error}") from error
    names = [f"row {number}" for number in range(len(images))]
    images = images.rename_column(column, "image") if column != "image" else images
    return images.add_column("file", names).add_column("id", [name.removeprefix("row ") for name in names])


def read_bytes(row: dict[str, Any]) -> bytes:
    """The file of one image, as the index says where it is; `OSError` or `ValueError` where it is not."""
    if "image" in row:
        return row["image"]["bytes"] or Path(row["image"]["path"]).read_bytes()
    if row["error"]:
        raise OSError(row["error"])
    if row["column"]:
        return read_parquet(row["file"], row["group"], row["offset"], row["column"])
    if not is_address(row["file"]):
        with open(row["file"], "rb") as file:
            if row["size"] < 0:
                return file.read()
            file.seek(row["offset"])
            content = file.read(row["size"])
    else:
        files, path = url_to_fs(row["file"])
        if row["size"] < 0:
            return files.cat_file(path)
        content = files.cat_file(path, start=row["offset"], end=row["offset"] + row["size"])
    if len(content) < row["size"]:
        raise OSError(f"{len(content)} bytes of {row['size']} are there: the file has shrunk since it was indexed")
    return content


def name_of(row: dict[str, Any]) -> str:
    """How messages name an image: its file, and its place in there where it is a part."""
    is_part = "image" not in row and (row["size"] >= 0 or row["column"])
    return f"{row['file']}: {row['id']}" if is_part else row["file"]


def fingerprint(index: datasets.Dataset) -> str:
    """Of which images an index lists in which order, wherever they lie."""
    digest = hashlib.blake2b(digest_size=8)
    for chunk in index.with_format("arrow").iter(batch_size=10_000):
        digest.update("\n".join(chunk["id"].to_pylist()).encode())
    return digest.hexdigest()


# Folders and annotation files


def _rows(files: Sequence[str], ids: Sequence[str], errors: Sequence[str | None] | None = None) -> datasets.Dataset:
    """The index of images that are files of their own."""
    count = len(files)
    names = [printable(file) for file in files]
    errors = errors or [None] * count
    columns = {
        "file": names,
        "group": [0] * count,
        "offset": [0] * count,
        "size": [-1] * count,
        "id": [printable(one) for one in ids],
        "column": [None] * count,
        "error": [error or (None if name == file else NOT_UTF8) for error, name, file in zip(errors, names, files)],
        "passed_over": [None] * count,
    }
    return datasets.Dataset.from_dict(columns, features=FEATURES)


def _index_of_folder(root: str, source: Source) -> tuple[datasets.Dataset, Counter]:
    """Of a folder of images, of tars, or of Parquet files; one of several kinds is refused."""
    found = walk_folder(root)
    # A table of captions beside images or tars does not make a dataset of them.
    if (found.images or found.tars) and not any(has_column(f"{root}/{f}", source.column) for f in found.parquet):
        found.passed_over.update([".parquet"] * len(found.parquet))
        found.parquet = []
    if found.unreadable and (found.tars or found.parquet):  # lest an index without them be kept
        folder, reason = next(iter(found.unreadable.items()))
        raise ValueError(f"`images`: {printable(os.path.join(root, folder))} cannot be read ({reason}).")
    _check_kinds(root, found)
    for file in found.compressed:
        found.passed_over[suffix_of(file)] += 1
    if found.tars:
        return _index_of_tars([os.path.join(root, file) for file in found.tars]), found.passed_over
    if found.parquet:
        files = [os.path.join(root, file) for file in _of_split(root, found, source.split)]
        return _index_of_parquet(files, source.column), found.passed_over
    places = [*found.images, *found.unreadable]
    errors = [None] * len(found.images) + list(found.unreadable.values())
    return _rows([os.path.join(root, place) for place in places], places, errors), found.passed_over


def _check_kinds(root: str, found: Folder) -> None:
    kinds = {"images": found.images, "tars": found.tars, "Parquet files": found.parquet}
    if found.tars:
        kinds["compressed tars"] = found.compressed
    there = [f"{len(files)} {kind} ({printable(files[0])})" for kind, files in kinds.items() if files]
    if len(there) > 1:
        raise ValueError(
            f"`images`: {root} holds {' and '.join(there)}: which are meant? Give a folder that holds one kind, or a "
            f"pattern, e.g. {root}/**/*{suffix_of(min(kinds.values(), key=lambda files: -len(files))[0])}."
        )
    if not there and found.compressed:
        raise ValueError(
            f"`images`: {root} holds {len(found.compressed)} compressed tars ({printable(found.compressed[0])}): no "
            "image in them can be read alone. Unpack them to .tar."
        )
    if not there:
        reasons = [f"{printable(folder) or '.'}: {reason}" for folder, reason in found.unreadable.items()]
        raise ValueError(
            f"`images`: {root} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}), no .tar and no .parquet"
            + (f", but {in_words(found.passed_over)}" if found.passed_over else "")
            + (f" ({'; '.join(reasons[:3])})" if reasons else "")
            + "."
        )


def _index_of_annotations(images: str, annotations: Path) -> datasets.Dataset:
    if not os.path.isdir(images):
        raise FileNotFoundError(f"`images`: {images} is no folder.")
    files, ids, errors = [], [], []
    for number, record in enumerate(_read_records(annotations)):
        error = _fault_of(record)
        # A record without a file has the annotation file's name, and its own place there.
        files.append(str(annotations) if error else os.path.join(images, record["file_name"]))
        ids.append(f"images[{number}]" if error else str(record["id"]))
        errors.append(error and f"images[{number}] {error}")
    if all(errors):
        raise ValueError(
            f'`annotations`: {annotations} has no list `images` of {{"id": ..., "file_name": ...}}: {errors[0]}.'
        )
    index = _rows(files, ids, errors)
    first = [row["file"] for row in index.select(range(min(len(index), 1000))) if not row["error"]]
    if first and not any(os.path.isfile(file) for file in first):
        raise FileNotFoundError(
            f"`images`: none of the first images that {annotations} lists is under {images}, e.g. {first[0]}."
        )
    return index


def _read_records(annotations: Path) -> list[Any]:
    """The list `images` of a COCO file. Bytes are given to `json`, which knows marks of the encoding (BOM)."""
    if not annotations.is_file():
        raise FileNotFoundError(f"`annotations`: there is no file {annotations}.")
    try:
        content = json.loads(annotations.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"`annotations`: {annotations} is no JSON: {error}. Is it cut off?") from error
    except OSError as error:
        raise ValueError(f"`annotations`: {annotations} cannot be read: {error}") from error
    records = content.get("images") if isinstance(content, dict) else None
    if isinstance(records, list) and records:
        return records
    raise ValueError(f'`annotations`: {annotations} has no list `images` of {{"id": ..., "file_name": ...}}.')


def _fault_of(record: Any) -> str | None:
    """What keeps a record of `images` from being an image."""
    if not isinstance(record, dict):
        return f"is {json.dumps(record)[:50]} and no record"
    for key, kinds in (("file_name", str), ("id", int | str)):
        if key not in record:
            return f"has no `{key}`, but {', '.join(map(str, list(record)[:8])) or 'nothing'}"
        if key == "id" and isinstance(record[key], float) and record[key].is_integer():
            record[key] = int(record[key])  # as some programs write whole numbers
        if not isinstance(record[key], kinds) or isinstance(record[key], bool) or record[key] == "":
            return f"has the `{key}` {json.dumps(record[key])[:50]}"
    return "has a `file_name` with a zero byte" if "\0" in record["file_name"] else None


# Tars and Parquet files


def _index_of_tars(tars: Sequence[str]) -> datasets.Dataset:
    tars = [_absolute(tar) for tar in tars]
    return _kept_index(walk_tars, {"tars": tars}, tars)


def _index_of_parquet(files: Sequence[str], column: str) -> datasets.Dataset:
    files = [_absolute(file) for file in files]
    return _kept_index(walk_parquet, {"files": files, "column": column}, files)


def _kept_index(walk: Callable, arguments: dict[str, Any], files: Sequence[str]) -> datasets.Dataset:
    """What a walk over the files yields, made by several processes, and kept until a file changes."""
    versions = [_version(file) for file in files]
    key = json.dumps([FORMAT, walk.__name__, arguments, versions])
    try:
        index = datasets.Dataset.from_generator(
            walk,
            features=FEATURES,
            gen_kwargs=arguments,
            num_proc=min(len(files), os.cpu_count() or 1),
            fingerprint=hashlib.blake2b(key.encode(), digest_size=16).hexdigest(),
        )
    except (OSError, datasets.exceptions.DatasetGenerationError) as error:  # a walk raises nothing
        raise ValueError(
            f"`images`: the index cannot be kept in {datasets.config.HF_DATASETS_CACHE} "
            f"({reason_of(error)}). Make room there, or set HF_DATASETS_CACHE to a folder that can be written."
        ) from error
    places = index.data["offset"]
    if pyarrow.compute.min(places).as_py() == RETRY_LATER:  # an index that is kept would miss the file for good
        row = index[pyarrow.compute.index(places, RETRY_LATER).as_py()]
        shutil.rmtree(Path(index.cache_files[0]["filename"]).parent)
        raise ValueError(f"`images`: {row['file']}: {row['error']}. Mend that, or take the file out of the source.")
    if all(row["error"] is not None for row in index):
        names = ", ".join(printable(file) for file in files[:3])
        raise ValueError(f"`images`: no image is in {names}: {index[0]['error']}.")
    return index


FORMAT = 3
"""Changes with what the walks yield, so that an index of an older version is made again."""


def _version(place: str) -> tuple[str, int | None, str]:
    try:
        if not is_address(place):
            status = os.stat(place)
            return place, status.st_size, str(status.st_mtime_ns)
        files, path = url_to_fs(place)
        info = files.info(path)
    except Exception as error:  # every kind of address has its own; the walk will say it
        return place, None, type(error).__name__
    return place, info.get("size"), str(info.get("mtime") or info.get("ETag") or info.get("last_modified") or "")


# Paths, patterns and addresses


def _absolute(place: str) -> str:
    return place if is_address(place) else os.path.abspath(place)


def _fixed(pattern: str) -> str:
    """The folder of a pattern; of a path the longest that exists: it is meant as it stands, whatever is in it."""
    if is_address(pattern):
        return re.split(r"[*?[]", pattern, maxsplit=1)[0].rpartition("/")[0]
    folder = Path(os.path.abspath(os.path.expanduser(pattern))).parent
    while not folder.is_dir():
        folder = folder.parent
    return str(folder)


def _files(pattern: str) -> list[str]:
    """Paths or addresses that a pattern stands for, sorted; one without a star stands for itself."""
    if not is_address(pattern):
        if os.path.exists(pattern):
            return [os.path.abspath(pattern)]
        if not glob.has_magic(pattern):
            raise FileNotFoundError(f"`images`: there is no {pattern}.")
        folder = _fixed(pattern)
        rest = os.path.relpath(os.path.expanduser(pattern), folder)
        found = [os.path.join(folder, file) for file in glob.glob(rest, root_dir=folder, recursive=True)]
        files = sorted(file for file in found if not os.path.isdir(file))
    else:
        files = _files_behind(pattern)
    files = [file for file in files if not is_system_file(file.rsplit("/", 1)[-1])]
    if not files:
        raise FileNotFoundError(f"`images`: nothing fits {pattern}.")
    return files


def _files_behind(pattern: str) -> list[str]:
    # A question mark begins the signature of a link.
    signs = "*" if pattern.startswith(("http://", "https://")) else "*?["
    try:
        system, path = url_to_fs(pattern)
        if any(sign in pattern for sign in signs):
            return sorted(system.unstrip_protocol(file) for file in system.glob(path))
        system.info(path)
        return [pattern]
    except ImportError:
        raise
    except Exception as error:  # every kind of address has its own
        if is_missing(error):
            raise FileNotFoundError(f"`images`: there is no {pattern}.") from error
        raise ValueError(f"`images`: {pattern} cannot be read ({reason_of(error)}).") from error


def _lines(file: str) -> list[str]:
    try:
        with io.TextIOWrapper(open_binary(file), encoding="utf-8-sig", errors="surrogateescape") as stream:
            lines = [line.strip() for line in stream]
    except ImportError:
        raise
    except Exception as error:  # every kind of address has its own
        raise FileNotFoundError(f"`images`: the list {file} cannot be read: {error}") from error
    tars = [line for line in lines if line and not line.startswith("#")]
    for tar in tars:
        if suffix_of(tar) != ".tar":
            raise ValueError(f"`images`: {file} lists tars, one per line; {printable(tar[:100])!r} is none.")
    if not tars:
        raise ValueError(f"`images`: {file} lists no tar.")
    return tars


def _of_split(root: str, found: Folder, split: str) -> list[str]:
    """
    The Parquet files of a split, of those in a folder. Which they are `datasets` knows by their names (and a README):
    it is shown these names and nothing else of the folder.
    """
    with tempfile.TemporaryDirectory() as shown:
        for file in found.parquet:
            if printable(file) == file:
                path = Path(shown, "names", file)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
        readme = Path(root, "README.md")
        if readme.is_file():
            shutil.copyfile(readme, Path(shown, "names", "README.md"))
        names = Path(shown, "names").resolve()
        splits = _splits(str(names), printable(root), cache_dir=f"{shown}/cache")
        splits = {name: [os.path.relpath(file, names) for file in files] for name, files in splits.items()}
    wanted = _choose(splits, split, printable(root))
    for file in found.parquet:
        if printable(file) != file:
            wanted.append(file)  # a row that says so
        elif file not in wanted:
            found.passed_over[".parquet of no or another split"] += 1
    return wanted


def _files_of_dataset(images: str, split: str) -> list[str]:
    """The Parquet files of a split of a dataset of the Hub."""
    name, _, revision = images.removeprefix("hf://datasets/").partition("@")
    files = _choose(_splits(name, images, revision=revision or None), split, images)
    for file in files:
        if suffix_of(file) != ".parquet":
            raise ValueError(
                f"`images`: {images} is no Parquet dataset ({file}). The Hub keeps a Parquet version of most: "
                f"hf://datasets/{name}@refs/convert/parquet"
            )
    return files


def _splits(name: str, images: str, **options: Any) -> dict[str, list[str]]:
    try:
        files = datasets.load_dataset_builder(name, **options).config.data_files or {}
    except (ValueError, OSError, datasets.exceptions.DatasetNotFoundError) as error:
        raise ValueError(
            f"`images`: the files of {images} could not be listed: {error}. One configuration of several is given by "
            f"its folder or its files, e.g. {images}/configuration/*.parquet."
        ) from error
    return {str(split): list(listed) for split, listed in files.items()}


def _choose(splits: dict[str, list[str]], split: str, images: str) -> list[str]:
    if split not in splits:
        raise ValueError(f"`split`: {images} has no split {split!r}, but {', '.join(splits) or 'none'}.")
    return splits[split]


__all__ = [
    "Source",
    "UnreadableImage",
    "as_index",
    "fingerprint",
    "in_words",
    "name_of",
    "open_source",
    "passed_over",
    "read_bytes",
]
