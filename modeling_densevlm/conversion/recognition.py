# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Recognises the known model in a checkpoint by the shapes of its tensors, and describes how others differ."""

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


def recognise(
    weights: Mapping[str, Tensor], layout_name: str = "open_clip", clip: ClipTensors | None = None
) -> tuple[str, dict[str, Any]]:
    """
    The known configuration whose tensors have these names and shapes; else one whose have, but for a native image size
    that the learned positions were resized to.

    Args:
        weights (`dict`): under the reference's names.
        layout_name (`str`, *optional*): the layout they came in; RegionCLIP's are OpenAI's, with QuickGELU.
        clip ([`ClipTensors`], *optional*): knows the names they have in their file, for messages.

    Raises:
        `ValueError` that lists the choices where several or none fit.
    """
    kind = find_kind(weights, clip.in_file if clip else str)
    fitting = fitting_configs(weights, kind)
    if layout_name == "RegionCLIP":
        fitting = [name for name in fitting if name.endswith(QUICK_GELU)]
    if len(fitting) == 1:
        return fitting[0], load_config(fitting[0])
    if fitting:
        raise ValueError(
            f"The checkpoint has the shapes of {len(fitting)} known configurations, {', '.join(fitting)}, which "
            "differ in what no tensor shows (the activation, say). Choose one as `config` (`--config`)."
        )
    layout = CHECKPOINT_LAYOUTS[kind]
    _, unknown = rename(weights, layout.rules, to_ours=True)
    known = _differences_to_known(weights, kind, clip)
    nearest = min(known, key=lambda name: sum(map(len, known[name].values())))
    unplaced = [describe_unplaced(key, weights[key], layout, clip) for key in unknown if not is_derived(key)]
    problems = {"Left over": unplaced, **known[nearest]}
    raise ValueError(
        f"The checkpoint is a {layout.name}, but has the shapes of no known configuration ({', '.join(known)}). "
        f"Give its own as `config` (`--config`, open_clip's JSON). The nearest is {nearest}, but: "
        f"{list_problems(problems)}."
    )


def fitting_configs(weights: Mapping[str, Tensor], kind: str, resized: bool = True) -> list[str]:
    """
    The names of the known configurations of a kind that have these shapes; where there is none and `resized`, those
    that do at the image size of the learned positions, one of those that are then the same.
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
    """For each known configuration of a kind, at its own image size."""
    layout, text = CHECKPOINT_LAYOUTS[kind], has_text_tower(weights)
    converted, _ = rename(weights, layout.rules, to_ours=True)
    found = _shapes(converted)
    return {name: shape_differences(found, _known_shapes(name, text), layout, clip) for name in config_names(kind)}


def all_shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    """The shape of every tensor, by its name."""
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def _shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    """All but the two numbers of the logits, which may be missing in a checkpoint."""
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
    """In words: what is missing, left over and of another shape."""
    return {
        "missing": [_both_names(key, layout, clip) for key in sorted(set(expected) - set(found))],
        "left over": [_both_names(key, layout, clip) for key in sorted(set(found) - set(expected))],
        "of another shape": [
            f"{key} {found[key]} instead of {expected[key]}{name_in_file(key, layout, clip)}"
            for key in sorted(set(expected) & set(found))
            if found[key] != expected[key]
        ],
    }


def describe_unplaced(key: str, tensor: Tensor, layout: CheckpointLayout, clip: ClipTensors | None) -> str:
    """In words: a tensor that no rule of the layout knows."""
    name = key if clip is None else clip.in_file(key)
    return f"the key {name!r} belongs to no part of a {layout.name} (its shape is {tuple(tensor.shape)})"


def list_problems(problems: Mapping[str, Sequence[str]]) -> str:
    """One line of all kinds of problems that there are."""
    return "; ".join(f"{what}: {shorten(keys)}" for what, keys in problems.items() if keys)


def _both_names(ours: str, layout: CheckpointLayout, clip: ClipTensors | None) -> str:
    """Our name of a tensor and, in brackets, the file's."""
    names = [name for name in _names_in_file(ours, layout, clip) if name != ours]
    return f"{ours} ({', '.join(names)})" if names else ours


def name_in_file(ours: str, layout: CheckpointLayout, clip: ClipTensors | None) -> str:
    """What a message adds where the file has another name for a tensor than we."""
    names = [name for name in _names_in_file(ours, layout, clip) if name != ours]
    return f", {', '.join(names)} in the file" if names else ""


def _names_in_file(ours: str, layout: CheckpointLayout, clip: ClipTensors | None) -> list[str]:
    return their_names(ours, layout.rules) if clip is None else clip.ours_in_file(ours, layout.rules)


def shorten(keys: Sequence[str], max_shown: int = 8) -> str:
    """The first few of a list, and how many more there are."""
    more = f" and {len(keys) - max_shown} more" if len(keys) > max_shown else ""
    return ", ".join(keys[:max_shown]) + more


__all__ = [
    "LOGITS",
    "all_shapes",
    "describe_unplaced",
    "fitting_configs",
    "list_problems",
    "name_in_file",
    "recognise",
    "shape_differences",
    "shorten",
]
