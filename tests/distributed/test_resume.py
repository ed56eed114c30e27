# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""A killed and resumed run equals an uninterrupted one bit for bit, for any process and moment of the kill."""

import json
import os
import random
import re
import signal
import time

import pytest

from tests.distributed.launching import kill, largest_difference, launch, ranks_of, run_until, start, wait_for
from tests.shards import damage_shards, write_shards


pytestmark = pytest.mark.xdist_group("resume")  # they share an uninterrupted run


def log_of(folder):
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    keys = ("step", "loss", "regions", "regions_kept", "skipped_images")
    return [[entry[key] for key in keys] for entry in log if "loss" in entry]


def test_killed_and_resumed_equals_uninterrupted_with_workers_and_accumulation(recipe, tmp_path):
    options = {
        "per_device_train_batch_size": 2,
        "global_batch_size": 4,
        "max_steps": 16,  # 24 images make 6 steps per epoch: the third epoch is reached
        "save_strategy": "steps",
        "save_steps": 2,
        "dataloader_num_workers": 2,
    }
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    output = launch(recipe(output_dir=whole, **options), ranks=1)
    assert "Traceback" not in output  # nor of workers, which are killed with the program
    # In the middle of the second epoch.
    run_until((killed / "checkpoint-8").exists, recipe(output_dir=killed, **options), ranks=1)
    assert not (killed / "model.safetensors").exists()
    launch(recipe(output_dir=killed, resume_from_checkpoint="last", **options), ranks=1)
    assert largest_difference(whole, killed) == 0
    assert log_of(whole) == log_of(killed)


@pytest.fixture
def damaged_shards(tmp_path):
    """Shards of different lengths with every kind of damage, and the parts of the messages that name it."""
    folder = tmp_path / "sa1b"
    expected = list(damage_shards(folder, write_shards(folder, [9, 6, 14, 3])))
    return folder, expected


SHARDS = {
    "per_device_train_batch_size": 2,
    "global_batch_size": 4,
    "dataloader_num_workers": 2,
    "save_strategy": "steps",
    "save_steps": 3,
    "save_total_limit": 2,
}


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("whole")


@pytest.fixture
def whole(recipe, damaged_shards, whole_folder):
    """The folder of an uninterrupted run of 60 steps on two ranks, shared by all tests."""
    if not (whole_folder / "output.txt").exists():
        arguments = recipe(output_dir=whole_folder, images=damaged_shards[0], max_steps=60, **SHARDS)
        (whole_folder / "output.txt").write_text(launch(arguments, ranks=2))
    return whole_folder


def check_damage(output: str, folder, expected) -> None:
    """Checks that the log names and counts the damage."""
    for part in expected:
        assert part in output, part
    assert sum(entry[4] for entry in log_of(folder)) >= len(expected)


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_runs_on_damaged_shards_killed_at_random_moments_equal_an_uninterrupted_one(
    recipe, damaged_shards, tmp_path, whole, kills
):
    folder, expected = damaged_shards
    options, killed = SHARDS | {"images": folder, "max_steps": 60}, tmp_path / "killed"
    if kills > 1:
        options, whole = options | {"max_steps": 200}, tmp_path / "whole"
        output = launch(recipe(output_dir=whole, **options), ranks=2)
        (whole / "output.txt").write_text(output)
    check_damage((whole / "output.txt").read_text(), whole, expected)
    rng, arguments = random.Random(kills), recipe(output_dir=killed, resume_from_checkpoint="auto", **options)
    for _ in range(kills):
        before = last_step(killed)
        process = start(arguments, ranks=2)
        if rng.random() < 0.8:  # some steps after a checkpoint, or while the next is written
            wait_for(lambda before=before: last_step(killed) > before, process)
            time.sleep(rng.uniform(0, 0.25))
        else:  # while the program starts, or in its first steps
            time.sleep(rng.uniform(1, 9))
        assert process.poll() is None
        kill(process)
    assert not (killed / "model.safetensors").exists()
    launch(arguments, ranks=2)
    assert largest_difference(whole, killed) == 0
    assert log_of(whole) == log_of(killed)


def last_step(folder) -> int:
    return max((int(checkpoint.name.split("-")[1]) for checkpoint in folder.glob("checkpoint-*")), default=0)


def test_a_rank_that_dies_ends_the_others_and_the_same_command_resumes(recipe, damaged_shards, tmp_path, whole):
    options, hurt = SHARDS | {"images": damaged_shards[0], "max_steps": 60}, tmp_path / "hurt"
    process = start(recipe(output_dir=hurt, resume_from_checkpoint="auto", **options), ranks=2)
    wait_for((hurt / "checkpoint-6").exists, process)
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "Signal 9 (SIGKILL)" in output
    assert not (hurt / "model.safetensors").exists()
    output = launch(recipe(output_dir=hurt, resume_from_checkpoint="auto", **options), ranks=2)
    assert "Resumed from" in output
    assert largest_difference(whole, hurt) == 0


def to_one_rank(process):
    os.kill(ranks_of(process)[1], signal.SIGTERM)


def to_launcher_ranks_and_workers(process):
    os.killpg(process.pid, signal.SIGTERM)  # as schedulers do; the launcher forwards it to its ranks again


def test_sigterm_to_any_process_saves_on_all_ranks_after_the_same_step(recipe, damaged_shards, tmp_path, whole):
    options = SHARDS | {"images": damaged_shards[0], "max_steps": 60, "save_strategy": "no"}
    stopped = tmp_path / "stopped"
    before = 0
    for stop in (to_one_rank, to_launcher_ranks_and_workers):
        process = start(recipe(output_dir=stopped, resume_from_checkpoint="auto", **options), ranks=2)
        output = ""
        for line in process.stdout:
            output += line
            if output.count("'loss'") == 3:
                stop(process)
                break
        output += process.communicate(timeout=120)[0]
        assert process.returncode == 0 or stop is not to_one_rank, output[-4000:]
        step = int(re.search(r"Stopped by SIGTERM after step (\d+)", output)[1])
        assert (stopped / f"checkpoint-{step}" / "rng_state_1.pth").exists() and before < step < 60
        before = step
    launch(recipe(output_dir=stopped, resume_from_checkpoint="auto", **options), ranks=2)
    assert largest_difference(whole, stopped) == 0


def test_a_checkpoint_that_cannot_be_written_does_not_stop_two_ranks(recipe, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".saving").write_text("in the way of the folder")
    process = start(recipe(per_device_train_batch_size=4, max_steps=3, save_strategy="steps", save_steps=1), ranks=2)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1  # in the end, the result cannot be written either
    assert output.count("could not be written in") == 2 * 3 + 1 and output.count("another process failed") == 3
    assert output.count("'loss'") == 3 and "Make room" in output


def test_a_run_resumes_exactly_on_another_number_of_ranks(recipe, damaged_shards, tmp_path):
    folder, _ = damaged_shards
    sgd = {"optim": "sgd", "learning_rate": 0.005, "warmup_steps": 0, "lr_scheduler_type": "constant"}
    options = SHARDS | sgd | {"images": folder, "global_batch_size": 4, "max_steps": 20}
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    launch(recipe(output_dir=whole, **options), ranks=2)
    run_until((moved / "checkpoint-9").exists, recipe(output_dir=moved, **options), ranks=2)
    launch(recipe(output_dir=moved, resume_from_checkpoint="last", **options), ranks=1)
    assert largest_difference(whole, moved) < 1e-6
    assert [entry[2:] for entry in log_of(whole)] == [entry[2:] for entry in log_of(moved)]
