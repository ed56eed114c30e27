# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Vision towers that are not of this package: known to this process once they are registered."""

from transformers import AutoConfig, PreTrainedModel

from .modeling_densevlm import VISION_TOWERS
from .vision_tower import VisionTower


def register_tower(tower: type[PreTrainedModel]) -> None:
    """
    Makes a vision tower from elsewhere one that a DenseVLM may have, in this process: `vision_config` then names it by
    the `model_type` of its `config_class`. A folder with such a tower does not carry its code: whoever loads it
    registers the tower first.

    Args:
        tower (subclass of [`VisionTower`] and [`PreTrainedModel`]): with a `config_class` of its own `model_type`.
    """
    if not (isinstance(tower, type) and issubclass(tower, VisionTower) and issubclass(tower, PreTrainedModel)):
        raise ValueError(f"{tower!r} is no vision tower: it is a subclass of `VisionTower` and `PreTrainedModel`.")
    model_type = getattr(tower.config_class, "model_type", None)
    known = VISION_TOWERS.get(model_type)
    if not model_type or known not in (None, tower):
        raise ValueError(
            f"{tower.__name__} needs a `config_class` with a `model_type` of its own, not {model_type!r}."
        )
    AutoConfig.register(model_type, tower.config_class, exist_ok=True)
    VISION_TOWERS[model_type] = tower


def is_external(tower: PreTrainedModel) -> bool:
    """Whether the code of a tower is not in the folders that models are saved to."""
    return type(tower).__module__.rpartition(".")[0] != VisionTower.__module__.rpartition(".")[0]


__all__ = ["is_external", "register_tower"]
