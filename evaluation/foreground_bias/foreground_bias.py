# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Metric for `evaluate`: shares of stuff predicted as a thing and of things predicted as stuff."""

import datasets
import evaluate
import numpy as np

from .bias import NO_CATEGORY, foreground_bias
from .inputs import flags, whole_numbers


_DESCRIPTION = """
Foreground bias of region classification: the share of stuff regions (sky, road, grass) that are predicted as a thing
(kite, bus, sheep), the share of things that are predicted as stuff, and the most frequent pairs of categories.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of int): predicted category id of each region; -1 for no prediction.
    references (list of int): true category id of each region.
    category_is_thing (list of bool): whether each category is a thing; argument of `compute` only.
    pairs (int, optional, defaults to 10): maximal number of pairs to list; argument of `compute` only.
Returns:
    foreground_bias (float, 0..1): share of stuff regions that are predicted as a thing.
    background_bias (float, 0..1): share of thing regions that are predicted as stuff.
    foreground_bias_mean, background_bias_mean (float, 0..1): the same as means over the classes present.
    foreground_pairs, background_pairs (list of dict): the most frequent confusions across the groups, each with
        `reference`, `prediction`, `count` and `share` (of all such confusions).
    Metrics of an absent group are omitted, with a warning.
Examples:
    >>> metric = evaluate.load("evaluation/foreground_bias")
    >>> metric.compute(predictions=[0, 0, 2, 2], references=[2, 2, 2, 0], category_is_thing=[True, True, False])
    {'foreground_bias': 0.6666666666666666, 'foreground_bias_mean': 0.6666666666666666,
     'foreground_pairs': [{'reference': 2, 'prediction': 0, 'count': 2, 'share': 1.0}],
     'background_bias': 1.0, 'background_bias_mean': 1.0,
     'background_pairs': [{'reference': 0, 'prediction': 2, 'count': 1, 'share': 1.0}]}
"""

_CITATION = """
@inproceedings{li2025densevlm,
  title={Unbiased Region-Language Alignment for Open-Vocabulary Dense Prediction},
  author={Li, Yunheng and Li, Yuxuan and Zeng, Quansheng and Wang, Wenhai and Hou, Qibin and Cheng, Ming-Ming},
  booktitle={ICCV},
  year={2025}
}
"""


class ForegroundBias(evaluate.Metric):
    """The `foreground_bias` metric."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def add(self, *, prediction=None, reference=None, **kwargs):
        """Adds a region; raises a `ValueError` if a value is not an id."""
        region = {"predictions": prediction, "references": reference, **kwargs}
        self.add_batch(**{name: [value] for name, value in region.items()})

    def add_batch(self, *, predictions=None, references=None, **kwargs):
        """Adds a batch of regions; raises a `ValueError` if values are not ids, without rounding."""
        super().add_batch(
            predictions=whole_numbers("predictions", predictions).tolist(),
            references=whole_numbers("references", references).tolist(),
            **kwargs,
        )

    def _compute(self, predictions, references, category_is_thing=None, pairs=10):
        if category_is_thing is None:
            raise ValueError("`category_is_thing`: `compute` needs a flag per category, whether it is a thing.")
        if whole_numbers("pairs", [pairs])[0] < 0:
            raise ValueError(f"`pairs`: the number of pairs to list, 0 or more, got {pairs}.")
        predictions, references = np.asarray(predictions), np.asarray(references)
        thing_flags = flags("category_is_thing", category_is_thing)
        highest = len(thing_flags) - 1
        for name, ids, lowest in (("predictions", predictions, NO_CATEGORY), ("references", references, 0)):
            if len(ids) and not lowest <= ids.min() <= ids.max() <= highest:
                raise ValueError(
                    f"`{name}`: ids are {lowest} to {highest}, as `category_is_thing` has {highest + 1} flags; "
                    f"got {ids.min()} to {ids.max()}."
                )
        results = foreground_bias(predictions, references, thing_flags, pairs)
        for group, name in (("stuff", "foreground"), ("a thing", "background")):
            if f"{name}_bias" not in results:
                evaluate.logging.get_logger(__name__).warning(
                    f"No region that is {group} has a prediction: {name} bias is left out."
                )
        return results
