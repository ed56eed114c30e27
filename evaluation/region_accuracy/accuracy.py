# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Accuracies as means over classes, and the shares of confusions between things and stuff."""

import numpy as np


NO_CATEGORY = -1
"""Id for no prediction: a miss, excluded from the bias."""


def class_mean(hits: np.ndarray, references: np.ndarray) -> float:
    """Mean over the classes present in `references` of the share of hits per class; both `(regions,)`."""
    _, classes = np.unique(references, return_inverse=True)
    sums = np.bincount(classes, weights=hits.astype(np.float64))
    return float((sums / np.bincount(classes)).mean())


def region_accuracy(
    predictions: np.ndarray,
    references: np.ndarray,
    is_thing: np.ndarray,
    category_is_thing: np.ndarray | None = None,
) -> dict[str, float]:
    """
    Computes accuracies and biases of region classification.

    Args:
        predictions (`np.ndarray` of shape `(regions, k)`): category ids, best first; -1 for no prediction.
        references (`np.ndarray` of shape `(regions,)`): true category ids.
        is_thing (`np.ndarray` of bool, `(regions,)`): whether the region's reference is a thing.
        category_is_thing (`np.ndarray` of bool, `(categories,)`, *optional*): whether each category is a thing.

    Returns:
        `thing_top1`, `thing_top5`, `stuff_top1`, `stuff_top5`: means over the classes present in the group; with
        `category_is_thing` also `foreground_bias` (share of stuff regions whose top prediction is a thing) and
        `background_bias` (share of thing regions whose top prediction is stuff). Metrics of a group without regions
        are omitted.
    """
    hits = predictions[:, :5] == references[:, None]
    results = {}
    for group, rows in (("thing", is_thing), ("stuff", ~is_thing)):
        if not rows.any():
            continue
        results[f"{group}_top1"] = class_mean(hits[rows, 0], references[rows])
        results[f"{group}_top5"] = class_mean(hits[rows].any(1), references[rows])
        top = predictions[rows, 0]
        top = top[top != NO_CATEGORY]
        if category_is_thing is not None and len(top):
            predicted_thing = category_is_thing[top]
            bias = "background_bias" if group == "thing" else "foreground_bias"
            results[bias] = float((~predicted_thing if group == "thing" else predicted_thing).mean())
    return results
