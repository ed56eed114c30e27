# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Region evaluation during training."""

import json

import pytest
import torch

from evaluation.charts import accuracy_chart
from evaluation.evaluate_regions import evaluate_regions, region_metrics
from evaluation.while_training import RegionEvaluation
from training.train import main


@pytest.fixture
def watched(recipe, scenes):
    """A run of four steps, evaluated every two steps; returns trainer and callback."""

    def run(**options):
        split, found = scenes / "test", []

        def prepare(trainer):
            callback = RegionEvaluation(
                trainer, split / "panoptic.json", split / "images", split / "panoptic", steps=2, templates="short"
            )
            trainer.add_callback(callback)
            found.append(callback)

        return main(recipe(max_steps=4, learning_rate=0.01, **options), prepare=prepare), found[0]

    return run


def evaluations_of(log):
    return [entry for entry in log if "eval_masks_thing_top1" in entry]


def test_evaluation_before_the_first_step_every_n_steps_and_after_the_last(watched):
    trainer, callback = watched()
    entries = evaluations_of(trainer.state.log_history)
    assert [entry["step"] for entry in entries] == [0, 2, 4]
    assert all(entry["eval_images"] == 10 for entry in entries)
    scores = evaluate_regions(trainer.model, callback.regions, callback.embeddings, num_workers=0)
    expected = region_metrics(scores, callback.regions.categories)
    assert {f"eval_{k}": v for k, v in expected.items()}.items() <= entries[-1].items()


def test_logged_metrics_can_be_drawn_over_the_training_images(watched, tmp_path):
    pytest.importorskip("matplotlib")
    log = watched()[0].state.log_history
    logged = [row for row in log if "eval_boxes_top1" in row]
    rows = [{key.removeprefix("eval_"): value for key, value in row.items()} for row in logged]
    rows = [row | {"model": "DenseVLM", "seen": row["step"] * 8} for row in rows]
    accuracy_chart(tmp_path / "accuracy.svg", rows, over="seen", xlabel="training images seen")
    assert (tmp_path / "accuracy.svg").stat().st_size > 10_000


def test_evaluation_does_not_change_the_run(watched, recipe, tmp_path):
    watched_run, _ = watched(output_dir=tmp_path / "watched")
    plain = main(recipe(max_steps=4, learning_rate=0.01, output_dir=tmp_path / "plain"))
    first, second = (trainer.model.state_dict() for trainer in (watched_run, plain))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_two_ranks_log_what_one_logs(recipe, scenes, run_module, tmp_path):
    logs = []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        arguments = recipe(output_dir=folder, max_steps=2, per_device_train_batch_size=8 // ranks, optim="sgd")
        run_module("tests.evaluation.watched_run", [scenes / "test", *arguments], ranks=ranks)
        logs.append(evaluations_of(json.loads((folder / "trainer_state.json").read_text())["log_history"]))
    assert [entry["step"] for entry in logs[0]] == [0, 2] and logs[0][0]["eval_images"] == 5
    assert logs[0][0] == pytest.approx(logs[1][0], abs=1e-9)  # before the first step the models are the same
    assert all(logs[0][1][key] == logs[1][1][key] for key in ("eval_images", "eval_thing_regions", "step"))
