# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Configurations of `accelerate launch`: all are valid, the global batch is the same under each, two are run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from safetensors.torch import load_file


ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "training" / "recipes" / "launch").glob("*.yaml"))

COUNT = """
import os, sys, torch
from torch.testing._internal.distributed.fake_pg import FakeStore
from training.recipe import parse_arguments

for processes in map(int, sys.argv[1:]):
    os.environ.update(WORLD_SIZE=str(processes), RANK="0", LOCAL_RANK="0", LOCAL_WORLD_SIZE=str(processes))
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)
    *_, args = parse_arguments(["training/recipes/coco.yaml", "--use_cpu", "true"])
    print(args.world_size, args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size)
    torch.distributed.destroy_process_group()
"""


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def file(request):
    return request.param


def test_every_key_is_known_to_accelerate(file):
    config = load_config_from_file(str(file))  # raises for unknown keys
    known = {action.dest for action in launch_command_parser()._actions}
    assert set(config.fsdp_config) <= known


def test_the_file_documents_its_command_and_has_the_number_of_processes_in_its_name(file):
    assert f"accelerate launch --config_file training/recipes/launch/{file.name}" in file.read_text()
    numbers = [int(number) for number in re.findall(r"\d+", file.stem)]
    processes = numbers[0] * numbers[1] if "nodes" in file.stem else numbers[0]
    config = load_config_from_file(str(file))
    assert config.num_processes == processes
    assert config.num_machines == (numbers[0] if "nodes" in file.stem else 1)
    assert (config.distributed_type.value == "FSDP") == ("fsdp" in file.stem)


def test_a_step_of_the_coco_recipe_is_192_images_on_any_number_of_processes():
    processes = sorted({load_config_from_file(str(file)).num_processes for file in FILES})
    command = [sys.executable, "-c", COUNT, *map(str, processes)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [line.split() for line in done.stdout.splitlines()] == [[str(n), "192"] for n in processes]


def test_two_processes_of_accelerate_launch_train_the_same_under_ddp_and_fsdp(
    recipe, run_module, tmp_path, monkeypatch
):
    """On CPUs, with the files' bfloat16: autocast applies to the same operations under both."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    weights = []
    for name, module in (("4_gpus", "training.train"), ("8_gpus_fsdp", "tests.distributed.train_with_fsdp")):
        config = ROOT / "training" / "recipes" / "launch" / f"{name}.yaml"
        launcher = ["-m", "accelerate.commands.launch", "--config_file", str(config), "--num_processes", "2"]
        arguments = recipe(output_dir=tmp_path / name, per_device_train_batch_size=4, optim="sgd", bf16=True)
        done = run_module(module, arguments, launcher=[*launcher, "--main_process_port", "0", "-m"])
        assert "2 processes, 8 images per step" in done.stdout
        assert ("is_fsdp2 True" in done.stdout) == ("fsdp" in name)
        weights.append(load_file(tmp_path / name / "model.safetensors"))
    assert all((weights[0][name] - weights[1][name]).abs().max() < 1e-6 for name in weights[0])
