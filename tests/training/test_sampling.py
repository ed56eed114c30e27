# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The order of images: every image once per visit, for any number of processes and workers."""

import time
import tracemalloc

import datasets
import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler

from training.images.sampling import EpochSampler, shard_starts, shares, shuffle


def index_of(*shards: int) -> datasets.Dataset:
    """An index of shards with the given numbers of images."""
    files = [f"{number}.tar" for number, count in enumerate(shards) for _ in range(count)]
    return datasets.Dataset.from_dict({"file": files})


@pytest.mark.parametrize("shards", [(1,), (7, 0, 13, 1), (100, 3), tuple([1] * 50), (5, 5, 5)])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_an_epoch_takes_every_image_once(shards, batch_size):
    sampler = EpochSampler([index_of(*shards)], batch_size, drop_last=False)
    for epoch in (0, 1, 5):
        sampler.set_epoch(epoch)
        pairs = list(sampler)
        assert len(pairs) == len(sampler) and len(pairs) % batch_size == 0
        assert sorted(number for _, number in pairs if number >= 0) == list(range(sum(shards)))
        assert {visit for visit, _ in pairs} == {epoch}


def test_the_last_incomplete_batch_is_dropped_or_padded():
    dropped = EpochSampler([index_of(10)], 4, drop_last=True)
    assert len(dropped) == len(list(dropped)) == 8
    padded = EpochSampler([index_of(10)], 4, drop_last=False)
    assert len(padded) == 12 and [number for _, number in padded][10:] == [-1, -1]
    assert list(dropped) == list(padded)[:8]


def test_epochs_and_seeds_have_different_orders_that_are_reproducible():
    index = index_of(20, 20, 20)

    def order(seed, epoch):
        return EpochSampler([index], 4, seed=seed).order(epoch)[:, 1].tolist()

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


@pytest.mark.parametrize(("ranks", "accumulation"), [(1, 1), (2, 1), (4, 1), (2, 2), (1, 4), (4, 2)])
def test_a_step_has_the_same_images_on_any_number_of_processes(ranks, accumulation):
    index, batch_size = index_of(13, 40, 7, 4), 8
    expected = [set(batch) for batch in BatchSampler(EpochSampler([index], batch_size), batch_size, True)]
    per_device = batch_size // ranks // accumulation
    sampler = EpochSampler([index], batch_size)
    micro = [
        list(
            BatchSamplerShard(
                BatchSampler(sampler, per_device, drop_last=True), num_processes=ranks, process_index=rank
            )
        )
        for rank in range(ranks)
    ]
    assert len({len(batches) for batches in micro}) == 1  # no rank waits for another
    steps = []
    for step in range(len(micro[0]) // accumulation):
        parts = [b for rank in micro for b in rank[step * accumulation : (step + 1) * accumulation]]
        seen = [pair for part in parts for pair in part]
        assert len(set(seen)) == len(seen) == batch_size
        steps.append(set(seen))
    assert steps == expected


def test_workers_read_their_own_pieces_of_shards_sequentially():
    """Two ranks with two workers each: every worker reads its own parts of the sequence of pieces sequentially."""
    index, batch_size = index_of(*[50] * 128), 4
    pairs = list(EpochSampler([index], batch_size))
    taken = {}
    for number, start in enumerate(range(0, len(pairs), 2)):  # micro-batches of two images
        rank, worker = number % 2, number // 2 % 2
        taken.setdefault((rank, worker), []).extend(image for _, image in pairs[start : start + 2])
    sets = [set(images) for images in taken.values()]
    assert sum(map(len, sets)) == len(set.union(*sets)) == 6400
    lanes = EpochSampler.LANES * batch_size
    for images in taken.values():
        stretches = {}
        for place, image in enumerate(images):
            stretches.setdefault(place % (lanes // 4), []).append(image)
        for stretch in stretches.values():
            assert len(stretch) == 100
            assert (np.diff(stretch) != 1).sum() <= 4  # 50 consecutive images, except where a lane starts or ends


def test_shards_are_found_where_the_file_changes():
    assert shard_starts(index_of(3, 0, 1, 2)).tolist() == [0, 3, 4]
    assert shard_starts(index_of(1, 1, 1)).tolist() == [0, 1, 2]


def test_shuffle_is_a_permutation_that_reads_lanes_round_robin():
    order = shuffle(np.array([0]), 10, np.random.default_rng(0), lanes=3, piece=10)
    assert order.tolist() == [0, 4, 7, 1, 5, 8, 2, 6, 9, 3]


def test_shares_follow_the_weights_until_a_source_is_exhausted():
    assert shares([100, 100], [1, 1]) == [100, 100]
    assert shares([100, 1000], [1, 1]) == [100, 100]
    assert shares([100, 1000], [1, 3]) == [100, 300]
    assert shares([100, 1000], [1, 30]) == [33, 1000]


def test_a_mix_takes_every_image_of_the_larger_source_before_it_repeats_one():
    sampler = EpochSampler([index_of(4), index_of(12)], 4, weights=[1, 1])
    seen = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        pairs = list(sampler)
        first = [pair for pair in pairs if pair[1] < 4]
        assert sorted(first) == [(epoch, number) for number in range(4)]
        seen += [pair for pair in pairs if pair[1] >= 4]
        assert sum(number < 4 for _, number in pairs[:4]) == 2  # mixed within the batch, too
    assert sorted(seen) == [(0, number) for number in range(4, 16)]
    sampler.set_epoch(3)
    assert {visit for visit, number in sampler if number >= 4} == {1}


@pytest.mark.parametrize("run", [2, 8])
@pytest.mark.parametrize(("length", "lanes"), [(1, 4), (10, 3), (64, 4), (100, 7), (4, 16)])
def test_shuffle_with_runs_is_a_permutation(run, length, lanes):
    order = shuffle(np.array([0]), length, np.random.default_rng(0), lanes, length, run)
    assert sorted(order.tolist()) == list(range(length))


def test_runs_of_a_lane_are_consecutive():
    order = shuffle(np.array([0]), 14, np.random.default_rng(0), lanes=3, piece=14, run=2)
    assert order.tolist() == [0, 1, 5, 6, 10, 11, 2, 3, 7, 8, 12, 13, 4, 9]


def test_eleven_million_images_are_shuffled_in_seconds_and_little_memory():
    starts = np.arange(0, 11_000_000, 11_000)
    tracemalloc.start()
    began = time.perf_counter()
    order = shuffle(starts, 11_000_000, np.random.default_rng(0), lanes=16 * 192, piece=64)
    assert time.perf_counter() - began < 60
    assert tracemalloc.get_traced_memory()[1] < 1.5 * 2**30
    tracemalloc.stop()
    assert np.bincount(order, minlength=11_000_000).max() == 1
