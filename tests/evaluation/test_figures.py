# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from PIL import Image

from evaluation.figures import category_colours, grid_figure, location_figure, similarity_figure


def test_colours_of_categories_are_distinct():
    pytest.importorskip("matplotlib")
    colours = category_colours([True] * 16 + [False] * 8)
    assert len({tuple(c) for c in colours.round(3).tolist()}) == 24


def test_the_figure_has_a_row_per_scene_and_a_column_per_panel(tmp_path):
    pytest.importorskip("matplotlib")
    images = [np.full((12, 12, 3), value, np.uint8) for value in (40, 200)]
    labels = np.arange(144).reshape(1, 12, 12).repeat(2, 0) // 72
    location_figure(tmp_path / "f.png", images, {"a": labels, "b": labels}, ["kite", "sky"], [True, False])
    width, height = Image.open(tmp_path / "f.png").size
    assert 1.3 < width / height < 1.6


def test_similarities_are_drawn_with_their_range(tmp_path, monkeypatch):
    monkeypatch.setitem(pytest.importorskip("matplotlib").rcParams, "svg.fonttype", "none")
    image = np.full((20, 30, 3), 90, np.uint8)
    ramp = np.linspace(0.1, 0.4, 24).reshape(4, 6)
    similarity_figure(
        tmp_path / "f.svg", image, {"U": {"sky": ramp, "kite": ramp / 2}, "P": {"sky": ramp, "kite": ramp}}
    )
    text = (tmp_path / "f.svg").read_text()
    for part in (">U<", ">P<", ">sky<", ">kite<", ">0.10 to 0.40<", ">0.05 to 0.20<"):
        assert part in text


def test_grid_cells_show_predictions_and_dropped_cells(tmp_path, monkeypatch):
    monkeypatch.setitem(pytest.importorskip("matplotlib").rcParams, "svg.fonttype", "none")
    image = np.full((20, 40, 3), 90, np.uint8)
    boxes = np.array([[0, 0, 20, 20], [20, 0, 40, 20]])
    panels = {"P": (["sky", "kite"], np.array([0.91, 0.2])), "U": (["kite", "kite"], np.array([0.5, 0.6]))}
    grid_figure(tmp_path / "f.svg", image, boxes, panels)
    text = (tmp_path / "f.svg").read_text()
    for part in ("0.91", "0.20", "0.50", "0.60", ">sky<"):
        assert part in text
    grid_figure(tmp_path / "none_dropped.svg", image, boxes, panels, threshold=0.1)
    assert text.count("<path") > (tmp_path / "none_dropped.svg").read_text().count("<path")
