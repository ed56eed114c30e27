# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Counts of pixels by annotated and predicted category."""

from dataclasses import dataclass

import numpy as np

from .shards import ShardResult


@dataclass(kw_only=True)
class Confusion(ShardResult):
    r"""
    Counts of pixels.

    Args:
        counts (`np.ndarray` of shape `(categories, categories)`, int64): how many pixels of each annotated category
            (row) were predicted as each category (column).
    """

    ARRAYS = ("counts",)
    TITLE = "counts of pixels"

    counts: np.ndarray

    @classmethod
    def combine(cls, shards):
        return {"counts": sum(shard.counts for shard in shards)}


def count_pairs(labels: np.ndarray, predictions: np.ndarray, categories: int) -> np.ndarray:
    """`(categories, categories)`: how often each label has each prediction. A label of -1 is not counted."""
    counted = labels >= 0
    pairs = labels[counted].astype(np.int64) * categories + predictions[counted]
    return np.bincount(pairs, minlength=categories**2).reshape(categories, categories)


def segmentation_metrics(counts: np.ndarray) -> dict[str, float]:
    r"""
    Args:
        counts (`np.ndarray` of shape `(categories, categories)`): of a [`Confusion`].

    Returns:
        In 0..1: `miou`, the mean intersection over union of the categories present in the annotations;
        `miou_present_or_predicted`, of those present in the annotations or predicted somewhere (one that is predicted
        and never present has 0, so it is never larger); `mean_accuracy`, the mean over the categories present of their
        share of pixels predicted right; `pixel_accuracy`. And the numbers of categories of the two means. Tools differ
        in which of the means they report, and on few images the difference is large.
    """
    right, annotated, predicted = np.diag(counts), counts.sum(1), counts.sum(0)
    iou = right / np.maximum(annotated + predicted - right, 1)
    present, either = annotated > 0, (annotated > 0) | (predicted > 0)
    if not present.any():
        raise ValueError("No pixel is annotated with a category.")
    return {
        "miou": float(iou[present].mean()),
        "miou_present_or_predicted": float(iou[either].mean()),
        "mean_accuracy": float((right[present] / annotated[present]).mean()),
        "pixel_accuracy": float(right.sum() / counts.sum()),
        "categories_present": int(present.sum()),
        "categories_present_or_predicted": int(either.sum()),
    }


__all__ = ["Confusion", "count_pairs", "segmentation_metrics"]
