# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Metric for `evaluate`: accuracy of region classification, separately for things and stuff."""

import datasets
import evaluate
import numpy as np

from .accuracy import NO_CATEGORY, region_accuracy
from .inputs import flags, whole_numbers


_DESCRIPTION = """
Top-1 and top-5 accuracy of region classification as means over classes, separately for things and stuff; and the
shares of stuff predicted as a thing (foreground bias) and of things predicted as stuff (background bias).
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of lists of 5 int): five best category ids of each region, best first; -1 for no prediction.
    references (list of int): true category id of each region.
    is_thing (list of bool): whether the region's reference is a thing.
    category_is_thing (list of bool, optional): whether each category is a thing; argument of `compute` only.
Returns:
    thing_top1, thing_top5, stuff_top1, stuff_top5 (float, 0..1): means over the classes present.
    foreground_bias (float): share of stuff regions whose top prediction is a thing; with `category_is_thing`.
    background_bias (float): share of thing regions whose top prediction is stuff; with `category_is_thing`.
    Metrics of an absent group are omitted, with a warning.
Examples:
    >>> metric = evaluate.load("evaluation/region_accuracy")
    >>> metric.compute(
    ...     predictions=[[0, 1, 2, 3, 4], [0, 2, 1, 3, 4]], references=[0, 2], is_thing=[True, False],
    ...     category_is_thing=[True, True, False, False, False],
    ... )
    {'thing_top1': 1.0, 'thing_top5': 1.0, 'background_bias': 0.0,
     'stuff_top1': 0.0, 'stuff_top5': 1.0, 'foreground_bias': 1.0}
"""

_CITATION = """
@inproceedings{li2025densevlm,
  title={Unbiased Region-Language Alignment for Open-Vocabulary Dense Prediction},
  author={Li, Yunheng and Li, Yuxuan and Zeng, Quansheng and Wang, Wenhai and Hou, Qibin and Cheng, Ming-Ming},
  booktitle={ICCV},
  year={2025}
}
"""


def check_ids(
    predictions: np.ndarray, references: np.ndarray, is_thing: np.ndarray, thing_flags: np.ndarray | None
) -> None:
    """Raises a `ValueError` that names the field if ids are out of range or contradict the flags."""
    highest = np.iinfo(np.int64).max if thing_flags is None else len(thing_flags) - 1
    for name, ids, lowest in (("predictions", predictions, NO_CATEGORY), ("references", references, 0)):
        if ids.size and not lowest <= ids.min() <= ids.max() <= highest:
            limit = (
                " or more" if thing_flags is None else f" to {highest}, as `category_is_thing` has {highest + 1} flags"
            )
            raise ValueError(f"`{name}`: ids are {lowest}{limit}; got {ids.min()} to {ids.max()}.")
    if thing_flags is not None and (thing_flags[references] != is_thing).any():
        row = int(np.flatnonzero(thing_flags[references] != is_thing)[0])
        raise ValueError(
            f"`is_thing`: region {row} is {is_thing[row]}, but `category_is_thing` of its reference {references[row]} "
            "is not."
        )


class RegionAccuracy(evaluate.Metric):
    """The `region_accuracy` metric."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("int64")),
                    "references": datasets.Value("int64"),
                    "is_thing": datasets.Value("bool"),
                }
            ),
        )

    def add(self, *, prediction=None, reference=None, **kwargs):
        """Adds a region; raises a `ValueError` if a value is not an id or a flag."""
        region = {"predictions": prediction, "references": reference, **kwargs}
        self.add_batch(**{name: [value] for name, value in region.items()})

    def add_batch(self, *, predictions=None, references=None, is_thing=None, **kwargs):
        """Adds a batch of regions; raises a `ValueError` if values are not ids or flags, without rounding."""
        super().add_batch(
            predictions=whole_numbers("predictions", predictions, "a row of ids").tolist(),
            references=whole_numbers("references", references).tolist(),
            is_thing=flags("is_thing", is_thing).tolist(),
            **kwargs,
        )

    def _compute(self, predictions, references, is_thing, category_is_thing=None):
        if len({len(row) for row in predictions}) > 1:
            raise ValueError("`predictions`: every region needs the same number of ids.")
        predictions, references = np.asarray(predictions), np.asarray(references)
        is_thing = np.asarray(is_thing, dtype=bool)
        thing_flags = None if category_is_thing is None else flags("category_is_thing", category_is_thing)
        check_ids(predictions, references, is_thing, thing_flags)
        results = region_accuracy(predictions, references, is_thing, thing_flags)
        for group in ("thing", "stuff"):
            if f"{group}_top1" not in results:
                evaluate.logging.get_logger(__name__).warning(
                    f"No region is a {group}: its numbers are left out."
                    if group == "thing"
                    else "No region is stuff: its numbers are left out."
                )
        return results
