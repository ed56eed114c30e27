# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""What a metric is given, looked at before it is counted: ids and flags, and not scores."""

from collections.abc import Sequence

import numpy as np


def whole_numbers(name: str, values: object, of_one: str | None = None) -> np.ndarray:
    """
    Ids as int64, `(regions,)`; or `(regions, k)` where `of_one` says what a row of k is. Whole numbers that are stored
    as floats are ids, too, unless a row has one twice, as probabilities of 0 and 1 do.

    Raises:
        `ValueError` that names the argument whose values are no ids.
    """
    array = as_array(name, values)
    dimensions = 1 if of_one is None else 2
    if array.size == 0:
        return array.astype(np.int64)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"`{name}`: ids of categories are whole numbers, got {_shown(array.flat[0])}.")
    if array.ndim != dimensions:
        wanted = "an id" if of_one is None else of_one
        raise ValueError(f"`{name}`: {wanted} of each region is meant, got an array of the shape {array.shape}.")
    limits = np.iinfo(np.int64)
    with np.errstate(invalid="ignore"):
        whole = (array == np.floor(array)) & (array >= limits.min) & (array < limits.max)
    if not whole.all():
        raise ValueError(
            f"`{name}`: ids of categories are whole numbers, got {_shown(array[~whole][0])}. Of scores, give the ids "
            "that are best (`argsort`, `topk`)."
        )
    if array.dtype.kind == "f" and dimensions == 2:
        ordered = np.sort(array, axis=1)
        if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
            raise ValueError(
                f"`{name}`: floats of which a region has one twice are taken for scores, and ids are meant. Of "
                "scores, give the ids that are best (`argsort`, `topk`)."
            )
    return array.astype(np.int64)


def flags(name: str, values: object) -> np.ndarray:
    """Bools, `(n,)`, of what is 0, 1, true or false; a `ValueError` names the argument that has something else."""
    array = as_array(name, values)
    if array.size == 0:
        return array.astype(bool)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"`{name}`: flags are 0, 1, true or false, got {_shown(array.flat[0])}.")
    if array.ndim != 1:
        raise ValueError(f"`{name}`: a row of flags is meant, got an array of the shape {array.shape}.")
    if (other := array[(array != 0) & (array != 1)]).size:
        raise ValueError(f"`{name}`: flags are 0, 1, true or false, got {_shown(other[0])}.")
    return array.astype(bool)


def as_array(name: str, values: object) -> np.ndarray:
    """Lists, arrays, and tensors of any library and device; a `ValueError` where rows are not alike in length."""
    values = _as_list(values)
    try:
        array = np.array([_as_list(row) for row in values] if isinstance(values, list) else values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"`{name}`: every region needs the same number of values ({error}).") from None
    if array.dtype.kind in "OU":  # one text, None or endless number makes all of them that: leave what is odd
        entries = list(np.array(values, dtype=object).flat)
        odd = [value for value in entries if not isinstance(value, int | float)]
        return np.array([*(odd or [max(entries, key=abs)]), None], dtype=object)[:-1]
    return array


def _as_list(values: object) -> object:
    if hasattr(values, "tolist"):
        return values.tolist()
    return list(values) if isinstance(values, Sequence) and not isinstance(values, str) else values


def _shown(value: object) -> str:
    return repr(getattr(value, "item", lambda: value)())
