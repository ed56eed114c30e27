# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The methods by name. A method is one file (arguments, loss, trainer) and one line here."""

from modeling_densevlm.command_line import import_class

from .clipself import CLIPSelfTrainer
from .distillation_trainer import DistillationTrainer
from .feature_distillation import FeatureDistillationTrainer
from .trainer import DenseVLMTrainer


METHODS: dict[str, type[DistillationTrainer]] = {
    "densevlm": DenseVLMTrainer,
    "clipself": CLIPSelfTrainer,
    "feature_distillation": FeatureDistillationTrainer,
}


def find_method(name: str) -> type[DistillationTrainer]:
    """The trainer class of a method: one of [`METHODS`], or any other by its import path."""
    if name in METHODS:
        return METHODS[name]
    if ":" not in name:
        raise ValueError(
            f"`method` is {', '.join(METHODS)} or the import path of a trainer (`my_package.my_module:MyTrainer`), "
            f"got {name!r}."
        )
    return import_class("method", name, DistillationTrainer)


__all__ = ["METHODS", "find_method"]
