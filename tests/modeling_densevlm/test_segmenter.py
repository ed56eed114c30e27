# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""DenseVLMForSemanticSegmentation: a vocabulary in, one category per pixel out."""

import re
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForSemanticSegmentation, pipeline

from modeling_densevlm import (
    CategoryEmbeddings,
    CategorySet,
    DenseVLMForSemanticSegmentation,
    DenseVLMModel,
    DenseVLMProcessor,
)


ROOT = Path(__file__).parents[2]
WORDS = CategorySet(["kite", "boat", "sky", "water"], [True, True, False, False])


@pytest.fixture
def segmenter(student):
    return DenseVLMForSemanticSegmentation.from_pretrained(student).set_categories(WORDS, "short")


@pytest.fixture
def processor(student):
    return DenseVLMProcessor.from_pretrained(student)


@pytest.fixture
def pixel_values():
    return torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_logits_are_cosines_of_locations_and_categories_over_the_temperature(segmenter, processor, pixel_values):
    embeddings = CategoryEmbeddings.compute(WORDS, segmenter.densevlm, processor.tokenizer, "short")
    dense = segmenter.densevlm.get_dense_features(pixel_values)
    expected = torch.einsum("bdhw,cd->bchw", dense, embeddings.embeds) * segmenter.densevlm.logit_scale.exp()
    assert_close(segmenter(pixel_values).logits, expected)
    assert segmenter(pixel_values, return_dict=False)[0].shape == (2, 4, 8, 8)


@torch.no_grad()
def test_the_vocabulary_travels_with_the_folder(segmenter, pixel_values, tmp_path):
    segmenter.save_pretrained(tmp_path)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    assert type(loaded) is DenseVLMForSemanticSegmentation
    assert loaded.config.id2label == {0: "kite", 1: "boat", 2: "sky", 3: "water"}
    assert loaded.config.label2id["sky"] == 2
    assert loaded.config.categories["is_thing"] == [True, True, False, False]
    assert_close(loaded(pixel_values).logits, segmenter(pixel_values).logits)
    assert DenseVLMModel.from_pretrained(tmp_path).fingerprint() == segmenter.densevlm.fingerprint()


def test_a_vocabulary_without_its_embeddings_is_not_taken_for_one(segmenter, pixel_values, tmp_path):
    segmenter.save_pretrained(tmp_path / "segmenter")
    DenseVLMModel.from_pretrained(tmp_path / "segmenter").save_pretrained(tmp_path / "model")
    loaded = DenseVLMForSemanticSegmentation.from_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="no vocabulary"):
        loaded(pixel_values)


@torch.no_grad()
def test_another_vocabulary_replaces_the_first(segmenter, pixel_values, processor, tmp_path):
    segmenter.save_pretrained(tmp_path)
    loaded = DenseVLMForSemanticSegmentation.from_pretrained(tmp_path)
    loaded.set_categories(["tent", "bear"], templates="short", processor=processor)
    assert loaded.config.id2label == {0: "tent", 1: "bear"} and loaded(pixel_values).logits.shape[1] == 2
    assert loaded.config.categories["is_thing"] is None


@torch.no_grad()
def test_the_offset_is_subtracted_from_the_cosines_of_things_only(segmenter, pixel_values):
    plain = segmenter(pixel_values).logits * segmenter.temperature
    segmenter.config.thing_offset = 0.05
    shifted = segmenter(pixel_values).logits * segmenter.temperature
    assert_close(shifted[:, :2], plain[:, :2] - 0.05)
    assert_close(shifted[:, 2:], plain[:, 2:])
    segmenter.set_categories(["kite", "sky"], templates="short")
    with pytest.raises(ValueError, match="`config.thing_offset` needs a vocabulary with thing / stuff flags"):
        segmenter(pixel_values)


@torch.no_grad()
def test_windows_are_independent_and_averaged_where_they_overlap(segmenter, pixel_values):
    """Cells of 12 pixels, windows of 5 cells at a distance of 3: two along each side of 8 cells."""
    segmenter.config.window_size, segmenter.config.window_stride = 60, 36

    def window(y, x):
        return segmenter.densevlm.get_dense_features(pixel_values[..., y : y + 60, x : x + 60])

    dense = segmenter.dense_map(pixel_values)
    assert dense.shape == (2, 24, 8, 8)
    assert_close(dense[..., :3, :3], window(0, 0)[..., :3, :3])
    assert_close(dense[..., 5:, :3], window(36, 0)[..., 2:, :3])
    parts = window(0, 0)[..., 4, 4] + window(0, 36)[..., 4, 1] + window(36, 0)[..., 1, 4] + window(36, 36)[..., 1, 1]
    assert_close(dense[..., 4, 4], parts / 4)


@torch.no_grad()
def test_a_window_as_large_as_the_image_equals_no_window(segmenter, pixel_values):
    plain = segmenter(pixel_values).logits
    segmenter.config.window_size = 96
    assert_close(segmenter(pixel_values).logits, plain)


@torch.no_grad()
def test_windows_cover_images_that_are_no_squares(segmenter, pixel_values):
    segmenter.config.window_size, segmenter.config.window_stride = 48, 24
    logits = segmenter(pixel_values[..., :36, :]).logits
    assert logits.shape == (2, 4, 3, 8) and logits.isfinite().all()


@pytest.mark.parametrize(("window", "stride"), [(50, None), (48, 20), (48, 60)])
def test_windows_that_are_no_multiples_of_the_patch_are_refused(segmenter, pixel_values, window, stride):
    segmenter.config.window_size, segmenter.config.window_stride = window, stride
    with pytest.raises(ValueError, match=r"is a multiple of the patch, 12 pixels, and at most the window"):
        segmenter(pixel_values)


def test_pixels_without_a_probable_category_are_background(segmenter, processor, picture):
    image = picture(90, 60)
    inputs = processor(images=image)

    def labels():
        with torch.no_grad():
            outputs = segmenter(**inputs)
        return processor.post_process_semantic_segmentation(outputs, target_sizes=[(60, 90)])[0]

    plain = labels()
    segmenter.config.background = "kite"
    for threshold, everywhere in ((0.0, False), (1.0, True)):
        segmenter.config.background_threshold = threshold
        assert ((labels() == 0).all()) == everywhere
        assert everywhere or (labels() == plain)[plain != 0].all()
    segmenter.config.background = "tree"
    with pytest.raises(ValueError, match="`config.background` is one of the categories, got 'tree'"):
        labels()


@torch.no_grad()
def test_logits_are_enlarged_as_the_configuration_says(segmenter, processor, picture, tmp_path):
    image = picture(96, 96)
    inputs = processor(images=image)
    plain = {}
    for mode in ("bilinear", "bicubic", "nearest"):
        segmenter.config.upsampling = mode
        segmenter.save_pretrained(tmp_path / mode)
        outputs = DenseVLMForSemanticSegmentation.from_pretrained(tmp_path / mode)(**inputs)
        plain[mode] = processor.post_process_semantic_segmentation(outputs, target_sizes=[(96, 96)])[0]
    cells = outputs.logits[0].argmax(0).repeat_interleave(12, 0).repeat_interleave(12, 1)
    assert torch.equal(plain["nearest"], cells)
    assert not torch.equal(plain["bilinear"], cells) and not torch.equal(plain["bilinear"], plain["bicubic"])
    segmenter.config.upsampling = "cubic"
    with pytest.raises(ValueError, match="`upsampling` is one of bilinear, bicubic, nearest, got 'cubic'"):
        processor.post_process_semantic_segmentation(segmenter(**inputs), target_sizes=[(96, 96)])


@torch.no_grad()
def test_the_head_shares_the_weights_of_a_model_in_memory(student, pixel_values):
    model = DenseVLMModel.from_pretrained(student)
    segmenter = DenseVLMForSemanticSegmentation.from_densevlm(model).set_categories(WORDS, "short")
    assert segmenter.densevlm is model and not segmenter.training
    assert model.config.categories is None
    assert segmenter(pixel_values).logits.shape == (2, 4, 8, 8)


def test_what_is_missing_is_named(student, pixel_values, tmp_path):
    segmenter = DenseVLMForSemanticSegmentation.from_pretrained(student)
    with pytest.raises(ValueError, match=r"no vocabulary: call `set_categories\(\[...\]\)` first"):
        segmenter(pixel_values)
    with pytest.raises(ValueError, match=r"list of names, got 'boat,sky': give \['boat', 'sky'\]"):
        segmenter.set_categories("boat,sky")
    with pytest.raises(TypeError, match="does not support labels"):
        segmenter.set_categories(WORDS, "short")(pixel_values, labels=torch.zeros(2, 96, 96))
    segmenter.save_pretrained(tmp_path)  # without its tokenizer
    with pytest.raises(ValueError, match="No tokenizer could be loaded from .*, give `processor`"):
        DenseVLMForSemanticSegmentation.from_pretrained(tmp_path).set_categories(WORDS)
    embeddings = CategoryEmbeddings(torch.eye(2), ["a", "b"], None, [[], []], ["{}"], "")
    with pytest.raises(ValueError, match="The embeddings have 2 dimensions, but the model's space has 24"):
        segmenter.set_categories(embeddings)


def test_the_pipeline_of_transformers_segments(tower, folder_of, picture, tmp_path):
    folder = folder_of(tower, 0)
    processor = DenseVLMProcessor.from_pretrained(folder)
    DenseVLMForSemanticSegmentation.from_pretrained(folder).set_categories(WORDS, "short").save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    segments = pipeline("image-segmentation", model=str(tmp_path), device="cpu")(picture(90, 60))
    assert {segment["label"] for segment in segments} <= set(WORDS.names)
    areas = [sum(value > 0 for value in segment["mask"].get_flattened_data()) for segment in segments]
    assert sum(areas) == 90 * 60


def test_the_lines_of_the_docs_run(monkeypatch, tmp_path):
    lines = re.search(r"```python\n(.+?)```", (ROOT / "docs" / "segmentation.md").read_text(), re.DOTALL)[1]
    for name in ("model_cards", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(lines, names)
    assert {segment["label"] for segment in names["segments"]} <= {"kite", "boat", "sky", "water", "sand"}
