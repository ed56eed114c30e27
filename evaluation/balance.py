# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
r"""
How much of a gain on stuff is calibration between things and stuff, and how much is discrimination.

*Things* are countable objects, *stuff* is amorphous background. Subtract a constant δ from the cosine of every thing:
the larger δ is, the more regions are predicted as stuff. A model gains accuracy on stuff in this way and loses it on
things, without discriminating any better. So a single pair of accuracies says little; the whole *balance curve*,
Masks-S over Masks-T for every δ, shows all that an offset can get out of a model.

For a region, let `margin` be its best cosine with a thing less its best cosine with stuff. It is predicted as a thing
where `margin >= δ`, and then as its best thing. Hence a thing is right where its best thing is the true one and
`margin >= δ`, stuff where its best stuff is the true one and `margin < δ`. So the curve is made of steps, and all of
it follows from each region's margin and from whether it is right *within its group*. No grid of δ is needed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TypeVar

import numpy as np

from .scores import RegionScores


T = TypeVar("T")


@dataclass
class Margins:
    r"""
    What the balance of a model depends on.

    Args:
        image_ids, labels (`np.ndarray` of shape `(regions,)`).
        is_thing (`np.ndarray` of bool, `(regions,)`): whether the region is a thing.
        margin (`np.ndarray` of shape `(regions,)`): best cosine with a thing less the best with stuff; NaN where
            there is no feature.
        right (`np.ndarray` of bool, `(regions,)`): whether the best category of the region's own group is its own.
    """

    image_ids: np.ndarray
    labels: np.ndarray
    is_thing: np.ndarray
    margin: np.ndarray
    right: np.ndarray

    @classmethod
    def of(cls, scores: RegionScores, category_is_thing: np.ndarray, kind: str = "masks") -> "Margins":
        """Those of the regions' masks, or `boxes`; `category_is_thing` is bool, `(categories,)`."""
        category_is_thing = np.asarray(category_is_thing, dtype=bool)
        cosines = getattr(scores, kind)
        best, found = {}, {}
        for group in (True, False):
            members = np.flatnonzero(category_is_thing == group)
            if len(members) == 0:
                raise ValueError("A balance of things and stuff needs categories of both.")
            own = cosines[:, members]
            best[group] = own.max(1)
            found[group] = members[own.argmax(1)]
        is_thing = category_is_thing[scores.labels]
        right = np.where(is_thing, found[True], found[False]) == scores.labels
        margin = best[True] - best[False]
        return cls(scores.image_ids, scores.labels, is_thing, margin, right & ~np.isnan(margin))

    def take(self, rows: np.ndarray) -> "Margins":
        """Some of the regions."""
        return Margins(*(getattr(self, field.name)[rows] for field in fields(self)))

    def right_at(self, offsets: np.ndarray | float) -> np.ndarray:
        """Bool, `(regions,)`: whether each region is predicted right, with a δ for each or one for all."""
        return self.right & ((self.margin >= offsets) == self.is_thing)

    @cached_property
    def right_uncalibrated(self) -> np.ndarray:
        """[`Margins.right_at`] δ = 0."""
        return self.right_at(0.0)

    @cached_property
    def held_out_offsets(self) -> np.ndarray:
        """The δ that is best on the half of the images that a region is not of, `(regions,)`."""
        first = held_out_halves(self.image_ids)
        chosen = {half: best_offset(self.take(first == half)) for half in (True, False)}
        return np.where(first, chosen[False], chosen[True])

    @cached_property
    def right_held_out(self) -> np.ndarray:
        """[`Margins.right_at`] those."""
        return self.right_at(self.held_out_offsets)

    @cached_property
    def classes(self) -> np.ndarray:
        """The labels that occur, numbered from 0, `(regions,)`."""
        return np.unique(self.labels, return_inverse=True)[1]

    @cached_property
    def values(self) -> np.ndarray:
        """The different margins, ascending, NaN at the end if there is one."""
        return np.unique(self.margin)

    @cached_property
    def places(self) -> np.ndarray:
        """Where each region's margin stands in `values`, `(regions,)`."""
        return np.unique(self.margin, return_inverse=True)[1]


def harmonic_mean(thing: np.ndarray | float, stuff: np.ndarray | float) -> np.ndarray | float:
    """Of accuracies on things and on stuff: high only where both are."""
    return 2 * thing * stuff / np.maximum(thing + stuff, 1e-12)


@dataclass
class BalanceCurve:
    r"""
    Accuracies for every δ that makes a difference, from the one at which nothing is predicted as stuff to the one at
    which nothing is predicted as a thing.

    Args:
        offsets (`np.ndarray` of shape `(points,)`): δ, ascending.
        thing, stuff (`np.ndarray` of shape `(points,)`): accuracies as means over classes, 0..1; the first does not
            rise, the second does not fall.
        uncalibrated (`(float, float)`): the point of the model itself, δ = 0.
    """

    offsets: np.ndarray
    thing: np.ndarray
    stuff: np.ndarray
    uncalibrated: tuple[float, float]

    @property
    def harmonic_mean(self) -> np.ndarray:
        """Of both accuracies, `(points,)`."""
        return harmonic_mean(self.thing, self.stuff)


def class_weights(margins: Margins, counts: np.ndarray | None = None) -> np.ndarray:
    """
    The share of each region in its group's mean over classes, `(regions,)`: they add up to 1 in each group.

    Args:
        counts (`(regions,)`, *optional*): how often each region is counted; once by default.
    """
    counts = np.ones(len(margins.labels)) if counts is None else counts
    of_class = np.bincount(margins.classes, counts)
    weights = counts / np.maximum(of_class, 1e-300)[margins.classes]
    for group in (True, False):
        rows = margins.is_thing == group
        weights[rows] /= max(weights[rows].sum(), 1e-300)
    return weights


def balance_curve(margins: Margins) -> BalanceCurve:
    """The curve of a model, exact: one point more than there are different margins."""
    things, stuff = _by_margin(margins, class_weights(margins) * margins.right)
    values = margins.values[~np.isnan(margins.values)]
    things, stuff = things[: len(values)], stuff[: len(values)]
    middles = (values[1:] + values[:-1]) / 2
    offsets = np.concatenate([values[:1] - 1, middles, values[-1:] + 1]) if len(values) else np.zeros(1)
    # At a δ between the values k - 1 and k, things from k on are right, and stuff up to k - 1.
    falling, rising = np.append(np.cumsum(things[::-1])[::-1], 0.0), np.append(0.0, np.cumsum(stuff))
    return BalanceCurve(offsets, falling, rising, accuracies_at(margins, 0.0))


NUMBERS = (
    "area",
    "best_thing",
    "best_stuff",
    "relative_area",
    "auroc",
    "harmonic_mean",
    "held_out_harmonic_mean",
)
"""What [`balance_numbers`] measures."""


def balance_numbers(margins: Margins, counts: np.ndarray | None = None) -> dict[str, float]:
    r"""
    Args:
        counts (`(regions,)`, *optional*): how often each region is counted, for the bootstrap.

    Returns:
        `area`: under the balance curve in the unit square, 0..1 (AUSUC is 100 times it): how well a model
        discriminates, whatever its calibration. `best_thing`, `best_stuff`: the ends of the curve, accuracies within
        the own group. `relative_area`: `area / (best_thing · best_stuff)`, how well the two groups are separated where
        the class is right within the group. `auroc`: the chance that a thing has the larger margin than stuff, over
        all regions. `harmonic_mean`, of Masks-T and Masks-S of the uncalibrated model; `held_out_harmonic_mean`, where
        each half of the images is scored with the δ that is best on the other. All are `nan` where a group has no
        region.
    """
    counts = np.ones(len(margins.labels)) if counts is None else counts
    if min(_by_group(margins, counts)) == 0:
        return dict.fromkeys(NUMBERS, np.nan)
    weights = class_weights(margins, counts)
    area, best_thing, best_stuff = _ordered(margins, weights * margins.right)
    in_order, things, stuff = _ordered(margins, counts * ~np.isnan(margins.margin))
    return {
        "area": area,
        "best_thing": best_thing,
        "best_stuff": best_stuff,
        "relative_area": area / (best_thing * best_stuff) if best_thing * best_stuff > 0 else np.nan,
        "auroc": in_order / (things * stuff) if things * stuff > 0 else np.nan,
        "harmonic_mean": float(harmonic_mean(*_by_group(margins, weights * margins.right_uncalibrated))),
        "held_out_harmonic_mean": float(harmonic_mean(*_by_group(margins, weights * margins.right_held_out))),
    }


def _by_group(margins: Margins, weights: np.ndarray) -> tuple[float, float]:
    """The sums of things and of stuff."""
    return float(weights[margins.is_thing].sum()), float(weights[~margins.is_thing].sum())


def _by_margin(margins: Margins, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The weights of things and of stuff at each of the different margins, `(margins,)` each."""
    things = weights * margins.is_thing
    return tuple(np.bincount(margins.places, of, len(margins.values)) for of in (things, weights - things))


def _ordered(margins: Margins, weights: np.ndarray) -> tuple[float, float, float]:
    """
    Σ w_i · w_j over things i and stuff j with a smaller margin, half of it where they are equal (the area under the
    curve, trapezoid by trapezoid), and the sums of both groups' weights.
    """
    things, stuff = _by_margin(margins, weights)
    below = np.cumsum(stuff) - stuff
    return float((things * (below + stuff / 2)).sum()), float(things.sum()), float(stuff.sum())


def best_offset(margins: Margins) -> float:
    """The δ of the curve's best harmonic mean; of several, the middle one."""
    curve = balance_curve(margins)
    best = np.flatnonzero(curve.harmonic_mean >= curve.harmonic_mean.max() - 1e-12)
    return float(curve.offsets[best[len(best) // 2]])


def accuracies_at(margins: Margins, offsets: np.ndarray | float) -> tuple[float, float]:
    """Accuracies on things and on stuff with a δ for each region, or one for all."""
    return _by_group(margins, class_weights(margins) * margins.right_at(offsets))


def held_out_halves(image_ids: np.ndarray) -> np.ndarray:
    """Bool, `(regions,)`: whether a region's image is of the one half or of the other, drawn at random, always so."""
    images, places = np.unique(image_ids, return_inverse=True)
    order = np.random.default_rng(0).permutation(len(images))
    return (order < len(images) // 2)[places]


def held_out_balance(margins: Margins) -> dict[str, float]:
    """
    The accuracies at the best δ, where each half of the images is scored with the δ that is best on the other.

    Returns:
        `thing`, `stuff` and `harmonic_mean`, 0..1, and the mean `offset` of the regions.
    """
    thing, stuff = accuracies_at(margins, margins.held_out_offsets)
    offset = float(margins.held_out_offsets.mean())
    return {"thing": thing, "stuff": stuff, "harmonic_mean": float(harmonic_mean(thing, stuff)), "offset": offset}


def bootstrap(
    numbers: Callable[[np.ndarray, np.random.Generator], dict[str, float]],
    image_ids: np.ndarray,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    r"""
    Bootstrap intervals: the images are drawn again, with replacement.

    Args:
        numbers (callable): takes how often each region is counted, `(regions,)`, and the generator, to draw what
            else there is to be drawn; returns named numbers: those of a model, or differences of two models on the
            same regions.
        image_ids (`(regions,)`): regions of an image are drawn together.
        level (`float`, *optional*, defaults to 0.95): share of the draws between the bounds.

    Returns:
        `(lower, upper)` for each number, percentiles of the draws.
    """
    images, places = np.unique(image_ids, return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {}
    for _ in range(samples):
        counts = np.bincount(rng.integers(len(images), size=len(images)), minlength=len(images))
        for name, value in numbers(counts[places].astype(float), rng).items():
            drawn.setdefault(name, []).append(value)
    bounds = (50 * (1 - level), 50 * (1 + level))
    known = {name: [value for value in values if value == value] or [np.nan] for name, values in drawn.items()}
    return {name: tuple(np.percentile(values, bounds).tolist()) for name, values in known.items()}


def mean_numbers(runs: Sequence[Margins], counts: np.ndarray | None = None) -> dict[str, float]:
    """[`balance_numbers`] of a model: the mean over its seeds."""
    found = [balance_numbers(run, counts) for run in runs]
    return {name: float(np.mean([numbers[name] for numbers in found])) for name in found[0]}


def balance_intervals(runs: Sequence[Margins], **options: int | float) -> dict[str, tuple[float, float]]:
    """
    [`bootstrap`] of [`mean_numbers`], where the seeds are drawn again, too: what other images would change, and, as
    far as a few seeds can say, other seeds.
    """

    def numbers(counts: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
        return mean_numbers(_draw(runs, rng), counts)

    return bootstrap(numbers, runs[0].image_ids, **options)


def _draw(runs: Sequence[T], rng: np.random.Generator) -> list[T]:
    """As many of them, drawn with replacement."""
    return [runs[i] for i in rng.integers(len(runs), size=len(runs))]


def compare_balance(
    first: Sequence[Margins], second: Sequence[Margins], **options: int | float
) -> dict[str, tuple[float, float, float]]:
    r"""
    A model against another one, each given as the runs of its seeds.

    Returns:
        How much larger the second one's means over its seeds are, each with an interval of [`bootstrap`], as
        `(value, lower, upper)`: `area`; `gain`, of the harmonic mean of Masks-T and Masks-S, both models uncalibrated;
        `discrimination_gain`, what of it is left where each has the δ that is best for it, chosen on other images;
        `calibration_gain`, the rest: what an offset gives the first model more than the second. It is negative where
        the second is the worse calibrated of the two. Both models are measured on the same draws of images; where both
        have as many seeds, those of the same place are drawn together: they are runs of the same seed. The δ's are not
        chosen again.

    Raises:
        `ValueError` where the two were not evaluated on the same regions.
    """
    one = first[0]
    for other in (*first, *second):
        if not all(np.array_equal(getattr(one, k), getattr(other, k)) for k in ("image_ids", "labels", "is_thing")):
            raise ValueError("The two models were not evaluated on the same regions.")

    def drawn(counts: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
        if len(first) == len(second):
            before, after = zip(*_draw(list(zip(first, second)), rng))
        else:
            before, after = _draw(first, rng), _draw(second, rng)
        return _differences(before, after, counts)

    bounds = bootstrap(drawn, one.image_ids, **options)
    return {name: (value, *bounds[name]) for name, value in _differences(first, second).items()}


def _differences(
    first: Sequence[Margins], second: Sequence[Margins], counts: np.ndarray | None = None
) -> dict[str, float]:
    before, after = mean_numbers(first, counts), mean_numbers(second, counts)
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
    "balance_numbers",
    "best_offset",
    "bootstrap",
    "compare_balance",
    "harmonic_mean",
    "held_out_balance",
    "held_out_halves",
    "mean_numbers",
]
