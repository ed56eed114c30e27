# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Every program of the evaluation: options that mean nothing, outputs that cannot be written, broken inputs."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation import ade20k, evaluate_regions, evaluate_segmentation, report, sandbox, show
from evaluation.while_training import RegionEvaluation
from modeling_densevlm.command_line import check_output


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
"""Each with options of nothing that is there, and what it writes: a file, or a folder."""

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
def test_numbers_that_mean_nothing_are_refused_by_their_option(program, option, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    main, options, name = PROGRAMS[program]
    for value in WRONG[program][option]:
        values = [value, value] if option == "grid" else [value]
        with pytest.raises(SystemExit):
            main([*options, "--output", str(tmp_path / (name or "out")), f"--{option}", *values])
        assert f"argument --{option}: " in capsys.readouterr().err, value


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_output_that_cannot_be_written_is_told_of_before_anything_else(program, tmp_path, capsys):
    """Nothing that the other options name is there: what is said of the output is said first."""
    pytest.importorskip("matplotlib")
    main, options, name = PROGRAMS[program]
    (tmp_path / "file").write_text("x")
    (tmp_path / "taken" / (name or "m")).mkdir(parents=True)
    (tmp_path / "taken" / "f").write_text("x")
    taken = tmp_path / "taken" / (name or "f")
    for output in (taken, tmp_path / "file" / (name or "m"), tmp_path / ("x" * 300) / (name or "m")):
        with pytest.raises(SystemExit) as ended:
            main([*options, "--output", str(output)])
        told = f"{ended.value}\n{capsys.readouterr().err}"
        assert "--output: " in told and str(output)[:200] in told, told


@pytest.mark.parametrize("folder", [False, True])
def test_folders_on_the_way_need_not_be_there_and_none_is_made(tmp_path, folder):
    check_output(tmp_path / "a" / "b" / "c", folder=folder)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_stays_as_it_is(tmp_path):
    (tmp_path / "m.json").write_text("{}")
    check_output(tmp_path / "m.json")
    assert (tmp_path / "m.json").read_text() == "{}"


def test_a_folder_in_which_nothing_can_be_written_is_told():
    """Root may write everywhere, but not there."""
    with pytest.raises(ValueError, match=r"--output: /proc/m\.json cannot be written: "):
        check_output(Path("/proc/m.json"))


def test_a_link_to_a_folder_that_is_gone_is_told(tmp_path):
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="cannot be written"):
        check_output(tmp_path / "gone" / "m.json")


def test_a_picture_is_of_a_kind_that_can_be_drawn():
    pytest.importorskip("matplotlib")
    for name in ("picture", "picture.xyz"):
        with pytest.raises(SystemExit, match=f"--output: {name} is to end in the kind of picture, one of .*png"):
            show.main(["x.jpg", "--models", "nowhere", "--texts", "sky", "--output", name])


@pytest.mark.parametrize("option", ["steps", "count", "batch_size", "num_workers"])
def test_evaluation_while_training_takes_whole_numbers(option):
    for value in (-1, 0.5, "8"):
        with pytest.raises(ValueError, match=f"`{option}` is a whole number"):
            RegionEvaluation(None, "a", "b", "c", **{"steps": 1} | {option: value})


@pytest.fixture
def inputs(scenes, student, tmp_path):
    """Options of each program that work, and what may take their places."""
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
def test_inputs_that_are_gone_broken_or_of_another_kind_end_with_one_line(program, inputs, scenes, tmp_path):
    """Missing files, folders in place of files and the reverse, broken JSON: for every option that names a path."""
    pytest.importorskip("matplotlib")
    good, wrong = inputs
    main, _, name = PROGRAMS[program]
    for option in good[program]:
        for kind, path in wrong.items():
            values = good[program] | {option: path}
            words = [str(word) for key, value in values.items() for word in ([f"--{key}"] if key else []) + [value]]
            with pytest.raises(SystemExit) as ended:
                main([*words, "--output", str(tmp_path / "out" / (name or "out"))])
            told = str(ended.value)
            assert told and "\n" not in told and not told.startswith("["), (option, kind, told)
            assert str(path.parent) in told or str(scenes) in told, (option, kind, told)  # a file is named


def test_sizes_beyond_the_memory_end_with_one_line(inputs, tmp_path):
    pytest.importorskip("matplotlib")
    good, _ = inputs
    for program in ("regions", "pixels", "show"):
        main, _, name = PROGRAMS[program]
        words = [str(w) for key, value in good[program].items() for w in ([f"--{key}"] if key else []) + [value]]
        for size in (10**6, 10**15):
            with pytest.raises(SystemExit, match=r"^Not enough memory \(.*\): give a smaller `--image_size`"):
                main([*words, "--image_size", str(size), "--output", str(tmp_path / "out" / name)])
