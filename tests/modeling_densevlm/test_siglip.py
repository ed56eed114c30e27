# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch.testing import assert_close
from transformers import (
    Siglip2Config,
    Siglip2ImageProcessor,
    Siglip2Model,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from modeling_densevlm import CategoryEmbeddings, DenseVLMImageProcessor, DenseVLMModel, DenseVLMProcessor
from modeling_densevlm.templates import SHORT_TEMPLATES, fill_template
from training.sandbox.scenes import CATEGORIES


SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
MODELS = {"siglip": (SiglipConfig, SiglipModel), "siglip2": (Siglip2Config, Siglip2Model)}


@pytest.fixture(params=MODELS)
def siglip(request, tokenizer):
    """A randomly initialized SigLIP of transformers, no number of it zero."""
    config_class, model_class = MODELS[request.param]
    native = {"image_size": 32} if request.param == "siglip" else {"num_patches": 16}
    torch.manual_seed(0)
    text = {**SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": 24}
    model = model_class(config_class(vision_config={**SIZES, "patch_size": 8, **native}, text_config=text)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("logit_"):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def folder(siglip, tokenizer, tmp_path):
    siglip.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    if isinstance(siglip, SiglipModel):
        SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    else:
        Siglip2ImageProcessor(patch_size=8, max_num_patches=16).save_pretrained(tmp_path)
    return tmp_path


def image_features(siglip, image):
    if isinstance(siglip, SiglipModel):
        return siglip.get_image_features(image, interpolate_pos_encoding=True).pooler_output
    height, width = (side // 8 for side in image.shape[-2:])
    patches = image.reshape(len(image), 3, height, 8, width, 8).permute(0, 2, 4, 3, 5, 1)
    patches = patches.reshape(len(image), height * width, -1)
    shapes = torch.tensor([[height, width]] * len(image))
    mask = torch.ones(patches.shape[:2], dtype=torch.int64)
    return siglip.get_image_features(patches, mask, shapes).pooler_output


@pytest.mark.parametrize("size", [(32, 32), (48, 48), (24, 56)])
@torch.no_grad()
def test_image_features_are_those_of_siglip(siglip, size):
    image = torch.randn(2, 3, *size)
    found = DenseVLMModel.from_clip(siglip).get_image_features(image).pooler_output
    assert_close(found, image_features(siglip, image), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_siglip_folder_loads_without_conversion(siglip, folder):
    model = DenseVLMModel.from_pretrained(folder)
    assert model.config.projection_dim == 32
    assert model.logit_bias.shape == (1,) and torch.equal(model.logit_scale, siglip.logit_scale)
    image = torch.randn(1, 3, 32, 32)
    assert_close(model.get_image_features(image).pooler_output, image_features(siglip, image), atol=1e-5, rtol=1e-4)
    assert model.get_dense_features(image).shape == (1, 32, 4, 4)


@torch.no_grad()
def test_a_dense_feature_is_the_output_of_the_head_for_that_location_alone(siglip):
    model = DenseVLMModel.from_clip(siglip)
    image = torch.randn(2, 3, 24, 40)
    tower = model.vision_model
    hidden_states = tower.post_layernorm(tower.run(*tower.embed(image)))
    dense = tower(image).dense.flatten(1, 2)
    for location in range(15):
        alone = siglip.vision_model.head(hidden_states[:, location : location + 1])
        assert_close(dense[:, location], alone, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_texts_are_padded_to_full_length_as_in_siglip(siglip, tokenizer):
    model = DenseVLMModel.from_clip(siglip)
    tokens = tokenizer(["a photo of a kite"], padding="max_length", max_length=24, return_tensors="pt").input_ids
    expected = siglip.get_text_features(tokens).pooler_output
    assert_close(model.get_text_features(tokens).pooler_output, expected)
    # The mask is not used, as in the training of these towers.
    assert_close(model.get_text_features(tokens, (tokens != 0).long()).pooler_output, expected)
    # Shorter ones, as pipelines give them, are padded to it, with what the tokenizer pads with.
    short = tokenizer(["a photo of a kite", "sky"], padding=True, return_tensors="pt")
    model.config.text_config.pad_token_id = tokenizer.pad_token_id
    assert_close(model.get_text_features(**short).pooler_output[:1], expected)
    model.config.text_config.pad_token_id = 5
    for inputs in (short, {"input_ids": torch.ones(1, 25, dtype=torch.int64)}):
        with pytest.raises(ValueError, match='padded to 24 tokens with token 5.*tokenize with `padding="max_length"`'):
            model.get_text_features(**inputs)


@torch.no_grad()
def test_texts_of_siglip_2_are_padded_with_the_padding_of_its_vocabulary(siglip):
    # Its checkpoints leave `pad_token_id` to transformers' default, which is the end of a text there.
    config = DenseVLMModel.from_clip(siglip).config
    assert config.text_config.pad_token_id == 1
    config.text_config.vocab_size = 256000
    model = DenseVLMModel(config).eval()
    tokens = torch.tensor([[17, 1203, 1]])
    padded = torch.nn.functional.pad(tokens, (0, 21), value=0)
    found, expected = (model.get_text_features(ids).pooler_output for ids in (tokens, padded))
    assert_close(found, expected)


@torch.no_grad()
def test_category_embeddings_pad_to_full_length(siglip, tokenizer):
    model = DenseVLMModel.from_clip(siglip)
    found = CategoryEmbeddings.compute(CATEGORIES, model, tokenizer, "short")
    sentence = fill_template(SHORT_TEMPLATES[0], CATEGORIES.names[0])
    tokens = tokenizer([sentence], padding="max_length", max_length=24, return_tensors="pt").input_ids
    expected = torch.nn.functional.normalize(siglip.get_text_features(tokens).pooler_output, dim=-1)
    assert_close(found.embeds[:1], expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_siglip_2_gets_the_same_patches_as_from_its_own_processor(make_tower, picture):
    image = picture(40, 24)
    theirs = Siglip2ImageProcessor(patch_size=8, max_num_patches=15)(image, return_tensors="pt")
    assert theirs["spatial_shapes"].tolist() == [[3, 5]]
    model, seen = make_tower("siglip2"), []
    model.vision_model.embeddings.patch_embedding.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    half = [0.5, 0.5, 0.5]
    pixel_values = DenseVLMImageProcessor(40, image_mean=half, image_std=half)(image)["pixel_values"][:, :, :24]
    model.get_dense_features(pixel_values)
    assert_close(seen[0], theirs["pixel_values"])


def test_the_processor_of_a_siglip_folder_is_read(siglip, folder):
    processor = DenseVLMProcessor.from_pretrained(folder)
    assert processor.image_processor.size == {"longest_edge": 32}
    assert processor.image_processor.image_mean == [0.5, 0.5, 0.5]


def test_a_given_size_overrides_that_of_the_processor(folder):
    assert DenseVLMImageProcessor.from_pretrained(folder, size=64).size == {"longest_edge": 64}


def test_a_projection_dim_other_than_the_towers_width_is_refused(siglip):
    config = DenseVLMModel.from_clip(siglip).config
    config.projection_dim = 24
    with pytest.raises(ValueError, match="`projection_dim` is 24, but a siglip2?_vision_model of width 32 has no"):
        DenseVLMModel(config)
    config.projection_dim = 32
    config.vision_config.vision_use_head = False
    with pytest.raises(ValueError, match="without its attention pool"):
        DenseVLMModel(config)
