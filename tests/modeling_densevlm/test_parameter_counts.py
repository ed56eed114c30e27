# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The full-size configurations have the published numbers of parameters. Nothing is allocated: the meta device."""

import pytest
import torch

from modeling_densevlm import DenseVLMModel
from modeling_densevlm.conversion.configs import convert_config, load_config


# Millions, of the image tower with its projection: as open_clip's own models count them.
PUBLISHED = {
    "EVA02-CLIP-B-16": 86.3,
    "EVA02-CLIP-L-14": 304.1,
    "EVA02-CLIP-L-14-336": 304.4,
    "ViT-B-16": 86.2,
    "ViT-L-14": 304.0,
    "ViT-L-14-336": 304.3,
    "ViT-H-14": 632.1,
    "RN50": 38.3,
    "RN50x4": 87.1,
    "convnext_base": 88.1,
    "convnext_base_w": 88.2,
    "ViT-B-16-SigLIP": 92.9,
    "ViT-L-16-SigLIP-256": 316.0,
    "ViT-SO400M-14-SigLIP": 427.7,
}


@pytest.mark.parametrize(("name", "millions"), PUBLISHED.items())
def test_the_vision_tower_has_the_published_number_of_parameters(name, millions):
    config = load_config(name)
    if "convnext" in name:
        pytest.importorskip("timm", reason="this tower is built by timm (extra `vision`)")
    with torch.device("meta"):
        model = DenseVLMModel(convert_config(config))
    counted = [*model.vision_model.parameters(), *model.visual_projection.parameters()]
    assert all(parameter.is_meta for parameter in counted)
    assert round(sum(p.numel() for p in counted) / 1e6, 1) == pytest.approx(millions, abs=0.051)
