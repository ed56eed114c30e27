# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The report of the sandbox: offsets, rows and files."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from evaluation.sandbox import (
    FURTHER_COLUMNS,
    SANDBOX_COLUMNS,
    describe_runs,
    draw_training,
    main,
    sandbox_models,
)
from evaluation.sandbox_scores import SANDBOX_TEMPERATURE
from modeling_densevlm import CategorySet


MODELS = Path(__file__).parents[2] / "model_cards"
RECIPES = Path(__file__).parents[2] / "training" / "recipes"


@pytest.fixture
def folders(scenes, tmp_path):
    """Folders of trained models, with CLIPSelf(U) in place of the baseline and P in place of DenseVLM."""
    pytest.importorskip("matplotlib")
    shutil.copytree(scenes, tmp_path / "sandbox" / "data")
    for name, source in (("all", "clipself-u"), ("densevlm", "p")):
        for seed in (0, 1):
            shutil.copytree(MODELS / f"densevlm-sandbox-{source}", tmp_path / "sandbox" / f"{name}-seed{seed}")
    return tmp_path


def test_the_program_writes_metrics_tables_figures_and_a_report(folders):
    runs = folders / "sandbox"
    main(["--runs", str(runs), "--models", str(MODELS), "--seeds", "0", "1"])
    metrics = json.loads((runs / "metrics.json").read_text())
    assert {f"{key}{suffix}" for key in ("before", "clipself", "teacher", "all_against_all", "after")
            for suffix in ("", "_offset")} == set(metrics)  # fmt: skip
    for key in (
        *SANDBOX_COLUMNS,
        *FURTHER_COLUMNS,
        "boxes_top1",
        "masks_thing_top1",
        "masks_stuff_top1",
        "foreground_bias",
        "background_bias",
    ):
        assert 0 <= metrics["after"][key] <= 1
    assert len(metrics["after"]["seeds"]) == 2 and "seeds" not in metrics["before"]
    over = metrics["after"]["over_all_against_all"]
    for name, number in (
        ("area", "balance_area"),
        ("gain", "harmonic_mean"),
        ("discrimination_gain", "held_out_harmonic_mean"),
    ):
        assert over[name][0] == pytest.approx(metrics["after"][number] - metrics["all_against_all"][number])
    assert over["gain"][0] != 0
    denoising = metrics["teacher"]["denoising"]
    assert [row["threshold"] for row in denoising] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    text = (runs / "report.md").read_text()
    assert f"| 0.3 | {100 * denoising[3]['dropped']:.1f} |" in text
    assert text.count("| DenseVLM |") == 4 and text.count("| U (a CLIP) |") == 4
    assert "One pre-training seed; means over 2 alignment seeds (0, 1)." in text
    assert f"| DenseVLM | {100 * over['area'][0]:+.1f} [" in text
    assert all((runs / name).stat().st_size > 10_000 for name in ("locations.png", "balance.png", "report.html"))
    assert len(list((runs / "scores").iterdir())) == 7


def test_other_pretrainings_have_their_own_models(tmp_path):
    shipped, runs = tmp_path / "model_cards", [tmp_path / "sandbox", tmp_path / "pretraining-1"]
    (runs[1] / "models").mkdir(parents=True)
    folders = {entry.key: entry.folders for entry in sandbox_models(runs, shipped, [0, 3])}
    assert folders["teacher"] == [shipped / "densevlm-sandbox-p", runs[1] / "models" / "densevlm-sandbox-p"]
    assert folders["after"] == [run / f"densevlm-seed{seed}" for run in runs for seed in (0, 3)]
    assert describe_runs(2, [0]) == "Means over 2 pre-training seeds; one alignment seed of each (0)."
    assert describe_runs(3, [0, 1]) == "Means over 3 pre-training seeds; means over 2 alignment seeds of each (0, 1)."


def test_denoising_is_evaluated_at_the_temperature_of_the_recipe():
    assert yaml.safe_load((RECIPES / "sandbox.yaml").read_text())["temperature"] == SANDBOX_TEMPERATURE


def test_a_run_is_drawn_over_the_checkpoints_it_left(scenes, tmp_path):
    pytest.importorskip("matplotlib")
    categories = CategorySet.load(scenes / "categories.json")
    run = tmp_path / "run"
    draw_training(run, scenes, categories, tmp_path / "training.png")
    assert not (tmp_path / "training.png").exists()  # a run that kept no checkpoint
    history = [{"step": 100, "loss": 1.0, "regions": 8, "regions_kept": 6.0}]
    for step in (100, 200):
        shutil.copytree(MODELS / "densevlm-sandbox-p", run / f"checkpoint-{step}")
        (run / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    draw_training(run, scenes, categories, tmp_path / "training.png")
    assert Image.open(tmp_path / "training.png").width > 1000
