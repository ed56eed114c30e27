# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Charts show the values they are given."""

import re

import numpy as np
import pytest

from evaluation.balance import BalanceCurve
from evaluation.charts import COLOURS, accuracy_chart, balance_chart, confusion_chart, difference_chart, training_chart


matplotlib = pytest.importorskip("matplotlib")

NAMES = ["sky", "kite, toy", "road", "bus"]
IS_THING = [False, True, False, True]


@pytest.fixture(autouse=True)
def texts_as_text_elements(monkeypatch):
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")


def texts_of(file):
    return re.findall(r">([^<>\n]+)</text>", file.read_text())


def test_a_confusion_matrix_has_things_first_and_omits_unused_categories(tmp_path):
    counts = np.array([[5, 3, 0, 0], [1, 7, 0, 0], [0, 0, 0, 0], [2, 0, 0, 2]])
    confusion_chart(tmp_path / "c.svg", counts, NAMES, IS_THING, "U")
    texts = texts_of(tmp_path / "c.svg")
    assert texts[:3] == ["kite", "bus", "sky"] and texts[3:7] != NAMES
    assert "road" not in texts and {"things", "stuff", "predicted", "true", "U"} <= set(texts)


def test_differences_show_the_largest_gains_and_losses_in_order(tmp_path):
    names = [f"c{number}" for number in range(50)]
    differences = np.linspace(-0.5, 0.5, 50)
    differences[10], differences[25] = np.nan, 0.0
    difference_chart(tmp_path / "d.svg", names, differences, [True, False] * 25, "D minus U", max_shown=3)
    shown = [text for text in texts_of(tmp_path / "d.svg") if text in names]
    assert shown == ["c0", "c1", "c2", "c47", "c48", "c49"]


def test_balance_curves_are_named_and_marked_at_the_uncalibrated_model(tmp_path):
    curve = BalanceCurve(
        np.array([-1, -0.1, 0.2, 1]), np.array([0.6, 0.5, 0.3, 0]), np.array([0, 0.2, 0.4, 0.5]), (0.3, 0.4)
    )
    balance_chart(tmp_path / "b.svg", {"U": [curve], "DenseVLM": [curve, curve]})
    assert {"U", "DenseVLM", "Masks-T, top-1 in %", "Masks-S, top-1 in %"} <= set(texts_of(tmp_path / "b.svg"))


def test_a_model_keeps_its_style_wherever_it_stands(tmp_path):
    curve = BalanceCurve(np.array([-1, 1]), np.array([0.6, 0]), np.array([0, 0.5]), (0.3, 0.4))
    balance_chart(tmp_path / "first.svg", {"U": [curve], "P": [curve]})
    balance_chart(tmp_path / "moved.svg", {"P": [curve], "U": [curve]}, styles=[1, 0])
    balance_chart(tmp_path / "alone.svg", {"P": [curve]}, styles=[1])
    first, moved, alone = ((tmp_path / f"{name}.svg").read_text() for name in ("first", "moved", "alone"))
    for colour in COLOURS[:2]:
        assert first.count(colour.lower()) == moved.count(colour.lower()) > 0
    assert COLOURS[1].lower() in alone and COLOURS[0].lower() not in alone


def test_a_run_is_drawn_with_its_loss_its_kept_regions_and_its_accuracies(tmp_path):
    history = [{"step": step, "loss": 1 / step, "regions": 8, "regions_kept": 6.0} for step in (25, 50)]
    metrics = {"masks_thing_top1": 0.4, "masks_stuff_top1": 0.6, "foreground_bias": 0.2}
    training_chart(tmp_path / "t.svg", [*history, {"step": 50, "train_runtime": 3.0}], {50: metrics})
    texts = texts_of(tmp_path / "t.svg")
    assert {"loss", "kept regions in %", "Masks-T", "Masks-S", "stuff called a thing"} <= set(texts)
    assert texts.count("step") == 3


def test_accuracies_have_a_panel_per_metric_and_a_line_per_model(tmp_path):
    rows = [
        {
            "model": model,
            "image_size": side,
            "boxes_top1": 0.1,
            "masks_thing_top1": 0.2,
            "masks_stuff_top1": 0.3,
        }
        for model in ("ViT-B/16", "ViT-L/16")
        for side in (512, 224)
    ]
    accuracy_chart(tmp_path / "a.svg", rows)
    texts = texts_of(tmp_path / "a.svg")
    assert {"Boxes", "Masks-T", "Masks-S", "ViT-B/16", "ViT-L/16"} <= set(texts)
    assert texts.count("image side in pixels") == 3
