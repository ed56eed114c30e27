# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""An evaluation on the GPU matches the CPU."""

import numpy as np
import pytest

from evaluation.datasets.panoptic import PanopticRegions
from evaluation.evaluate_regions import evaluate_regions, map_side
from modeling_densevlm import CategoryEmbeddings, DenseVLMModel, DenseVLMProcessor


@pytest.mark.parametrize("tower", ["clip_vit", "eva02_clip", "clip_resnet"])
def test_regions_are_scored_as_on_the_cpu(tower, folder_of, scenes, device, record_property):
    model, processor = (c.from_pretrained(folder_of(tower, 0)) for c in (DenseVLMModel, DenseVLMProcessor))
    split, side = scenes / "test", map_side(model.eval(), 96)
    files = (split / "panoptic.json", split / "images", split / "panoptic")
    regions = PanopticRegions(*files, processor.image_processor, side)
    expected, found = (
        evaluate_regions(
            model.to(where),
            regions,
            CategoryEmbeddings.compute(regions.categories, model, processor.tokenizer, ["a {}"]),
            num_workers=0,
        )
        for where in ("cpu", device)
    )
    assert (found.segment_ids == expected.segment_ids).all() and len(found.labels) > 10
    for kind in ("boxes", "masks"):
        one, other = getattr(expected, kind), getattr(found, kind)  # NaN for masks that are empty at map resolution
        record_property(f"{kind}, largest difference", f"{np.nanmax(np.abs(one - other)):.1e}")
        np.testing.assert_allclose(other, one, atol=1e-4, err_msg=kind)
