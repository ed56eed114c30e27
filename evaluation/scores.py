# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The cosines of regions with categories: what an evaluation measures, from which all metrics and figures follow."""

from dataclasses import dataclass

import numpy as np

from .shards import ShardResult


@dataclass(kw_only=True)
class RegionScores(ShardResult):
    r"""
    The cosines of every region with every category.

    Args:
        image_ids, segment_ids, labels (`np.ndarray` of shape `(regions,)`): which region, and its category's index.
        boxes, masks (`np.ndarray` of shape `(regions, categories)`): cosines of the feature pooled over the region's
            box and over its mask. NaN where there is no feature: a small mask can be empty on the map.
        at_home (`np.ndarray` of shape `(regions,)`): 1 for a thing on the background it often has in training, 0 on
            another one, -1 where the annotations do not say.
        skipped_regions (`int`): regions too small, too large or without a pixel.
    """

    ARRAYS = ("image_ids", "segment_ids", "labels", "boxes", "masks", "at_home")
    TITLE = "scores of regions"

    image_ids: np.ndarray
    segment_ids: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    masks: np.ndarray
    at_home: np.ndarray
    skipped_regions: int

    @classmethod
    def combine(cls, shards):
        joined = {name: np.concatenate([getattr(shard, name) for shard in shards]) for name in cls.ARRAYS}
        return joined | {"skipped_regions": sum(shard.skipped_regions for shard in shards)}


__all__ = ["RegionScores"]
