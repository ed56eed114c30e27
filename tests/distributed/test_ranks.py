"""N ranks equal one rank on the same global batch, with accumulation too."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file


ROOT = Path(__file__).parents[2]


def launch(arguments, ranks: int) -> str:
    """`torchrun -m training.train`, on gloo; returns what it printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--master_port", str(port)]
    command = [sys.executable, *launcher, "-m", "training.train", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout + done.stderr


# Plain SGD: a step is the gradient itself, so that equal parameters mean equal gradients.
SGD = {
    "optim": "sgd",
    "learning_rate": 0.05,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "max_grad_norm": 0.0,
    "global_batch_size": 8,
    "max_steps": 3,
}


def compare(first: Path, second: Path) -> float:
    first, second = (load_file(folder / "model.safetensors") for folder in (first, second))
    return max((first[name] - second[name]).abs().max().item() for name in first)


@pytest.fixture(scope="module", params=["densevlm", "clipself"])
def method(request):
    return request.param


def test_a_rank_that_can_read_nothing_changes_nothing_for_the_others(recipe, student, scenes, tmp_path, method):
    """Half of the images are damaged, one image a rank: in many steps one rank has none."""
    from training.train import main

    images = tmp_path / "images"
    shutil.copytree(scenes / "train" / "images", images)
    for index in range(0, 24, 2):
        (images / f"{index:06d}.jpg").write_bytes(b"no image")
    options = SGD | {"method": method, "images": images, "global_batch_size": 2, "learning_rate": 0.005}
    alone, together = tmp_path / "alone", tmp_path / "together"
    main(recipe(output_dir=alone, per_device_train_batch_size=2, **options))
    launch(recipe(output_dir=together, per_device_train_batch_size=1, **options), ranks=2)
    assert compare(student, alone) > 1e-3
    assert compare(alone, together) < 1e-6
    logs = [json.loads((folder / "trainer_state.json").read_text())["log_history"] for folder in (alone, together)]
    skipped = [[entry["skipped_images"] for entry in log if "loss" in entry] for log in logs]
    assert skipped[0] == skipped[1] and 1 in skipped[0]


@pytest.mark.parametrize(("student", "teacher"), [("clip_resnet", "eva02_clip"), ("eva02_clip", "siglip")])
def test_two_ranks_equal_one_with_other_towers_too(recipe, folder_of, tmp_path, student, teacher):
    """Of the ResNet batch statistics stay as they are: a batch's share on a rank must not matter."""
    from training.train import main

    options = SGD | {"model": folder_of(student, 0), "teacher": folder_of(teacher, 1), "threshold": 0.1}
    alone, together = tmp_path / "alone", tmp_path / "together"
    main(recipe(output_dir=alone, per_device_train_batch_size=8, **options))
    launch(recipe(output_dir=together, per_device_train_batch_size=2, **options), ranks=2)
    assert compare(folder_of(student, 0), alone) > 1e-3
    assert compare(alone, together) < 1e-6


@pytest.mark.parametrize(("ranks", "per_device"), [(1, 2), (2, 4), (2, 2)])
def test_ranks_and_accumulation_give_the_parameters_of_one_large_batch(
    recipe, student, tmp_path, method, ranks, per_device
):
    from training.train import main

    options = SGD | {"method": method}
    alone, together = tmp_path / "alone", tmp_path / "together"
    main(recipe(output_dir=alone, per_device_train_batch_size=8, **options))
    output = launch(recipe(output_dir=together, per_device_train_batch_size=per_device, **options), ranks)
    assert f"{ranks} processes, 8 images a step" in output
    assert compare(student, alone) > 1e-3
    assert compare(alone, together) < 1e-6
    # What is logged is of the whole global batch, too.
    logs = [json.loads((folder / "trainer_state.json").read_text())["log_history"] for folder in (alone, together)]
    for one, other in zip(*logs):
        for key in {"loss", "regions", "regions_kept", "thing_share"} & one.keys():
            assert other[key] == pytest.approx(one[key], rel=1e-4), key
