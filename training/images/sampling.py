# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The order of the images: a pure function of seed and epoch, the same for any number of processes."""

from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow.compute
import torch


class EpochSampler(torch.utils.data.Sampler):
    r"""
    The order of the images in an epoch, as pairs `(visit, index)`: the index into the concatenated indices of all
    sources, and the number of earlier passes over the source, from which the sample's random choices are derived.

    Step `k` of an epoch takes the images `k * batch_size` to `(k + 1) * batch_size - 1` of that order, for any number
    of processes, workers and accumulation steps. A run can therefore be resumed exactly on another number of
    processes, and no image of the steps before is read again.

    Sources are read in pieces of up to `PIECE` neighbouring images of a shard, fewer if the source is small (an image
    file is a piece by itself). Pieces are shuffled, concatenated and cut into `LANES * batch_size` lanes of equal
    length that are read in parallel, round-robin. The images of a batch thus come from the whole source, and each
    process and worker reads its own pieces sequentially if the number of workers per process divides `LANES`. The
    lengths of shards do not matter.

    Rows of Parquet files cannot be read without the preceding rows of their row group: there, a piece is a whole row
    group, and if there are few groups, there are fewer lanes, and up to `RUN` consecutive images are of one lane.

    Args:
        indices (list of [`datasets.Dataset`]): indices of [`open_source`], one per source.
        batch_size (`int`): images per step, over all processes and accumulation steps.
        seed (`int`, *optional*, defaults to 0): of all random choices.
        weights (list of `float`, *optional*):
            Relative shares of the sources in an epoch; equal by default. An epoch ends after one pass over the source
            that is exhausted first; the next epoch continues with the rest of the others.
        drop_last (`bool`, *optional*, defaults to `True`):
            Drop the last incomplete batch of an epoch; otherwise it is padded with index -1, which stands for no
            image.
    """

    LANES = 16
    """Lanes per position in a batch: up to this many workers per process read their own pieces."""
    PIECE = 64
    RUN = 8

    def __init__(
        self,
        indices: Sequence[datasets.Dataset],
        batch_size: int,
        seed: int = 0,
        weights: Sequence[float] | None = None,
        drop_last: bool = True,
    ):
        self.batch_size = batch_size
        self.seed = seed
        self.drop_last = drop_last
        self.lengths = [len(index) for index in indices]
        self.shards = [shard_starts(index) for index in indices]
        self.in_groups = [len(index) > 0 and index[0].get("column") is not None for index in indices]
        self.shares = shares(self.lengths, weights or [1.0] * len(self.lengths))
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Selects the epoch of the next `__iter__`."""
        self.epoch = epoch

    def __len__(self) -> int:
        images = sum(self.shares)
        whole = images // self.batch_size * self.batch_size
        return whole if self.drop_last or whole == images else whole + self.batch_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = self.order(self.epoch)[: len(self)]
        for start in range(0, len(order), 4096):
            yield from map(tuple, order[start : start + 4096].tolist())
        visit = order[-1, 0].item() if len(order) else 0
        yield from ((visit, -1) for _ in range(len(self) - len(order)))

    def order(self, epoch: int) -> np.ndarray:
        """All pairs of an epoch, int64 `(images, 2)`, before dropping or padding."""
        parts, places, first = [], [], 0
        for source, (length, share) in enumerate(zip(self.lengths, self.shares)):
            part = self._stretch(source, epoch * share, share)
            part[:, 1] += first
            first += length
            parts.append(part)
            places.append((np.arange(share) + 0.5) / max(share, 1))
        # Spread each source evenly over the epoch.
        return np.concatenate(parts)[np.argsort(np.concatenate(places), kind="stable")]

    def _stretch(self, source: int, start: int, count: int) -> np.ndarray:
        """`count` pairs from `start` of the infinite sequence of visits to a source."""
        length, pairs = self.lengths[source], []
        while count > 0:
            visit, begin = divmod(start, length)
            rng = np.random.default_rng((self.seed, visit, source))
            lanes, run = self.LANES * self.batch_size, 1
            piece = min(max(length // lanes, 1), self.PIECE)
            if self.in_groups[source]:
                piece = length
                while run < self.RUN and lanes > len(self.shards[source]):
                    lanes, run = lanes // 2, run * 2
            indices = shuffle(self.shards[source], length, rng, lanes, piece, run)[begin : begin + count]
            pairs.append(np.stack([np.full(len(indices), visit), indices], axis=1))
            start, count = start + len(indices), count - len(indices)
        return np.concatenate(pairs) if pairs else np.zeros((0, 2), dtype=np.int64)


def shares(lengths: Sequence[int], weights: Sequence[float]) -> list[int]:
    """The number of images per source in an epoch, in proportion to `weights`, until the first source is exhausted."""
    epoch = min(length / weight for length, weight in zip(lengths, weights))
    return [min(length, max(1, int(epoch * weight + 1e-9))) for length, weight in zip(lengths, weights)]


def shard_starts(index: datasets.Dataset) -> np.ndarray:
    """The first index of each shard, a file or a row group of one, `(shards,)`."""
    starts, before = [np.zeros(min(len(index), 1), dtype=np.int64)], 0
    last: dict[str, Any] = {}
    columns = [name for name in ("file", "group") if name in index.column_names]
    for table in index.select_columns(columns).with_format("arrow").iter(batch_size=100_000):
        changes = np.zeros(len(table), dtype=bool)
        for name in columns:
            values = table[name].combine_chunks()
            changes[0] |= name in last and values[0] != last[name]
            changes[1:] |= pyarrow.compute.not_equal(values[1:], values[:-1]).to_numpy(zero_copy_only=False)
            last[name] = values[-1]
        starts.append(np.flatnonzero(changes) + before)
        before += len(table)
    return np.concatenate(starts)


def shuffle(
    starts: np.ndarray, length: int, rng: np.random.Generator, lanes: int, piece: int, run: int = 1
) -> np.ndarray:
    """
    A permutation of the images of a source: its pieces are shuffled, concatenated, cut into lanes and read
    round-robin.

    Args:
        starts (`np.ndarray` of shape `(shards,)`): index of the first image of each shard, ascending from 0.
        length (`int`): number of images.
        rng (`np.random.Generator`): shuffles the pieces.
        lanes (`int`): number of lanes.
        piece (`int`): maximum number of consecutive images of a shard per piece.
        run (`int`, *optional*, defaults to 1): number of consecutive images of a lane.

    Returns:
        `np.ndarray` of shape `(length,)`, int64.
    """
    in_shard = np.arange(length) - np.repeat(starts, np.diff(starts, append=length))
    starts = np.flatnonzero(in_shard % piece == 0)
    sizes = np.diff(starts, append=length)
    shuffled = rng.permutation(len(starts))
    sizes, starts = sizes[shuffled], starts[shuffled]
    # Concatenated pieces: position - start of the piece in the sequence + start of the piece in the index.
    sequence = np.arange(length) + np.repeat(starts - (np.cumsum(sizes) - sizes), sizes)
    lane_length, longer = divmod(length, lanes)  # the first `longer` lanes have one image more
    across, place = np.divmod(np.arange(-(-(lane_length + 1) // run) * run * lanes), lanes * run)
    lane, row = place // run, across * run + place % run
    place = (lane * lane_length + np.minimum(lane, longer) + row)[row < lane_length + (lane < longer)]
    return sequence[place]


__all__ = ["EpochSampler"]
