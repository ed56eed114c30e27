# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The data of a report: metrics, names and samples. Drawing and formatting are in `report.py`."""

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
    balance_metrics,
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
"""Metrics of [`balance_metrics`] in the report and their column titles."""

MAX_SKIPPED_SHOWN = 20


@dataclass
class ReportModel:
    """
    A model of the report at one image size.

    Args:
        title (`str`): its title, unique in the report.
        runs (`list[RegionScores]`): its scores, one per seed.
        line (`str`, *optional*): label that connects the image sizes of one model in a chart; empty for a single size.
        style (`int`, *optional*): number of its colour, dashes and marker in charts; its position by default.
    """

    title: str
    runs: list[RegionScores]
    line: str = ""
    style: int | None = None

    def margins(self, categories: CategorySet) -> list[Margins]:
        return [Margins.from_scores(run, np.array(categories.things())) for run in self.runs]


@dataclass
class Pictures:
    """The annotations and root folder of the images, and the number of images to show."""

    annotations: Path
    images: Path
    count: int = 12


@dataclass
class Sample:
    """
    A sample image of the report and its regions.

    Args:
        file (path): the image file.
        title (`str`): its id and the categories of its regions.
        boxes (`list`): boxes of its regions, xywh in pixels.
        labels (`list[int]`): category indices of its regions.
        predictions (`list[list[int]]`): per region the prediction of each model; -1 for none.
    """

    file: Path
    title: str
    boxes: list[Sequence[float]]
    labels: list[int]
    predictions: list[list[int]]


@dataclass
class ReportData:
    r"""
    Everything that the report template shows.

    Args:
        categories ([`CategorySet`]): the categories of all models.
        images (`int`): number of evaluated images.
        regions (`int`): number of evaluated regions.
        metrics (`list[list[dict]]`): per model and seed, the output of [`region_metrics`].
        columns (`dict[str, str]`): the metrics available for all runs, and their titles.
        best (`list[list[bool]]`): per model and column, whether the model has the best mean.
        by_size (`list[dict]`): metrics averaged over seeds, of models evaluated at several image sizes.
        balance (`list[dict]`): per model the output of [`balance_row`].
        curves (`dict[str, list[BalanceCurve]]`): per model one balance curve per seed.
        errors (`list[dict]`): per model the output of [`group_errors`].
        differences (`list[np.ndarray]`): per model after the first, `(categories,)`, its accuracies minus the first's.
        confusions (`list[np.ndarray]`): per model a confusion matrix, `(categories, categories)`, labels as rows.
        provenance (`list[(str, dict)]`): per run the model's title and the provenance.
        skipped (`list[str]`): images skipped by the first run.
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


def report_data(models: Sequence[ReportModel], categories: CategorySet) -> ReportData:
    """Computes the data of a report, without sample images; the other models are compared with the first."""
    first = models[0].runs[0]
    metrics = [[region_metrics(run, categories) for run in model.runs] for model in models]
    columns = common_columns(metrics)
    margins = [model.margins(categories) for model in models]
    accuracies = [np.mean([class_accuracies(run, len(categories)) for run in m.runs], axis=0) for m in models]
    return ReportData(
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
        confusions=[confusion_matrix(model.runs[0], len(categories)) for model in models],
        provenance=[(model.title, run.provenance) for model in models for run in model.runs],
        skipped=first.skipped_images,
    )


def shared_categories(models: Sequence[ReportModel]) -> CategorySet:
    """
    The categories shared by all models.

    Raises:
        `ValueError` if the models were not evaluated on the same regions and categories, or without thing / stuff
        flags.
    """
    runs = [(model.title, run) for model in models for run in model.runs]
    title, first = runs[0]
    for other, run in runs[1:]:
        for name in ("image_ids", "segment_ids", "labels"):
            if not np.array_equal(getattr(run, name), getattr(first, name)):
                raise ValueError(f"{title} and {other} were not evaluated on the same regions (`{name}` differ).")
        if any(run.provenance.get(name) != first.provenance.get(name) for name in ("categories", "is_thing")):
            raise ValueError(f"{title} and {other} were evaluated with different categories.")
    if not first.provenance.get("categories"):
        raise ValueError(f"The scores of {title} do not record their categories: evaluate it again.")
    categories = CategorySet("evaluated", first.provenance["categories"], first.provenance["is_thing"])
    categories.require_flags("a report")
    return categories


def common_columns(metrics: Sequence[Sequence[dict[str, float]]]) -> dict[str, str]:
    """Metrics available for all runs, with titles; those of the balance are in a separate table, with intervals."""
    columns = {key: name for key, name in METRIC_TITLES.items() if not key.startswith(("balance_", "held_out_"))}
    return {key: name for key, name in columns.items() if all(key in row for rows in metrics for row in rows)}


def best_of(metrics: Sequence[Sequence[dict[str, float]]], columns: dict[str, str]) -> list[list[bool]]:
    """Per model and column, whether its mean over seeds is the best; always `False` for a single model."""
    means = np.array([[np.mean([row[key] for row in rows]) for key in columns] for rows in metrics])
    if len(metrics) == 1:
        return np.zeros_like(means, dtype=bool).tolist()
    lower_is_better = np.array([key.endswith("bias") for key in columns])
    return np.where(lower_is_better, means == means.min(0), means == means.max(0)).tolist()


def balance_row(runs: Sequence[Margins], reference: Sequence[Margins] | None = None) -> dict[str, Any]:
    """
    The balance of a model, given as the runs of its seeds: `measures` (per metric of `BALANCE_TITLES` the values of
    the seeds and the interval), `held_out` ([`held_out_balance`] of each seed) and `gains` over a reference
    ([`compare_balance`], `None` without one).
    """
    rows, bounds = [balance_metrics(run) for run in runs], balance_intervals(runs)
    return {
        "measures": [([row[name] for row in rows], bounds[name]) for name in BALANCE_TITLES],
        "held_out": [held_out_balance(run) for run in runs],
        "gains": None if reference is None else compare_balance(reference, runs),
    }


def group_errors(run: RegionScores, categories: CategorySet) -> dict[str, Any]:
    """`foreground` and `background`: the bias on masks (`share`) and the most frequent confusions (`pairs`)."""
    bias = foreground_bias(top_categories(run.masks, 1)[:, 0], run.labels, np.array(categories.things()))
    return {
        name: {
            "share": bias.get(f"{name}_bias", np.nan),
            "pairs": [
                (categories.names[pair["reference"]], categories.names[pair["prediction"]], pair["share"])
                for pair in bias.get(f"{name}_pairs", [])
            ],
        }
        for name in ("foreground", "background")
    }


def class_accuracies(run: RegionScores, categories: int) -> np.ndarray:
    """Accuracy on masks per category, `(categories,)`; NaN for absent categories."""
    hits = top_categories(run.masks, 1)[:, 0] == run.labels
    counts = np.bincount(run.labels, minlength=categories)
    return np.where(counts > 0, np.bincount(run.labels, hits, categories) / np.maximum(counts, 1), np.nan)


def confusion_matrix(run: RegionScores, categories: int) -> np.ndarray:
    """Confusion matrix of the masks, `(categories, categories)`, labels as rows."""
    predictions = top_categories(run.masks, 1)[:, 0]
    return count_pairs(np.where(predictions < 0, -1, run.labels), predictions, categories)


def samples(models: Sequence[ReportModel], categories: CategorySet, pictures: Pictures) -> list[Sample]:
    """Sample images, evenly spread over the evaluated ones, with their regions and each model's predictions."""
    content = read_annotations(pictures.annotations)
    if not pictures.images.is_dir():
        raise FileNotFoundError(f"`images`: {pictures.images} is not a folder.")
    files = {image["id"]: image["file_name"] for image in content["images"]}
    records = sorted(content["annotations"], key=lambda record: record["image_id"])
    # As in the scores: the position replaces an id that is not an integer.
    by_id = {r["image_id"] if isinstance(r["image_id"], int) else index: r for index, r in enumerate(records)}
    run = models[0].runs[0]
    images = np.unique(run.image_ids)
    chosen = images[np.linspace(0, len(images) - 1, min(pictures.count, len(images))).astype(int)]
    predictions = [top_categories(model.runs[0].masks, 1)[:, 0] for model in models]
    selected = []
    for image_id in chosen.tolist():
        rows = np.flatnonzero(run.image_ids == image_id)
        try:
            record = by_id[image_id]
            boxes_of = {segment["id"]: segment["bbox"] for segment in record["segments_info"]}
            boxes = [boxes_of[int(run.segment_ids[row])] for row in rows]
            file = pictures.images / files[record["image_id"]]
        except KeyError as error:
            raise ValueError(
                f"{pictures.annotations} does not match the evaluation: it has no {error}, of image {image_id}."
            ) from error
        labels = run.labels[rows].tolist()
        title = f"{record['image_id']}: " + ", ".join(categories.names[label] for label in labels)
        by_model = [[int(of_model[row]) for of_model in predictions] for row in rows]
        selected.append(Sample(file, title, boxes, labels, by_model))
    return selected


__all__ = [
    "BALANCE_TITLES",
    "MAX_SKIPPED_SHOWN",
    "Pictures",
    "ReportModel",
    "ReportData",
    "Sample",
    "report_data",
    "samples",
    "shared_categories",
]
