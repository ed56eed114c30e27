# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
r"""
Separates a gain on stuff into calibration between things and stuff, and discrimination.

*Things* are countable objects, *stuff* is amorphous background. Subtract a constant δ from the cosine of every thing:
the larger δ, the more regions are predicted as stuff. This trades accuracy on things for accuracy on stuff without
better discrimination. A single pair of accuracies therefore says little; the *balance curve*, Masks-S over Masks-T for
all δ, shows everything that an offset can achieve.

The `margin` of a region is its best cosine with a thing minus its best cosine with stuff. The region is predicted as
its best thing if `margin >= δ`, else as its best stuff. So a thing is correct if its best thing is the true category
and `margin >= δ`; stuff is correct if its best stuff is the true category and `margin < δ`. The curve is a step
function, determined by each region's margin and by whether the region is correct *within its group*; no grid over δ is
needed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from .scores import RegionScores


T = TypeVar("T")


@dataclass
class Margins:
    r"""
    The per-region values that determine the balance of a model.

    Args:
        image_ids (`np.ndarray` of shape `(regions,)`): image of each region.
        labels (`np.ndarray` of shape `(regions,)`): category index of each region.
        is_thing (`np.ndarray` of bool, `(regions,)`): whether the region is a thing.
        margin (`np.ndarray` of shape `(regions,)`):
            Best cosine with a thing minus best cosine with stuff; NaN where there is no feature.
        correct (`np.ndarray` of bool, `(regions,)`): whether the best category within the region's group is its label.
    """

    image_ids: np.ndarray
    labels: np.ndarray
    is_thing: np.ndarray
    margin: np.ndarray
    correct: np.ndarray

    @classmethod
    def from_scores(cls, scores: RegionScores, category_is_thing: np.ndarray, kind: str = "masks") -> "Margins":
        """
        Computes the margins of an evaluation.

        Args:
            scores ([`RegionScores`]): cosines of the regions with all categories.
            category_is_thing (`np.ndarray` of bool, `(categories,)`): whether each category is a thing.
            kind (`str`, *optional*, defaults to `"masks"`): cosines to use, of `"masks"` or of `"boxes"`.

        Raises:
            `ValueError` unless there are categories of both groups.
        """
        category_is_thing = np.asarray(category_is_thing, dtype=bool)
        cosines = getattr(scores, kind)
        best, predicted = {}, {}
        for group in (True, False):
            members = np.flatnonzero(category_is_thing == group)
            if len(members) == 0:
                raise ValueError("A balance of things and stuff needs categories of both.")
            own = cosines[:, members]
            best[group] = own.max(1)
            predicted[group] = members[own.argmax(1)]
        is_thing = category_is_thing[scores.labels]
        correct = np.where(is_thing, predicted[True], predicted[False]) == scores.labels
        margin = best[True] - best[False]
        return cls(scores.image_ids, scores.labels, is_thing, margin, correct & ~np.isnan(margin))

    def take(self, rows: np.ndarray) -> "Margins":
        """The margins of a subset of the regions, given as indices or bools."""
        return Margins(*(getattr(self, field.name)[rows] for field in fields(self)))

    def correct_at(self, offsets: np.ndarray | float) -> np.ndarray:
        """
        Whether each region is predicted correctly at an offset, bool `(regions,)`.

        Args:
            offsets (`float` or `np.ndarray` of shape `(regions,)`): δ for all regions or one per region.
        """
        return self.correct & ((self.margin >= offsets) == self.is_thing)

    @cached_property
    def correct_uncalibrated(self) -> np.ndarray:
        """[`Margins.correct_at`] at δ = 0."""
        return self.correct_at(0.0)

    @cached_property
    def held_out_offsets(self) -> np.ndarray:
        """For each region the δ that is best on the other half of the images, `(regions,)`."""
        first = held_out_halves(self.image_ids)
        chosen = {half: best_offset(self.take(first == half)) for half in (True, False)}
        return np.where(first, chosen[False], chosen[True])

    @cached_property
    def correct_held_out(self) -> np.ndarray:
        """[`Margins.correct_at`] at `held_out_offsets`."""
        return self.correct_at(self.held_out_offsets)

    @cached_property
    def classes(self) -> np.ndarray:
        """The labels, renumbered from 0 without gaps, `(regions,)`."""
        return np.unique(self.labels, return_inverse=True)[1]

    @cached_property
    def values(self) -> np.ndarray:
        """The distinct margins, ascending; NaN last, if there is one."""
        return np.unique(self.margin)

    @cached_property
    def value_indices(self) -> np.ndarray:
        """Index of each region's margin in `values`, `(regions,)`."""
        return np.unique(self.margin, return_inverse=True)[1]


def harmonic_mean(thing: np.ndarray | float, stuff: np.ndarray | float) -> np.ndarray | float:
    """Harmonic mean of the accuracies on things and on stuff: high only if both are."""
    return 2 * thing * stuff / np.maximum(thing + stuff, 1e-12)


@dataclass
class BalanceCurve:
    r"""
    The accuracies at every δ where they change, from all regions predicted as things to all predicted as stuff.

    Args:
        offsets (`np.ndarray` of shape `(points,)`): δ, ascending.
        thing (`np.ndarray` of shape `(points,)`): accuracy on things, mean over classes, 0..1; non-increasing.
        stuff (`np.ndarray` of shape `(points,)`): accuracy on stuff, mean over classes, 0..1; non-decreasing.
        uncalibrated (`(float, float)`): both accuracies of the model itself, at δ = 0.
    """

    offsets: np.ndarray
    thing: np.ndarray
    stuff: np.ndarray
    uncalibrated: tuple[float, float]

    @property
    def harmonic_mean(self) -> np.ndarray:
        """Harmonic mean of both accuracies, `(points,)`."""
        return np.asarray(harmonic_mean(self.thing, self.stuff))


def class_weights(margins: Margins, counts: np.ndarray | None = None) -> np.ndarray:
    """
    The weight of each region in its group's mean over classes, `(regions,)`; the weights of a group sum to 1.

    Args:
        margins ([`Margins`]): the regions.
        counts (`np.ndarray` of shape `(regions,)`, *optional*): multiplicity of each region; 1 by default.
    """
    counts = np.ones(len(margins.labels)) if counts is None else counts
    class_counts = np.bincount(margins.classes, counts)
    weights = counts / np.maximum(class_counts, 1e-300)[margins.classes]
    for group in (True, False):
        rows = margins.is_thing == group
        weights[rows] /= max(weights[rows].sum(), 1e-300)
    return weights


def balance_curve(margins: Margins) -> BalanceCurve:
    """
    Computes the balance curve of a model exactly.

    Args:
        margins ([`Margins`]): the regions.

    Returns:
        [`BalanceCurve`] with one point more than there are distinct margins.
    """
    things, stuff = _by_margin(margins, class_weights(margins) * margins.correct)
    values = margins.values[~np.isnan(margins.values)]
    things, stuff = things[: len(values)], stuff[: len(values)]
    middles = (values[1:] + values[:-1]) / 2
    offsets = np.concatenate([values[:1] - 1, middles, values[-1:] + 1]) if len(values) else np.zeros(1)
    # At a δ between the values k - 1 and k, things from k on are predicted as things and stuff up to k - 1 as stuff.
    falling, rising = np.append(np.cumsum(things[::-1])[::-1], 0.0), np.append(0.0, np.cumsum(stuff))
    return BalanceCurve(offsets, falling, rising, accuracies_at(margins, 0.0))


BALANCE_METRICS = (
    "area",
    "best_thing",
    "best_stuff",
    "relative_area",
    "auroc",
    "harmonic_mean",
    "held_out_harmonic_mean",
)
"""Keys of [`balance_metrics`]."""


def balance_metrics(margins: Margins, counts: np.ndarray | None = None) -> dict[str, float]:
    r"""
    Scalar metrics of the balance between things and stuff.

    Args:
        margins ([`Margins`]): the regions.
        counts (`np.ndarray` of shape `(regions,)`, *optional*): multiplicity of each region, for the bootstrap.

    Returns:
        `area`: area under the balance curve, 0..1 (AUSUC is 100 times it), discrimination independent of calibration.
        `best_thing`, `best_stuff`: the ends of the curve, accuracies within the region's group. `relative_area`:
        `area / (best_thing · best_stuff)`, the separation of the two groups among regions that are correct within
        their group. `auroc`: probability that a thing has a larger margin than stuff, over all regions.
        `harmonic_mean`: of Masks-T and Masks-S of the uncalibrated model. `held_out_harmonic_mean`: the same with each
        half of the images evaluated at the δ that is best on the other half. All are `nan` if a group has no region.
    """
    counts = np.ones(len(margins.labels)) if counts is None else counts
    if min(_by_group(margins, counts)) == 0:
        return dict.fromkeys(BALANCE_METRICS, np.nan)
    weights = class_weights(margins, counts)
    area, best_thing, best_stuff = _ordered_pairs(margins, weights * margins.correct)
    in_order, things, stuff = _ordered_pairs(margins, counts * ~np.isnan(margins.margin))
    return {
        "area": area,
        "best_thing": best_thing,
        "best_stuff": best_stuff,
        "relative_area": area / (best_thing * best_stuff) if best_thing * best_stuff > 0 else np.nan,
        "auroc": in_order / (things * stuff) if things * stuff > 0 else np.nan,
        "harmonic_mean": float(harmonic_mean(*_by_group(margins, weights * margins.correct_uncalibrated))),
        "held_out_harmonic_mean": float(harmonic_mean(*_by_group(margins, weights * margins.correct_held_out))),
    }


def _by_group(margins: Margins, weights: np.ndarray) -> tuple[float, float]:
    """Sums of the weights over things and over stuff."""
    return float(weights[margins.is_thing].sum()), float(weights[~margins.is_thing].sum())


def _by_margin(margins: Margins, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights of things and of stuff per distinct margin, `(values,)` each."""
    things = weights * margins.is_thing
    indices, count = margins.value_indices, len(margins.values)
    return np.bincount(indices, things, count), np.bincount(indices, weights - things, count)


def _ordered_pairs(margins: Margins, weights: np.ndarray) -> tuple[float, float, float]:
    """
    Σ w_i · w_j over things i and stuff j with a smaller margin, halved for equal margins (the area under the curve by
    the trapezoidal rule), and the sums of the weights of both groups.
    """
    things, stuff = _by_margin(margins, weights)
    below = np.cumsum(stuff) - stuff
    return float((things * (below + stuff / 2)).sum()), float(things.sum()), float(stuff.sum())


def best_offset(margins: Margins) -> float:
    """The δ with the best harmonic mean on the curve; the middle one of equally good ones."""
    curve = balance_curve(margins)
    best = np.flatnonzero(curve.harmonic_mean >= curve.harmonic_mean.max() - 1e-12)
    return float(curve.offsets[best[len(best) // 2]])


def accuracies_at(margins: Margins, offsets: np.ndarray | float) -> tuple[float, float]:
    """
    Accuracies at an offset, as means over classes.

    Args:
        margins ([`Margins`]): the regions.
        offsets (`float` or `np.ndarray` of shape `(regions,)`): δ for all regions or one per region.

    Returns:
        The accuracy on things and the accuracy on stuff, 0..1.
    """
    return _by_group(margins, class_weights(margins) * margins.correct_at(offsets))


def held_out_halves(image_ids: np.ndarray) -> np.ndarray:
    """Bool, `(regions,)`: a random split of the images into two halves, with a fixed seed."""
    images, indices = np.unique(image_ids, return_inverse=True)
    order = np.random.default_rng(0).permutation(len(images))
    return (order < len(images) // 2)[indices]


def held_out_balance(margins: Margins) -> dict[str, float]:
    """
    Accuracies with each half of the images evaluated at the δ that is best on the other half.

    Args:
        margins ([`Margins`]): the regions.

    Returns:
        `thing`, `stuff` and `harmonic_mean`, 0..1, and the `offset` δ, mean over the regions.
    """
    thing, stuff = accuracies_at(margins, margins.held_out_offsets)
    offset = float(margins.held_out_offsets.mean())
    return {"thing": thing, "stuff": stuff, "harmonic_mean": float(harmonic_mean(thing, stuff)), "offset": offset}


def bootstrap(
    statistics: Callable[[np.ndarray, np.random.Generator], dict[str, float]],
    image_ids: np.ndarray,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    r"""
    Bootstrap intervals from resampling the images with replacement.

    Args:
        statistics (callable): Takes the multiplicity of each region, `(regions,)`, and the generator for further
            resampling; returns named statistics, of one model or of the difference between two on the same regions.
        image_ids (`np.ndarray` of shape `(regions,)`): image of each region; its regions are resampled together.
        samples (`int`, *optional*, defaults to 1000): number of bootstrap samples.
        level (`float`, *optional*, defaults to 0.95): confidence level.
        seed (`int`, *optional*, defaults to 0): seed of the generator.

    Returns:
        `(lower, upper)` per statistic, percentiles of the bootstrap samples.
    """
    images, indices = np.unique(image_ids, return_inverse=True)
    rng = np.random.default_rng(seed)
    sampled: dict[str, list[float]] = {}
    for _ in range(samples):
        counts = np.bincount(rng.integers(len(images), size=len(images)), minlength=len(images))
        for name, value in statistics(counts[indices].astype(float), rng).items():
            sampled.setdefault(name, []).append(value)
    bounds = (50 * (1 - level), 50 * (1 + level))
    finite = {name: [value for value in values if value == value] or [np.nan] for name, values in sampled.items()}
    return {name: tuple(np.percentile(values, bounds).tolist()) for name, values in finite.items()}


def mean_balance_metrics(runs: Sequence[Margins], counts: np.ndarray | None = None) -> dict[str, float]:
    """[`balance_metrics`] of a model, averaged over its seeds."""
    of_runs = [balance_metrics(run, counts) for run in runs]
    return {name: float(np.mean([metrics[name] for metrics in of_runs])) for name in of_runs[0]}


def balance_intervals(runs: Sequence[Margins], **options: Any) -> dict[str, tuple[float, float]]:
    """
    [`bootstrap`] of [`mean_balance_metrics`] over images and seeds: the variation over images and, as far as a few
    seeds can show, over seeds.

    Args:
        runs (sequence of [`Margins`]): one per seed, on the same regions.
        options: keyword arguments of [`bootstrap`].

    Returns:
        `(lower, upper)` for each metric of [`balance_metrics`].
    """

    def statistics(counts: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
        return mean_balance_metrics(_resample(runs, rng), counts)

    return bootstrap(statistics, runs[0].image_ids, **options)


def _resample(runs: Sequence[T], rng: np.random.Generator) -> list[T]:
    """Sample of the same size, with replacement."""
    return [runs[i] for i in rng.integers(len(runs), size=len(runs))]


def compare_balance(
    first: Sequence[Margins], second: Sequence[Margins], groups: int = 1, **options: Any
) -> dict[str, tuple[float, float, float]]:
    r"""
    Compares the second model with the first, each given as the runs of its seeds.

    Args:
        first (sequence of [`Margins`]): the runs of the reference model.
        second (sequence of [`Margins`]): the runs of the model that is compared with it.
        groups (`int`, *optional*, defaults to 1):
            Number of pre-trainings that the runs come from, in order and as many from each. Both models are then
            resampled on the same pre-trainings, and within each on its runs.
        options: keyword arguments of [`bootstrap`].

    Returns:
        The differences of the means over seeds, second minus first, with an interval of [`bootstrap`], as
        `(value, lower, upper)`. `area`: of the areas. `gain`: of the harmonic means of Masks-T and Masks-S, both
        models uncalibrated. `discrimination_gain`: the part of the gain that remains when each model is evaluated at
        its best held-out δ. `calibration_gain`: the rest, which is how much more the first model gains from an offset;
        negative if the second model is the worse calibrated one. Both models are resampled on the same images; if they
        have the same number of seeds, runs at the same position are paired. The δ are not chosen again per sample.

    Raises:
        `ValueError` if the models were not evaluated on the same regions, or runs do not divide into the groups.
    """
    one = first[0]
    for other in (*first, *second):
        if not all(np.array_equal(getattr(one, k), getattr(other, k)) for k in ("image_ids", "labels", "is_thing")):
            raise ValueError("The two models were not evaluated on the same regions.")
    if len(first) % groups or len(second) % groups:
        raise ValueError(f"`groups`: {len(first)} and {len(second)} runs are not divisible into {groups} groups.")

    def statistics(counts: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
        before: list[Margins] = []
        after: list[Margins] = []
        for group in rng.integers(groups, size=groups):
            sides = [runs[len(runs) // groups * group :][: len(runs) // groups] for runs in (first, second)]
            if len(first) == len(second):
                sides = list(zip(*_resample(list(zip(*sides)), rng)))
            else:
                sides = [_resample(runs, rng) for runs in sides]
            before += sides[0]
            after += sides[1]
        return _differences(before, after, counts)

    bounds = bootstrap(statistics, one.image_ids, **options)
    return {name: (value, *bounds[name]) for name, value in _differences(first, second).items()}


def _differences(
    first: Sequence[Margins], second: Sequence[Margins], counts: np.ndarray | None = None
) -> dict[str, float]:
    before, after = mean_balance_metrics(first, counts), mean_balance_metrics(second, counts)
    area, gain, discrimination = (after[n] - before[n] for n in ("area", "harmonic_mean", "held_out_harmonic_mean"))
    return {
        "area": area,
        "gain": gain,
        "calibration_gain": gain - discrimination,
        "discrimination_gain": discrimination,
    }


__all__ = [
    "BalanceCurve",
    "Margins",
    "accuracies_at",
    "balance_curve",
    "balance_intervals",
    "balance_metrics",
    "best_offset",
    "bootstrap",
    "compare_balance",
    "harmonic_mean",
    "held_out_balance",
    "held_out_halves",
    "mean_balance_metrics",
]
