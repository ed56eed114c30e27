# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The `region_accuracy` metric, loaded by `evaluate`."""

from pathlib import Path

import pytest


evaluate = pytest.importorskip("evaluate")
FOLDER = Path(__file__).parents[2] / "evaluation" / "region_accuracy"

PREDICTIONS = [[0, 1, 2, 3, 4], [1, 0, 2, 3, 4], [0, 2, 1, 3, 4], [3, 2, 1, 0, 4]]
REFERENCES = [0, 0, 2, 3]
IS_THING = [True, True, False, False]
CATEGORY_IS_THING = [True, True, False, False, False]


@pytest.fixture
def metric():
    return evaluate.load(str(FOLDER))


def test_means_over_classes_of_things_and_stuff(metric):
    results = metric.compute(predictions=PREDICTIONS, references=REFERENCES, is_thing=IS_THING)
    assert results == {"thing_top1": 0.5, "thing_top5": 1.0, "stuff_top1": 0.5, "stuff_top5": 1.0}


def test_the_biases_need_the_flags_of_the_categories(metric):
    results = metric.compute(
        predictions=PREDICTIONS, references=REFERENCES, is_thing=IS_THING, category_is_thing=CATEGORY_IS_THING
    )
    assert (results["foreground_bias"], results["background_bias"]) == (0.5, 0.0)


def test_batches_add_up(metric):
    for rows in (slice(0, 1), slice(1, 4)):
        metric.add_batch(predictions=PREDICTIONS[rows], references=REFERENCES[rows], is_thing=IS_THING[rows])
    assert metric.compute()["thing_top1"] == 0.5


def test_metrics_of_an_absent_group_are_omitted(metric):
    results = metric.compute(predictions=PREDICTIONS[:2], references=REFERENCES[:2], is_thing=IS_THING[:2])
    assert set(results) == {"thing_top1", "thing_top5"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predictions": [[5]]}, "`predictions`: ids are -1 to 4, as `category_is_thing` has 5 flags; got 5 to 5"),
        ({"predictions": [[-2]]}, "`predictions`: ids are -1 to 4"),
        ({"references": [-1]}, "`references`: ids are 0 to 4"),
        ({"is_thing": [False]}, "`is_thing`: region 0 is False, but `category_is_thing` of its reference 0 is not"),
    ],
)
def test_ids_without_a_category_and_flags_that_contradict_are_rejected(metric, change, message):
    values = {"predictions": [[0]], "references": [0], "is_thing": [True]} | change
    with pytest.raises(ValueError, match=message):
        metric.compute(**values, category_is_thing=CATEGORY_IS_THING)


def test_ids_are_validated_without_flags(metric):
    with pytest.raises(ValueError, match="`references`: ids are 0 or more; got -1 to -1"):
        metric.compute(predictions=[[-1]], references=[-1], is_thing=[True])
