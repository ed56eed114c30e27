# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The console command: its subcommands, from any folder, in an environment without the repository."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from densevlm import COMMANDS, main


ROOT = Path(__file__).parents[1]


def test_every_command_is_a_module_with_one_line_in_the_help(capsys):
    main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    for name, command in COMMANDS.items():
        assert importlib.util.find_spec(command.module) is not None, name
        assert sum(line.startswith(f"  {name} ") and line.endswith(command.summary) for line in lines) == 1
    assert max(map(len, lines)) <= 110
    main([])
    assert capsys.readouterr().out.splitlines() == lines


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["trian"],
            r"unknown command `trian` \(did you mean `train`\?\)\. There are train, .*evaluate, report.*publish",
        ),
        (["xyz"], r"unknown command `xyz`\. There are train"),
        (["evaluate"], "There are `densevlm evaluate regions` and `densevlm evaluate segmentation`"),
        (["evaluate", "boxes"], "There are `densevlm evaluate regions`"),
    ],
)
def test_a_command_that_does_not_exist_names_those_that_do(argv, message):
    with pytest.raises(SystemExit, match=message):
        main(argv)


def test_a_command_runs_its_module_with_the_given_options(run_module, tmp_path):
    for words, module, message in (
        (["evaluate", "regions", "--model", "x"], "evaluation.evaluate_regions", "--output"),
        (["report", "--help"], "evaluation.report", "TITLE=FILE"),
        (["train", "--learning_rate", "1"], "training.train", "the following arguments are required"),
        (["export", tmp_path / "gone", tmp_path / "g.pt"], "modeling_densevlm.export", "ends in .onnx, or in .pt2"),
        (["convert", "--export", tmp_path / "gone", tmp_path], "convert_open_clip", "with --export it is a .pt"),
        (["publish", tmp_path / "gone", "--folder", tmp_path / "o"], "modeling_densevlm.publish", "gone"),
    ):
        done = run_module("densevlm", words, check=False)
        output = done.stdout + done.stderr
        assert message in output and "Traceback" not in output, output
        assert module in output or done.returncode == 1, output


@pytest.mark.slow
def test_the_installed_package_runs_from_any_folder_also_one_with_another_training(student, scenes, tmp_path):
    """Installed by pip, without the repository, with all data files of the packages."""
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    for package in ("training", "evaluation"):
        (elsewhere / package).mkdir(parents=True)
        (elsewhere / package / "__init__.py").write_text("raise AssertionError('not this one')\n")
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(source)], check=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", site]
    subprocess.run([*pip, source], check=True, capture_output=True)
    for package in (
        "modeling_densevlm",
        "training",
        "evaluation",
    ):  # recipes, category sets, configurations, templates
        files = {file.relative_to(source) for file in (source / package).rglob("*") if file.is_file()}
        assert files == {file for file in files if (site / file).is_file()}
    environment = {**os.environ, "PYTHONPATH": f"{elsewhere}{os.pathsep}{site}", "HF_HUB_OFFLINE": "1"}
    test = scenes / "test"
    regions = ["--annotations", test / "panoptic.json", "--images", test / "images", "--panoptic", test / "panoptic"]
    run = ["--model", student, "--teacher", student, "--images", scenes / "train" / "images", "--max_steps", "1"]
    run += ["--categories", scenes / "categories.json", "--per_device_train_batch_size", "8", "--output_dir", "run"]
    published = elsewhere / "published"
    for words, written in (
        (["train", "sandbox", *run], "run/model.safetensors"),
        (["evaluate", "regions", "--model", student, *regions, "--num_workers", "0", "--output", "m.json"], "m.json"),
        (["publish", student, "--folder", published], "published/modeling_densevlm.py"),
        (["report", "m/0-student0-96.safetensors", "--output", "r.html"], "r.html"),
    ):  # fmt: skip
        command = [site / "bin" / "densevlm", *words]
        done = subprocess.run(
            list(map(str, command)), cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert (elsewhere / written).is_file(), (written, sorted(elsewhere.rglob("*")))
