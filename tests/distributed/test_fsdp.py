# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""FSDP 2 of the student and of the teacher does not change the results."""

import json
import shutil
from types import SimpleNamespace

import pytest
from accelerate.utils import FullyShardedDataParallelPlugin

from modeling_densevlm import DenseVLMModel
from tests.distributed.launching import largest_difference, launch
from tests.distributed.test_ranks import SGD
from training import cache_teacher
from training.engine.sharding import prepare_student
from training.train import main


def launch_fsdp(arguments) -> None:
    output = launch([*arguments, "--fsdp"], ranks=2, module="tests.distributed.train_with_fsdp")
    assert "2 processes" in output
    assert output.count("FSDP, is_fsdp2 True") == 2


@pytest.mark.parametrize(("student", "teacher"), [("clip_vit", "eva02_clip"), ("clip_resnet", "clip_vit")])
def test_two_ranks_under_fsdp_save_the_same_as_one_process(recipe, folder_of, tmp_path, student, teacher):
    """With frozen parameters and gradient accumulation."""
    # With the regions kept at 0.1, the weights up to the ResNet's layer2.1 differ by 1e-4 after the third step, under
    # DDP too, and those after it are equal: probably a ReLU's input there is within rounding of 0.
    options = SGD | {"model": folder_of(student, 0), "teacher": folder_of(teacher, 1), "threshold": 0.12}
    alone, sharded = tmp_path / "alone", tmp_path / "sharded"
    main(recipe(output_dir=alone, per_device_train_batch_size=8, **options))
    launch_fsdp(recipe(output_dir=sharded, per_device_train_batch_size=2, **options))
    assert largest_difference(folder_of(student, 0), alone) > 1e-3
    assert largest_difference(alone, sharded) < 1e-6
    # The class that FSDP gives a model appears neither in the configuration nor in the code of the folder.
    assert {file.name for file in sharded.iterdir()} == {file.name for file in alone.iterdir()}
    assert (sharded / "config.json").read_text() == (alone / "config.json").read_text()


def test_a_rank_without_readable_images_takes_part_with_its_shards(recipe, folder_of, scenes, tmp_path):
    """The teacher is sharded, too: each rank must run it, even without images. Gradients are clipped."""
    images = tmp_path / "images"
    shutil.copytree(scenes / "train" / "images", images)
    for index in range(0, 24, 2):
        (images / f"{index:06d}.jpg").write_bytes(b"no image")
    options = SGD | {
        "method": "clipself",
        "model": folder_of("eva02_clip", 0),
        "images": images,
        "global_batch_size": 2,
        "max_steps": 6,
        "max_grad_norm": 1.0,
        "ensemble_alpha": 0.5,
    }
    alone, sharded = tmp_path / "alone", tmp_path / "sharded"
    main(recipe(output_dir=alone, per_device_train_batch_size=2, **options))
    launch_fsdp(recipe(output_dir=sharded, per_device_train_batch_size=1, teacher_sharded=True, **options))
    assert largest_difference(folder_of("eva02_clip", 0), alone) > 1e-3
    assert largest_difference(alone, sharded) < 1e-6
    log = json.loads((sharded / "trainer_state.json").read_text())["log_history"]
    assert 1 in [entry["skipped_images"] for entry in log if "loss" in entry]


def test_a_resumed_fsdp_run_equals_the_uninterrupted_one(recipe, tmp_path):
    """With AdamW, whose moments are sharded with the weights."""
    options = {"global_batch_size": 4, "max_steps": 5, "save_strategy": "steps", "save_steps": 2}
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    launch_fsdp(recipe(output_dir=whole, **options))
    resumed.mkdir()
    shutil.copytree(whole / "checkpoint-2", resumed / "checkpoint-2")
    launch_fsdp(recipe(output_dir=resumed, resume_from_checkpoint="last", **options))
    with pytest.raises(SystemExit, match="was written by a run with FSDP, this one is without"):
        main(recipe(output_dir=whole, per_device_train_batch_size=4, resume_from_checkpoint="last", **options))
    assert DenseVLMModel.from_pretrained(whole / "checkpoint-2")  # the remedy of the message
    assert largest_difference(whole / "checkpoint-2", whole) > 1e-4
    assert largest_difference(whole, resumed) == 0


def test_a_sharded_teacher_has_the_same_outputs_and_each_rank_holds_its_shard(folder_of):
    towers = ("clip_vit", "eva02_clip", "clip_resnet", "siglip")
    launch([str(folder_of(tower, 1)) for tower in towers], ranks=2, module="tests.distributed.shard_a_teacher")


def test_a_sharded_teacher_is_refused_when_filling_a_cache(recipe, tmp_path):
    """Each process runs it on its own images, whose number differs."""
    with pytest.raises(SystemExit, match="teacher_sharded"):
        cache_teacher.main(recipe(teacher_cache=tmp_path, teacher_sharded=True))


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"fsdp_version": 1}, "fsdp_version"),
        ({"state_dict_type": "SHARDED_STATE_DICT"}, "state_dict_type"),
        ({"cpu_ram_efficient_loading": True}, "cpu_ram_efficient_loading"),
    ],
)
def test_settings_that_would_lose_weights_stop_the_run(model, monkeypatch, setting, named):
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")  # the plugin sets it
    values = {"fsdp_version": 2, "state_dict_type": "FULL_STATE_DICT"} | setting
    accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=FullyShardedDataParallelPlugin(**values)))
    with pytest.raises(SystemExit, match=named):
        prepare_student(model, accelerator)
