# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Shares of stuff predicted as a thing and of things predicted as stuff, and the most frequent pairs of categories."""

from typing import Any

import numpy as np


NO_CATEGORY = -1
"""Id for no prediction, which is excluded from all shares."""


def foreground_bias(
    predictions: np.ndarray, references: np.ndarray, category_is_thing: np.ndarray, pairs: int = 10
) -> dict[str, Any]:
    """
    Computes foreground and background bias.

    Args:
        predictions (`np.ndarray` of shape `(regions,)`): predicted category ids; -1 for no prediction.
        references (`np.ndarray` of shape `(regions,)`): true category ids.
        category_is_thing (`np.ndarray` of bool, `(categories,)`): whether each category is a thing.
        pairs (`int`, *optional*, defaults to 10): maximal number of pairs to list.

    Returns:
        `foreground_bias`: share of stuff regions with a prediction that are predicted as a thing. `background_bias`:
        share of things predicted as stuff. `foreground_bias_mean`, `background_bias_mean`: the same as means over the
        classes present. `foreground_pairs`, `background_pairs`: the most frequent confusions across the groups, in
        descending order, each with `reference`, `prediction`, `count` and `share` of all such confusions. Metrics of a
        group without regions are omitted.
    """
    predicted = predictions != NO_CATEGORY
    predictions, references = predictions[predicted], references[predicted]
    crossed = category_is_thing[predictions] != category_is_thing[references]
    results: dict[str, Any] = {}
    for name, group in (("foreground", False), ("background", True)):
        rows = category_is_thing[references] == group
        if not rows.any():
            continue
        results[f"{name}_bias"] = float(crossed[rows].mean())
        _, classes = np.unique(references[rows], return_inverse=True)
        results[f"{name}_bias_mean"] = float((np.bincount(classes, crossed[rows]) / np.bincount(classes)).mean())
        results[f"{name}_pairs"] = _pairs(predictions[rows & crossed], references[rows & crossed], pairs)
    return results


def _pairs(predictions: np.ndarray, references: np.ndarray, max_pairs: int) -> list[dict[str, float | int]]:
    confusions, counts = np.unique(np.stack([references, predictions], axis=1), axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:max_pairs]
    return [
        {
            "reference": int(confusions[i, 0]),
            "prediction": int(confusions[i, 1]),
            "count": int(counts[i]),
            "share": float(counts[i] / len(references)),
        }
        for i in order
    ]
