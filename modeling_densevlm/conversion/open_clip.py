# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of open_clip and of what is built on it to a DenseVLM, and back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

from torch import Tensor
from transformers.utils import logging

from ..image_processing_densevlm import DenseVLMImageProcessor
from ..modeling_densevlm import DenseVLMModel
from .configs import VISION_TOWER_ALONE, config_kind, convert_config, export_config, load_config
from .derived import exported_tables, split_derived
from .files import read_checkpoint, unwrap
from .layouts import CHECKPOINT_LAYOUTS, find_kind, rename
from .names import ClipTensors, to_reference_names
from .recognition import (
    LOGITS,
    all_shapes,
    describe_unplaced,
    fitting_configs,
    list_problems,
    name_in_file,
    recognise,
    shape_differences,
    shorten,
)


logger = logging.get_logger(__name__)

SIGLIP_MEAN_STD = [0.5, 0.5, 0.5]


@dataclass
class ConversionReport:
    r"""
    What a conversion did.

    Args:
        layout (`str`): the layout the keys were in.
        tower (`str`): the kind of vision tower.
        config (`str`): the configuration's name, or "given".
        matched (`int`): tensors that found their place.
        parameters (`int`): their numbers together.
        place (`str`): where in the file the CLIP is, as keys and what stands before its names.
        checked (`list[str]`): tables that follow from the configuration; they were compared with ours and are not
            kept.
        derived (`list[str]`): further entries that follow from it, with what they say where it is another thing.
        set_aside (`list[str]`): tensors that are no part of the CLIP (a detector's, a second CLIP's).
        defaults (`list[str]`): what the file does not hold and need not.
    """

    layout: str
    tower: str
    config: str
    matched: int = 0
    parameters: int = 0
    place: str = ""
    checked: list[str] = field(default_factory=list)
    derived: list[str] = field(default_factory=list)
    set_aside: list[str] = field(default_factory=list)
    defaults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"{self.tower} ({self.config}), in the layout of {self.layout}: {self.matched} tensors matched, "
            f"{self.parameters:,} numbers"
        ]
        if self.place:
            lines.append(f"its names begin with {self.place}")
        if self.checked:
            lines.append(f"{len(self.checked)} rotary tables agree with ours")
        if self.derived:
            names = shorten(self.derived)
            lines.append(f"{len(self.derived)} entries that follow from the rest are not kept: {names}")
        if self.set_aside:
            parts = sorted({key.split(".")[0] for key in self.set_aside})
            lines.append(f"{len(self.set_aside)} tensors set aside, no part of a CLIP: {shorten(parts)}")
        return "\n".join(lines + self.defaults)


def convert_checkpoint(
    checkpoint: str | PathLike | Mapping[str, Any],
    config: Mapping[str, Any] | str | PathLike | None = None,
    prefix: str | None = None,
) -> DenseVLMModel:
    r"""
    Converts a checkpoint of open_clip, or of what is built on it, to a DenseVLM.

    Args:
        checkpoint (path or `dict`): a file, or its tensors under the names they have there.
        config (`dict`, name or path, *optional*):
            open_clip's JSON, the name of a known configuration ([`config_names`]) or a file. By default it is the
            known configuration whose shapes the tensors have.
        prefix (`str`, *optional*):
            Which CLIP, where a file holds several: `"ema."`, `"teacher."` ... The error of such a file lists them.
            `"visual."` takes the vision tower alone.

    Returns:
        [`DenseVLMModel`] in eval mode, float32. A checkpoint of a vision tower alone gives one without a text tower.

    Raises:
        `ValueError` naming every key that is missing, left over or of another shape; for a file that is no checkpoint;
        and where several CLIPs are in the file or several known configurations fit, listing them.
    """
    model, report = convert_with_report(checkpoint, config, prefix)
    logger.info(str(report))
    return model


def convert_with_report(
    checkpoint: str | PathLike | Mapping[str, Any],
    config: Mapping[str, Any] | str | PathLike | None = None,
    prefix: str | None = None,
) -> tuple[DenseVLMModel, ConversionReport]:
    """As [`convert_checkpoint`], with the [`ConversionReport`]."""
    is_mapping = isinstance(checkpoint, Mapping)
    file = unwrap(checkpoint, "The checkpoint", prefix) if is_mapping else read_checkpoint(checkpoint, prefix)
    clip = to_reference_names(file.tensors, file.prefix)
    weights = clip.tensors
    if config is None:
        name, config = recognise(weights, clip.layout, clip)
    else:
        name = "given" if isinstance(config, Mapping) else str(config)
        config = config if isinstance(config, Mapping) else load_config(config)
    kind = _agreed_kind(weights, config)
    report = ConversionReport(clip.layout, CHECKPOINT_LAYOUTS[kind].name, name, set_aside=clip.set_aside + file.beside)
    report.place = ".".join(filter(None, (file.wrapper, file.prefix)))
    model_config = convert_config(config, weights)
    if (clip.layout, kind) == ("transformers", "siglip_vision_model"):
        for tower in filter(None, (model_config.vision_config, model_config.text_config)):
            tower.hidden_act = "gelu_pytorch_tanh"
        report.defaults.append("GELU by tanh, as in every SigLIP of transformers")
    weights, report.checked, report.derived = split_derived(weights, model_config, clip.in_file)
    model = DenseVLMModel(model_config)
    converted = _renamed(weights, kind, model, report, clip)
    model.load_state_dict({key: t.float() if t.is_floating_point() else t for key, t in converted.items()})
    return model.eval(), report


def _agreed_kind(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> str:
    kind = config_kind(config)
    if CHECKPOINT_LAYOUTS[kind].signature not in weights:
        try:
            found = find_kind(weights)
        except ValueError:
            return kind  # the missing keys will be named
        raise ValueError(
            f"The configuration describes another tower ({CHECKPOINT_LAYOUTS[kind].name}) than the checkpoint holds "
            f"({CHECKPOINT_LAYOUTS[found].name})."
        )
    return kind


def _renamed(
    weights: Mapping[str, Tensor], kind: str, model: DenseVLMModel, report: ConversionReport, clip: ClipTensors
) -> dict[str, Tensor]:
    """The tensors under our names; they are exactly the model's, or a `ValueError` names what is not."""
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
            report.defaults.append(f"no {name} in the file: the default is kept, dense features do not need it")
    shapes = all_shapes(converted), all_shapes(expected)
    problems = {
        "Left over": [describe_unplaced(key, weights[key], layout, clip) for key in unknown],
        **shape_differences(*shapes, layout, clip),
        "of another type": [
            f"{key} {converted[key].dtype} instead of a floating one{name_in_file(key, layout, clip)}"
            for key in sorted(set(expected) & set(converted))
            if expected[key].is_floating_point() and not converted[key].is_floating_point()
        ],
    }
    if any(problems.values()):
        fitting = fitting_configs(weights, kind, resized=False)
        hint = f" It has the shapes of {', '.join(fitting)}." if fitting and report.config not in fitting else ""
        raise ValueError(
            f"The checkpoint does not fit its configuration ({report.config}).{hint} {list_problems(problems)}."
            + _about_text_tower(unknown, clip)
        )
    report.matched = len(converted)
    report.parameters = sum(tensor.numel() for tensor in converted.values())
    return converted


def _about_text_tower(unknown: Sequence[str], clip: ClipTensors) -> str:
    """A hint where the left-over tensors are the text tower of another library."""
    if not any(clip.in_file(key).removeprefix(clip.prefix).startswith("text") for key in unknown):
        return ""
    return f" Its text tower is none that is known here. {VISION_TOWER_ALONE}"


def export_checkpoint(model: DenseVLMModel) -> tuple[dict[str, Tensor], dict[str, Any]]:
    r"""
    Converts a model back to the reference's (open_clip's, EVA-CLIP's) key names, so that detectors and segmenters
    built on them can take the weights. Learned tensors are the same bit for bit; EVA's rotary tables are computed
    again.

    Returns:
        The state dict, on the CPU, and open_clip's JSON.

    Raises:
        `ValueError` for a tower that open_clip's layout has no form for.
    """
    config = export_config(model.config)
    layout = CHECKPOINT_LAYOUTS[config_kind(config)]
    state_dict = {key: tensor.detach().cpu().clone() for key, tensor in model.state_dict().items()}
    tensors, left = rename(state_dict, layout.rules, to_ours=False)
    if left:
        raise ValueError(f"Without a name in the layout of open_clip: {shorten(left)}.")
    tensors = {
        key if key.startswith("visual.") or key in LOGITS else layout.text_prefix + key: tensor
        for key, tensor in tensors.items()
    }
    tensors |= {key: tensors[key].reshape(()) for key in LOGITS if key in tensors}
    return tensors | exported_tables(model.config.vision_config), config


def image_processor_for(model: DenseVLMModel, config: Mapping[str, Any]) -> DenseVLMImageProcessor:
    """The model's native size; mean and standard deviation of open_clip's JSON, or those of its family."""
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
