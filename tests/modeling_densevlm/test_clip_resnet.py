# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch.nn.functional import multi_head_attention_forward
from torch.testing import assert_close


@pytest.fixture
def model(make_tower):
    return make_tower("clip_resnet")


def statistics(model):
    return {name: tensor.clone() for name, tensor in model.named_buffers()}


def test_batch_statistics_are_frozen_in_training_too(model):
    before = statistics(model)
    image = torch.randn(2, 3, 96, 96) * 3
    expected = model.eval().get_dense_features(image)
    model.train()
    assert model.training and model.vision_model.layer1[0].conv1.training
    assert_close(model.get_dense_features(image), expected)
    after = statistics(model)
    assert before.keys() == after.keys() and any("running_mean" in name for name in before)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_synchronised_norms_are_frozen_too(model):
    synchronised = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model).train()
    norms = [m for m in synchronised.modules() if isinstance(m, torch.nn.SyncBatchNorm)]
    assert norms and not any(norm.training for norm in norms)


def test_heads_that_do_not_divide_the_width_are_refused(model):
    model.config.vision_config.num_attention_heads = 3
    with pytest.raises(ValueError, match="A width of 128 is not 3 heads"):
        type(model)(model.config)


def test_scale_and_shift_of_the_norms_are_trained(model):
    names = {id(p): name for name, p in model.named_parameters()}
    trained = {names[id(p)] for block in model.vision_model.trainable_blocks() for p in block}
    assert "vision_model.layer2.0.bn1.weight" in trained
    assert not any(".bn1" in name and "layer" not in name for name in trained)  # the stem's stay


@torch.no_grad()
def test_the_global_feature_is_the_attention_of_the_mean_over_the_map(model):
    pool = model.vision_model.attnpool
    feature_map = torch.randn(2, 128, 3, 3)  # the native map: no position is resized
    tokens = feature_map.flatten(2).permute(2, 0, 1)
    tokens = torch.cat([tokens.mean(0, keepdim=True), tokens]) + pool.positional_embedding[:, None]
    expected, _ = multi_head_attention_forward(
        query=tokens[:1],
        key=tokens,
        value=tokens,
        embed_dim_to_check=128,
        num_heads=4,
        in_proj_weight=None,
        in_proj_bias=torch.cat([p.bias for p in (pool.q_proj, pool.k_proj, pool.v_proj)]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=torch.eye(128),  # the model's projection comes after
        out_proj_bias=torch.zeros(128),
        use_separate_proj_weight=True,
        q_proj_weight=pool.q_proj.weight,
        k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight,
        training=False,
    )
    assert_close(pool(feature_map), expected[0], atol=1e-5, rtol=1e-5)
    assert_close(pool(feature_map, dense=True).flatten(1, 2).transpose(0, 1), pool.v_proj(tokens[1:]))


@torch.no_grad()
def test_the_global_feature_exists_at_other_sizes_where_the_reference_fails(model):
    assert model.get_image_features(torch.randn(1, 3, 64, 160)).pooler_output.isfinite().all()
