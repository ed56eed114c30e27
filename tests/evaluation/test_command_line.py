"""Options of every program of the evaluation: numbers that mean nothing, and outputs that cannot be written."""

from pathlib import Path

import pytest

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
    with pytest.raises(ValueError, match=r"--output: nothing can be written at /proc/m\.json: "):
        check_output(Path("/proc/m.json"))


def test_a_link_to_a_folder_that_is_gone_is_told(tmp_path):
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="nothing can be written"):
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
