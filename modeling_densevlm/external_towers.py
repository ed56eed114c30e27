# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Registration of vision towers from outside this package, per process."""

from typing import Any

from transformers import AutoConfig, PreTrainedModel

from .command_line import import_class
from .modeling_densevlm import VISION_TOWERS
from .vision_tower import VisionTower


def register_tower(tower: type[PreTrainedModel]) -> None:
    """
    Registers an external vision tower in this process; `vision_config` then selects it by the `model_type` of its
    `config_class`. Folders saved with such a tower do not contain its code: register it before loading them.

    Args:
        tower (subclass of [`VisionTower`] and [`PreTrainedModel`]): its `config_class` has a unique `model_type`.

    Raises:
        `ValueError` for other classes, and for a `model_type` that is taken.
    """
    if not (isinstance(tower, type) and issubclass(tower, VisionTower) and issubclass(tower, PreTrainedModel)):
        raise ValueError(f"{tower!r} is not a vision tower, a subclass of `VisionTower` and `PreTrainedModel`.")
    model_type: Any = getattr(tower.config_class, "model_type", None)
    known = VISION_TOWERS.get(model_type)
    if not model_type or known not in (None, tower):
        raise ValueError(
            f"{tower.__name__} needs a `config_class` with a `model_type` of its own, not {model_type!r}."
        )
    AutoConfig.register(model_type, tower.config_class, exist_ok=True)
    VISION_TOWERS[model_type] = tower


def import_tower(path: str, option: str) -> None:
    """
    Imports and registers an external vision tower.

    Args:
        path (`str`): import path of its class, `my_package.my_module:MyTower`.
        option (`str`): the user's name of the path, for messages.

    Raises:
        `ValueError` if there is no tower of this name, and as [`register_tower`].
    """
    register_tower(import_class(option, path, VisionTower))


def is_external(tower: PreTrainedModel) -> bool:
    """Whether a tower is external, so that saved folders do not contain its code."""
    return type(tower).__module__.rpartition(".")[0] != VisionTower.__module__.rpartition(".")[0]


__all__ = ["import_tower", "is_external", "register_tower"]
