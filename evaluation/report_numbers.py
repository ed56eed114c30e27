# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""What a report shows, as numbers and names: nothing is drawn or formatted here."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from modeling_densevlm import CategorySet

from .balance import (
    BalanceCurve,
    Margins,
    balance_curve,
    balance_intervals,
    balance_numbers,
    compare_balance,
    held_out_balance,
)
from .comparison import METRIC_TITLES
from .confusion import count_pairs
from .datasets.panoptic import read_annotations
from .evaluate_regions import region_metrics, top_categories
from .foreground_bias.bias import foreground_bias
from .scores import RegionScores


BALANCE_TITLES = {"area": "area", "relative_area": "relative area", "auroc": "AUROC"}
"""What is reported of [`balance_numbers`], and the titles."""

MAX_SKIPPED_SHOWN = 20


@dataclass
class ReportModel:
    """
    A model of the report at one size of its images.

    Args:
        title (`str`): unique in the report.
        runs (`list[RegionScores]`): its scores, one for each seed.
        line (`str`, *optional*): what joins the sizes of a model in a chart.
    """

    title: str
    runs: list[RegionScores]
    line: str = ""

    def margins(self, categories: CategorySet) -> list[Margins]:
        return [Margins.of(run, np.array(categories.things())) for run in self.runs]


@dataclass
class Pictures:
    """Where the images and their annotations are, and how many of them to show."""

    annotations: Path
    images: Path
    count: int = 12


@dataclass
class Sample:
    """
    An image of the report and its regions.

    Args:
        file (path): the image.
        title (`str`): its id and the categories of its regions.
        boxes (`list`): of its regions, xywh in pixels.
        labels (`list[int]`): of its regions.
        predictions (`list[list[int]]`): of each region, by each model; -1 where there is none.
    """

    file: Path
    title: str
    boxes: list[Sequence[float]]
    labels: list[int]
    predictions: list[list[int]]


@dataclass
class ReportNumbers:
    r"""
    Args:
        metrics (`list[list[dict]]`): of each model, of each of its seeds, those of [`region_metrics`].
        columns (`dict[str, str]`): metrics that all of them have, and their titles.
        best (`list[list[bool]]`): of each model and column, whether it has the best mean.
        by_size (`list[dict]`): means of the metrics, where a model was evaluated at several sizes of its images.
        balance (`list[dict]`): of each model what is known of its balance, see [`balance_row`].
        curves (`dict[str, list[BalanceCurve]]`): of each model, one for each seed.
        errors (`list[dict]`): of each model which stuff is predicted as which thing, and the reverse.
        differences (`list[np.ndarray]`): of each model but the first, its accuracies by category less the first's.
        confusions (`list[np.ndarray]`): of each model, annotated by predicted category.
        provenance (`list[(str, dict)]`): of each run, with the model's title.
        skipped (`list[str]`): images that the first run skipped.
    """

    categories: CategorySet
    images: int
    regions: int
    metrics: list[list[dict[str, float]]]
    columns: dict[str, str]
    best: list[list[bool]]
    by_size: list[dict[str, Any]] = field(default_factory=list)
    balance: list[dict[str, Any]] = field(default_factory=list)
    curves: dict[str, list[BalanceCurve]] = field(default_factory=dict)
    errors: list[dict[str, Any]] = field(default_factory=list)
    differences: list[np.ndarray] = field(default_factory=list)
    confusions: list[np.ndarray] = field(default_factory=list)
    provenance: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def report_numbers(models: Sequence[ReportModel], categories: CategorySet) -> ReportNumbers:
    """Everything that a report shows of models but for images; the first is what the others are compared with."""
    first = models[0].runs[0]
    metrics = [[region_metrics(run, categories) for run in model.runs] for model in models]
    columns = common_columns(metrics)
    margins = [model.margins(categories) for model in models]
    accuracies = [np.mean([class_accuracies(run, len(categories)) for run in m.runs], axis=0) for m in models]
    return ReportNumbers(
        categories=categories,
        images=first.images,
        regions=len(first.labels),
        metrics=metrics,
        columns=columns,
        best=best_of(metrics, columns),
        by_size=[
            {key: np.mean([row[key] for row in rows]) for key in rows[0]}
            | {"model": model.line, "image_size": model.runs[0].provenance["image_size"]}
            for model, rows in zip(models, metrics)
            if model.line
        ],
        balance=[balance_row(runs, margins[0] if number else None) for number, runs in enumerate(margins)],
        curves={model.title: [balance_curve(run) for run in runs] for model, runs in zip(models, margins)},
        errors=[group_errors(model.runs[0], categories) for model in models],
        differences=[other - accuracies[0] for other in accuracies[1:]],
        confusions=[confusion(model.runs[0], len(categories)) for model in models],
        provenance=[(model.title, run.provenance) for model in models for run in model.runs],
        skipped=first.skipped_images,
    )


def shared_categories(models: Sequence[ReportModel]) -> CategorySet:
    """
    The categories of all models.

    Raises:
        `ValueError` where they were not evaluated on the same regions, or without flags.
    """
    runs = [(model.title, run) for model in models for run in model.runs]
    title, first = runs[0]
    for other, run in runs[1:]:
        for name in ("image_ids", "segment_ids", "labels"):
            if not np.array_equal(getattr(run, name), getattr(first, name)):
                raise ValueError(f"{title} and {other} were not evaluated on the same regions (`{name}` differ).")
        if any(run.provenance.get(name) != first.provenance.get(name) for name in ("categories", "is_thing")):
            raise ValueError(f"{title} and {other} were evaluated with other categories.")
    if not first.provenance.get("categories"):
        raise ValueError(f"The scores of {title} do not say their categories: evaluate it again.")
    categories = CategorySet("evaluated", first.provenance["categories"], first.provenance["is_thing"])
    categories.require_flags("a report")
    return categories


def common_columns(metrics: Sequence[Sequence[dict[str, float]]]) -> dict[str, str]:
    """The metrics that all runs have, and their titles; those of the balance are reported apart, with intervals."""
    columns = {key: name for key, name in METRIC_TITLES.items() if not key.startswith(("balance_", "held_out_"))}
    return {key: name for key, name in columns.items() if all(key in row for rows in metrics for row in rows)}


def best_of(metrics: Sequence[Sequence[dict[str, float]]], columns: dict[str, str]) -> list[list[bool]]:
    """Of each model and column, whether its mean over seeds is the best one; of a single model nothing is."""
    means = np.array([[np.mean([row[key] for row in rows]) for key in columns] for rows in metrics])
    if len(metrics) == 1:
        return np.zeros_like(means, dtype=bool).tolist()
    least = np.array([key.endswith("bias") for key in columns])
    return np.where(least, means == means.min(0), means == means.max(0)).tolist()


def balance_row(runs: Sequence[Margins], reference: Sequence[Margins] | None = None) -> dict[str, Any]:
    """
    The balance of a model, given as the runs of its seeds: `measures` (of each of `BALANCE_TITLES` the seeds' values
    and the interval), `held_out` (each seed's [`held_out_balance`]), and `gains` over a reference (of
    [`compare_balance`], `None` without one).
    """
    numbers, bounds = [balance_numbers(run) for run in runs], balance_intervals(runs)
    return {
        "measures": [([row[name] for row in numbers], bounds[name]) for name in BALANCE_TITLES],
        "held_out": [held_out_balance(run) for run in runs],
        "gains": None if reference is None else compare_balance(reference, runs),
    }


def group_errors(run: RegionScores, categories: CategorySet) -> dict[str, Any]:
    """`foreground` and `background`: the share of such errors, and the most frequent `pairs`, of masks."""
    found = foreground_bias(top_categories(run.masks, 1)[:, 0], run.labels, np.array(categories.things()))
    return {
        name: {
            "share": found.get(f"{name}_bias", np.nan),
            "pairs": [
                (categories.names[pair["reference"]], categories.names[pair["prediction"]], pair["share"])
                for pair in found.get(f"{name}_pairs", [])
            ],
        }
        for name in ("foreground", "background")
    }


def class_accuracies(run: RegionScores, categories: int) -> np.ndarray:
    """Of the masks, `(categories,)`; NaN where a category is absent."""
    hits = top_categories(run.masks, 1)[:, 0] == run.labels
    counts = np.bincount(run.labels, minlength=categories)
    return np.where(counts > 0, np.bincount(run.labels, hits, categories) / np.maximum(counts, 1), np.nan)


def confusion(run: RegionScores, categories: int) -> np.ndarray:
    """Counts of masks by annotated and predicted category, `(categories, categories)`."""
    predictions = top_categories(run.masks, 1)[:, 0]
    return count_pairs(np.where(predictions < 0, -1, run.labels), predictions, categories)


def samples(models: Sequence[ReportModel], categories: CategorySet, pictures: Pictures) -> list[Sample]:
    """Images evenly spread over those that were evaluated, with their regions and what each model predicts."""
    content = read_annotations(pictures.annotations)
    if not pictures.images.is_dir():
        raise FileNotFoundError(f"`images`: {pictures.images} is no folder.")
    files = {image["id"]: image["file_name"] for image in content["images"]}
    records = sorted(content["annotations"], key=lambda record: record["image_id"])
    # As in the scores: the place stands for an id that is no whole number.
    places = {r["image_id"] if isinstance(r["image_id"], int) else place: r for place, r in enumerate(records)}
    run = models[0].runs[0]
    images = np.unique(run.image_ids)
    chosen = images[np.linspace(0, len(images) - 1, min(pictures.count, len(images))).astype(int)]
    predictions = [top_categories(model.runs[0].masks, 1)[:, 0] for model in models]
    found = []
    for image_id in chosen.tolist():
        rows = np.flatnonzero(run.image_ids == image_id)
        try:
            record = places[image_id]
            boxes_of = {segment["id"]: segment["bbox"] for segment in record["segments_info"]}
            boxes = [boxes_of[int(run.segment_ids[row])] for row in rows]
            file = pictures.images / files[record["image_id"]]
        except KeyError as error:
            raise ValueError(
                f"{pictures.annotations} is not what was evaluated: it has no {error}, of image {image_id}."
            ) from error
        labels = run.labels[rows].tolist()
        title = f"{record['image_id']}: " + ", ".join(categories.names[label] for label in labels)
        of_models = [[int(of_model[row]) for of_model in predictions] for row in rows]
        found.append(Sample(file, title, boxes, labels, of_models))
    return found


__all__ = [
    "BALANCE_TITLES",
    "MAX_SKIPPED_SHOWN",
    "Pictures",
    "ReportModel",
    "ReportNumbers",
    "Sample",
    "report_numbers",
    "samples",
    "shared_categories",
]
