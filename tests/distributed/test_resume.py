"""Killed and resumed equals uninterrupted, bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


ROOT = Path(__file__).parents[2]


def start(arguments) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "training.train", *arguments]
    # A session of its own, so that its workers can be killed with it.
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def kill_after_checkpoint(process: subprocess.Popen, folder: Path) -> None:
    """SIGKILL as soon as a checkpoint is complete, workers included."""
    deadline = time.time() + 300
    while not (folder / "trainer_state.json").exists():
        assert process.poll() is None, process.stdout.read().decode()[-3000:]
        assert time.time() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_killed_and_resumed_equals_uninterrupted_with_workers(recipe, tmp_path, accumulation):
    options = {
        "per_device_train_batch_size": 4 // accumulation,
        "global_batch_size": 4,
        "max_steps": 16,  # 24 images make 6 steps an epoch: the third epoch is reached
        "save_strategy": "steps",
        "save_steps": 2,
        "dataloader_num_workers": 2,
    }
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(recipe(output_dir=whole, **options))
    output = process.communicate(timeout=300)[0].decode()
    assert process.returncode == 0, output[-3000:]
    # In the second epoch, in its middle.
    kill_after_checkpoint(start(recipe(output_dir=killed, **options)), killed / "checkpoint-8")
    assert not (killed / "model.safetensors").exists()
    process = start(recipe(output_dir=killed, resume_from_checkpoint="last", **options))
    output = process.communicate(timeout=300)[0].decode()
    assert process.returncode == 0, output[-3000:]
    first, second = (load_file(folder / "model.safetensors") for folder in (whole, killed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    logs = [json.loads((folder / "trainer_state.json").read_text())["log_history"] for folder in (whole, killed)]
    losses = [[(e["step"], e["loss"]) for e in log if "loss" in e] for log in logs]
    assert losses[0] == losses[1]
