# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Training and evaluation on two real COCO images, with a CLIP shaped like ViT-B/16, through both command lines."""

import json

import pytest
from transformers import CLIPConfig, CLIPModel

from modeling_densevlm import CategorySet, DenseVLMImageProcessor, DenseVLMModel, DenseVLMProcessor
from training.sandbox.tokenizer import category_sentences, word_tokenizer


def save_vit_b16(folder, tokenizer, seed):
    """Randomly initialized: the real weights and CLIP's vocabulary are not available in a test."""
    import torch

    torch.manual_seed(seed)
    text = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "num_hidden_layers": 2}
    clip = CLIPModel(CLIPConfig(vision_config={"patch_size": 16, "image_size": 224}, text_config=text)).eval()
    DenseVLMModel.from_clip(clip).save_pretrained(folder)
    DenseVLMProcessor(DenseVLMImageProcessor(224), tokenizer).save_pretrained(folder)


@pytest.mark.slow
def test_train_and_evaluate_on_coco(coco_sample, tmp_path, run_module):
    sets = [CategorySet.load(name) for name in ("coco_stuff_ade20k_316", "coco_panoptic_133")]
    tokenizer = word_tokenizer([s for categories in sets for s in category_sentences(categories)], 77)
    for seed, name in enumerate(("student", "teacher")):
        save_vit_b16(tmp_path / name, tokenizer, seed)
    run = tmp_path / "run"
    arguments = ["--model", tmp_path / "student", "--teacher", tmp_path / "teacher", "--output_dir", run]
    arguments += ["--images", coco_sample / "images", "--annotations", coco_sample / "panoptic.json"]
    arguments += [
        "--templates",
        "short",
        "--per_device_train_batch_size",
        "2",
        "--max_steps",
        "2",
        "--threshold",
        "0.0",
    ]
    arguments += ["--logging_steps", "1", "--use_cpu", "true", "--report_to", "none", "--save_strategy", "no"]
    run_module("training.train", arguments)
    log = json.loads((run / "trainer_state.json").read_text())["log_history"]
    assert [e["regions_kept"] == e["regions"] > 0 for e in log if "loss" in e] == [True, True]
    arguments = ["--model", run, "--annotations", coco_sample / "panoptic.json", "--templates", "short"]
    arguments += ["--images", coco_sample / "images", "--panoptic", coco_sample / "panoptic"]
    arguments += ["--categories", "coco_panoptic_133", "--output", tmp_path / "metrics.json"]
    run_module("evaluation.evaluate_regions", arguments)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["images"], metrics["thing_regions"], metrics["stuff_regions"]) == (2, 43, 7)
    assert 0 <= metrics["boxes_top1"] <= metrics["boxes_top5"] <= 1
