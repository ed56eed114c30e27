# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The cosines of regions with categories: the output of an evaluation, from which metrics and figures are computed."""

from dataclasses import dataclass

import numpy as np

from .shards import ShardResult


@dataclass(kw_only=True)
class RegionScores(ShardResult):
    r"""
    The cosines of every region with every category.

    Args:
        image_ids (`np.ndarray` of shape `(regions,)`): image of each region.
        segment_ids (`np.ndarray` of shape `(regions,)`): segment of each region in its image.
        labels (`np.ndarray` of shape `(regions,)`): category index of each region.
        boxes (`np.ndarray` of shape `(regions, categories)`): cosines of the feature pooled over the region's box.
        masks (`np.ndarray` of shape `(regions, categories)`):
            Cosines of the feature pooled over the region's mask; NaN if a small mask is empty at map resolution.
        at_home (`np.ndarray` of shape `(regions,)`):
            1 for a thing on its usual training background, 0 on another one, -1 if the annotations do not provide it.
        skipped_regions (`int`): number of regions that are too small, too large or without a pixel.
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
