# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The methods by name. A method is one file (arguments, loss, trainer) and one line here."""

import importlib
import os
import sys

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


def import_class(key: str, path: str, base: type) -> type:
    """Imports the class `my_package.my_module:MyClass`. Raises a `ValueError` that names the key if there is none."""
    module, _, name = path.partition(":")
    if os.getcwd() not in sys.path:  # as under `python -m`, so that the console command finds the same modules
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"`{key}` {path} cannot be imported ({error}). Is its folder on PYTHONPATH?") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"`{key}` {path} is not a subclass of {base.__name__}.")
    return found


__all__ = ["METHODS", "find_method", "import_class"]
