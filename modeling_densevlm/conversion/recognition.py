# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Detects the known configuration of a checkpoint by the shapes of its tensors, and describes differences."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..configuration_densevlm import DenseVLMConfig
from ..modeling_densevlm import DenseVLMModel
from .configs import QUICK_GELU, config_names, convert_config, has_text_tower, load_config
from .derived import is_derived
from .layouts import CHECKPOINT_LAYOUTS, CheckpointLayout, find_kind, rename, their_names
from .names import ClipTensors


LOGITS = ("logit_scale", "logit_bias")

Shapes = dict[str, tuple[int, ...]]


class UnknownConfig(ValueError):
    """A checkpoint whose shapes fit several or no known configurations."""


def detect_config(
    weights: Mapping[str, Tensor], layout_name: str = "open_clip", clip: ClipTensors | None = None
) -> tuple[str, dict[str, Any]]:
    """
    Detects the known configuration whose tensors have these names and shapes, if necessary with another native image
    size (resized position embeddings).

    Args:
        weights (`dict`): the tensors, under the reference's names.
        layout_name (`str`, *optional*, defaults to `"open_clip"`): their layout. RegionCLIP uses QuickGELU.
        clip ([`ClipTensors`], *optional*): maps names to those in the file, for messages.

    Returns:
        `tuple[str, dict]`: the name of the configuration, and open_clip's JSON.

    Raises:
        [`UnknownConfig`], with a list of choices, if several or none match.
    """
    kind = find_kind(weights, clip.in_file if clip else str)
    fitting = fitting_configs(weights, kind)
    if layout_name == "RegionCLIP":
        fitting = [name for name in fitting if name.endswith(QUICK_GELU)]
    if len(fitting) == 1:
        return fitting[0], load_config(fitting[0])
    if fitting:
        raise UnknownConfig(
            f"The checkpoint has the shapes of {len(fitting)} known configurations, {', '.join(fitting)}, which "
            "differ only in properties without tensors (such as the activation). Choose one as `config` (`--config`)."
        )
    layout = CHECKPOINT_LAYOUTS[kind]
    _, unknown = rename(weights, layout.rules, to_ours=True)
    known = _differences_to_known(weights, kind, clip)
    nearest = min(known, key=lambda name: sum(map(len, known[name].values())))
    unmatched = [describe_unmatched(key, weights[key], layout, clip) for key in unknown if not is_derived(key)]
    problems = {"Left over": unmatched, **known[nearest]}
    raise UnknownConfig(
        f"The checkpoint is a {layout.name}, but has the shapes of no known configuration ({', '.join(known)}). "
        f"Give its own as `config` (`--config`, open_clip's JSON). The most similar is {nearest}, but: "
        f"{list_problems(problems)}."
    )


def fitting_configs(weights: Mapping[str, Tensor], kind: str, resized: bool = True) -> list[str]:
    """
    Names of the known configurations of a kind that match the shapes. If there is none and `resized` is set, those
    that match with the native image size of the position embeddings, without configurations that become equal.
    """
    converted, _ = rename(weights, CHECKPOINT_LAYOUTS[kind].rules, to_ours=True)
    found, text = _shapes(converted), has_text_tower(weights)
    fitting = [name for name in config_names(kind) if _known_shapes(name, text) == found]
    if fitting or not resized:
        return fitting
    seen: dict[str, str] = {}
    for name in config_names(kind):
        config = convert_config(load_config(name), weights, text)
        if _model_shapes(config) == found:
            seen.setdefault(config.to_json_string(), name)
    return list(seen.values())


def _differences_to_known(
    weights: Mapping[str, Tensor], kind: str, clip: ClipTensors | None
) -> dict[str, dict[str, list[str]]]:
    """The differences from each known configuration of a kind, at its own image size."""
    layout, text = CHECKPOINT_LAYOUTS[kind], has_text_tower(weights)
    converted, _ = rename(weights, layout.rules, to_ours=True)
    found = _shapes(converted)
    return {name: shape_differences(found, _known_shapes(name, text), layout, clip) for name in config_names(kind)}


def all_shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    """The shape of every tensor by its name."""
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def _shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    """As [`all_shapes`], without logit scale and bias, which may be missing in a checkpoint."""
    return {key: shape for key, shape in all_shapes(tensors).items() if key not in LOGITS}


def _model_shapes(config: DenseVLMConfig) -> Shapes:
    with torch.device("meta"):
        return _shapes(DenseVLMModel(config).state_dict())


@functools.cache
def _known_shapes(name: str, text: bool) -> Shapes:
    return _model_shapes(convert_config(load_config(name), text=text))


def shape_differences(
    found: Shapes, expected: Shapes, layout: CheckpointLayout, clip: ClipTensors | None = None
) -> dict[str, list[str]]:
    """Descriptions of the tensors that are missing, left over and of another shape."""
    return {
        "missing": [_both_names(key, layout, clip) for key in sorted(set(expected) - set(found))],
        "left over": [_both_names(key, layout, clip) for key in sorted(set(found) - set(expected))],
        "of another shape": [
            f"{key} {found[key]} instead of {expected[key]}{name_in_file(key, layout, clip)}"
            for key in sorted(set(expected) & set(found))
            if found[key] != expected[key]
        ],
    }


def describe_unmatched(key: str, tensor: Tensor, layout: CheckpointLayout, clip: ClipTensors | None) -> str:
    """Description of a tensor that matches no rule of the layout."""
    name = key if clip is None else clip.in_file(key)
    return f"the key {name!r} belongs to no part of a {layout.name} (its shape is {tuple(tensor.shape)})"


def list_problems(problems: Mapping[str, Sequence[str]]) -> str:
    """All problems, by kind, on one line."""
    return "; ".join(f"{what}: {shorten(keys)}" for what, keys in problems.items() if keys)


def _both_names(ours: str, layout: CheckpointLayout, clip: ClipTensors | None) -> str:
    """Our name of a tensor, followed by that in the file in brackets if it differs."""
    names = [name for name in _names_in_file(ours, layout, clip) if name != ours]
    return f"{ours} ({', '.join(names)})" if names else ours


def name_in_file(ours: str, layout: CheckpointLayout, clip: ClipTensors | None) -> str:
    """Part of a message: the name of a tensor in the file, if it differs from ours."""
    names = [name for name in _names_in_file(ours, layout, clip) if name != ours]
    return f", {', '.join(names)} in the file" if names else ""


def _names_in_file(ours: str, layout: CheckpointLayout, clip: ClipTensors | None) -> list[str]:
    return their_names(ours, layout.rules) if clip is None else clip.ours_in_file(ours, layout.rules)


def shorten(keys: Sequence[str], max_shown: int = 8) -> str:
    """The first few entries of a list, and the number of the others."""
    more = f" and {len(keys) - max_shown} more" if len(keys) > max_shown else ""
    return ", ".join(keys[:max_shown]) + more


__all__ = [
    "LOGITS",
    "UnknownConfig",
    "all_shapes",
    "describe_unmatched",
    "detect_config",
    "fitting_configs",
    "list_problems",
    "name_in_file",
    "shape_differences",
    "shorten",
]
