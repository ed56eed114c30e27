"""The report of the sandbox: its offset, its home and away, its files."""

import json
import shutil
from pathlib import Path

import pytest

from evaluation.sandbox import COLUMNS, Entry, collect, draw, home_and_away, measure, report
from modeling_densevlm import CategorySet
from tests.evaluation.regions import scores_of


CATEGORIES = CategorySet("four", ["kite", "bus", "sky", "road"], [True, True, False, False])


def test_home_and_away_split_the_things(tmp_path):
    segments = [{"id": 0, "at_home": True}, {"id": 1, "at_home": False}, {"id": 2, "at_home": False}]
    content = {"annotations": [{"image_id": s["id"], "segments_info": [s]} for s in segments]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    scores = scores_of([[0.9, 0, 0, 0], [0.9, 0.1, 0, 0], [0, 0, 0.9, 0]], [0, 1, 2])
    expected = {"masks_thing_home_top1": 1.0, "masks_thing_away_top1": 0.0}
    assert home_and_away(scores, tmp_path / "a.json", CATEGORIES, 0.0) == expected


def test_the_report_has_a_row_a_model_with_and_without_offset_and_the_picture(student, scenes, tmp_path):
    pytest.importorskip("matplotlib")
    shutil.copytree(scenes, tmp_path / "data")
    categories = CategorySet.load(tmp_path / "data" / "categories.json")
    entries = [Entry("U", "before", [Path(student)]), Entry("D", "after", [Path(student)] * 2)]
    measured = measure(Path(student), tmp_path / "data", categories)
    metrics = collect(entries, {"before": [measured], "after": [measured] * 2}, tmp_path / "data", categories)
    assert set(metrics) == {"before", "before_offset", "after", "after_offset"}
    for key in (*COLUMNS, "boxes_top1", "masks_thing_top1", "masks_stuff_top1", "foreground_bias", "background_bias"):
        assert 0 <= metrics["after"][key] <= 1
    assert len(metrics["after"]["seeds"]) == 2 and "seeds" not in metrics["before"]
    text = report(entries, metrics, [0, 1])
    assert text.count("| U |") == text.count("| D |") == 2
    draw(entries, tmp_path / "data", categories, tmp_path / "locations.png", count=2)
    assert (tmp_path / "locations.png").stat().st_size > 10_000
