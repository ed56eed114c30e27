# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Figures of model predictions on an image."""

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.show import classify_cells, main, similarities
from modeling_densevlm import DenseVLMModel, DenseVLMProcessor


@pytest.fixture
def shown(student, picture, tmp_path):
    model, processor = DenseVLMModel.from_pretrained(student).eval(), DenseVLMProcessor.from_pretrained(student)
    picture(96, 60).save(tmp_path / "image.png")
    text_embeds = torch.nn.functional.normalize(torch.randn(3, model.config.projection_dim), dim=-1)
    return model, processor.image_processor, Image.open(tmp_path / "image.png").convert("RGB"), text_embeds


def test_similarities_cover_the_image_and_match_the_map(shown):
    model, image_processor, image, text_embeds = shown
    found = similarities(*shown)
    assert found.shape == (3, 60, 96)
    with torch.no_grad():
        dense = model.get_dense_features(image_processor(image)["pixel_values"])[0]
    cell = 96 // dense.shape[-1]
    expected = torch.einsum("dhw,cd->chw", dense, text_embeds)[:, 1, 2]
    middle = (
        slice(cell + cell // 2 - 1, cell + cell // 2 + 1),
        slice(2 * cell + cell // 2 - 1, 2 * cell + cell // 2 + 1),
    )
    np.testing.assert_allclose(found[:, *middle].mean((1, 2)), expected.numpy(), atol=0.05)


def test_the_grid_covers_the_content(shown):
    model, image_processor, image, text_embeds = shown
    labels, probabilities = classify_cells(*shown, (1, 1))
    box = torch.tensor([[0.0, 0.0, 1.0, 60 / 96]])
    with torch.no_grad():
        pooled = model.get_region_features(image_processor(image)["pixel_values"], boxes=[box])
    expected = (torch.nn.functional.normalize(pooled, dim=-1) @ text_embeds.T / 0.01).softmax(-1)
    assert labels.item() == expected.argmax() and probabilities.item() == pytest.approx(
        expected.max().item(), rel=1e-4
    )


@pytest.mark.parametrize(
    "words", [["--texts", "sky", "kite"], ["--categories", "categories.json", "--grid", "2", "3"]]
)
def test_the_command_draws_both_kinds_of_figures(shown, student, teacher, scenes, tmp_path, words):
    pytest.importorskip("matplotlib")
    words = [str(scenes / word) if word.endswith(".json") else word for word in words]
    main(
        [
            str(tmp_path / "image.png"),
            "--models",
            str(student),
            str(teacher),
            "--output",
            str(tmp_path / "o.png"),
            *words,
        ]
    )
    assert max(Image.open(tmp_path / "o.png").size) > 400


def test_an_image_size_is_rounded_to_a_multiple_of_the_stride(shown, student, tmp_path, caplog):
    pytest.importorskip("matplotlib")
    words = ["--models", str(student), "--texts", "sky", "--image_size", "50", "--output", str(tmp_path / "o.png")]
    main([str(tmp_path / "image.png"), *words])
    assert "50 pixels become 48" in caplog.text and (tmp_path / "o.png").is_file()


@pytest.mark.parametrize("words", [["--grid", "2", "3"], ["--temperature", "0.1"], ["--threshold", "0.5"]])
def test_options_of_the_grid_are_refused_with_texts(student, tmp_path, capsys, words):
    with pytest.raises(SystemExit):
        main(["x.jpg", "--models", str(student), "--texts", "sky", "--output", str(tmp_path / "o.png"), *words])
    assert f"{words[0]} has no effect with --texts" in capsys.readouterr().err


def test_a_missing_image_is_named(student, tmp_path):
    pytest.importorskip("matplotlib", reason="figures need matplotlib (extra `figures`)")
    with pytest.raises(SystemExit, match="gone.jpg"):
        main(
            [
                str(tmp_path / "gone.jpg"),
                "--models",
                str(student),
                "--texts",
                "sky",
                "--output",
                str(tmp_path / "o.png"),
            ]
        )
