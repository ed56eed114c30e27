# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Every pair of student and teacher towers: one training step and one evaluation, with tiny models."""

import json

import torch
from safetensors.torch import load_file

from evaluation.evaluate_regions import main as evaluate
from modeling_densevlm import DenseVLMConfig, DenseVLMImageProcessor, DenseVLMModel, DenseVLMProcessor
from tests.conftest import command_line
from training.train import main as train


def evaluation_arguments(model, scenes, output):
    root = scenes / "test"
    values = {
        "model": model,
        "annotations": root / "panoptic.json",
        "images": root / "images",
        "panoptic": root / "panoptic",
        "output": output,
        "categories": scenes / "categories.json",
        "templates": "short",
        "num_workers": 0,
        "device": "cpu",
    }
    return command_line(values)


def test_a_pair_trains_a_step_and_is_evaluated(tower, teacher_tower, folder_of, recipe, scenes, tmp_path):
    before = load_file(folder_of(tower, 0) / "model.safetensors")
    trainer = train(recipe(model=folder_of(tower, 0), teacher=folder_of(teacher_tower, 1), max_steps=1, threshold=0.1))
    logged = trainer.state.log_history[0]
    assert logged["regions_kept"] > 0 and 0 < logged["loss"] < float("inf")
    after = load_file(tmp_path / "run" / "model.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert moved == trained
    assert DenseVLMConfig.from_pretrained(tmp_path / "run").vision_config.model_type == (
        DenseVLMModel.from_pretrained(folder_of(tower, 0)).config.vision_config.model_type
    )
    evaluate(evaluation_arguments(tmp_path / "run", scenes, tmp_path / "metrics.json"))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["images"] == 10 and metrics["thing_regions"] > 0 and metrics["stuff_regions"] > 0
    assert 0 <= metrics["masks_stuff_top1"] <= metrics["masks_stuff_top5"] <= 1


def test_every_tower_trains_by_clipself_from_its_own_crops(tower, folder_of, recipe):
    options = {"method": "clipself", "crops": 2, "max_grid": 2, "activation_checkpointing": True}
    trainer = train(recipe(model=folder_of(tower, 0), max_steps=2, **options))
    assert all(0 < entry["loss"] < 2 for entry in trainer.state.log_history if "loss" in entry)


def test_teacher_and_student_have_embedding_spaces_of_different_width(tokenizer, recipe, tmp_path):
    # Like EVA-CLIP L/14 and ViT-B/16: 24 narrow blocks, patch size 14, an embedding space 1.5 times as wide.
    def save(name, projection_dim, side, vision):
        torch.manual_seed(1)
        text = {"vocab_size": len(tokenizer), "hidden_size": projection_dim, "intermediate_size": 2 * projection_dim}
        text |= {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 32}
        model = DenseVLMModel(DenseVLMConfig(vision_config=vision, text_config=text, projection_dim=projection_dim))
        model.save_pretrained(tmp_path / name)
        DenseVLMProcessor(DenseVLMImageProcessor(side), tokenizer).save_pretrained(tmp_path / name)
        return tmp_path / name

    large = {"model_type": "eva02_clip_vision_model", "hidden_size": 64, "num_attention_heads": 4}
    large |= {"intermediate_size": int(64 * 2.6667), "num_hidden_layers": 24, "image_size": 84, "patch_size": 14}
    base = {"model_type": "clip_vision_model", "hidden_size": 48, "num_attention_heads": 4}
    base |= {"intermediate_size": 192, "num_hidden_layers": 12, "image_size": 64, "patch_size": 16}
    teacher, student = save("teacher", 48, 84, large), save("student", 32, 64, base)
    trainer = train(recipe(model=student, teacher=teacher, max_steps=20, learning_rate=2e-3, threshold=0.0))
    assert trainer.teacher_text_embeds.shape[1] == 48 and trainer.student_text_embeds.shape[1] == 32
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-5:]) < sum(losses[:5])


def test_the_two_programs_run_from_the_shell_with_other_towers(folder_of, recipe, scenes, run_module, tmp_path):
    arguments = recipe(model=folder_of("eva02_clip", 0), teacher=folder_of("siglip", 1), max_steps=1, threshold=0.1)
    run_module("training.train", arguments)
    arguments = evaluation_arguments(tmp_path / "run", scenes, tmp_path / "metrics.json")
    done = run_module("evaluation.evaluate_regions", arguments)
    assert "masks_stuff_top1" in done.stdout
