# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The sandbox: scenes, tokenizer, tiny models and their shipped folders."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from modeling_densevlm import DenseVLMModel, DenseVLMProcessor
from training.sandbox.pretrain import TOWERS, pretrain
from training.sandbox.scenes import CATEGORIES, HOMES, SIZE, STUFF, THINGS, caption, make_scene
from training.sandbox.tokenizer import word_tokenizer


ROOT = Path(__file__).parents[2]
SHIPPED = ("densevlm-sandbox-u", "densevlm-sandbox-clipself-u", "densevlm-sandbox-p")


def test_a_scene_is_a_function_of_seed_split_and_index():
    first, again, other = make_scene(0, "test", 5), make_scene(0, "test", 5), make_scene(1, "test", 5)
    assert (first.image == again.image).all() and first.names == again.names
    assert (first.image != other.image).any()
    assert (first.image != make_scene(0, "val", 5).image).any()


def test_segments_cover_the_scene_exactly():
    for index in range(30):
        scene = make_scene(0, "train", index)
        assert scene.image.shape == (SIZE, SIZE, 3)
        numbers = np.unique(scene.segment_ids[scene.segment_ids > 0])
        assert numbers.tolist() == list(range(1, len(scene.names) + 1))
        assert (scene.segment_ids == 0).mean() < 0.02  # pixels of segments that were dropped as hidden


@pytest.mark.parametrize(("split", "share"), [("train", 0.5), ("test", 0.125)])
def test_the_share_of_things_on_their_home_is_that_of_the_split(split, share):
    scenes = [make_scene(0, split, index) for index in range(300)]
    at_home = [home for s in scenes for name, home in zip(s.names, s.at_home) if name in THINGS]
    assert np.mean(at_home) == pytest.approx(share, abs=0.06)


def test_a_caption_mentions_every_thing_and_rarely_stuff():
    rng = np.random.default_rng(0)
    scenes = [make_scene(0, "train", index) for index in range(200)]
    named, present = 0, 0
    for scene in scenes:
        words = caption(scene, rng, stuff_probability=0.1).split()
        things = [name for name in scene.names if name in THINGS]
        assert all(name in words for name in things)
        if things:
            named += sum(name in words for name in scene.names if name in STUFF)
            present += sum(name in STUFF for name in scene.names)
    assert named / present == pytest.approx(0.1, abs=0.05)


def test_the_caption_of_a_scene_without_things_mentions_its_stuff():
    rng = np.random.default_rng(0)
    bare = next(s for s in (make_scene(0, "train", i) for i in range(200)) if not set(s.names) & set(THINGS))
    assert all(name in caption(bare, rng, 0.0).split() for name in bare.names)


def test_every_thing_has_a_home():
    assert set(CATEGORIES.names) == set(THINGS) | set(STUFF)
    assert len(THINGS) == 2 * len(HOMES) == 16


def test_the_word_tokenizer_ends_every_sentence_with_its_largest_id():
    tokenizer = word_tokenizer(["A photo of a kite"], max_length=8)
    tokens = tokenizer(["a kite", "PHOTO of a kite"], padding=True, return_tensors="pt").input_ids
    assert tokens.max() == tokenizer.eos_token_id == len(tokenizer) - 1
    assert (tokens.argmax(1) == torch.tensor([3, 5])).all()


@pytest.mark.parametrize("name", TOWERS)
def test_pretraining_writes_a_folder_that_trains_and_evaluates(name, tmp_path):
    pretrain(name, tmp_path, steps=2, scenes=16, batch_size=8)
    model = DenseVLMModel.from_pretrained(tmp_path)
    processor = DenseVLMProcessor.from_pretrained(tmp_path)
    tokens = processor(text=["a kite"], return_tensors="pt")
    assert model.get_text_features(**tokens).pooler_output.shape == (1, 96)


def test_p_is_larger_than_u():
    sizes = [
        sum(p.numel() for p in DenseVLMModel.from_pretrained(ROOT / "model_cards" / name).parameters())
        for name in ("densevlm-sandbox-u", "densevlm-sandbox-p")
    ]
    assert sizes[0] < 1.5e6 < sizes[1]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_folder_is_complete_but_for_the_code(name):
    folder = ROOT / "model_cards" / name
    for file in ("README.md", "config.json", "model.safetensors", "tokenizer.json", "processor_config.json"):
        assert (folder / file).is_file(), file
    model = DenseVLMModel.from_pretrained(folder)
    assert model.dtype == torch.float16
    head = (folder / "README.md").read_text().split("---")[1]
    assert "license: apache-2.0" in head and "library_name: transformers" in head


def test_the_shipped_folders_are_small():
    files = [f for name in SHIPPED for f in (ROOT / "model_cards" / name).rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) < 10e6


def test_the_shipped_models_train_and_evaluate_through_the_command_lines(scenes, tmp_path, run_module):
    data = ["--images", scenes / "train" / "images", "--categories", scenes / "categories.json"]
    short = ["--max_steps", "2", "--per_device_train_batch_size", "8", "--output_dir", tmp_path / "run"]
    run_module("training.train", ["training/recipes/sandbox.yaml", *data, *short])
    metrics = {}
    for name, folder in (("u", "model_cards/densevlm-sandbox-u"), ("p", "model_cards/densevlm-sandbox-p"),
                         ("run", tmp_path / "run")):  # fmt: skip
        test, output = scenes / "test", tmp_path / f"{name}.json"
        arguments = ["--model", folder, "--annotations", test / "panoptic.json", "--images", test / "images"]
        arguments += ["--panoptic", test / "panoptic", "--templates", "short", "--output", output]
        run_module("evaluation.evaluate_regions", arguments)
        metrics[name] = json.loads(output.read_text())
    # Ten scenes suffice for this only: the teacher recognises things that the plain CLIP does not.
    assert metrics["p"]["boxes_top1"] > 2 * metrics["u"]["boxes_top1"]
    assert metrics["run"]["images"] == 10
