# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Confusion matrices over pixels, and the segmentation metrics computed from them."""

from dataclasses import dataclass

import numpy as np

from .shards import ShardResult


@dataclass(kw_only=True)
class Confusion(ShardResult):
    r"""
    A confusion matrix over pixels.

    Args:
        counts (`np.ndarray` of shape `(categories, categories)`, int64):
            Number of pixels per annotated category (row) and predicted category (column).
    """

    ARRAYS = ("counts",)
    TITLE = "counts of pixels"

    counts: np.ndarray

    @classmethod
    def combine(cls, shards):
        return {"counts": sum(shard.counts for shard in shards)}


def count_pairs(labels: np.ndarray, predictions: np.ndarray, categories: int) -> np.ndarray:
    """
    Counts pixels by label and prediction.

    Args:
        labels (`np.ndarray` of any shape): category indices; -1 is ignored.
        predictions (`np.ndarray` of the same shape): predicted category indices.
        categories (`int`): number of categories.

    Returns:
        `np.ndarray` of shape `(categories, categories)`, int64, labels as rows.
    """
    counted = labels >= 0
    pairs = labels[counted].astype(np.int64) * categories + predictions[counted]
    return np.bincount(pairs, minlength=categories**2).reshape(categories, categories)


def segmentation_metrics(counts: np.ndarray) -> dict[str, float]:
    r"""
    Args:
        counts (`np.ndarray` of shape `(categories, categories)`): of a [`Confusion`].

    Returns:
        Values in 0..1: `miou`, the mean intersection over union of the categories present in the annotations;
        `miou_present_or_predicted`, the same over categories that are present or predicted anywhere (a category that
        is only predicted has IoU 0, so this is never larger); `mean_accuracy`, the mean accuracy of the categories
        present; `pixel_accuracy`. And the number of categories in each of the two means. Tools differ in which mean
        they report, and on few images the two differ a lot.
    """
    correct, annotated, predicted = np.diag(counts), counts.sum(1), counts.sum(0)
    iou = correct / np.maximum(annotated + predicted - correct, 1)
    present, either = annotated > 0, (annotated > 0) | (predicted > 0)
    if not present.any():
        raise ValueError("No pixel is annotated with a category.")
    return {
        "miou": float(iou[present].mean()),
        "miou_present_or_predicted": float(iou[either].mean()),
        "mean_accuracy": float((correct[present] / annotated[present]).mean()),
        "pixel_accuracy": float(correct.sum() / counts.sum()),
        "categories_present": int(present.sum()),
        "categories_present_or_predicted": int(either.sum()),
    }


__all__ = ["Confusion", "count_pairs", "segmentation_metrics"]
