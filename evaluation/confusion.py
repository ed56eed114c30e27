"""Counted pixels: which category was called what."""

from dataclasses import dataclass

import numpy as np

from .parts import Part


@dataclass(kw_only=True)
class Confusion(Part):
    r"""
    Counts of pixels.

    Args:
        counts (`np.ndarray` of shape `(categories, categories)`, int64): of each true category (row), how many pixels
            were called each category (column).
    """

    ARRAYS = ("counts",)
    TITLE = "counts of pixels"

    counts: np.ndarray

    @classmethod
    def combine(cls, parts):
        return {"counts": sum(part.counts for part in parts)}


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
        In 0..1: `miou`, the mean of intersection over union over the categories that occur in the annotations;
        `miou_called`, over those that occur in the annotations or were called somewhere (one that was called and
        never occurs has 0, so it is never larger); `class_accuracy`, the mean over the categories that occur of their
        share of pixels called right; `pixel_accuracy`. And the numbers of categories of the two means. Tools differ in
        which of the means they give, and on few images the difference is large.
    """
    right, occurs, called = np.diag(counts), counts.sum(1), counts.sum(0)
    iou = right / np.maximum(occurs + called - right, 1)
    there, either = occurs > 0, (occurs > 0) | (called > 0)
    if not there.any():
        raise ValueError("No pixel is annotated with a category.")
    return {
        "miou": float(iou[there].mean()),
        "miou_called": float(iou[either].mean()),
        "class_accuracy": float((right[there] / occurs[there]).mean()),
        "pixel_accuracy": float(right.sum() / counts.sum()),
        "categories_that_occur": int(there.sum()),
        "categories_that_occur_or_were_called": int(either.sum()),
    }


__all__ = ["Confusion", "count_pairs", "segmentation_metrics"]
