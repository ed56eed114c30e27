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


def test_the_figure_has_a_row_per_scene_of_any_shape_and_a_column_per_panel_with_its_notes(tmp_path, monkeypatch):
    monkeypatch.setitem(pytest.importorskip("matplotlib").rcParams, "svg.fonttype", "none")
    images = [np.full((12, 12, 3), 40, np.uint8), np.full((8, 12, 3), 200, np.uint8)]
    labels = [np.arange(image[..., 0].size).reshape(image.shape[:2]) // (image[..., 0].size // 2) for image in images]
    arguments = (images, {"a": labels, "b": labels}, ["kite", "sky"], [True, False])
    location_figure(tmp_path / "f.png", *arguments)
    width, height = Image.open(tmp_path / "f.png").size
    assert 1.5 < width / height < 1.8
    location_figure(tmp_path / "f.svg", *arguments, notes={"b": ["71 % right", "93 % right"]})
    text = (tmp_path / "f.svg").read_text()
    assert all(text.count(f">{part}<") == count for part, count in (("scene", 1), ("kite", 4), ("93 % right", 1)))


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
