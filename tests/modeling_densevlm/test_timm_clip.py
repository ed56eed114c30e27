# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The towers of timm give what timm's own networks give."""

import pytest
import torch
from torch.testing import assert_close

from modeling_densevlm import DenseVLMConfig, DenseVLMModel
from tests.modeling_densevlm.test_towers import assert_value_path


timm = pytest.importorskip("timm", reason="timm is not installed (extra `vision`)")

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
VITS = {
    "gap": {},
    "token": {"architecture": "vit_base_patch16_clip_224", "pooling": "token"},
    "registers": {
        "architecture": "vit_base_patch16_clip_224",
        "pooling": "token",
        "architecture_args": {"reg_tokens": 4},
    },
    "registers without positions": {
        "architecture": "vit_base_patch16_clip_224",
        "pooling": "avg",
        "architecture_args": {"reg_tokens": 4, "no_embed_class": True, "global_pool": "avg", "fc_norm": True},
    },
    "layer scale and query norms": {
        "architecture": "vit_medium_patch16_gap_256",
        "architecture_args": {"qk_norm": True, "scale_attn_norm": True},
    },
}


def make_vit(options, seed=0):
    torch.manual_seed(seed)
    vision = {"model_type": "timm_vit_vision_model", **SIZES, **options}
    model = DenseVLMModel(DenseVLMConfig(vision_config=vision, projection_dim=24)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("name", VITS)
@torch.no_grad()
def test_the_global_feature_matches_timm(name):
    vision = make_vit(VITS[name]).vision_model
    image = torch.randn(2, 3, 32, 32)
    # The trunk's own call gives the first block's tokens; timm's is that of its class.
    expected = timm.models.VisionTransformer.forward(vision.trunk, image)
    assert_close(vision(image, dense=False).pooler_output, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", VITS)
@torch.no_grad()
def test_stages_and_dense_path_leave_out_the_prefix_tokens(name):
    vision = make_vit(VITS[name]).vision_model
    image = torch.randn(1, 3, 32, 32)
    _, maps = (
        vision.trunk.forward_intermediates(image, indices=[0, 1]),
        vision(image, stages=["block0", "block1"]),
    )
    for tapped, expected in zip(maps.stages.values(), vision.trunk.forward_intermediates(image, indices=[0, 1])[1]):
        assert_close(tapped, expected, atol=1e-5, rtol=1e-4)
    assert maps.dense.shape == (1, 4, 4, 32)


@torch.no_grad()
def test_the_global_feature_of_a_convnext_matches_timm(make_tower):
    vision = make_tower("convnext").vision_model
    image = torch.randn(2, 3, 96, 160)
    assert_close(vision(image, dense=False).pooler_output, vision.trunk(image), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_on_a_map_of_one_cell_the_dense_feature_of_a_convnext_is_its_global_feature(make_tower):
    features = make_tower("convnext").vision_model(torch.randn(2, 3, 32, 32))
    assert_close(features.dense[:, 0, 0], features.pooler_output)


@pytest.mark.parametrize("name", ["token", "registers"])
@pytest.mark.parametrize("dense_residual", ["token", "cls"])
@torch.no_grad()
def test_the_value_path_is_added_to_each_token_or_to_the_class_token(name, dense_residual):
    assert_value_path(make_vit(VITS[name]), torch.randn(2, 3, 32, 32), dense_residual, attention="attn", norm="norm2")


def test_a_new_model_has_the_weights_that_timm_initialized():
    for options in (
        {"model_type": "timm_vit_vision_model", **SIZES},
        {"model_type": "timm_convnext_vision_model", "architecture": "convnext_tiny", "dims": [8, 16, 24, 32]},
    ):
        torch.manual_seed(0)
        model = DenseVLMModel(DenseVLMConfig(vision_config=options, projection_dim=24))
        config, sizes = model.config.vision_config, {}
        if "dims" in options:
            sizes |= {"dims": tuple(config.dims), "depths": tuple(config.depths)}
        else:
            sizes |= {"embed_dim": 32, "depth": 3, "num_heads": 4, "img_size": 32, "patch_size": 8}
        torch.manual_seed(0)
        expected = timm.create_model(config.architecture, num_classes=0, **sizes).state_dict()
        found = model.vision_model.trunk.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_an_unsupported_pooling_is_refused():
    with pytest.raises(ValueError, match="`pooling` is 'avg', or 'token' where there is a class token; got 'token'"):
        make_vit({"pooling": "token"})
    with pytest.raises(ValueError, match="`pooling` is 'avg'"):
        make_vit({"pooling": "max"})


@pytest.mark.parametrize("architecture", ["vit_dlittle_patch16_reg1_gap_256", "eva02_tiny_patch14_224"])
def test_networks_without_the_value_path_are_refused(architecture):
    with pytest.raises(ValueError, match=f"timm's {architecture} is not a plain vision transformer"):
        make_vit({"architecture": architecture})
