# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Training on the GPU matches the CPU, also with cached teacher predictions, over NCCL and after a kill."""

import re

import pytest

from tests.distributed.launching import kill, largest_difference, wait_for
from tests.distributed.test_ranks import SGD
from tests.gpu.launching import launch, start
from training import cache_teacher
from training.train import main


PAIRS = [
    ("densevlm", "clip_vit", "eva02_clip"),
    ("densevlm", "eva02_clip", "clip_vit"),
    ("densevlm", "clip_resnet", "siglip"),
    ("densevlm", "convnext", "timm_vit"),
    ("densevlm", "siglip2", "convnext"),
    ("clipself", "clip_vit", None),
    ("clipself", "eva02_clip", None),
]


def losses_of(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(("method", "student", "teacher"), PAIRS)
def test_a_step_matches_the_cpu(
    on_device, folder_of, tower_names, tmp_path, method, student, teacher, record_property
):
    if missing := {student, teacher or student} - set(tower_names):
        pytest.skip(f"{', '.join(missing)}: built by timm (extra `vision`)")
    options = SGD | {"method": method, "model": folder_of(student, 0), "max_steps": 1}
    if teacher:
        options |= {"teacher": folder_of(teacher, 1), "threshold": 0.1}
    on_cpu, on_gpu = tmp_path / "cpu", tmp_path / "device"
    expected = losses_of(main(on_device(on="cpu", output_dir=on_cpu, **options)))
    trainer = main(on_device(output_dir=on_gpu, **options))
    moved, difference = largest_difference(folder_of(student, 0), on_cpu), largest_difference(on_cpu, on_gpu)
    record_property("moved", f"{moved:.1e}")
    record_property("largest difference", f"{difference:.1e}")
    assert losses_of(trainer) == pytest.approx(expected, rel=1e-3)
    assert moved > 1e-5 and difference < max(1e-5, 0.01 * moved)


def test_steps_in_bfloat16_are_close_to_float32(on_device, folder_of, tmp_path):
    options = SGD | {"model": folder_of("eva02_clip", 0), "teacher": folder_of("clip_vit", 1), "threshold": 0.05}
    full = losses_of(main(on_device(output_dir=tmp_path / "full", **options)))
    half = losses_of(main(on_device(output_dir=tmp_path / "half", bf16=True, teacher_dtype="bfloat16", **options)))
    assert half == pytest.approx(full, rel=0.1)


def test_training_with_cached_predictions_matches_training_with_the_teacher(on_device, student, tmp_path):
    cache_teacher.main(on_device(teacher_cache=tmp_path / "cache", teacher_cache_top_k=0))
    online, offline = tmp_path / "online", tmp_path / "offline"
    with_teacher = main(on_device(output_dir=online, **SGD))
    with_cache = main(on_device(output_dir=offline, teacher_cache=tmp_path / "cache", **SGD))
    assert with_cache.teacher is None
    assert losses_of(with_cache) == pytest.approx(losses_of(with_teacher), rel=1e-3)
    assert largest_difference(online, offline) < 0.02 * largest_difference(student, online)


ONE_RANK = SGD | {"learning_rate": 0.005, "max_steps": 24, "save_strategy": "steps", "save_steps": 2}


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("whole")


@pytest.fixture
def whole(on_device, whole_folder):
    """The folder of a run on one rank under DDP with its output, shared by two tests."""
    output = whole_folder / "output.txt"
    if not output.exists():
        output.write_text(launch(on_device(output_dir=whole_folder, **ONE_RANK)))
    return whole_folder


def test_one_rank_under_ddp_and_fsdp_matches_no_wrapper(on_device, student, device, whole, tmp_path, record_property):
    """Over NCCL on a GPU."""
    alone, sharded = tmp_path / "alone", tmp_path / "sharded"
    main(on_device(output_dir=alone, **ONE_RANK | {"save_strategy": "no"}))
    moved = largest_difference(student, alone)
    options = ONE_RANK | {"save_strategy": "no"}
    output = launch([*on_device(output_dir=sharded, **options), "--fsdp"])
    backend = "nccl" if device == "cuda" else "gloo"
    assert re.search(f"Trained as DistributedDataParallel over .*{backend}", (whole / "output.txt").read_text())
    assert re.search(f"Trained as FSDPDenseVLMModel over .*{backend}", output)
    for folder, name in ((whole, "DDP"), (sharded, "FSDP")):
        difference = largest_difference(alone, folder)
        record_property(f"{name}, largest difference, of {moved:.1e} moved", f"{difference:.1e}")
        assert moved > 1e-3 and difference < (1e-6 if device == "cpu" else 0.01 * moved), name


def test_killed_and_resumed_matches_uninterrupted(on_device, student, device, whole, tmp_path, record_property):
    """Bit for bit on a CPU; a GPU may sum in another order."""
    killed = tmp_path / "killed"
    process = start(on_device(output_dir=killed, **ONE_RANK))
    wait_for((killed / "checkpoint-2").exists, process)
    kill(process)
    assert not (killed / "model.safetensors").exists()
    arguments = on_device(output_dir=killed, resume_from_checkpoint="last", **ONE_RANK)
    assert "Resumed from" in launch(arguments)
    difference, moved = largest_difference(whole, killed), largest_difference(student, whole)
    record_property(f"largest difference, of {moved:.1e} moved", f"{difference:.1e}")
    assert difference <= (0 if device == "cpu" else 0.01 * moved)
