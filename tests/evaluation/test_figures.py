import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.figures import category_colours, classify_locations, location_figure


def test_every_location_gets_its_best_category():
    dense = torch.zeros(1, 2, 2, 2)
    dense[0, 0, :, 0] = dense[0, 1, :, 1] = 1
    labels = classify_locations(dense, torch.eye(2), size=8)
    assert labels.shape == (1, 8, 8)
    assert (labels[0, :, :3] == 0).all() and (labels[0, :, 5:] == 1).all()


def test_every_category_has_a_colour_of_its_own():
    pytest.importorskip("matplotlib")
    colours = category_colours([True] * 16 + [False] * 8)
    assert len({tuple(c) for c in colours.round(3).tolist()}) == 24


def test_the_figure_has_a_row_a_scene_and_a_column_a_panel(tmp_path):
    pytest.importorskip("matplotlib")
    images = [np.full((12, 12, 3), value, np.uint8) for value in (40, 200)]
    labels = np.arange(144).reshape(1, 12, 12).repeat(2, 0) // 72
    location_figure(tmp_path / "f.png", images, {"a": labels, "b": labels}, ["kite", "sky"], [True, False])
    width, height = Image.open(tmp_path / "f.png").size
    assert 1.3 < width / height < 1.6
