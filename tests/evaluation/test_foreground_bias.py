# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The `foreground_bias` metric, loaded by `evaluate`."""

from pathlib import Path

import pytest


evaluate = pytest.importorskip("evaluate")
FOLDER = Path(__file__).parents[2] / "evaluation" / "foreground_bias"

# kite, bus, sky, road
CATEGORY_IS_THING = [True, True, False, False]
REFERENCES = [2, 2, 2, 2, 3, 0, 0, 1]
PREDICTIONS = [0, 0, 1, 2, -1, 0, 2, 1]


@pytest.fixture
def metric():
    return evaluate.load(str(FOLDER))


def test_shares_and_most_frequent_pairs(metric):
    results = metric.compute(predictions=PREDICTIONS, references=REFERENCES, category_is_thing=CATEGORY_IS_THING)
    assert results["foreground_bias"] == 3 / 4 and results["background_bias"] == 1 / 3
    assert results["foreground_bias_mean"] == 3 / 4 and results["background_bias_mean"] == 1 / 4
    assert results["foreground_pairs"] == [
        {"reference": 2, "prediction": 0, "count": 2, "share": 2 / 3},
        {"reference": 2, "prediction": 1, "count": 1, "share": 1 / 3},
    ]
    assert results["background_pairs"] == [{"reference": 0, "prediction": 2, "count": 1, "share": 1.0}]


def test_the_number_of_pairs_is_limited(metric):
    results = metric.compute(
        predictions=PREDICTIONS, references=REFERENCES, category_is_thing=CATEGORY_IS_THING, pairs=1
    )
    assert len(results["foreground_pairs"]) == 1


def test_batches_add_up(metric):
    for rows in (slice(0, 3), slice(3, 8)):
        metric.add_batch(predictions=PREDICTIONS[rows], references=REFERENCES[rows])
    assert metric.compute(category_is_thing=CATEGORY_IS_THING)["foreground_bias"] == 3 / 4


def test_metrics_of_an_absent_group_are_omitted(metric):
    results = metric.compute(predictions=[0], references=[1], category_is_thing=CATEGORY_IS_THING)
    assert set(results) == {"background_bias", "background_bias_mean", "background_pairs"}


def test_without_predictions_the_bias_is_omitted_with_a_warning(metric, caplog):
    assert metric.compute(predictions=[-1], references=[2], category_is_thing=CATEGORY_IS_THING) == {}
    assert "No region that is stuff has a prediction" in caplog.text


def test_flags_of_the_categories_are_needed(metric):
    with pytest.raises(ValueError, match="`category_is_thing`: `compute` needs"):
        metric.compute(predictions=[0], references=[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predictions": [4]}, "`predictions`: ids are -1 to 3"),
        ({"references": [-1]}, "`references`: ids are 0 to 3"),
    ],
)
def test_ids_without_a_flag_are_rejected(metric, change, message):
    with pytest.raises(ValueError, match=message):
        metric.compute(**({"predictions": [0], "references": [0]} | change), category_is_thing=CATEGORY_IS_THING)
