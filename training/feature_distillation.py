# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Feature distillation: the student's pooled region features learn those of the teacher itself, without categories. Both
live in spaces of equal width, as two CLIPs of one family do.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import mse_loss, normalize

from .arguments import DistillationArguments
from .distillation_trainer import DistillationTrainer


@dataclass
class FeatureDistillationArguments(DistillationArguments):
    """The method's own keys."""

    distance: str = field(default="cosine", metadata={"help": "Of two region features: cosine or mse."})

    def __post_init__(self):
        super().__post_init__()
        if self.distance not in ("cosine", "mse"):
            raise ValueError(f"`distance` is cosine or mse, got {self.distance!r}.")


def feature_distillation_loss(student: Tensor, teacher: Tensor, count: Tensor, distance: str = "cosine") -> Tensor:
    """
    The mean distance of region features, scalar; 0 without regions.

    Args:
        student, teacher (`Tensor` of shape `(regions, dim)`): pooled features of the same regions.
        count (`Tensor`): regions of the whole global batch.
        distance (`str`): `"cosine"`, 1 - cosine; or `"mse"`, the mean squared difference over `dim`.
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = student.float(), teacher.float()
        if distance == "cosine":
            distances = 1 - (normalize(student, dim=-1) * normalize(teacher, dim=-1)).sum(-1)
        else:
            distances = mse_loss(student, teacher, reduction="none").mean(-1)
        return distances.sum() / count.clamp(min=1)


class FeatureDistillationTrainer(DistillationTrainer):
    """The targets are the teacher's features of the regions."""

    arguments_class = FeatureDistillationArguments

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        student, teacher = (model.config.projection_dim for model in (self.model, self.teacher))
        if student != teacher:
            raise ValueError(f"Features of the teacher have {teacher} dimensions, those of the student {student}.")

    def compute_targets(self, batch):
        return self.teacher_region_embeds(batch)

    def count_terms(self, targets):
        return torch.tensor([float(len(targets))], device=targets.device)

    def loss(self, outputs, inputs):
        count = inputs["normalizers"][0]
        return feature_distillation_loss(outputs.region_embeds, inputs["targets"], count, self.args.distance)


__all__ = ["FeatureDistillationArguments", "FeatureDistillationTrainer", "feature_distillation_loss"]
