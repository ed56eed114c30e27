# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Accuracies as means over classes, and the two error shares between things and stuff."""

import numpy as np


NO_CATEGORY = -1
"""A prediction that is none: a miss, and in no error share."""


def class_mean(hits: np.ndarray, references: np.ndarray) -> float:
    """Mean over the classes among `references` of each class's share of hits; both `(regions,)`."""
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
    Args:
        predictions (`(regions, k)`): category ids, best first; -1 for none.
        references (`(regions,)`): the true ids.
        is_thing (`(regions,)`): whether the region's reference is a thing.
        category_is_thing (`(categories,)`, *optional*): whether each id is one.

    Returns:
        `thing_top1`, `thing_top5`, `stuff_top1`, `stuff_top5`: means over the classes that occur among the references
        of the group; with `category_is_thing` also `foreground_bias` (share of stuff regions whose first prediction is
        a thing) and `background_bias` (share of thing regions whose first prediction is stuff). Numbers of a group
        without regions are left out.
    """
    hits = predictions[:, :5] == references[:, None]
    results = {}
    for group, rows in (("thing", is_thing), ("stuff", ~is_thing)):
        if not rows.any():
            continue
        results[f"{group}_top1"] = class_mean(hits[rows, 0], references[rows])
        results[f"{group}_top5"] = class_mean(hits[rows].any(1), references[rows])
        called = predictions[rows, 0]
        called = called[called != NO_CATEGORY]
        if category_is_thing is not None and len(called):
            called_thing = category_is_thing[called]
            bias = "background_bias" if group == "thing" else "foreground_bias"
            results[bias] = float((~called_thing if group == "thing" else called_thing).mean())
    return results
