# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Conversion between a DenseVLM and checkpoints of open_clip or projects based on it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

from torch import Tensor
from transformers.utils import logging

from ..image_processing_densevlm import DenseVLMImageProcessor
from ..modeling_densevlm import DenseVLMModel
from .configs import VISION_ONLY_HINT, config_kind, convert_config, export_config, load_config
from .derived import exported_tables, split_derived
from .files import read_checkpoint, unwrap
from .layouts import CHECKPOINT_LAYOUTS, find_kind, rename
from .names import ClipTensors, to_reference_names
from .recognition import (
    LOGITS,
    all_shapes,
    describe_unmatched,
    detect_config,
    fitting_configs,
    list_problems,
    name_in_file,
    shape_differences,
    shorten,
)


logger = logging.get_logger(__name__)

SIGLIP_MEAN_STD = [0.5, 0.5, 0.5]


@dataclass
class ConversionReport:
    r"""
    Summary of a conversion.

    Args:
        layout (`str`): layout of the checkpoint.
        tower (`str`): kind of vision tower.
        config (`str`): name of the configuration, or "given".
        matched (`int`): number of converted tensors.
        parameters (`int`): total number of their elements.
        location (`str`): location of the CLIP in the file: keys and prefix, joined by dots.
        verified (`list[str]`): rotary tables that were compared with those of the model, and dropped.
        derived (`list[str]`): other entries that follow from the configuration, with a remark if they differ from it.
        ignored (`list[str]`): tensors outside the CLIP (of a detector or a second CLIP).
        defaults (`list[str]`): defaults used for optional entries that are missing in the file.
    """

    layout: str
    tower: str
    config: str
    matched: int = 0
    parameters: int = 0
    location: str = ""
    verified: list[str] = field(default_factory=list)
    derived: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    defaults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"{self.tower} ({self.config}), in the layout of {self.layout}: {self.matched} tensors matched, "
            f"{self.parameters:,} parameters"
        ]
        if self.location:
            lines.append(f"prefix in the file: {self.location}")
        if self.verified:
            lines.append(f"{len(self.verified)} rotary tables verified")
        if self.derived:
            names = shorten(self.derived)
            lines.append(f"{len(self.derived)} entries derived from the configuration dropped: {names}")
        if self.ignored:
            parts = sorted({key.split(".")[0] for key in self.ignored})
            lines.append(f"{len(self.ignored)} tensors outside the CLIP ignored: {shorten(parts)}")
        return "\n".join(lines + self.defaults)


def convert_checkpoint(
    checkpoint: str | PathLike | Mapping[str, Any],
    config: Mapping[str, Any] | str | PathLike | None = None,
    prefix: str | None = None,
) -> DenseVLMModel:
    r"""
    Converts a checkpoint of open_clip, or of a project based on it, to a DenseVLM.

    Args:
        checkpoint (path or `dict`): a file, or the content of one.
        config (`dict`, name or path, *optional*):
            open_clip's JSON, the name of a known configuration ([`config_names`]) or a file. By default the known
            configuration that matches the shapes of the tensors.
        prefix (`str`, *optional*):
            Selects one of several CLIPs in a file: `"ema."`, `"teacher."` ... (the error for such a file lists them).
            With `"visual."`, only the vision tower is converted.

    Returns:
        [`DenseVLMModel`] in eval mode, float32; without a text tower if the checkpoint has none.

    Raises:
        `ValueError` that names every key that is missing, unexpected or of another shape; for invalid files; and, with
        a list of choices, for files with several CLIPs or shapes of several known configurations.
    """
    model, report = convert_with_report(checkpoint, config, prefix)
    logger.info(str(report))
    return model


def convert_with_report(
    checkpoint: str | PathLike | Mapping[str, Any],
    config: Mapping[str, Any] | str | PathLike | None = None,
    prefix: str | None = None,
) -> tuple[DenseVLMModel, ConversionReport]:
    """As [`convert_checkpoint`], but also returns the [`ConversionReport`]."""
    if isinstance(checkpoint, Mapping):
        file = unwrap(checkpoint, "The checkpoint", prefix)
    else:
        file = read_checkpoint(checkpoint, prefix)
    clip = to_reference_names(file.tensors, file.prefix)
    weights = clip.tensors
    if config is None:
        name, config = detect_config(weights, clip.layout, clip)
    else:
        name = "given" if isinstance(config, Mapping) else str(config)
        config = config if isinstance(config, Mapping) else load_config(config)
    kind = _checked_kind(weights, config)
    report = ConversionReport(clip.layout, CHECKPOINT_LAYOUTS[kind].name, name, ignored=clip.ignored + file.others)
    report.location = ".".join(filter(None, (file.wrapper, file.prefix)))
    model_config = convert_config(config, weights)
    if (clip.layout, kind) == ("transformers", "siglip_vision_model"):
        for tower in filter(None, (model_config.vision_config, model_config.text_config)):
            tower.hidden_act = "gelu_pytorch_tanh"
        report.defaults.append("GELU with the tanh approximation, as in every SigLIP of transformers")
    weights, report.verified, report.derived = split_derived(weights, model_config, clip.in_file)
    model = DenseVLMModel(model_config)
    converted = _renamed(weights, kind, model, report, clip)
    model.load_state_dict({key: t.float() if t.is_floating_point() else t for key, t in converted.items()})
    return model.eval(), report


def _checked_kind(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> str:
    kind = config_kind(config)
    if CHECKPOINT_LAYOUTS[kind].signature not in weights:
        try:
            found = find_kind(weights)
        except ValueError:
            return kind  # the missing keys are reported later
        raise ValueError(
            f"The configuration describes another tower ({CHECKPOINT_LAYOUTS[kind].name}) than that of the checkpoint "
            f"({CHECKPOINT_LAYOUTS[found].name})."
        )
    return kind


def _renamed(
    weights: Mapping[str, Tensor], kind: str, model: DenseVLMModel, report: ConversionReport, clip: ClipTensors
) -> dict[str, Tensor]:
    """The tensors under our names; raises a `ValueError` unless names and shapes are exactly those of the model."""
    layout = CHECKPOINT_LAYOUTS[kind]
    converted, unknown = rename(weights, layout.rules, to_ours=True)
    expected = model.state_dict()
    for name in LOGITS:
        if name in converted and converted[name].numel() == 1 and name in expected:
            converted[name] = converted[name].reshape(expected[name].shape)
        elif (
            name in expected and name not in converted and (model.text_model is None or report.layout == "RegionCLIP")
        ):
            converted[name] = expected[name]
            report.defaults.append(f"no {name} in the file: default used, without effect on dense features")
    shapes = all_shapes(converted), all_shapes(expected)
    problems = {
        "Left over": [describe_unmatched(key, weights[key], layout, clip) for key in unknown],
        **shape_differences(*shapes, layout, clip),
        "of another dtype": [
            f"{key} {converted[key].dtype} instead of a floating-point one{name_in_file(key, layout, clip)}"
            for key in sorted(set(expected) & set(converted))
            if expected[key].is_floating_point() and not converted[key].is_floating_point()
        ],
    }
    if any(problems.values()):
        fitting = fitting_configs(weights, kind, resized=False)
        hint = f" It has the shapes of {', '.join(fitting)}." if fitting and report.config not in fitting else ""
        raise ValueError(
            f"The checkpoint does not fit its configuration ({report.config}).{hint} {list_problems(problems)}."
            + _text_tower_hint(unknown, clip)
        )
    report.matched = len(converted)
    report.parameters = sum(tensor.numel() for tensor in converted.values())
    return converted


def _text_tower_hint(unknown: Sequence[str], clip: ClipTensors) -> str:
    """A hint if the unmatched tensors are of the text tower of another library."""
    if not any(clip.in_file(key).removeprefix(clip.prefix).startswith("text") for key in unknown):
        return ""
    return f" Its text tower is not supported. {VISION_ONLY_HINT}"


def export_checkpoint(model: DenseVLMModel) -> tuple[dict[str, Tensor], dict[str, Any]]:
    r"""
    Converts a model to the layout of the reference (open_clip, EVA-CLIP), for detectors and segmenters based on it.
    Learned tensors are preserved bit for bit; the rotary tables of EVA-CLIP are recomputed.

    Args:
        model ([`DenseVLMModel`]): the model.

    Returns:
        `tuple[dict, dict]`: the state dict, on the CPU, and open_clip's JSON.

    Raises:
        `ValueError` for a model that open_clip's layout cannot express.
    """
    config = export_config(model.config)
    layout = CHECKPOINT_LAYOUTS[config_kind(config)]
    state_dict = {key: tensor.detach().cpu().clone() for key, tensor in model.state_dict().items()}
    tensors, left = rename(state_dict, layout.rules, to_ours=False)
    if left:
        raise ValueError(f"No name in the layout of open_clip for: {shorten(left)}.")
    tensors = {
        key if key.startswith("visual.") or key in LOGITS else layout.text_prefix + key: tensor
        for key, tensor in tensors.items()
    }
    tensors |= {key: tensors[key].reshape(()) for key in LOGITS if key in tensors}
    return tensors | exported_tables(model.config.vision_config), config


def image_processor_for(model: DenseVLMModel, config: Mapping[str, Any]) -> DenseVLMImageProcessor:
    """An image processor of the model's native size, with mean and std of open_clip's JSON or of the model family."""
    vision = model.config.vision_config
    given = config.get("preprocess_cfg") or {}
    family = SIGLIP_MEAN_STD if vision.model_type == "siglip_vision_model" else None  # None: CLIP's
    if not isinstance(given, Mapping):
        raise ValueError(f"The open_clip configuration: `preprocess_cfg` is an object, got {given!r}.")
    for name in ("mean", "std"):
        numbers = given.get(name, [0.5] * 3)
        if not isinstance(numbers, list) or [type(n) in (int, float) for n in numbers] != [True] * 3:
            raise ValueError(
                f"The open_clip configuration: `preprocess_cfg.{name}` is three numbers, got {numbers!r}."
            )
    mean, std = given.get("mean", family), given.get("std", family)
    return DenseVLMImageProcessor(vision.image_size, image_mean=mean, image_std=std)


__all__ = [
    "ConversionReport",
    "convert_checkpoint",
    "convert_with_report",
    "export_checkpoint",
    "image_processor_for",
]
