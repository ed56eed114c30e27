# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The sandbox: scenes, tokenizer, tiny models and their shipped folders."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import TrainerCallback

from modeling_densevlm import DenseVLMModel, DenseVLMProcessor
from modeling_densevlm.canvas import masks_to_map
from training.sandbox.pretrain import SIDE, TOWERS, build_trainer, contrastive_loss, pretrain, random_view
from training.sandbox.scenes import CATEGORIES, SIZES, STUFF, THINGS, caption, make_scene, seen_from
from training.sandbox.ship import CARDS, RESULTS
from training.sandbox.stuff import COLOURS, texture
from training.sandbox.things import DRAWINGS
from training.sandbox.tokenizer import word_tokenizer


ROOT = Path(__file__).parents[2]
SHIPPED = tuple(CARDS)


def test_a_scene_is_a_function_of_seed_split_and_index():
    first, again, other = make_scene(0, "test", 5), make_scene(0, "test", 5), make_scene(1, "test", 5)
    assert (first.image == again.image).all() and first.names == again.names
    assert first.image.shape != other.image.shape or (first.image != other.image).any()
    val = make_scene(0, "val", 5)
    assert first.image.shape != val.image.shape or (first.image != val.image).any()


def test_segments_cover_the_scene_exactly():
    for index in range(30):
        scene = make_scene(0, "train", index)
        numbers = np.unique(scene.segment_ids[scene.segment_ids > 0])
        assert numbers.tolist() == list(range(1, len(scene.names) + 1))
        assert (scene.segment_ids == 0).mean() < 0.02  # pixels of segments that were dropped as hidden


def test_scenes_have_four_aspects_and_twice_the_pixels_of_pretraining():
    shapes = {make_scene(0, "test", index).image.shape for index in range(40)}
    assert shapes == {(height, width, 3) for width, height in SIZES} and len(shapes) == 4
    assert all(max(shape) == 2 * SIDE for shape in shapes)


@pytest.mark.parametrize(("split", "share"), [("train", 0.5), ("test", 1 / 12)])
def test_the_share_of_things_on_their_home_is_that_of_the_split(split, share):
    scenes = [make_scene(0, split, index) for index in range(300)]
    at_home = [home for s in scenes for name, home in zip(s.names, s.at_home) if name in THINGS]
    assert np.mean(at_home) == pytest.approx(share, abs=0.06)


def test_every_second_picture_of_pretraining_is_a_close_up_of_one_thing():
    scenes = [make_scene(0, "pretrain_u", index) for index in range(200)]
    close_ups = [scene for scene in scenes if scene.close_up]
    assert len(close_ups) / len(scenes) == pytest.approx(0.5, abs=0.1)
    assert all(sum(name in THINGS for name in scene.names) <= 1 for scene in close_ups)
    assert not any(make_scene(0, split, index).close_up for split in ("train", "val", "test") for index in range(20))


def test_p_sees_stuff_alone_more_often_than_u():
    bare = {
        split: np.mean([not set(make_scene(0, split, i).names) & set(THINGS) for i in range(300)])
        for split in ("pretrain_u", "pretrain_p")
    }
    assert bare["pretrain_u"] < 0.08 < 0.1 < bare["pretrain_p"] < 0.25


def test_stuff_from_nearby_is_enlarged():
    def draw(height, width):
        return np.tile(np.arange(width, dtype=np.float32)[None, :, None] % 2 * 200, (height, 1, 3))

    assert (seen_from(1.0, draw, 40, 60) == draw(40, 60)).all()
    stripes = seen_from(2.0, draw, 40, 60)[20, :, 0] > 100
    assert stripes.shape == (60,) and (np.diff(stripes).sum()) == 29  # thirty stripes, of two pixels each


def test_a_view_is_the_whole_picture_or_at_least_two_fifths_of_it_as_a_square():
    rows = torch.arange(64, dtype=torch.uint8)[:, None].expand(64, 96)
    columns = torch.arange(96, dtype=torch.uint8)[None].expand(64, 96)
    picture = torch.stack([rows, columns, torch.full((64, 96), 200, dtype=torch.uint8)])
    rng = np.random.default_rng(0)
    views = [random_view(picture, 0.5, rng) for _ in range(200)]
    assert {view.shape for view in views} == {(3, 96, 96)}
    whole = [view for view in views if (view[:, 64:] == 0).all()]
    assert len(whole) / len(views) == pytest.approx(0.5, abs=0.1)
    assert all(torch.equal(view[0, :64], rows) for view in whole)
    assert {bool(view[1, 0, 0] == 0) for view in whole} == {True, False}  # mirrored or not
    parts = [view for view in views if not (view[:, 64:] == 0).all()]
    assert all((view[2] == 200).all() for view in parts)  # no padding
    assert all((random_view(picture, 0.0, rng)[:, 64:] == 0).all() for _ in range(20))
    shares = [float((view[0].max() - view[0].min()) / 63 * (view[1].max() - view[1].min()) / 95) for view in parts]
    assert 0.37 < min(shares) < 0.5 < max(shares)


def test_some_things_are_cut_by_the_border_and_hardly_a_mask_is_empty_on_a_map_of_eight_cells():
    touching = masks = empty = 0
    for index in range(200):
        scene = make_scene(0, "test", index)
        size = [round(length * 8 / max(scene.segment_ids.shape)) for length in scene.segment_ids.shape]
        for number, name in enumerate(scene.names, 1):
            if name in THINGS:
                mask = torch.from_numpy(scene.segment_ids == number)
                rim = torch.cat([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
                touching, masks = touching + bool(rim.any()), masks + 1
                empty += not masks_to_map(mask[None], (size[0], size[1]), (8, 8)).any()
    assert 0.05 < touching / masks < 0.35
    assert empty / masks < 0.02  # thin or mostly hidden things


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


def test_every_thing_has_a_home_a_drawing_and_every_kind_of_stuff_a_texture():
    assert set(CATEGORIES.names) == set(THINGS) | set(STUFF) and len(THINGS) == 16 and len(STUFF) == 12
    assert set(DRAWINGS) == set(THINGS) and set(COLOURS) == set(STUFF)


def test_kinds_of_stuff_that_share_their_colours_differ_in_structure():
    rng = np.random.default_rng(0)
    for first, second in (("wall", "tiles"), ("water", "curtain"), ("grass", "field"), ("sand", "gravel")):
        assert set(COLOURS[first]) & set(COLOURS[second])
        variation = []
        for name in (first, second):
            light = np.stack([texture(rng, name, 96, 96).mean(-1) for _ in range(8)])
            across, down = np.abs(np.diff(light, axis=2)).mean(), np.abs(np.diff(light, axis=1)).mean()
            variation.append(np.array([across, down]))
        assert np.abs(np.log(variation[0] / variation[1])).max() > 0.3, (first, second)


def test_pictures_with_the_same_caption_are_no_negatives_of_each_other():
    embeds = torch.eye(3)
    alone, shared = torch.eye(3), torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    scale = torch.tensor(2.0)
    row = torch.log_softmax(torch.tensor([2.0, 0.0, 0.0]), 0)
    assert contrastive_loss(embeds, embeds, scale, alone).item() == pytest.approx(-row[0].item())
    expected = (2 * -(row[0] + row[1]) / 2 - row[0]) / 3
    assert contrastive_loss(embeds, embeds, scale, shared).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("name", TOWERS)
def test_a_pretraining_that_was_stopped_continues_to_the_same_weights(name, tmp_path):
    options = {"steps": 4, "scenes": 16, "batch_size": 8}
    whole = pretrain(name, tmp_path / "whole", **options)
    stopped = build_trainer(name, tmp_path / "stopped", **options)
    stopped.args.save_steps = 2
    stopped.add_callback(StopAfter(2))
    stopped.train()
    continued = pretrain(name, tmp_path / "stopped", **options)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, continued.state_dict()[name]), name


class StopAfter(TrainerCallback):
    def __init__(self, steps):
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.steps


def test_the_word_tokenizer_ends_every_sentence_with_its_largest_id():
    tokenizer = word_tokenizer(["A photo of a kite"], max_length=8)
    tokens = tokenizer(["a kite", "PHOTO of a kite"], padding=True, return_tensors="pt").input_ids
    assert tokens.max() == tokenizer.eos_token_id == len(tokenizer) - 1
    assert (tokens.argmax(1) == torch.tensor([3, 5])).all()


def test_every_parameter_is_optimized_once_and_matrices_of_blocks_by_muon(tmp_path):
    trainer = build_trainer("P", tmp_path, steps=1, scenes=8, batch_size=8)
    groups = trainer.create_optimizer().param_groups
    optimized = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(optimized) == sorted(map(id, trainer.model.parameters()))
    by_muon = {id(p) for group in groups if not group.get("use_fallback") for p in group["params"]}
    names = {name for name, parameter in trainer.model.named_parameters() if id(parameter) in by_muon}
    assert "vision_model.encoder.layers.4.mlp.fc1.weight" in names
    assert "text_model.encoder.layers.1.self_attn.q_proj.weight" in names
    assert not [name for name in names if "embedding" in name or "projection" in name or "bias" in name]


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
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "apache-2.0" and card.data.to_dict()["library_name"] == "transformers"
    assert {result.metric_name for result in card.data.eval_results} == {title for title, _ in RESULTS.values()}


def test_the_shipped_folders_are_small():
    files = [f for name in SHIPPED for f in (ROOT / "model_cards" / name).rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) < 12e6


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
