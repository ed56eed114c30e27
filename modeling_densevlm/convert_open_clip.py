"""
Public checkpoints to a DenseVLM, and a DenseVLM back to the layout of open_clip and the reference code.

    python -m modeling_densevlm.convert_open_clip CHECKPOINT OUTPUT [--config NAME_OR_JSON] [--prefix PREFIX]
        [--processor FOLDER]
    python -m modeling_densevlm.convert_open_clip --export FOLDER OUTPUT.pt

Read are checkpoints of open_clip, EVA-CLIP, CLIPSelf, FineCLIP, DenseVLM, RegionCLIP, timm's EVA-02 CLIP and
transformers' CLIP, also inside detectors and training checkpoints: `.safetensors`, or `.pt`, `.pth` and `.bin`, of
which nothing is unpickled, or the index of their shards. Model and sizes are told by the keys; where they fit several
known models, `--config` chooses. Where a file holds several CLIPs, a teacher say, `--prefix` does; it also takes a
vision tower alone (`--prefix visual.`). A key that is missing, left over or of another shape is an error naming it.
"""

import argparse
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

from .checkpoint_configs import (
    QUICK_GELU,
    VISION_TOWER_ALONE,
    config_kind,
    config_names,
    convert_config,
    export_config,
    has_text_tower,
    load_config,
)
from .checkpoint_derived import exported_tables, is_derived, split_derived
from .checkpoint_files import read_checkpoint, unwrap, write_checkpoint
from .checkpoint_layouts import LAYOUTS, Layout, find_kind, rename, their_names
from .checkpoint_names import ClipTensors, to_reference_names
from .configuration_densevlm import DenseVLMConfig
from .image_processing_densevlm import DenseVLMImageProcessor
from .modeling_densevlm import DenseVLMModel
from .processing_densevlm import DenseVLMProcessor


logger = logging.get_logger(__name__)

SIGLIP_MEAN_STD = [0.5, 0.5, 0.5]
LOGITS = ("logit_scale", "logit_bias")

Shapes = dict[str, tuple[int, ...]]


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
            lines.append(f"{len(self.derived)} entries that follow from the rest are not kept: {_some(self.derived)}")
        if self.set_aside:
            parts = sorted({key.split(".")[0] for key in self.set_aside})
            lines.append(f"{len(self.set_aside)} tensors set aside, no part of a CLIP: {_some(parts)}")
        return "\n".join(lines + self.defaults)


def convert_checkpoint(
    checkpoint: str | PathLike | Mapping[str, Any],
    config: Mapping[str, Any] | str | PathLike | None = None,
    prefix: str | None = None,
) -> DenseVLMModel:
    r"""
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
    report = ConversionReport(clip.layout, LAYOUTS[kind].name, name, set_aside=clip.set_aside + file.beside)
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
    if LAYOUTS[kind].signature not in weights:
        try:
            found = find_kind(weights)
        except ValueError:
            return kind  # the missing keys will be named
        raise ValueError(
            f"The configuration describes another tower ({LAYOUTS[kind].name}) than the checkpoint holds "
            f"({LAYOUTS[found].name})."
        )
    return kind


def _renamed(
    weights: Mapping[str, Tensor], kind: str, model: DenseVLMModel, report: ConversionReport, clip: ClipTensors
) -> dict[str, Tensor]:
    """The tensors under our names; they are exactly the model's, or a `ValueError` names what is not."""
    layout = LAYOUTS[kind]
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
    shapes = _all_shapes(converted), _all_shapes(expected)
    problems = {
        "Left over": [_unplaced(key, weights[key], layout, clip) for key in unknown],
        **_differences(*shapes, layout, clip),
        "of another type": [
            f"{key} {converted[key].dtype} instead of a floating one{_in_file(key, layout, clip)}"
            for key in sorted(set(expected) & set(converted))
            if expected[key].is_floating_point() and not converted[key].is_floating_point()
        ],
    }
    if any(problems.values()):
        fitting = fitting_configs(weights, kind, resized=False)
        hint = f" It has the shapes of {', '.join(fitting)}." if fitting and report.config not in fitting else ""
        raise ValueError(
            f"The checkpoint does not fit its configuration ({report.config}).{hint} {_told(problems)}."
            + _about_text_tower(unknown, clip)
        )
    report.matched = len(converted)
    report.parameters = sum(tensor.numel() for tensor in converted.values())
    return converted


def _about_text_tower(unknown: Sequence[str], clip: ClipTensors) -> str:
    """Where what is left over is the text tower of another library: what can be had without it."""
    if not any(clip.in_file(key).removeprefix(clip.prefix).startswith("text") for key in unknown):
        return ""
    return f" Its text tower is none that is known here. {VISION_TOWER_ALONE}"


def _differences(
    found: Shapes, expected: Shapes, layout: Layout, clip: ClipTensors | None = None
) -> dict[str, list[str]]:
    """In words: what is missing, left over and of another shape."""
    return {
        "missing": [_both_names(key, layout, clip) for key in sorted(set(expected) - set(found))],
        "left over": [_both_names(key, layout, clip) for key in sorted(set(found) - set(expected))],
        "of another shape": [
            f"{key} {found[key]} instead of {expected[key]}{_in_file(key, layout, clip)}"
            for key in sorted(set(expected) & set(found))
            if found[key] != expected[key]
        ],
    }


def _unplaced(key: str, tensor: Tensor, layout: Layout, clip: ClipTensors | None) -> str:
    name = key if clip is None else clip.in_file(key)
    return f"the key {name!r} belongs to no part of a {layout.name} (its shape is {tuple(tensor.shape)})"


def _told(problems: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{what}: {_some(keys)}" for what, keys in problems.items() if keys)


def _both_names(ours: str, layout: Layout, clip: ClipTensors | None) -> str:
    """Our name of a tensor and, in brackets, the file's."""
    names = [name for name in _names_in_file(ours, layout, clip) if name != ours]
    return f"{ours} ({', '.join(names)})" if names else ours


def _in_file(ours: str, layout: Layout, clip: ClipTensors | None) -> str:
    names = [name for name in _names_in_file(ours, layout, clip) if name != ours]
    return f", {', '.join(names)} in the file" if names else ""


def _names_in_file(ours: str, layout: Layout, clip: ClipTensors | None) -> list[str]:
    return their_names(ours, layout.rules) if clip is None else clip.ours_in_file(ours, layout.rules)


def _some(keys: Sequence[str], most: int = 8) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")


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
            "differ in what no tensor tells (the activation, say). Choose one as `config` (`--config`)."
        )
    layout = LAYOUTS[kind]
    _, unknown = rename(weights, layout.rules, to_ours=True)
    known = _differences_to_known(weights, kind, clip)
    nearest = min(known, key=lambda name: sum(map(len, known[name].values())))
    unplaced = [_unplaced(key, weights[key], layout, clip) for key in unknown if not is_derived(key)]
    problems = {"Left over": unplaced, **known[nearest]}
    raise ValueError(
        f"The checkpoint is a {layout.name}, but has the shapes of no known configuration ({', '.join(known)}). "
        f"Give its own as `config` (`--config`, open_clip's JSON). The nearest is {nearest}, but: {_told(problems)}."
    )


def fitting_configs(weights: Mapping[str, Tensor], kind: str, resized: bool = True) -> list[str]:
    """
    The names of the known configurations of a kind that have these shapes; where there is none and `resized`, those
    that do at the image size of the learned positions, one of those that are then the same.
    """
    converted, _ = rename(weights, LAYOUTS[kind].rules, to_ours=True)
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
    layout, text = LAYOUTS[kind], has_text_tower(weights)
    converted, _ = rename(weights, layout.rules, to_ours=True)
    found = _shapes(converted)
    return {name: _differences(found, _known_shapes(name, text), layout, clip) for name in config_names(kind)}


def _all_shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def _shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    """Of all but the two numbers of the logits, which a checkpoint may lack."""
    return {key: shape for key, shape in _all_shapes(tensors).items() if key not in LOGITS}


def _model_shapes(config: DenseVLMConfig) -> Shapes:
    with torch.device("meta"):
        return _shapes(DenseVLMModel(config).state_dict())


@functools.cache
def _known_shapes(name: str, text: bool) -> Shapes:
    return _model_shapes(convert_config(load_config(name), text=text))


def export_checkpoint(model: DenseVLMModel) -> tuple[dict[str, Tensor], dict[str, Any]]:
    r"""
    The way back: the reference's (open_clip's, EVA-CLIP's) key names, so that detectors and segmenters built on them
    can take the weights. Learned tensors are the same bit for bit; EVA's rotary tables are made anew.

    Returns:
        The state dict, on the CPU, and open_clip's JSON.

    Raises:
        `ValueError` for a tower that open_clip's layout has no form for.
    """
    config = export_config(model.config)
    layout = LAYOUTS[config_kind(config)]
    state_dict = {key: tensor.detach().cpu().clone() for key, tensor in model.state_dict().items()}
    tensors, left = rename(state_dict, layout.rules, to_ours=False)
    if left:
        raise ValueError(f"Without a name in the layout of open_clip: {_some(left)}.")
    tensors = {
        key if key.startswith("visual.") or key in LOGITS else layout.text_prefix + key: tensor
        for key, tensor in tensors.items()
    }
    tensors |= {key: tensors[key].reshape(()) for key in LOGITS if key in tensors}
    return tensors | exported_tables(model.config.vision_config), config


def image_processor_for(model: DenseVLMModel, config: Mapping[str, Any]) -> DenseVLMImageProcessor:
    """The model's native size; mean and standard deviation of open_clip's JSON, or those of its family."""
    vision = model.config.vision_config
    given = config.get("preprocess_cfg", {})
    family = SIGLIP_MEAN_STD if vision.model_type == "siglip_vision_model" else None  # None: CLIP's
    mean, std = given.get("mean", family), given.get("std", family)
    return DenseVLMImageProcessor(vision.image_size, image_mean=mean, image_std=std)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m modeling_densevlm.convert_open_clip",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, help="the file; with --export a folder of ours")
    parser.add_argument("config_file", nargs="?", help="the same as --config")
    parser.add_argument("output", type=Path, help="folder to save to; with --export a .pt or .safetensors file")
    parser.add_argument("--config", help=f"open_clip's JSON, or one of {', '.join(config_names())}")
    parser.add_argument("--prefix", help="which CLIP, where the file holds several: what its names begin with")
    parser.add_argument("--processor", help="folder or Hub name of the tokenizer")
    parser.add_argument("--export", action="store_true", help="from our folder to the layout of open_clip")
    arguments = parser.parse_args(argv)
    if arguments.config and arguments.config_file:
        parser.error("give the configuration once, as --config")
    if arguments.export and arguments.output.is_dir():
        parser.error(f"OUTPUT {arguments.output} is a folder; with --export it is a .pt or .safetensors file")
    if not arguments.export and arguments.output.exists() and not _is_empty_folder(arguments.output):
        # What another model has left there, its tokenizer say, would be taken for this one's.
        parser.error(f"OUTPUT {arguments.output} is there already; give a new folder to save to")
    try:
        if arguments.export:
            _export_folder(arguments.checkpoint, arguments.output)
        else:
            _convert_file(arguments)
    except (ValueError, OSError, ImportError) as error:
        told = str(error)
        raise SystemExit(told if str(arguments.checkpoint) in told else f"{arguments.checkpoint}: {told}") from None


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _convert_file(arguments: argparse.Namespace) -> None:
    # The tokenizer first: what cannot be had shall not leave half a folder.
    tokenizer = _load_tokenizer(arguments.processor) if arguments.processor else None
    config = arguments.config or arguments.config_file
    model, report = convert_with_report(arguments.checkpoint, config, arguments.prefix)
    image_processor = image_processor_for(model, load_config(config) if config else {})
    model.save_pretrained(arguments.output)
    if tokenizer is not None:
        DenseVLMProcessor(image_processor, tokenizer).save_pretrained(arguments.output)
    else:
        image_processor.save_pretrained(arguments.output)
        print("No tokenizer is saved: training and evaluation need one for texts. Give its folder by --processor.")
    print(report)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters in {arguments.output}")


def _load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise SystemExit(f"--processor {source}: there is no tokenizer, here or on the Hub: {first}") from None


def _export_folder(folder: Path, output: Path) -> None:
    model = DenseVLMModel.from_pretrained(folder, dtype=torch.float32)
    tensors, config = export_checkpoint(model)
    write_checkpoint(tensors, output)
    output.with_suffix(".json").write_text(json.dumps(config, indent=2) + "\n")
    print(f"{len(tensors)} tensors in {output}, their configuration in {output.with_suffix('.json')}")


if __name__ == "__main__":
    main()
