# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints are atomic, and a run resumes only from one that it can continue exactly."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import fork_server
from training.cache_teacher import main as run_cache_teacher
from training.engine.checkpoints import check_run, find_checkpoint, find_damage, last_checkpoint
from training.teacher_cache import TeacherCache
from training.train import main


ROOT = Path(__file__).parents[2]
STEPS = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}


def losses_of(trainer):
    return [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory):
    return tmp_path_factory.mktemp("saved") / "run"


@pytest.fixture
def saved(recipe, tmp_path, saved_once):
    """A run's folder with three checkpoints, a copy for each test."""
    if not saved_once.exists():
        main(recipe(**STEPS, output_dir=saved_once))
    return shutil.copytree(saved_once, tmp_path / "run")


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
)
def test_a_checkpoint_with_a_truncated_file_is_skipped_and_the_file_named(saved, caplog, name):
    assert last_checkpoint(saved).endswith("checkpoint-3")
    truncate(saved / "checkpoint-3" / name)
    assert last_checkpoint(saved).endswith("checkpoint-2")
    assert "checkpoint-3 is not complete and is skipped" in caplog.text and name in caplog.text
    with pytest.raises(ValueError, match=f"checkpoint-3 is not complete: {name}"):
        find_checkpoint(str(saved / "checkpoint-3"), saved)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json"])
def test_a_checkpoint_with_a_missing_file_is_skipped(saved, name):
    (saved / "checkpoint-3" / name).unlink()
    assert name in find_damage(saved / "checkpoint-3")
    assert last_checkpoint(saved).endswith("checkpoint-2")


def test_other_names_than_those_of_checkpoints_are_ignored(saved):
    (saved / "checkpoint-last").mkdir()
    (saved / "checkpoint-99").write_text("a file")
    assert last_checkpoint(saved).endswith("checkpoint-3")


@pytest.mark.parametrize("resume", [None, "auto", "last"])
def test_a_folder_with_only_incomplete_checkpoints_is_not_overwritten(saved, recipe, resume):
    """E.g. checkpoints without an optimizer, of another program or of a run that saved models only."""
    for checkpoint in saved.glob("checkpoint-*"):
        (checkpoint / "optimizer.pt").unlink()
    before = sorted(saved.rglob("*"))
    with pytest.raises(SystemExit, match="checkpoint"):
        main(recipe(**STEPS, **({} if resume is None else {"resume_from_checkpoint": resume})))
    assert sorted(saved.rglob("*")) == before


def test_auto_starts_a_new_run_or_resumes(recipe, tmp_path):
    first = main(recipe(**STEPS | {"max_steps": 2}, resume_from_checkpoint="auto"))
    second = main(recipe(**STEPS, resume_from_checkpoint="auto"))
    assert [step for step, _ in losses_of(first)] == [1, 2] and [step for step, _ in losses_of(second)] == [1, 2, 3]


def test_no_staging_folder_remains_and_old_checkpoints_are_deleted(recipe, tmp_path):
    main(recipe(**STEPS, save_total_limit=2))
    assert sorted(p.name for p in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    assert not (tmp_path / "run" / ".saving").exists()


def test_a_run_resumed_from_an_older_checkpoint_replaces_the_newer_ones(saved, recipe):
    whole = load_file(saved / "model.safetensors")
    main(recipe(**STEPS, resume_from_checkpoint=saved / "checkpoint-1"))
    assert all(torch.equal(whole[name], tensor) for name, tensor in load_file(saved / "model.safetensors").items())
    assert last_checkpoint(saved).endswith("checkpoint-3") and not (saved / ".saving").exists()


def test_the_checkpoints_of_an_abandoned_continuation_are_not_resumed(saved, recipe, caplog):
    main(recipe(**STEPS | {"max_steps": 2}, save_total_limit=1, resume_from_checkpoint=saved / "checkpoint-1"))
    assert last_checkpoint(saved).endswith("checkpoint-2")
    assert {f.name for f in saved.glob("*checkpoint-*")} == {
        "checkpoint-2",
        "abandoned-checkpoint-2",
        "abandoned-checkpoint-3",
    }
    assert "is of a later step than" in caplog.text


def test_a_run_in_another_folder_leaves_the_checkpoints_unchanged_that_it_resumes_from(saved, recipe, tmp_path):
    arguments = recipe(**STEPS, output_dir=tmp_path / "other", resume_from_checkpoint=saved / "checkpoint-1")
    main(arguments)
    assert {f.name for f in saved.glob("*checkpoint-*")} == {f"checkpoint-{step}" for step in (1, 2, 3)}
    assert last_checkpoint(tmp_path / "other").endswith("checkpoint-3")


def test_a_checkpoint_under_fsdp_is_not_resumed_without_fsdp_nor_the_reverse(saved, recipe):
    (saved / "checkpoint-3" / "pytorch_model_fsdp.bin").write_bytes(
        (saved / "checkpoint-3" / "optimizer.pt").read_bytes()
    )
    with pytest.raises(SystemExit, match="was written by a run with FSDP, this one is without"):
        main(recipe(**STEPS | {"max_steps": 5}, resume_from_checkpoint="last"))
    with pytest.raises(SystemExit, match="was written by a run without FSDP, this one is with"):
        check_run(saved / "checkpoint-2", {}, fsdp=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"per_device_train_batch_size": 4}, "another number of images a step: 8, this one has 4"),
        ({"seed": 1}, "another seed: 42, this one has 1"),
        ({"max_samples": 16}, "another number of images: 24, this one has 16"),
        ({"dataloader_drop_last": False}, "another `dataloader_drop_last`"),
    ],
)
def test_a_run_whose_steps_stand_for_other_images_is_not_resumed(saved, recipe, change, message):
    with pytest.raises(SystemExit, match=message):
        main(recipe(**STEPS | {"max_steps": 5} | change, resume_from_checkpoint="last"))


def test_a_run_on_the_same_number_of_other_images_is_not_resumed(saved, recipe, scenes, tmp_path):
    shutil.copytree(scenes / "train" / "images", tmp_path / "images")
    (tmp_path / "images" / "000000.jpg").rename(tmp_path / "images" / "another.jpg")
    with pytest.raises(SystemExit, match="another list of images"):
        main(recipe(**STEPS, images=tmp_path / "images", resume_from_checkpoint="last"))


def start(arguments, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "training.train", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **options,
    )


def limited(arguments, file_size: int) -> subprocess.Popen:
    """A run that cannot write files larger than `file_size` bytes."""
    return start(
        arguments,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, resource.RLIM_INFINITY)),
    )


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(recipe, tmp_path):
    process = limited(recipe(**STEPS), file_size=100_000)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1  # in the end, the result cannot be written either
    assert "The result could not be written in" in output and "Make room" in output
    assert output.count("The checkpoint of step") == 3 and "earlier checkpoints are complete" in output
    assert output.count("'loss'") == 3
    assert not list((tmp_path / "run").glob("checkpoint-*")) and not (tmp_path / "run" / ".saving").exists()


def test_sigterm_saves_and_ends_cleanly_and_the_resumed_run_equals_an_uninterrupted_one(recipe, run_module, tmp_path):
    options = {"max_steps": 40, "save_strategy": "no", "dataloader_num_workers": 2, "per_device_train_batch_size": 4}
    run_module("training.train", recipe(**options, output_dir=tmp_path / "whole"))
    arguments = recipe(**options, output_dir=tmp_path / "stopped", resume_from_checkpoint="auto")
    log = tmp_path / "log.txt"
    with log.open("w") as output:
        (program,) = fork_server.start("training.train", arguments, None, output, output)
    deadline = time.time() + 120
    while log.read_text().count("'loss'") < 3:
        assert program.poll() is None and time.time() < deadline
        time.sleep(0.02)
    os.killpg(program.pid, signal.SIGTERM)  # to its workers, too, as schedulers do
    assert program.wait(timeout=120) == 0, log.read_text()[-3000:]
    assert "Stopped by SIGTERM after step" in log.read_text()
    assert not (tmp_path / "stopped" / "model.safetensors").exists()
    output = run_module("training.train", arguments).stdout
    assert "Resumed from" in output and "Trained by densevlm" in output
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_that_fails_with_workers_ends(recipe, tmp_path):
    """Its workers block SIGTERM, with which Python would end them: it must not wait for them."""
    run_cache_teacher(recipe(teacher_cache=tmp_path / "retrieval"))
    (file,) = (tmp_path / "retrieval").glob("*.arrow")
    content = bytearray(file.read_bytes())
    cache = TeacherCache(tmp_path / "retrieval")
    for number in range(12, 24):
        at = content.index(cache.rows[number]["log_probs"][0].values.to_numpy().tobytes() or b"\0")
        content[at] ^= 1
    file.write_bytes(content)
    process = start(recipe(teacher_cache=tmp_path / "retrieval", dataloader_num_workers=2, num_train_epochs=3))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "is damaged. Delete it" in output and "Traceback" not in output
