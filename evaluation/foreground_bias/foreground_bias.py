# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""How often stuff is taken for a thing, and by which pairs of categories."""

import datasets
import evaluate
import numpy as np

from .bias import NO_CATEGORY, foreground_bias
from .inputs import flags, whole_numbers


_DESCRIPTION = """
Foreground bias of region classification: the share of regions of stuff (sky, road, grass) that are called a thing
(kite, bus, sheep), the share of things that are called stuff, and the pairs of categories that carry them.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of int): the best category id of each region; -1 for none.
    references (list of int): its true category id.
    category_is_thing (list of bool): whether each category id is a thing; to `compute` only.
    pairs (int, optional, defaults to 10): how many pairs to list; to `compute` only.
Returns:
    foreground_bias (float, 0..1): share of stuff regions that are called a thing.
    background_bias (float, 0..1): share of thing regions that are called stuff.
    foreground_bias_mean, background_bias_mean (float, 0..1): the same as means over the classes that occur.
    foreground_pairs, background_pairs (list of dict): the commonest mistakes across the groups, each with
        `reference`, `prediction`, `count` and `share` (of the group's mistakes across).
    A group that does not occur is left out, and a warning says so.
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
        """One region; a `ValueError` names what is no id."""
        region = {"predictions": prediction, "references": reference, **kwargs}
        self.add_batch(**{name: [value] for name, value in region.items()})

    def add_batch(self, *, predictions=None, references=None, **kwargs):
        """Some regions; a `ValueError` names what are no ids: nothing is rounded."""
        super().add_batch(
            predictions=whole_numbers("predictions", predictions).tolist(),
            references=whole_numbers("references", references).tolist(),
            **kwargs,
        )

    def _compute(self, predictions, references, category_is_thing=None, pairs=10):
        if category_is_thing is None:
            raise ValueError("`category_is_thing`: `compute` needs to know of each category id whether it is a thing.")
        if whole_numbers("pairs", [pairs])[0] < 0:
            raise ValueError(f"`pairs`: how many to list, 0 or more, got {pairs}.")
        predictions, references = np.asarray(predictions), np.asarray(references)
        kinds = flags("category_is_thing", category_is_thing)
        for name, ids, least in (("predictions", predictions, NO_CATEGORY), ("references", references, 0)):
            if len(ids) and not least <= ids.min() <= ids.max() < len(kinds):
                raise ValueError(
                    f"`{name}`: ids are {least} to {len(kinds) - 1}, as `category_is_thing` has {len(kinds)} flags; "
                    f"got {ids.min()} to {ids.max()}."
                )
        results = foreground_bias(predictions, references, kinds, pairs)
        for group, name in (("stuff", "foreground"), ("a thing", "background")):
            if f"{name}_bias" not in results:
                evaluate.logging.get_logger(__name__).warning(
                    f"No region that is {group} has a prediction: {name} bias is left out."
                )
        return results
