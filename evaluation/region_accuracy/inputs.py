# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Validation of the inputs of a metric: category ids and flags; scores are rejected."""

from collections.abc import Sequence

import numpy as np


def whole_numbers(name: str, values: object, row: str | None = None) -> np.ndarray:
    """
    Converts ids to int64. Integers stored as floats are accepted, unless a row has one twice, as probabilities of 0
    and 1 would.

    Args:
        name (`str`): name of the argument, for messages.
        values (list, array or tensor): the ids.
        row (`str`, *optional*): description of a row of ids, if each region has several; by default each has one.

    Returns:
        `np.ndarray` of shape `(regions,)`, or `(regions, k)` with `row`.

    Raises:
        `ValueError` that names the argument if its values are not ids.
    """
    array = as_array(name, values)
    dimensions = 1 if row is None else 2
    if array.size == 0:
        return array.astype(np.int64)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"`{name}`: ids of categories are whole numbers, got {_repr(array.flat[0])}.")
    if array.ndim != dimensions:
        expected = "an id" if row is None else row
        raise ValueError(f"`{name}`: expected {expected} for each region, got an array of the shape {array.shape}.")
    limits = np.iinfo(np.int64)
    with np.errstate(invalid="ignore"):
        integral = (array == np.floor(array)) & (array >= limits.min) & (array < limits.max)
    if not integral.all():
        raise ValueError(
            f"`{name}`: ids of categories are whole numbers, got {_repr(array[~integral][0])}. For scores, pass the "
            "ids of the best ones (`argsort`, `topk`)."
        )
    if array.dtype.kind == "f" and dimensions == 2:
        ordered = np.sort(array, axis=1)
        if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
            raise ValueError(
                f"`{name}`: floats with a repeated value in a region look like scores, expected ids. For scores, pass "
                "the ids of the best ones (`argsort`, `topk`)."
            )
    return array.astype(np.int64)


def flags(name: str, values: object) -> np.ndarray:
    """Converts 0, 1, true and false to bools, `(n,)`; raises a `ValueError` that names the argument otherwise."""
    array = as_array(name, values)
    if array.size == 0:
        return array.astype(bool)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"`{name}`: flags are 0, 1, true or false, got {_repr(array.flat[0])}.")
    if array.ndim != 1:
        raise ValueError(f"`{name}`: expected a list of flags, got an array of the shape {array.shape}.")
    if (other := array[(array != 0) & (array != 1)]).size:
        raise ValueError(f"`{name}`: flags are 0, 1, true or false, got {_repr(other[0])}.")
    return array.astype(bool)


def as_array(name: str, values: object) -> np.ndarray:
    """Converts lists, arrays and tensors of any library and device; raises a `ValueError` if rows differ in length."""
    values = _as_list(values)
    try:
        array = np.array([_as_list(row) for row in values] if isinstance(values, list) else values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"`{name}`: every region needs the same number of values ({error}).") from None
    if array.dtype.kind in "OU":  # one str, None or huge int determines the dtype: keep only the offending values
        entries = list(np.array(values, dtype=object).flat)
        odd = [value for value in entries if not isinstance(value, int | float)]
        return np.array([*(odd or [max(entries, key=abs)]), None], dtype=object)[:-1]
    return array


def _as_list(values: object) -> object:
    if hasattr(values, "tolist"):
        return values.tolist()
    return list(values) if isinstance(values, Sequence) and not isinstance(values, str) else values


def _repr(value: object) -> str:
    return repr(getattr(value, "item", lambda: value)())
