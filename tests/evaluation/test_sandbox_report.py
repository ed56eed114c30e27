"""The report of the sandbox: its offset, its rows, its files."""

import shutil
from pathlib import Path

import pytest

from evaluation.sandbox import COLUMNS, Entry, collect, draw, entries_of, measure, report, told_runs
from modeling_densevlm import CategorySet


def test_the_report_has_a_row_a_model_with_and_without_offset_and_the_picture(student, scenes, tmp_path):
    pytest.importorskip("matplotlib")
    shutil.copytree(scenes, tmp_path / "data")
    categories = CategorySet.load(tmp_path / "data" / "categories.json")
    entries = [Entry("A", "all_against_all", [Path(student)]), Entry("D", "after", [Path(student)] * 2)]
    measured = measure(Path(student), tmp_path / "data", categories)
    metrics = collect(entries, {"all_against_all": [measured], "after": [measured] * 2}, categories)
    assert set(metrics) == {"all_against_all", "all_against_all_offset", "after", "after_offset"}
    for key in (*COLUMNS, "boxes_top1", "masks_thing_top1", "masks_stuff_top1", "foreground_bias", "background_bias"):
        assert 0 <= metrics["after"][key] <= 1
    assert len(metrics["after"]["seeds"]) == 2 and "seeds" not in metrics["all_against_all"]
    over = metrics["after"]["over_all_against_all"]
    assert over["area"] == 0 and over["area_interval"] == (0, 0) and over["gain"] == over["knowledge"] == [0, 0]
    text = report(entries, metrics, told_runs(1, [0, 1]))
    assert text.count("| A |") == 2 and text.count("| D |") == 3
    assert "One pre-training seed; means over 2 alignment seeds (0, 1)." in text
    draw(entries, tmp_path / "data", categories, tmp_path / "locations.png", count=2)
    assert (tmp_path / "locations.png").stat().st_size > 10_000


def test_other_pretrainings_bring_their_own_models(tmp_path):
    shipped, runs = tmp_path / "model_cards", [tmp_path / "sandbox", tmp_path / "pretraining-1"]
    (runs[1] / "models").mkdir(parents=True)
    folders = {entry.key: entry.folders for entry in entries_of(runs, shipped, [0, 3])}
    assert folders["teacher"] == [shipped / "densevlm-sandbox-p", runs[1] / "models" / "densevlm-sandbox-p"]
    assert folders["after"] == [run / f"densevlm-seed{seed}" for run in runs for seed in (0, 3)]
    assert told_runs(2, [0]) == "Means over 2 pre-training seeds; one alignment seed of each (0)."
