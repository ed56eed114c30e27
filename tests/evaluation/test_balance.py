# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The balance of things and stuff: by hand, against a sweep over δ, and under a constant offset."""

import numpy as np
import pytest

from evaluation.balance import (
    Margins,
    accuracies_at,
    balance_curve,
    balance_intervals,
    balance_metrics,
    best_offset,
    bootstrap,
    compare_balance,
    held_out_balance,
    held_out_halves,
)
from evaluation.evaluate_regions import region_metrics
from modeling_densevlm import CategorySet
from tests.evaluation.regions import scores_of


CATEGORIES = CategorySet("six", ["kite", "bus", "dog", "sky", "road", "sand"], [True] * 3 + [False] * 3)
FLAGS = np.array(CATEGORIES.is_thing)


@pytest.fixture
def random_scores():
    """400 regions in 80 images, mostly correct, biased towards things, some without a feature."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, 400)
    masks = rng.normal(0, 0.1, (400, 6)) + 0.12 * np.eye(6)[labels] + 0.08 * FLAGS
    masks[rng.choice(400, 9, replace=False)] = np.nan
    return scores_of(masks, labels, image_ids=np.repeat(np.arange(80), 5))


def improved(scores, gain):
    """The same regions, with `gain` added to the cosine of each with its true category."""
    masks = scores.masks + gain * np.eye(6)[scores.labels]
    return scores_of(masks, scores.labels, image_ids=scores.image_ids)


def margins_of(margin, is_thing, correct, labels=None):
    is_thing = np.array(is_thing, dtype=bool)
    labels = np.where(is_thing, 0, 3) if labels is None else np.array(labels)
    return Margins(
        np.arange(len(margin)), labels, is_thing, np.array(margin, dtype=float), np.array(correct, dtype=bool)
    )


def test_the_margin_is_best_thing_minus_best_stuff_and_correct_means_within_the_group():
    masks = [
        [0.5, 0.2, 0.1, 0.9, 0.0, 0.0],  # a kite predicted as sky, correct among things
        [0.5, 0.2, 0.1, 0.3, 0.4, 0.0],  # sky, predicted as road among stuff
    ]
    margins = Margins.from_scores(scores_of(masks, [0, 3]), FLAGS)
    np.testing.assert_allclose(margins.margin, [-0.4, 0.1], atol=1e-6)
    assert margins.correct.tolist() == [True, False] and margins.is_thing.tolist() == [True, False]


def test_the_curve_by_hand():
    """Two things at margins 1 and 3, stuff at 0 and 2; all correct within their group."""
    curve = balance_curve(margins_of([1, 3, 0, 2], [1, 1, 0, 0], [1, 1, 1, 1]))
    assert curve.offsets.tolist() == [-1, 0.5, 1.5, 2.5, 4]
    assert curve.thing.tolist() == [1, 1, 0.5, 0.5, 0]
    assert curve.stuff.tolist() == [0, 0.5, 0.5, 1, 1]


def test_the_metrics_by_hand():
    """Three of the four pairs are in order; a thing wrong within its group halves the area, not the AUROC."""
    metrics = balance_metrics(margins_of([1, 3, 0, 2], [1, 1, 0, 0], [1, 1, 1, 1]))
    expected = {"area": 0.75, "best_thing": 1, "best_stuff": 1, "relative_area": 0.75, "auroc": 0.75}
    assert expected.items() <= metrics.items()
    assert metrics["harmonic_mean"] == 0  # uncalibrated, all are predicted as things
    metrics = balance_metrics(margins_of([1, 3, 0, 2], [1, 1, 0, 0], [1, 0, 1, 1]))
    expected = {"area": 0.25, "best_thing": 0.5, "best_stuff": 1, "relative_area": 0.5, "auroc": 0.75}
    assert expected.items() <= metrics.items()


def test_equal_margins_count_half():
    metrics = balance_metrics(margins_of([1, 1], [1, 0], [1, 1]))
    assert metrics["area"] == metrics["auroc"] == 0.5


def test_classes_have_equal_weight_regardless_of_their_number_of_regions():
    margins = margins_of([1, 1, 1, 5], [1, 1, 1, 1], [1, 1, 1, 0], labels=[0, 0, 0, 1])
    assert balance_curve(margins).thing[0] == 0.5


def test_the_curve_equals_a_sweep_over_offsets(random_scores):
    margins = Margins.from_scores(random_scores, FLAGS)
    curve = balance_curve(margins)
    assert (np.diff(curve.thing) <= 1e-12).all() and (np.diff(curve.stuff) >= -1e-12).all()
    for point in range(0, len(curve.offsets), 37):
        metrics = region_metrics(random_scores, CATEGORIES, thing_offset=curve.offsets[point])
        assert curve.thing[point] == pytest.approx(metrics["masks_thing_top1"])
        assert curve.stuff[point] == pytest.approx(metrics["masks_stuff_top1"])
        assert accuracies_at(margins, curve.offsets[point]) == pytest.approx((curve.thing[point], curve.stuff[point]))


def test_area_and_ends_match_the_curve(random_scores):
    margins = Margins.from_scores(random_scores, FLAGS)
    curve, metrics = balance_curve(margins), balance_metrics(margins)
    assert metrics["area"] == pytest.approx(-np.trapezoid(curve.stuff, curve.thing))
    assert (metrics["best_thing"], metrics["best_stuff"]) == pytest.approx((curve.thing[0], curve.stuff[-1]))


def test_the_auroc_is_the_share_of_pairs_in_order(random_scores):
    margins = Margins.from_scores(random_scores, FLAGS)
    things = margins.margin[margins.is_thing & ~np.isnan(margins.margin)]
    stuff = margins.margin[~margins.is_thing & ~np.isnan(margins.margin)]
    assert balance_metrics(margins)["auroc"] == pytest.approx((things[:, None] > stuff).mean())


def test_a_constant_on_all_things_changes_the_accuracies_but_not_the_balance_metrics(random_scores):
    shifted = scores_of(random_scores.masks - 0.15 * FLAGS, random_scores.labels, image_ids=random_scores.image_ids)
    before, after = region_metrics(random_scores, CATEGORIES), region_metrics(shifted, CATEGORIES)
    assert after["masks_stuff_top1"] > before["masks_stuff_top1"] + 0.1
    for name in ("balance_area", "balance_relative_area", "balance_auroc", "held_out_harmonic_mean"):
        assert after[name] == pytest.approx(before[name], abs=1e-4)


def test_the_best_offset_has_the_best_harmonic_mean(random_scores):
    margins = Margins.from_scores(random_scores, FLAGS)

    def harmonic_mean(offset):
        thing, stuff = accuracies_at(margins, offset)
        return 2 * thing * stuff / (thing + stuff)

    best = harmonic_mean(best_offset(margins))
    assert best >= max(harmonic_mean(offset) for offset in np.linspace(-0.5, 0.5, 201)) - 1e-12


def test_the_uncalibrated_point_is_at_zero_offset_and_not_at_the_nearest_point():
    """Both are correct uncalibrated, though the mean of their margins is above 0."""
    assert balance_curve(margins_of([1, -0.1], [1, 0], [1, 1])).uncalibrated == (1, 1)


def differences_of(first, second):
    """[`compare_balance`] without the intervals."""
    return {name: value for name, (value, _, _) in compare_balance([first], [second], samples=1).items()}


def test_a_gain_from_a_constant_is_calibration(random_scores):
    split = differences_of(
        Margins.from_scores(random_scores, FLAGS),
        Margins.from_scores(
            scores_of(random_scores.masks - 0.05 * FLAGS, random_scores.labels, image_ids=random_scores.image_ids),
            FLAGS,
        ),
    )
    assert split["gain"] > 0.05
    assert split["discrimination_gain"] == pytest.approx(0, abs=1e-4) and split["calibration_gain"] == pytest.approx(
        split["gain"], abs=1e-4
    )


def test_a_gain_from_discrimination_remains_after_calibration(random_scores):
    better = improved(random_scores, 0.1)
    split = differences_of(Margins.from_scores(random_scores, FLAGS), Margins.from_scores(better, FLAGS))
    assert split["discrimination_gain"] > 0.15 and abs(split["calibration_gain"]) < 0.3 * split["gain"]
    assert split["gain"] == pytest.approx(split["calibration_gain"] + split["discrimination_gain"])


def test_a_small_gain_on_things_does_not_turn_calibration_into_discrimination():
    """The second predicts no stuff as a thing, and is correct on one thing in a hundred where the first is not."""
    labels = [0] * 100 + [3] * 100
    things, stuff = [1.0] * 100, [0.5] * 100
    before = margins_of(things + stuff, [1] * 100 + [0] * 100, [0] + [1] * 199, labels)
    after = margins_of(things + [-0.5] * 100, [1] * 100 + [0] * 100, [1] * 200, labels)
    split = differences_of(before, after)
    assert split["gain"] == pytest.approx(1) and split["discrimination_gain"] == pytest.approx(0.005, abs=0.001)


def test_halves_consist_of_whole_images_and_use_the_offset_of_the_other_half(random_scores):
    margins = Margins.from_scores(random_scores, FLAGS)
    first = held_out_halves(margins.image_ids)
    assert first.sum() == 200 and all(len(set(first[margins.image_ids == image])) == 1 for image in range(80))
    result = held_out_balance(margins)
    offsets = [best_offset(margins.take(half)) for half in (~first, first)]
    thing, stuff = accuracies_at(margins, np.where(first, *offsets))
    assert (result["thing"], result["stuff"]) == (thing, stuff)
    assert result["harmonic_mean"] == pytest.approx(2 * thing * stuff / (thing + stuff))
    assert result["offset"] == pytest.approx(sum(offsets) / 2)


def test_the_interval_of_a_mean_matches_the_analytical_one():
    values = np.random.default_rng(1).normal(size=400)
    bounds = bootstrap(lambda counts, rng: {"mean": (values * counts).mean()}, np.arange(400), samples=2000)
    lower, upper = bounds["mean"]
    error = 1.96 * values.std() / 20
    assert (lower, upper) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.15 * error)


def test_intervals_contain_the_metrics_and_a_model_does_not_differ_from_itself(random_scores):
    margins = Margins.from_scores(random_scores, FLAGS)
    metrics = balance_metrics(margins)
    for name, (lower, upper) in balance_intervals([margins], samples=200).items():
        assert lower < metrics[name] < upper
    assert set(compare_balance([margins], [margins], samples=20).values()) == {(0.0, 0.0, 0.0)}


def test_a_paired_difference_has_a_narrower_interval_than_each_model(random_scores):
    better = improved(random_scores, 0.05)
    margins = [Margins.from_scores(scores, FLAGS) for scores in (random_scores, better)]
    over = compare_balance(margins[:1], margins[1:], samples=300)
    value, lower, upper = over["area"]
    assert value == balance_metrics(margins[1])["area"] - balance_metrics(margins[0])["area"]
    for value, low, high in over.values():
        assert low < value < high
    assert lower > 0
    assert upper - lower < np.subtract(*balance_intervals(margins[1:], samples=300)["area"][::-1])


def test_seeds_that_differ_widen_the_interval(random_scores):
    better = improved(random_scores, 0.05)
    one, other = (Margins.from_scores(scores, FLAGS) for scores in (random_scores, better))
    areas = [balance_metrics(margins)["area"] for margins in (one, other)]
    # Two seeds resampled are the same one in half of the samples: the interval reaches both.
    lower, upper = balance_intervals([one, other], samples=300)["area"]
    assert lower < areas[0] < areas[1] < upper
    width = upper - lower
    assert width > np.subtract(*balance_intervals([one, one], samples=300)["area"][::-1])


def test_equal_numbers_of_seeds_are_paired(random_scores):
    better = improved(random_scores, 0.05)
    runs = [Margins.from_scores(scores, FLAGS) for scores in (random_scores, better)]
    # Paired with itself the difference is zero; unpaired, the seeds differ.
    assert set(compare_balance(runs, runs, samples=20).values()) == {(0.0, 0.0, 0.0)}
    _, lower, upper = compare_balance(runs, [*runs, runs[0]], samples=50)["area"]
    assert lower < 0 < upper


def test_pretrainings_are_resampled_before_the_runs_within_them(random_scores):
    better = improved(random_scores, 0.05)
    one, other = (Margins.from_scores(scores, FLAGS) for scores in (random_scores, better))
    first, second = [one, one], [one, other]
    assert compare_balance(first, second, samples=20) == compare_balance(first, second, groups=2, samples=20)
    # Four runs of two pre-trainings vary as much as two runs do, four of one pre-training less.
    first, second = [one] * 4, [one, one, other, other]
    nested, flat = (compare_balance(first, second, groups=g, samples=300)["area"] for g in (2, 1))
    assert nested[2] - nested[1] > flat[2] - flat[1]
    # A model with one run of each pre-training is compared with one that has two.
    over = compare_balance([one, other], [one, one, other, other], groups=2, samples=20)
    assert over["area"] == pytest.approx((0.0, 0.0, 0.0), abs=1e-12)
    with pytest.raises(ValueError, match="not divisible into 2 groups"):
        compare_balance([one] * 3, [one] * 4, groups=2)


def test_means_are_compared_for_different_numbers_of_seeds(random_scores):
    better = improved(random_scores, 0.05)
    one, other = (Margins.from_scores(scores, FLAGS) for scores in (random_scores, better))
    over = compare_balance([one, other], [one], samples=2)
    for name, number in (
        ("area", "area"),
        ("gain", "harmonic_mean"),
        ("discrimination_gain", "held_out_harmonic_mean"),
    ):
        first, second = (balance_metrics(margins)[number] for margins in (one, other))
        assert over[name][0] == pytest.approx(first - (first + second) / 2)


def test_models_on_different_regions_are_rejected(random_scores):
    margins = Margins.from_scores(random_scores, FLAGS)
    with pytest.raises(ValueError, match="not evaluated on the same regions"):
        compare_balance([margins], [margins.take(np.arange(100))])


def test_samples_without_a_region_of_a_group_are_ignored():
    """One image of six has the only thing: a third of the samples have none, and no metric."""
    margins = margins_of([1, -1, -1, -1, -1, -1], [1, 0, 0, 0, 0, 0], [1] * 6)
    assert balance_metrics(margins)["area"] == 1
    empty = balance_metrics(margins, np.array([0.0, 1, 1, 1, 1, 1]))
    assert set(empty) == set(balance_metrics(margins)) and all(np.isnan(value) for value in empty.values())
    assert balance_intervals([margins], samples=100)["area"] == (1, 1)


def test_all_runs_need_the_same_regions(random_scores):
    margins = Margins.from_scores(random_scores, FLAGS)
    other = Margins.from_scores(
        scores_of(random_scores.masks, np.roll(random_scores.labels, 1), image_ids=random_scores.image_ids), FLAGS
    )
    with pytest.raises(ValueError, match="not evaluated on the same regions"):
        compare_balance([margins, margins], [margins, other])


def test_without_categories_of_both_groups_there_is_no_balance(random_scores):
    with pytest.raises(ValueError, match="needs categories of both"):
        Margins.from_scores(random_scores, np.ones(6, dtype=bool))
