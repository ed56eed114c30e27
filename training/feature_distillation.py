# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Feature distillation: the student's pooled region features learn the teacher's, without categories. Both models must
have the same embedding dimension.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import mse_loss, normalize

from .arguments import DistillationArguments
from .distillation_trainer import DistillationTrainer


@dataclass
class FeatureDistillationArguments(DistillationArguments):
    """The keys of feature distillation."""

    distance: str = field(
        default="cosine", metadata={"help": "Distance of student and teacher features: cosine or mse."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.distance not in ("cosine", "mse"):
            raise ValueError(f"`distance` is cosine or mse, got {self.distance!r}.")


def feature_distillation_loss(student: Tensor, teacher: Tensor, count: Tensor, distance: str = "cosine") -> Tensor:
    """
    The mean distance of the region features.

    Args:
        student (`Tensor` of shape `(regions, dim)`): pooled region features of the student.
        teacher (`Tensor` of shape `(regions, dim)`): pooled features of the same regions by the teacher.
        count (`Tensor`): number of regions in the global batch.
        distance (`str`, *optional*, defaults to `"cosine"`):
            `"cosine"`, 1 - cosine similarity, or `"mse"`, the mean squared error over `dim`.

    Returns:
        `Tensor`, scalar; 0 if there are no regions.
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = student.float(), teacher.float()
        if distance == "cosine":
            distances = 1 - (normalize(student, dim=-1) * normalize(teacher, dim=-1)).sum(-1)
        else:
            distances = mse_loss(student, teacher, reduction="none").mean(-1)
        return distances.sum() / count.clamp(min=1)


class FeatureDistillationTrainer(DistillationTrainer):
    """The targets are the teacher's region features."""

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
