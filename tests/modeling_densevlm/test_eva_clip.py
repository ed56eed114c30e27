# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
import copy
import math

import pytest
import torch
from torch.testing import assert_close

from modeling_densevlm.modeling_eva_clip import rotary_tables, rotate


@pytest.fixture
def model(make_tower):
    return make_tower("eva02_clip")


def test_rotary_angles_follow_row_then_column_spread_over_the_pre_training_grid():
    # One row of two columns on a grid of 16: columns at 0 and 8. Four channels: two turn with the row, two with the
    # column, all with frequency 1.
    cos, sin = rotary_tables((1, 2), head_dim=4, grid=16, theta=10000.0)
    assert_close(cos, torch.tensor([[1.0, 1, 1, 1], [1, 1, math.cos(8), math.cos(8)]]))
    assert_close(sin, torch.tensor([[0.0, 0, 0, 0], [0, 0, math.sin(8), math.sin(8)]]))


def test_rotary_frequencies_fall_with_the_channel():
    cos, _ = rotary_tables((2, 1), head_dim=8, grid=4, theta=10000.0)
    # Second row: at 2. Channels of the row's half in pairs, with frequencies 1 and 10000^(-2/4) = 0.01.
    assert_close(cos[1], torch.tensor([math.cos(2)] * 2 + [math.cos(0.02)] * 2 + [1.0] * 4))


def test_rotation_applies_to_pairs_of_channels_and_not_to_the_class_token():
    states = torch.tensor([[[[5.0, 6.0], [1.0, 2.0]]]])  # (batch, heads, class token and one patch, two channels)
    quarter = torch.zeros(1, 2), torch.ones(1, 2)  # cosine 0, sine 1
    assert_close(rotate(states, *quarter), torch.tensor([[[[5.0, 6.0], [-2.0, 1.0]]]]))


def test_products_of_rotated_queries_and_keys_depend_on_their_distance_only():
    torch.manual_seed(0)
    query, key = torch.randn(1, 1, 2, 8), torch.randn(1, 1, 2, 8)
    cos, sin = rotary_tables((1, 16), head_dim=8, grid=16, theta=10000.0)

    def score(i, j):
        turned = [rotate(s, cos[at : at + 1], sin[at : at + 1])[0, 0, 1] for s, at in ((query, i), (key, j))]
        return turned[0] @ turned[1]

    assert_close(score(2, 5), score(7, 10), atol=1e-5, rtol=1e-5)
    assert abs(score(2, 5) - score(2, 6)) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rotary_tables_are_float32_whatever_the_autocast_and_the_default(dtype):
    expected = rotary_tables((32, 32), head_dim=64, grid=16, theta=10000.0)
    torch.set_default_dtype(dtype)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = rotary_tables((32, 32), head_dim=64, grid=16, theta=10000.0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


@torch.no_grad()
def test_a_pass_does_not_depend_on_earlier_ones_at_another_size_or_precision(model):
    square, wide = torch.randn(1, 3, 32, 32), torch.randn(1, 3, 24, 56)
    untouched = copy.deepcopy(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # the first pass is in the lower precision
        model.get_dense_features(wide)
        model.get_dense_features(square)
    copy.deepcopy(model).bfloat16().get_dense_features(square.bfloat16())
    for image in (wide, square, wide):
        assert torch.equal(model.get_dense_features(image), untouched.get_dense_features(image))
    assert not dict(model.named_buffers())


@torch.no_grad()
def test_grids_with_equal_numbers_of_patches_have_their_own_rotary_tables(model):
    # 2 x 8 and 4 x 4 patches are both sixteen; the reference takes one's rotary table for the other's.
    tokens, (*_, (cos, _)) = model.vision_model.embed(torch.randn(1, 3, 16, 64))
    assert tokens.shape[1] == 17
    square, _ = rotary_tables((4, 4), 8, 16, 10000.0)
    assert cos.shape == square.shape and not torch.allclose(cos, square)


@pytest.mark.parametrize("heads", [3, 16])
def test_head_sizes_that_rotary_positions_do_not_support_are_refused(model, heads):
    model.config.vision_config.num_attention_heads = heads
    with pytest.raises(
        ValueError, match=f"A `hidden_size` of 32 is not {heads} heads .* of a multiple of four channels"
    ):
        type(model)(model.config)


def test_queries_and_values_have_a_bias_and_keys_do_not(model):
    attention = model.vision_model.encoder.layers[0].self_attn
    assert attention.k_proj.bias is None
    assert attention.q_proj.bias is not None and attention.v_proj.bias is not None
