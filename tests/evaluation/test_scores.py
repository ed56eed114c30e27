# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Score files of regions: saving, loading, joining, damaged files."""

import numpy as np
import pytest

from evaluation.scores import RegionScores


def random_scores(first, count):
    numbers = np.arange(first, first + count)
    cosines = np.random.default_rng(first).normal(size=(count, 3)).astype(np.float32)
    cosines[0] = np.nan
    return RegionScores(
        image_ids=numbers,
        segment_ids=numbers + 7,
        labels=numbers % 3,
        boxes=cosines,
        masks=-cosines,
        at_home=numbers % 2,
        images=2,
        skipped_regions=1,
        skipped_images=[f"{first}: broken"],
        provenance={"size": 64},
    )


def assert_same(first, second):
    for name, value in vars(first).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, getattr(second, name))
            assert value.dtype == getattr(second, name).dtype
        else:
            assert value == getattr(second, name)


def test_scores_are_saved_and_loaded_unchanged(tmp_path):
    scores = random_scores(0, 5)
    scores.save(tmp_path / "below" / "scores.safetensors")
    assert_same(RegionScores.load(tmp_path / "below" / "scores.safetensors"), scores)


def test_shards_are_joined_in_order():
    joined = RegionScores.join([random_scores(0, 5), random_scores(5, 2)])
    assert joined.image_ids.tolist() == list(range(7)) and joined.masks.shape == (7, 3)
    assert (joined.images, joined.skipped_regions, joined.skipped_images) == (4, 2, ["0: broken", "5: broken"])


@pytest.mark.parametrize("length", [0, 10, 300])
def test_a_truncated_file_is_named(tmp_path, length):
    file = tmp_path / "scores.safetensors"
    random_scores(0, 5).save(file)
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"scores\.safetensors holds no scores of regions"):
        RegionScores.load(file)


def test_a_file_with_other_content_is_named(tmp_path):
    from safetensors.numpy import save_file

    save_file({"weight": np.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors holds no scores of regions"):
        RegionScores.load(tmp_path / "model.safetensors")
    with pytest.raises(FileNotFoundError):
        RegionScores.load(tmp_path / "gone.safetensors")
