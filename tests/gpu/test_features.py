# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The features of every tower on the GPU match the CPU."""

import copy
import importlib.util
import shutil

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cosine_similarity

from modeling_densevlm import DenseVLMModel
from tests.conftest import TOWERS


BOXES = torch.tensor([[0.1, 0.2, 0.7, 0.9], [0.0, 0.0, 1.0, 1.0], [0.5, 0.5, 0.5, 0.5]])
ATTENTION = [name for name in TOWERS if name not in ("clip_resnet", "convnext")]


@torch.no_grad()
def features_of(model: DenseVLMModel, tokenizer, device: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """All kinds of features of a copy of the model, as float32 on the CPU."""
    model = copy.deepcopy(model).to(device, dtype)
    images = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    texts = tokenizer(["a photo of grass", "a red ball"], padding="max_length", return_tensors="pt").to(device)
    output = model(images, boxes=[BOXES.to(device), BOXES[:1]], return_image_embeds=True)
    masks = torch.zeros(2, *output.dense_embeds.shape[2:])
    masks[0, 1:, :2] = 1
    found = {
        "dense": output.dense_embeds.movedim(1, -1),
        "boxes": output.region_embeds,
        "masks": model.get_region_features(images, masks=[masks, masks[:1]]),
        "image": output.image_embeds,
        "text": model.get_text_features(texts.input_ids, texts.get("attention_mask")).pooler_output,
    }
    return {name: tensor.float().cpu() for name, tensor in found.items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_feature_of_every_tower_matches_the_cpu(tower, make_tower, tokenizer, device, dtype, record_property):
    model = make_tower(tower, tokenizer)
    expected = features_of(model, tokenizer, "cpu", torch.float32)
    for name, found in features_of(model, tokenizer, device, getattr(torch, dtype)).items():
        assert found.isfinite().all() and found.shape == expected[name].shape, name
        if dtype == "float32":
            difference = (found - expected[name]).abs().max().item()
            record_property(f"{name}, largest difference", f"{difference:.1e}")
            torch.testing.assert_close(found, expected[name], atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
        else:
            defined = expected[name].norm(dim=-1) > 0  # a box without area has no direction
            similarity = cosine_similarity(found, expected[name], dim=-1)[defined].min().item()
            record_property(f"{name}, least cosine", f"{similarity:.4f}")
            assert similarity > 0.97, (name, similarity)


@torch.no_grad()
@pytest.mark.parametrize("tower", ATTENTION)
def test_flash_attention_matches_math_attention(tower, make_tower, device, record_property):
    """Only torch's flash kernel, in bfloat16."""
    model = make_tower(tower).to(device, torch.bfloat16)
    images = torch.randn(2, 3, 96, 128, device=device, dtype=torch.bfloat16)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        flash = model.get_dense_features(images)
    with sdpa_kernel(SDPBackend.MATH):
        math = model.get_dense_features(images)
    similarity = cosine_similarity(flash.float(), math.float(), dim=1).min().item()
    record_property("least cosine", f"{similarity:.4f}")
    assert similarity > 0.97


@torch.no_grad()
@pytest.mark.parametrize("tower", [name for name in ATTENTION if name != "timm_vit"])
def test_the_package_flash_attention_matches_torch(tower, folder_of, device):
    if device != "cuda" or not importlib.util.find_spec("flash_attn"):
        pytest.skip("the package flash_attn is not installed, or there is no GPU")
    images = torch.randn(2, 3, 96, 128, device=device, dtype=torch.bfloat16)
    dense = [
        DenseVLMModel.from_pretrained(folder_of(tower, 0), dtype=torch.bfloat16, attn_implementation=implementation)
        .to(device)
        .eval()
        .get_dense_features(images)
        .float()
        for implementation in ("flash_attention_2", "sdpa")
    ]
    assert cosine_similarity(*dense, dim=1).min() > 0.97


@torch.no_grad()
@pytest.mark.parametrize("tower", ["clip_vit", "eva02_clip"])
def test_compiled_matches_uncompiled(tower, make_tower, device, record_property):
    """By inductor on a GPU; by aot_eager on the CPU, where inductor takes long."""
    model = make_tower(tower).to(device)
    if device == "cuda" and not (importlib.util.find_spec("triton") and (shutil.which("cc") or shutil.which("gcc"))):
        pytest.skip("inductor needs triton and a C compiler")
    compiled = torch.compile(model.get_dense_features, backend="inductor" if device == "cuda" else "aot_eager")
    images = torch.randn(2, 3, 96, 96, device=device)
    expected, found = model.get_dense_features(images), compiled(images)
    record_property("largest difference", f"{(found - expected).abs().max().item():.1e}")
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
