# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import yaml
from torch.testing import assert_close

from tests.conftest import ROOT
from training.feature_distillation import feature_distillation_loss
from training.train import main


def test_the_loss_is_the_mean_distance_and_micro_batches_add_up_to_the_whole_batch():
    student, teacher = torch.tensor([[2.0, 0.0], [1.0, 1.0]]), torch.tensor([[3.0, 0.0], [0.0, 5.0]])
    count = torch.tensor(2.0)
    assert feature_distillation_loss(student, teacher, count).item() == pytest.approx((0 + 1 - 2**-0.5) / 2)
    assert feature_distillation_loss(student, teacher, count, "mse").item() == pytest.approx((0.5 + 8.5) / 2)
    parts = [feature_distillation_loss(student[i : i + 1], teacher[i : i + 1], count) for i in (0, 1)]
    assert_close(sum(parts), feature_distillation_loss(student, teacher, count))
    nothing = torch.zeros(0, 2, requires_grad=True)
    feature_distillation_loss(nothing, nothing.detach(), torch.tensor(0.0)).backward()


@pytest.mark.parametrize("distance", ["cosine", "mse"])
def test_the_recipe_trains_and_lowers_the_loss(student, scenes, tmp_path, clip_folder, distance):
    file = ROOT / "training" / "recipes" / "sandbox_feature_distillation.yaml"
    recipe = yaml.safe_load(file.read_text())
    overrides = {"images": scenes / "train" / "images", "output_dir": tmp_path / distance, "distance": distance}
    overrides |= {"max_steps": 8, "per_device_train_batch_size": 12, "warmup_steps": 0, "logging_steps": 1}
    overrides |= {"dataloader_num_workers": 0, "disable_tqdm": True}
    trainer = main([str(file), *(part for key, value in overrides.items() for part in (f"--{key}", str(value)))])
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert recipe["method"] == "feature_distillation" and sum(losses[-3:]) < sum(losses[:3])


def test_different_widths_are_refused(recipe):
    with pytest.raises(SystemExit, match="Features of the teacher have 40 dimensions, those of the student 24"):
        main(recipe(method="feature_distillation"))
