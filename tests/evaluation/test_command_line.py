# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Every program of the evaluation: invalid options, outputs that cannot be written, broken inputs."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation import ade20k, evaluate_regions, evaluate_segmentation, report, sandbox, show
from evaluation.while_training import RegionEvaluation
from modeling_densevlm.command_line import check_output
from tests.conftest import command_line


REGIONS = ["--model", "nowhere", "--annotations", "a", "--images", "b", "--panoptic", "c"]
PIXELS = ["--model", "nowhere", "--annotations", "a", "--images", "b", "--categories", "c"]
PROGRAMS = {
    "regions": (evaluate_regions.main, REGIONS, "m.json"),
    "pixels": (evaluate_segmentation.main, PIXELS, "m.json"),
    "show": (show.main, ["x.jpg", "--models", "nowhere", "--texts", "sky"], "m.png"),
    "report": (report.main, ["A=nowhere.safetensors"], "m.html"),
    "sandbox": (sandbox.main, ["--runs", "nowhere"], None),
    "ade20k": (ade20k.main, ["--images", "a", "--semantic", "b", "--instances", "c"], None),
}
"""Each with options that name missing files, and the output: a file, or a folder."""

EVERY = ["0", "-5", "1.5", "nan", "many"]
SIZES = {"image_size": EVERY, "batch_size": EVERY, "shard_size": EVERY, "num_workers": EVERY[1:]}
WRONG = {
    "regions": SIZES | {"thing_offset": ["nan", "inf", "-inf", "much"], "device": ["tpus", "cuda:99"]},
    "pixels": SIZES
    | {"window": EVERY, "stride": EVERY[1:], "background_threshold": ["nan", "inf"], "ignored": ["x", "1.5"]},
    "show": {
        "image_size": EVERY,
        "grid": EVERY,
        "temperature": ["0", "-1", "nan", "inf"],
        "threshold": ["nan", "inf"],
    },
    "report": {"count": EVERY},
    "sandbox": {"seeds": EVERY[1:]},
}


@pytest.mark.parametrize(
    ("program", "option"), [(name, option) for name, options in WRONG.items() for option in options]
)
def test_invalid_numbers_are_rejected_by_option(program, option, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    main, options, name = PROGRAMS[program]
    for value in WRONG[program][option]:
        values = [value, value] if option == "grid" else [value]
        with pytest.raises(SystemExit):
            main([*options, "--output", str(tmp_path / (name or "out")), f"--{option}", *values])
        assert f"argument --{option}: " in capsys.readouterr().err, value


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_output_that_cannot_be_written_is_reported_first(program, tmp_path, capsys):
    """The files of the other options are missing as well, but the output is reported first."""
    pytest.importorskip("matplotlib")
    main, options, name = PROGRAMS[program]
    (tmp_path / "file").write_text("x")
    (tmp_path / "taken" / (name or "m")).mkdir(parents=True)
    (tmp_path / "taken" / "f").write_text("x")
    taken = tmp_path / "taken" / (name or "f")
    for output in (taken, tmp_path / "file" / (name or "m"), tmp_path / ("x" * 300) / (name or "m")):
        with pytest.raises(SystemExit) as ended:
            main([*options, "--output", str(output)])
        message = f"{ended.value}\n{capsys.readouterr().err}"
        assert "--output: " in message and str(output)[:200] in message, message


@pytest.mark.parametrize("folder", [False, True])
def test_missing_parent_folders_are_accepted_and_not_created(tmp_path, folder):
    check_output(tmp_path / "a" / "b" / "c", folder=folder)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_not_changed(tmp_path):
    (tmp_path / "m.json").write_text("{}")
    check_output(tmp_path / "m.json")
    assert (tmp_path / "m.json").read_text() == "{}"


def test_a_read_only_folder_is_reported():
    """Even root cannot write to /proc."""
    with pytest.raises(ValueError, match=r"--output: /proc/m\.json cannot be written: "):
        check_output(Path("/proc/m.json"))


def test_a_broken_link_to_a_folder_is_reported(tmp_path):
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="cannot be written"):
        check_output(tmp_path / "gone" / "m.json")


def test_a_figure_needs_a_supported_format():
    pytest.importorskip("matplotlib")
    for name in ("picture", "picture.xyz"):
        with pytest.raises(SystemExit, match=f"--output: {name} must end in an image format, one of .*png"):
            show.main(["x.jpg", "--models", "nowhere", "--texts", "sky", "--output", name])


@pytest.mark.parametrize("option", ["steps", "count", "batch_size", "num_workers"])
def test_evaluation_while_training_takes_whole_numbers(option):
    for value in (-1, 0.5, "8"):
        with pytest.raises(ValueError, match=f"`{option}` is a whole number"):
            RegionEvaluation(None, "a", "b", "c", **{"steps": 1} | {option: value})


@pytest.fixture
def inputs(scenes, student, tmp_path):
    """Valid options of each program, and wrong paths to replace them with."""
    test, maps = scenes / "test", tmp_path / "maps"
    maps.mkdir()
    Image.fromarray(np.full((96, 96), 255, dtype=np.uint8)).save(maps / "000000.png")
    panoptic = {"annotations": test / "panoptic.json", "images": test / "images", "panoptic": test / "panoptic"}
    folder, file, broken = tmp_path / "folder", tmp_path / "file", tmp_path / "broken.json"
    folder.mkdir()
    file.write_text("x")
    broken.write_text("{")
    wrong = {"folder": folder, "file": file, "broken": broken, "gone": tmp_path / "gone"}
    pixels = {"images": test / "images", "annotations": maps, "categories": scenes / "categories.json"}
    good = {
        "regions": {"model": student, **panoptic},
        "pixels": {"model": student, **pixels},
        "show": {"": test / "images" / "000000.jpg", "models": student, "categories": scenes / "categories.json"},
        "report": {"": f"A={wrong['gone']}", "annotations": panoptic["annotations"], "images": panoptic["images"]},
        "sandbox": {"runs": wrong["gone"], "data": scenes, "models": wrong["gone"]},
        "ade20k": {"images": test / "images", "semantic": test / "panoptic", "instances": test / "panoptic"},
    }
    return good, wrong


@pytest.mark.parametrize("program", PROGRAMS)
def test_missing_broken_and_mistyped_inputs_end_with_one_line(program, inputs, scenes, tmp_path):
    """Missing files, folders in place of files and the reverse, broken JSON: for every option that names a path."""
    pytest.importorskip("matplotlib")
    good, wrong = inputs
    main, _, name = PROGRAMS[program]
    for option in good[program]:
        for kind, path in wrong.items():
            values = good[program] | {option: path}
            with pytest.raises(SystemExit) as ended:
                main([*command_line(values), "--output", str(tmp_path / "out" / (name or "out"))])
            message = str(ended.value)
            assert message and "\n" not in message and not message.startswith("["), (option, kind, message)
            assert str(path.parent) in message or str(scenes) in message, (option, kind, message)  # a file is named


def test_sizes_that_exceed_the_memory_end_with_one_line(inputs, tmp_path):
    pytest.importorskip("matplotlib")
    good, _ = inputs
    for program in ("regions", "pixels", "show"):
        main, _, name = PROGRAMS[program]
        words = command_line(good[program])
        for size in (10**6, 10**15):
            with pytest.raises(SystemExit, match=r"^Not enough memory \(.*\): give a smaller `--image_size`"):
                main([*words, "--image_size", str(size), "--output", str(tmp_path / "out" / name)])
