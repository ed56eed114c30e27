# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Cached teacher predictions: the distributions over the categories of all kept regions of every image and grid.
`python -m training.cache_teacher` computes them, training with `--teacher_cache` reads them.
"""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import torch
from torch import Tensor

from modeling_densevlm.region_pooling import grid_boxes

from .alignment import Retrieval, as_groups
from .data import RegionDataset
from .images.sources import UnreadableImage, fingerprint


KEY = "`teacher_cache`"
"""The beginning of every message."""

DESCRIPTION = "retrieval.json"
REMEDY = "Delete it and run the same `python -m training.cache_teacher` again."
SHARD = 16_384
"""Images per file, which is what an interrupted program loses at most. SA-1B makes 684 files, all open at once."""

SCHEMA = pyarrow.schema(
    {
        "id": pyarrow.string(),
        "skipped": pyarrow.string(),  # the reason why the image could not be read
        "image": pyarrow.uint32(),  # checksum of the image file
        "regions": pyarrow.list_(pyarrow.uint16()),  # the kept regions, numbered as in `all_boxes`
        "labels": pyarrow.list_(pyarrow.uint16()),  # the retrieved category of each region
        "categories": pyarrow.list_(pyarrow.uint16()),  # the `top_k` of each region; empty if all are stored
        "log_probs": pyarrow.list_(pyarrow.float16()),  # of these, minus that of the best
        "rest": pyarrow.list_(pyarrow.float16()),  # the same for the remaining probability of each group
        "checksum": pyarrow.uint32(),  # of the whole row
    }
)


ARRAYS = ("regions", "labels", "categories", "log_probs", "rest")


def grid_starts(max_grid: int) -> dict[tuple[int, int], int]:
    """The number of the first region of each grid, if the regions of all grids are numbered consecutively."""
    starts, number = {}, 0
    for rows in range(1, max_grid + 1):
        for columns in range(1, max_grid + 1):
            starts[rows, columns] = number
            number += rows * columns
    return starts


def all_boxes(content_extent: tuple[float, float], max_grid: int) -> Tensor:
    """The boxes of all grids over an image's content, `(regions, 4)`: 441 for a `max_grid` of 6."""
    boxes = torch.cat([grid_boxes(rows, columns) for rows, columns in grid_starts(max_grid)])
    width, height = content_extent
    return boxes * boxes.new_tensor([width, height, width, height])


def compress(retrieval: Retrieval, is_thing: Tensor | Sequence, top_k: int) -> dict[str, np.ndarray]:
    """
    Compresses the kept regions of one image to half precision. Log-probabilities are stored relative to the best
    category's: those that matter are then small, where half precision is fine.

    Args:
        retrieval ([`Retrieval`]): of the regions of all grids over the image.
        is_thing (`Tensor` of shape `(categories,)`): bools, or integer groups.
        top_k (`int`): number of categories stored per region; 0 for all. The others are summed per group.

    Returns:
        One flat array for each of `ARRAYS`.
    """
    kept = retrieval.kept.nonzero().squeeze(1)
    log_probs = retrieval.logits[kept].float().log_softmax(-1)
    best, labels = log_probs.max(-1, keepdim=True)
    log_probs = log_probs - best
    packed = {"regions": kept, "labels": labels.squeeze(1)}
    if 0 < top_k < log_probs.shape[1]:
        groups = as_groups(is_thing).to(log_probs.device)
        values, categories = log_probs.topk(top_k, dim=-1)
        others = log_probs.scatter(1, categories, -torch.inf)
        rest = [
            others.masked_fill(groups != group, -torch.inf).logsumexp(-1) for group in range(int(groups.max()) + 1)
        ]
        packed |= {"categories": categories, "log_probs": values, "rest": torch.stack(rest, dim=1)}
    else:
        packed |= {"categories": labels[:, :0], "log_probs": log_probs, "rest": log_probs[:, :0]}
    half = {"log_probs": np.float16, "rest": np.float16}
    return {
        name: packed[name].cpu().numpy().reshape(-1).clip(-60_000, None).astype(half.get(name, np.uint16))
        for name in ARRAYS
    }


def checksum(row: dict[str, Any], arrays: dict[str, np.ndarray]) -> int:
    """The checksum of a row, over its columns and arrays."""
    value = zlib.crc32(f"{row['id']} {row['skipped']} {row['image']}".encode())
    for name in ARRAYS:
        value = zlib.crc32(np.ascontiguousarray(arrays[name]).view(np.uint8).data, value)
    return value


def expand(retrieved: dict[str, Tensor], is_thing: Tensor | Sequence) -> Retrieval:
    """
    The inverse of [`compress`]: logits `(regions, categories)`. The remaining probability of a group is spread evenly
    over its categories that are not stored.
    """
    labels, log_probs = retrieved["labels"], retrieved["log_probs"]
    groups = as_groups(is_thing).to(labels.device)
    logits = log_probs
    if retrieved["categories"].shape[1]:
        categories = retrieved["categories"]
        one_hot = torch.nn.functional.one_hot(groups).float()  # (categories, groups)
        others = (one_hot.sum(0) - one_hot[categories].sum(1)).clamp(min=1)  # (regions, groups): categories not stored
        logits = (retrieved["rest"] - others.log())[:, groups].scatter(1, categories, log_probs)
    return Retrieval(logits, torch.ones_like(labels, dtype=torch.bool), groups[labels])


class TeacherCacheError(ValueError):
    """
    A cache that is damaged or does not fit the run. The message stays on one line even if a loader raises it again
    with the traceback of its worker as the message.
    """

    def __init__(self, message: str):
        super().__init__(KEY + message.rpartition(KEY)[2])


class TeacherCache:
    r"""
    The predictions in a folder that `training.cache_teacher` has filled.

    Args:
        folder (`str` or path): with `retrieval.json`, the provenance of the predictions, and shards `*.arrow`.

    Raises:
        `FileNotFoundError` or [`TeacherCacheError`] that names what is missing or damaged, and the remedy.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.description = read_description(self.folder)
        self.max_grid = self.description["max_grid"]
        self.categories = len(self.description["categories"])
        self.starts = grid_starts(self.max_grid)
        images = self.description["images"]
        shards = [shard_file(self.folder, number) for number in range(-(-images // SHARD))]
        missing = [shard.name for shard in shards if not shard.is_file()]
        if missing:
            raise TeacherCacheError(
                f"`teacher_cache`: {folder} is missing {len(missing)} of {len(shards)} files, e.g. {missing[0]}. The "
                "same `python -m training.cache_teacher` resumes where it was stopped."
            )
        self.rows = datasets.concatenate_datasets([_open_shard(shard) for shard in shards])
        if len(self.rows) != images:
            raise TeacherCacheError(f"`teacher_cache`: {folder} has {len(self.rows)} images and should have {images}.")
        self.rows = self.rows.with_format("arrow")

    def check(self, provenance: dict[str, Any], index: datasets.Dataset) -> None:
        """
        Raises a [`TeacherCacheError`] that names the difference if the cache is not what a run would compute.

        Args:
            provenance (`dict`): of [`describe_targets`].
            index ([`datasets.Dataset`]): the images of the run.
        """
        _check_provenance(self.folder, self.description, provenance)
        ids = self.rows.select_columns("id").with_format(None)
        if len(ids) < len(index) or fingerprint(ids.select(range(len(index)))) != fingerprint(index):
            raise TeacherCacheError(
                f"`teacher_cache`: {self.folder} is of other images: it has {len(ids)}, the run {len(index)}, and "
                "those it starts with must be the same in the same order."
            )

    def look_up(self, number: int, content: bytes, rows: int, columns: int) -> tuple[Tensor, dict[str, Tensor]]:
        """
        The cached targets of one grid over one image.

        Args:
            number (`int`): of the image in the index.
            content (`bytes`): the image file, compared with the cached checksum.
            rows (`int`): of the grid.
            columns (`int`): of the grid.

        Returns:
            The indices of the kept cells `(kept,)`, and a dict of `labels` `(kept,)`, `categories` `(kept, top_k)` (or
            `(kept, 0)`), `log_probs` `(kept, top_k or categories)`, `rest` `(kept, groups or 0)`.

        Raises:
            `UnreadableImage` if the image could not be read when the cache was filled; [`TeacherCacheError`] if the
            file was a different one then, or if the row is damaged.
        """
        row, arrays = self._read(number)
        if row["skipped"] is not None:
            raise UnreadableImage(f"{row['skipped']} (when the cache was filled)")
        if row["image"] != zlib.crc32(content):
            raise TeacherCacheError(
                f"`teacher_cache`: {row['id']} is not the image that the teacher saw when {self.folder} was filled. "
                "Fill a new folder for these images with `python -m training.cache_teacher`."
            )
        regions, start = arrays["regions"], self.starts[rows, columns]
        first, last = np.searchsorted(regions, [start, start + rows * columns])
        sample = {}
        for name in ("labels", "categories", "log_probs", "rest"):
            value = arrays[name].reshape(len(regions), -1)[first:last] if len(regions) else self._empty(name)
            kind = np.float32 if value.dtype == np.float16 else np.int64
            sample[name] = torch.from_numpy(value.astype(kind))
        sample["labels"] = sample["labels"].squeeze(1)
        return torch.from_numpy(regions[first:last].astype(np.int64) - start), sample

    def _read(self, number: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The scalar columns and the arrays of a row, after verifying its checksum."""
        try:
            table = self.rows[number]
            table.validate(full=True)  # a damaged offset could point outside the file
            row = {name: table[name][0].as_py() for name in ("id", "skipped", "image", "checksum")}
            arrays = {name: table[name][0].values.to_numpy() for name in ARRAYS}
            if checksum(row, arrays) == row["checksum"]:
                return row, arrays
        except (pyarrow.ArrowException, ValueError, AttributeError, OSError):
            pass
        raise TeacherCacheError(f"`teacher_cache`: {shard_file(self.folder, number // SHARD)} is damaged. {REMEDY}")

    def empty_targets(self) -> dict[str, Tensor]:
        """The cached targets of an image without kept regions."""
        sample = {name: torch.from_numpy(self._empty(name)) for name in ("categories", "log_probs", "rest")}
        sample = {name: value.float() if value.is_floating_point() else value.long() for name, value in sample.items()}
        return sample | {"labels": torch.zeros(0, dtype=torch.int64)}

    def _empty(self, name: str) -> np.ndarray:
        top_k = self.description["top_k"]
        groups = max(self.description["groups"]) + 1
        widths = {
            "labels": 1,
            "categories": top_k,
            "log_probs": top_k or self.categories,
            "rest": groups if top_k else 0,
        }
        return np.zeros((0, widths[name]), dtype=np.float16 if name in ("log_probs", "rest") else np.int64)


class CachedTeacherDataset(torch.utils.data.Dataset):
    r"""
    Adds cached teacher predictions, `cached_targets`, to the samples of a dataset, and reduces their `boxes` to the
    kept regions.

    Args:
        dataset ([`RegionDataset`]): with the images of the cache, in the same order.
        cache ([`TeacherCache`]): the teacher's predictions for them.
    """

    has_targets = True
    """The trainer then needs no teacher."""

    def __init__(self, dataset: RegionDataset, cache: TeacherCache):
        self.dataset, self.cache = dataset, cache
        self.index = dataset.index

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        visit, number = key
        if number < 0:
            return {}
        try:
            loaded = self.dataset.load(visit, number)
            kept, targets = self.cache.look_up(number, loaded.content, *loaded.grid)
        except UnreadableImage as error:
            return {"skipped": str(error)}
        sample = self.dataset.to_sample(loaded)
        return sample | {"boxes": sample["boxes"][kept], "cached_targets": targets}

    def blank(self) -> dict[str, Any]:
        """The sample of a black image without boxes, as [`RegionDataset.blank`]."""
        return self.dataset.blank() | {"cached_targets": self.cache.empty_targets()}


def shard_file(folder: Path, number: int) -> Path:
    return folder / f"retrieval-{number:06d}.arrow"


def read_description(folder: Path) -> dict[str, Any]:
    file = folder / DESCRIPTION
    if not file.is_file():
        raise FileNotFoundError(
            f"`teacher_cache`: {folder} holds no {DESCRIPTION}. Run `python -m training.cache_teacher RECIPE "
            f"--teacher_cache {folder}`."
        )
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
        counts = [description[key] for key in ("images", "max_grid", "top_k")]
        if all(isinstance(count, int) for count in counts) and description["categories"] and description["groups"]:
            return description
    except (ValueError, KeyError, TypeError):
        pass
    raise TeacherCacheError(f"`teacher_cache`: {file} is damaged or not the description of a teacher cache.")


def write_description(folder: Path, provenance: dict[str, Any]) -> None:
    """Writes the provenance of a cache atomically. Raises if the folder already has a different one."""
    if (folder / DESCRIPTION).exists():
        _check_provenance(folder, read_description(folder), provenance)
        return
    folder.mkdir(parents=True, exist_ok=True)
    staged = folder / f".{DESCRIPTION}"
    staged.write_text(json.dumps(provenance, indent=1, ensure_ascii=False), encoding="utf-8")
    staged.replace(folder / DESCRIPTION)


def _check_provenance(folder: Path, cached: dict[str, Any], provenance: dict[str, Any]) -> None:
    for key, value in provenance.items():
        if cached.get(key) != value:
            was, now = (str(v) if len(str(v)) < 100 else f"{str(v)[:97]}…" for v in (cached.get(key), value))
            raise TeacherCacheError(
                f"`teacher_cache`: {folder} was filled with another `{key}`: {was}, the run has {now}. Fill a new "
                "folder for this run with `python -m training.cache_teacher`."
            )


def _open_shard(file: Path) -> datasets.Dataset:
    try:
        shard = datasets.Dataset.from_file(str(file))
        if shard.column_names == SCHEMA.names:
            return shard
    except (OSError, pyarrow.ArrowException, ValueError):
        pass
    raise TeacherCacheError(f"`teacher_cache`: {file} is damaged. {REMEDY}")


__all__ = ["CachedTeacherDataset", "TeacherCache", "TeacherCacheError", "all_boxes", "compress", "expand"]
