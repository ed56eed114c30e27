# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""TIPSv2 as a DenseVLM: the features of transformers' own class, from the folder that it saves."""

import json

import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close
from transformers import Tipsv2Config, Tipsv2Model

from modeling_densevlm import (
    CategoryEmbeddings,
    DenseVLMConfig,
    DenseVLMForSemanticSegmentation,
    DenseVLMImageProcessor,
    DenseVLMModel,
)


SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def theirs() -> Tipsv2Model:
    """A tiny TIPSv2 in which every parameter is random."""
    torch.manual_seed(0)
    vision = {**SIZES, "image_size": 32, "patch_size": 8, "mlp_ratio": 1.5, "num_register_tokens": 2}
    text = {**SIZES, "intermediate_size": 48, "vocab_size": 99, "max_position_embeddings": 32}
    model = Tipsv2Model(Tipsv2Config(vision_config=vision, text_config=text, temperature_init_value=0.02)).eval()
    for parameter in model.parameters():
        if parameter.ndim:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tipsv2")
    theirs.save_pretrained(folder)  # in the names of its authors' files
    # As `Tipsv2ImageProcessor`, which needs torchvision, saves it.
    options = {"do_convert_rgb": True, "do_normalize": False, "do_rescale": True, "do_resize": True, "resample": 2}
    options |= {"image_processor_type": "Tipsv2ImageProcessor", "rescale_factor": 1 / 255}
    options["size"] = {"height": 448, "width": 448}
    (folder / "preprocessor_config.json").write_text(json.dumps(options))
    return folder


@torch.no_grad()
def test_a_folder_of_transformers_gives_its_features_of_images_locations_and_texts(theirs, folder, tmp_path):
    model = DenseVLMModel.from_pretrained(folder)
    assert model.name_or_path == str(folder) and DenseVLMConfig.from_pretrained(folder).projection_dim == 32
    input_ids = torch.randint(2, 99, (2, 7))
    input_ids[1, 4:] = 0  # padding
    for height, width in ((32, 32), (48, 40)):
        pixel_values = torch.rand(2, 3, height, width)
        expected = theirs.vision_model(pixel_values)
        patches = expected.last_hidden_state[:, 3:].unflatten(1, (height // 8, width // 8))
        assert_close(model.get_dense_features(pixel_values), normalize(patches, dim=-1).permute(0, 3, 1, 2))
        assert_close(model.get_image_features(pixel_values).pooler_output, expected.pooler_output)
    logits = theirs(pixel_values=pixel_values, input_ids=input_ids, attention_mask=(input_ids != 0).long())
    found = model(pixel_values, input_ids=input_ids)  # the padding is recognised without a mask
    assert_close(found.logits_per_image, logits.logits_per_image, atol=1e-4, rtol=1e-4)
    model.save_pretrained(tmp_path)
    assert DenseVLMModel.from_pretrained(tmp_path).fingerprint() == model.fingerprint()


@torch.no_grad()
def test_it_is_a_segmenter_and_a_backbone_too(folder):
    pixel_values = torch.rand(1, 3, 32, 32)
    model = DenseVLMModel.from_pretrained(folder, out_indices=[0, 3], dtype=torch.float32)
    maps = model(pixel_values).feature_maps
    assert [one.shape for one in maps] == [(1, 32, 4, 4)] * 2 and model.out_features == ["block0", "dense"]
    segmenter = DenseVLMForSemanticSegmentation.from_pretrained(folder)
    embeddings = CategoryEmbeddings(torch.eye(32)[:2], ["a", "b"], None, [[], []], ["{}"], "")
    logits = segmenter.set_categories(embeddings)(pixel_values).logits
    assert_close(logits, 50 * model.get_dense_features(pixel_values)[:, :2])  # 1 / 0.02


def test_its_images_are_not_normalised_and_padded_as_all_others(folder, picture):
    processor = DenseVLMImageProcessor.from_pretrained(folder)
    assert processor.size == {"longest_edge": 448} and processor.resample == 3
    pixel_values = processor(picture(448, 448))["pixel_values"][0]
    expected = torch.arange(448 * 448 * 3).reshape(448, 448, 3) * 7 % 256 / 255
    assert_close(pixel_values, expected.permute(2, 0, 1))


def test_one_with_another_text_width_is_refused(folder):
    config = DenseVLMConfig.from_pretrained(folder)
    config.text_config.hidden_size = 16
    with pytest.raises(ValueError, match="The text tower has 16 dimensions, the image-text space 32"):
        DenseVLMModel(config)
