# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Scores of regions for tests."""

import numpy as np

from evaluation.scores import RegionScores


def scores_of(masks, labels, boxes=None, image_ids=None, **options) -> RegionScores:
    """Regions with given cosines, by default one per image and with the cosines of the masks for boxes."""
    masks, indices = np.array(masks, dtype=np.float32), np.arange(len(labels))
    image_ids = indices if image_ids is None else image_ids
    values = {
        "image_ids": image_ids,
        "segment_ids": indices,
        "labels": np.array(labels),
        "boxes": masks if boxes is None else np.array(boxes, dtype=np.float32),
        "masks": masks,
        "at_home": np.full(len(labels), -1),
        "images": len(set(image_ids)),
        "skipped_regions": 0,
        "skipped_images": [],
    }
    return RegionScores(**values | options)
