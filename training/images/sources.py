# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Sources of images: folders, COCO annotation files, tar shards (SA-1B), Parquet datasets (Hub), local or remote. Every
source becomes an *index*, a [`datasets.Dataset`] with one row per image that locates its bytes. Sources are therefore
read in random order, divided among any number of processes and resumed exactly, without reading anything twice.
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
from .parquet_rows import has_column, walk_parquet
from .tar_members import RETRY_LATER, walk_tars


logger = logging.get_logger(__name__)


FEATURES = datasets.Features(
    {
        "file": datasets.Value("string"),  # an image, a tar, or a Parquet file
        "group": datasets.Value("int64"),  # row group of a Parquet file
        "offset": datasets.Value("int64"),  # first byte of the image; in a Parquet file its row in the row group
        "size": datasets.Value("int64"),  # bytes; -1 for the whole file
        "id": datasets.Value("string"),
        "column": datasets.Value("string"),  # of a Parquet file
        "error": datasets.Value("string"),  # damage found while the index was built
        "passed_over": datasets.Value("string"),  # on a tar's last row: numbers of skipped members per kind, as JSON
    }
)


class UnreadableImage(Exception):
    """An image that cannot be used; the message names it and the reason."""


@dataclass(frozen=True)
class Source:
    r"""
    One source of images.

    Args:
        images (`str`):
            A folder of images, or a pattern (`photos/**/*.png`); a tar, a URL or a pattern of tars (`sa1b/*.tar`,
            `s3://bucket/sa_*.tar`), a folder of tars, or a text file that lists tars, one per line; a Parquet file, a
            pattern or a folder of Parquet files, or a dataset of the Hub (`hf://datasets/owner/name`). An existing
            path is taken literally, even if it contains characters of a pattern.
        annotations (`str`, *optional*):
            A COCO annotation file with `images: [{"id", "file_name"}, ...]`; file names are relative to `images`.
        split (`str`, *optional*, defaults to `"train"`): split of a Parquet dataset.
        column (`str`, *optional*, defaults to `"image"`): column of a Parquet dataset that holds the images.
        max_samples (`int`, *optional*): use only the first N images.
        weight (`float`, *optional*, defaults to 1.0): relative share of the source in a mix.
    """

    images: str
    annotations: str | None = None
    split: str = "train"
    column: str = "image"
    max_samples: int | None = None
    weight: float = 1.0

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Source":
        """A source of an entry of the key `sources`. Raises a `ValueError` that names what is wrong."""
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

    Indices of tars and Parquet files are built from headers and footers, without reading images, and cached by
    `datasets` until the size or the date of a file changes.

    Raises:
        `FileNotFoundError` or `ValueError` that names the key (`images`, `annotations`, `split`) and the problem.
    """
    images = str(source.images).removeprefix("file://")
    try:
        index, counts = _open_index(images, source)
    except ImportError as error:
        package = getattr(error.__cause__, "name", None)
        remedy = f" `pip install {package}`" if package else ""
        raise ValueError(f"`images`: {images} cannot be read: {error}.{remedy}") from error
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"`images`: {images} cannot be read ({type(error).__name__}: {error}).") from error
    counts += _count_passed_over(index)
    index.info.description = json.dumps(counts)
    if counts:
        logger.warning(f"`images`: {printable(images)}: passed over: {format_counts(counts)}.")
    if source.max_samples is not None and source.max_samples < len(index):
        index = index.select(range(source.max_samples))
    return index


def passed_over(index: datasets.Dataset) -> dict[str, int]:
    """The numbers of skipped files per kind in the source of an index of [`open_source`]."""
    return json.loads(index.info.description or "{}")


def format_counts(counts: dict[str, int], max_shown: int = 12) -> str:
    """Formats numbers per kind as `24 .json, 2 .heic`, in descending order."""
    kinds = Counter(counts).most_common()
    rest = sum(count for _, count in kinds[max_shown:])
    named = [f"{count} {kind}" for kind, count in kinds[:max_shown]]
    return ", ".join(named + [f"{rest} of {len(kinds) - max_shown} other kinds"] * (rest > 0))


def _count_passed_over(index: datasets.Dataset) -> Counter:
    """The numbers of skipped members per kind of all tars, from their last rows."""
    counted = index.data["passed_over"].drop_null().to_pylist()
    return sum((Counter(json.loads(counts)) for counts in counted), Counter())


def _open_index(images: str, source: Source) -> tuple[datasets.Dataset, Counter]:
    suffix = suffix_of(images)
    nothing: Counter[str] = Counter()
    if source.annotations is not None:
        return _index_of_annotations(images, Path(source.annotations)), nothing
    if not is_address(images) and os.path.isdir(images):
        return _index_of_folder(images, source)
    if images.startswith("hf://") and suffix not in (".parquet", ".tar", *IMAGE_SUFFIXES):
        return _index_of_parquet(_files_of_hub_dataset(images, source.split), source.column), nothing
    if suffix == ".txt":
        return _index_of_tars(_listed_tars(images)), nothing
    if suffix == ".tar":
        return _index_of_tars(_files(images)), nothing
    if suffix == ".parquet":
        return _index_of_parquet(_files(images), source.column), nothing
    if suffix in IMAGE_SUFFIXES:
        files, folder = _files(images), _base_folder(images)
        return _rows(files, [file.removeprefix(f"{folder}/") for file in files]), nothing
    if suffix in COMPRESSED_TARS:
        raise ValueError(f"`images`: {images} is compressed: single images in it cannot be read. Unpack it to a .tar.")
    raise FileNotFoundError(
        f"`images`: {images} is no folder, no .tar, no .parquet, no list of tars (.txt) and no pattern of images."
    )


def as_index(dataset: datasets.Dataset, column: str = "image") -> datasets.Dataset:
    """
    An index of the images in a column of a dataset, which may be encoded, decoded or paths. A dataset that is an index
    is returned unchanged.
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


def fingerprint(index: datasets.Dataset) -> str:
    """A hash of the ids of an index in their order, independent of the location of the files."""
    digest = hashlib.blake2b(digest_size=8)
    for chunk in index.with_format("arrow").iter(batch_size=10_000):
        digest.update("\n".join(chunk["id"].to_pylist()).encode())
    return digest.hexdigest()


# Folders and annotation files


def _rows(files: Sequence[str], ids: Sequence[str], errors: Sequence[str | None] | None = None) -> datasets.Dataset:
    """The index of image files."""
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
    """The index of a folder of images, tars or Parquet files. A folder of several kinds is an error."""
    found = walk_folder(root)
    # A table of captions beside images or tars does not make a dataset of them.
    if (found.images or found.tars) and not any(has_column(f"{root}/{f}", source.column) for f in found.parquet):
        found.passed_over.update([".parquet"] * len(found.parquet))
        found.parquet = []
    if found.unreadable and (found.tars or found.parquet):  # an incomplete index must not be cached
        folder, reason = next(iter(found.unreadable.items()))
        raise ValueError(f"`images`: {printable(os.path.join(root, folder))} cannot be read ({reason}).")
    _check_kinds(root, found)
    for file in found.compressed:
        found.passed_over[suffix_of(file)] += 1
    if found.tars:
        return _index_of_tars([os.path.join(root, file) for file in found.tars]), found.passed_over
    if found.parquet:
        files = [os.path.join(root, file) for file in _local_files_of_split(root, found, source.split)]
        return _index_of_parquet(files, source.column), found.passed_over
    paths = [*found.images, *found.unreadable]
    errors = [None] * len(found.images) + list(found.unreadable.values())
    return _rows([os.path.join(root, path) for path in paths], paths, errors), found.passed_over


def _check_kinds(root: str, found: Folder) -> None:
    kinds = {"images": found.images, "tars": found.tars, "Parquet files": found.parquet}
    if found.tars:
        kinds["compressed tars"] = found.compressed
    present = [f"{len(files)} {kind} ({printable(files[0])})" for kind, files in kinds.items() if files]
    if len(present) > 1:
        raise ValueError(
            f"`images`: {root} holds {' and '.join(present)}: which are meant? Give a folder that holds one kind, or "
            f"a pattern, e.g. {root}/**/*{suffix_of(min(kinds.values(), key=lambda files: -len(files))[0])}."
        )
    if not present and found.compressed:
        raise ValueError(
            f"`images`: {root} holds {len(found.compressed)} compressed tars ({printable(found.compressed[0])}): "
            "single images in them cannot be read. Unpack them to .tar."
        )
    if not present:
        reasons = [f"{printable(folder) or '.'}: {reason}" for folder, reason in found.unreadable.items()]
        raise ValueError(
            f"`images`: {root} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}), no .tar and no .parquet"
            + (f", but {format_counts(found.passed_over)}" if found.passed_over else "")
            + (f" ({'; '.join(reasons[:3])})" if reasons else "")
            + "."
        )


def _index_of_annotations(images: str, annotations: Path) -> datasets.Dataset:
    if not os.path.isdir(images):
        raise FileNotFoundError(f"`images`: {images} is no folder.")
    files, ids, errors = [], [], []
    for number, record in enumerate(_read_records(annotations)):
        error = _find_record_error(record)
        # A record without a file gets the name of the annotation file and its position there.
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
    """The list `images` of a COCO file. `json` decodes bytes itself, byte order marks included."""
    if not annotations.is_file():
        raise FileNotFoundError(f"`annotations`: there is no file {annotations}.")
    try:
        content = json.loads(annotations.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"`annotations`: {annotations} is not JSON: {error}. Is it cut off?") from error
    except OSError as error:
        raise ValueError(f"`annotations`: {annotations} cannot be read: {error}") from error
    records = content.get("images") if isinstance(content, dict) else None
    if isinstance(records, list) and records:
        return records
    raise ValueError(f'`annotations`: {annotations} has no list `images` of {{"id": ..., "file_name": ...}}.')


def _find_record_error(record: Any) -> str | None:
    """The reason why a record of `images` is malformed, or None."""
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
    return _cached_index(walk_tars, {"tars": tars}, tars)


def _index_of_parquet(files: Sequence[str], column: str) -> datasets.Dataset:
    files = [_absolute(file) for file in files]
    return _cached_index(walk_parquet, {"files": files, "column": column}, files)


def _cached_index(walk: Callable, arguments: dict[str, Any], files: Sequence[str]) -> datasets.Dataset:
    """The rows that `walk` yields, built by several processes and cached until a file changes."""
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
    except (OSError, datasets.exceptions.DatasetGenerationError) as error:  # `walk` raises nothing
        raise ValueError(
            f"`images`: the index cannot be written to {datasets.config.HF_DATASETS_CACHE} "
            f"({reason_of(error)}). Make room there, or set HF_DATASETS_CACHE to a writable folder."
        ) from error
    offsets = index.data["offset"]
    if pyarrow.compute.min(offsets).as_py() == RETRY_LATER:  # a cached index would never include the file
        row = index[pyarrow.compute.index(offsets, RETRY_LATER).as_py()]
        shutil.rmtree(Path(index.cache_files[0]["filename"]).parent)
        raise ValueError(f"`images`: {row['file']}: {row['error']}. Fix that, or remove the file from the source.")
    if all(row["error"] is not None for row in index):
        names = ", ".join(printable(file) for file in files[:3])
        raise ValueError(f"`images`: no image is in {names}: {index[0]['error']}.")
    return index


FORMAT = 3
"""Version of the rows; a new one invalidates cached indices."""


def _version(place: str) -> tuple[str, int | None, str]:
    """Path, size and date of a file, which change with its content."""
    try:
        if not is_address(place):
            status = os.stat(place)
            return place, status.st_size, str(status.st_mtime_ns)
        files, path = url_to_fs(place)
        info = files.info(path)
    except Exception as error:  # every file system has its own errors; the walk reports them
        return place, None, type(error).__name__
    return place, info.get("size"), str(info.get("mtime") or info.get("ETag") or info.get("last_modified") or "")


# Paths, patterns and URLs


def _absolute(place: str) -> str:
    return place if is_address(place) else os.path.abspath(place)


def _base_folder(pattern: str) -> str:
    """The folder before the wildcards of a pattern: for a path, its longest part that exists, taken literally."""
    if is_address(pattern):
        return re.split(r"[*?[]", pattern, maxsplit=1)[0].rpartition("/")[0]
    folder = Path(os.path.abspath(os.path.expanduser(pattern))).parent
    while not folder.is_dir():
        folder = folder.parent
    return str(folder)


def _files(pattern: str) -> list[str]:
    """The paths or URLs that match a pattern, sorted."""
    if not is_address(pattern):
        if os.path.exists(pattern):
            return [os.path.abspath(pattern)]
        if not glob.has_magic(pattern):
            raise FileNotFoundError(f"`images`: there is no {pattern}.")
        folder = _base_folder(pattern)
        rest = os.path.relpath(os.path.expanduser(pattern), folder)
        found = [os.path.join(folder, file) for file in glob.glob(rest, root_dir=folder, recursive=True)]
        files = sorted(file for file in found if not os.path.isdir(file))
    else:
        files = _remote_files(pattern)
    files = [file for file in files if not is_system_file(file.rsplit("/", 1)[-1])]
    if not files:
        raise FileNotFoundError(f"`images`: nothing matches {pattern}.")
    return files


def _remote_files(pattern: str) -> list[str]:
    # In an http URL, a question mark begins the query.
    wildcards = "*" if pattern.startswith(("http://", "https://")) else "*?["
    try:
        system, path = url_to_fs(pattern)
        if any(wildcard in pattern for wildcard in wildcards):
            return sorted(system.unstrip_protocol(file) for file in system.glob(path))
        system.info(path)
        return [pattern]
    except ImportError:
        raise
    except Exception as error:  # every file system has its own errors
        if is_missing(error):
            raise FileNotFoundError(f"`images`: there is no {pattern}.") from error
        raise ValueError(f"`images`: {pattern} cannot be read ({reason_of(error)}).") from error


def _listed_tars(file: str) -> list[str]:
    try:
        with io.TextIOWrapper(open_binary(file), encoding="utf-8-sig", errors="surrogateescape") as stream:
            lines = [line.strip() for line in stream]
    except ImportError:
        raise
    except Exception as error:  # every file system has its own errors
        raise FileNotFoundError(f"`images`: the list {file} cannot be read: {error}") from error
    tars = [line for line in lines if line and not line.startswith("#")]
    for tar in tars:
        if suffix_of(tar) != ".tar":
            raise ValueError(f"`images`: {file} lists tars, one per line; {printable(tar[:100])!r} is none.")
    if not tars:
        raise ValueError(f"`images`: {file} lists no tar.")
    return tars


def _local_files_of_split(root: str, found: Folder, split: str) -> list[str]:
    """
    The Parquet files of a split in a folder. `datasets` assigns files to splits by their names (and a README): it is
    given a temporary folder of empty files with these names.
    """
    with tempfile.TemporaryDirectory() as temporary:
        for file in found.parquet:
            if printable(file) == file:
                path = Path(temporary, "names", file)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
        readme = Path(root, "README.md")
        if readme.is_file():
            shutil.copyfile(readme, Path(temporary, "names", "README.md"))
        names = Path(temporary, "names").resolve()
        splits = _splits(str(names), printable(root), cache_dir=f"{temporary}/cache")
        splits = {name: [os.path.relpath(file, names) for file in files] for name, files in splits.items()}
    wanted = _files_of_split(splits, split, printable(root))
    for file in found.parquet:
        if printable(file) != file:
            wanted.append(file)  # the index gets a row with the error
        elif file not in wanted:
            found.passed_over[".parquet of no or another split"] += 1
    return wanted


def _files_of_hub_dataset(images: str, split: str) -> list[str]:
    """The Parquet files of a split of a dataset on the Hub."""
    name, _, revision = images.removeprefix("hf://datasets/").partition("@")
    files = _files_of_split(_splits(name, images, revision=revision or None), split, images)
    for file in files:
        if suffix_of(file) != ".parquet":
            raise ValueError(
                f"`images`: {images} is not a Parquet dataset ({file}). The Hub has a Parquet version of most: "
                f"hf://datasets/{name}@refs/convert/parquet"
            )
    return files


def _splits(name: str, images: str, **options: Any) -> dict[str, list[str]]:
    try:
        files = datasets.load_dataset_builder(name, **options).config.data_files or {}
    except (ValueError, OSError, datasets.exceptions.DatasetNotFoundError) as error:
        raise ValueError(
            f"`images`: the files of {images} could not be listed: {error}. Of several configurations, select one by "
            f"its folder or its files, e.g. {images}/configuration/*.parquet."
        ) from error
    return {str(split): list(listed) for split, listed in files.items()}


def _files_of_split(splits: dict[str, list[str]], split: str, images: str) -> list[str]:
    if split not in splits:
        raise ValueError(f"`split`: {images} has no split {split!r}, but {', '.join(splits) or 'none'}.")
    return splits[split]


__all__ = [
    "Source",
    "UnreadableImage",
    "as_index",
    "fingerprint",
    "format_counts",
    "open_source",
    "passed_over",
]
