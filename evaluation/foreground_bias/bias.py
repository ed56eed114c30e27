# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""How often stuff is taken for a thing, how often the reverse, and which pairs of categories carry it."""

import numpy as np


NO_CATEGORY = -1
"""A prediction that is none: in no share."""


def foreground_bias(
    predictions: np.ndarray, references: np.ndarray, category_is_thing: np.ndarray, pairs: int = 10
) -> dict[str, float | list[dict[str, float | int]]]:
    """
    Args:
        predictions, references (`(regions,)`): category ids; a prediction of -1 is none.
        category_is_thing (`(categories,)` of bool): whether each id is a thing.
        pairs (`int`, *optional*, defaults to 10): how many pairs to list.

    Returns:
        `foreground_bias`: share of stuff regions with a prediction that are called a thing; `background_bias`: of
        things that are called stuff; `foreground_bias_mean`, `background_bias_mean`: the same as means over the
        classes that occur. `foreground_pairs`, `background_pairs`: the commonest mistakes across the groups, most
        common first, each with `reference`, `prediction`, `count`, and the `share` of the group's mistakes across.
        Numbers of a group without regions are left out.
    """
    called = predictions != NO_CATEGORY
    predictions, references = predictions[called], references[called]
    crossed = category_is_thing[predictions] != category_is_thing[references]
    results = {}
    for name, group in (("foreground", False), ("background", True)):
        rows = category_is_thing[references] == group
        if not rows.any():
            continue
        results[f"{name}_bias"] = float(crossed[rows].mean())
        _, classes = np.unique(references[rows], return_inverse=True)
        results[f"{name}_bias_mean"] = float((np.bincount(classes, crossed[rows]) / np.bincount(classes)).mean())
        results[f"{name}_pairs"] = _pairs(predictions[rows & crossed], references[rows & crossed], pairs)
    return results


def _pairs(predictions: np.ndarray, references: np.ndarray, most: int) -> list[dict[str, float | int]]:
    found, counts = np.unique(np.stack([references, predictions], axis=1), axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:most]
    return [
        {
            "reference": int(found[i, 0]),
            "prediction": int(found[i, 1]),
            "count": int(counts[i]),
            "share": float(counts[i] / len(references)),
        }
        for i in order
    ]
