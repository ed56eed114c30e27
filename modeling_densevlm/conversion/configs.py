# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Configurations of public models (`model_configs/*.json`, in open_clip's format; `timm_siglip.json`, those for which
open_clip gives only the name of timm's model), and conversion between open_clip's format and [`DenseVLMConfig`].
"""

import functools
import json
import math
import re
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers.utils import logging

from ..configuration_densevlm import DenseVLMConfig
from ..modeling_timm_clip import check_plain_vit, create_trunk


MODEL_CONFIGS = Path(__file__).parent.parent / "model_configs"
TIMM_SIGLIP = Path(__file__).parent / "timm_siglip.json"
QUICK_GELU = "-quickgelu"
"""Suffix of names of ViTs and ResNets with QuickGELU, with which OpenAI and DFN trained, instead of GELU."""

VISION_ONLY_HINT = 'The vision tower can be converted without it: `prefix="visual."` (`--prefix visual.`).'

logger = logging.get_logger(__name__)

Json = Mapping[str, Any]

_MODEL_FIELDS: tuple[set[str], dict[str, tuple[Any, ...]]] = (
    {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_scale", "init_logit_bias"}
    # Shape and dtypes, and keys that golden files add to the JSON.
    | {"nonscalar_logit_scale", "cast_dtype", "output_dict", "timm_override"},
    {},
)
"""Known fields at the top level of open_clip's JSON, as arguments of [`_reject_unknown`]."""

_SIZES = {"image_size", "layers", "width", "head_width", "patch_size", "mlp_ratio"}
_TIMM_ONLY = {"timm_pool", "timm_proj", "timm_proj_bias"}
"""Ignored without a `timm_model_name`."""
_IRRELEVANT = {
    *("timm_model_name", "timm_model_pretrained", "timm_drop", "timm_drop_path", "drop_path_rate", "patch_dropout"),
    *("output_tokens", "attn_pooler_queries", "attn_pooler_heads", "xattn", "fusedLN"),
    # Fixed positions are stored as well; with token pooling, the norm commutes with the pooling.
    *("pos_embed_type", "final_ln_after_pool"),
}
"""Fields of `vision_cfg` without effect on features: training, kernels, further outputs, disabled parts."""
_ACCEPTED = {"pool_type": ("tok",), "block_type": (None, "default", "custom")}
"""Accepted values of fields. A custom block is a plain one unless its additional norms and scales are enabled."""


class UnsupportedTextTower(ValueError):
    """The text tower is not supported; the vision tower of the same model may be."""


@functools.cache
def config_names(kind: str | None = None) -> tuple[str, ...]:
    """Names of all known configurations, or of those whose vision tower has the `model_type` `kind`."""
    names = []
    for file in sorted(MODEL_CONFIGS.glob("*.json"), key=lambda file: file.stem):
        file_kind = config_kind(json.loads(file.read_text()))
        if kind in (None, file_kind):
            names.append(file.stem)
            if file_kind in ("clip_vision_model", "clip_resnet_vision_model"):
                names.append(file.stem + QUICK_GELU)
    return tuple(names)


def load_config(name_or_file: str | PathLike) -> dict[str, Any]:
    """Loads a known configuration by its name, or open_clip's JSON from a file."""
    name = str(name_or_file)
    if name in config_names():
        config = json.loads((MODEL_CONFIGS / f"{name.removesuffix(QUICK_GELU)}.json").read_text())
        return {**config, "quick_gelu": True} if name.endswith(QUICK_GELU) else config
    file = Path(name_or_file)
    if not file.is_file():
        raise FileNotFoundError(f"{name} is neither a file nor a known configuration ({', '.join(config_names())}).")
    try:
        config = json.loads(file.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file}: expected open_clip's configuration, a JSON object with `vision_cfg`.")
    return config


def model_part(config: Json) -> Json:
    """The configuration of the model, which `open_clip_config.json` nests under `model_cfg`."""
    return _part(config, "model_cfg") if "model_cfg" in config else config


def config_kind(config: Json) -> str:
    """The vision tower's `model_type`."""
    vision = _part(model_part(config), "vision_cfg")
    timm = vision.get("timm_model_name") or ""
    if not isinstance(timm, str):
        raise ValueError(f"The open_clip configuration: `vision_cfg.timm_model_name` is a name, got {timm!r}.")
    if vision.get("eva_model_name") or timm.startswith("eva02_"):
        return "eva02_clip_vision_model"
    if timm.startswith("convnext"):
        return "timm_convnext_vision_model"
    if "_siglip_" in timm and vision.get("timm_pool") == "map":
        return "siglip_vision_model"
    if timm:
        return "timm_vit_vision_model"
    return "clip_resnet_vision_model" if isinstance(vision.get("layers"), list) else "clip_vision_model"


def has_text_tower(weights: Mapping[str, Tensor]) -> bool:
    """Whether weights, under the reference's names, include a text tower."""
    return any(key.startswith(("token_embedding.", "ln_final.")) for key in weights)


def convert_config(
    config: Json, weights: Mapping[str, Tensor] | None = None, text: bool | None = None
) -> DenseVLMConfig:
    """
    Converts open_clip's JSON (`embed_dim`, `vision_cfg`, `text_cfg`, `quick_gelu`).

    Args:
        config (`dict`): the JSON.
        weights (`dict`, *optional*):
            The checkpoint, under the reference's names. Sizes are read from it if the JSON gives only the name of
            timm's model, and the native image size if it contradicts the shape of the position embeddings.
        text (`bool`, *optional*): whether the model has a text tower; by default, whether the weights have one.

    Returns:
        [`DenseVLMConfig`]

    Raises:
        `ValueError` for missing, invalid and unsupported fields.
    """
    config, weights = model_part(config), weights or {}
    _reject_unknown("", config, *_MODEL_FIELDS)
    kind = config_kind(config)
    vision = _VISION[kind](_part(config, "vision_cfg"), config, weights)
    text_config = None
    if text or (text is None and (not weights or has_text_tower(weights))):
        family = "siglip" if kind == "siglip_vision_model" else "clip"
        try:
            text_config = _text_config(_part(config, "text_cfg"), config, family)
        except UnsupportedTextTower as error:
            raise ValueError(f"{error} {VISION_ONLY_HINT}") from None
    bias = config.get("init_logit_bias")
    if isinstance(bias, bool) or not isinstance(bias, int | float | None):
        raise ValueError(f"The open_clip configuration: `init_logit_bias` is a number, got {bias!r}.")
    if bias is None and "logit_bias" in weights:
        bias = 0  # for training with a sigmoid loss, a command-line flag adds it, not the JSON
    return DenseVLMConfig(
        vision_config={"model_type": kind, **vision},
        text_config=text_config,
        projection_dim=_integer(config, "embed_dim", ""),
        logit_bias_init_value=None if bias is None else float(bias),
    )


def _field(config: Json, name: str, where: str = "") -> Any:
    if name not in config:
        raise ValueError(f"The open_clip configuration has no field '{where}{name}'.")
    return config[name]


def _number(config: Json, name: str, where: str, default: float | None = None) -> Any:
    """A positive number of the configuration."""
    value = config.get(name, default) if default is not None else _field(config, name, where)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"The open_clip configuration: `{where}{name}` is a number above 0, got {value!r}.")
    return value


def _integer(config: Json, name: str, where: str, default: int | None = None) -> int:
    """A positive integer of the configuration."""
    value = _number(config, name, where, default)
    if value != int(value):
        raise ValueError(f"The open_clip configuration: `{where}{name}` is an integer, got {value!r}.")
    return int(value)


def _part(config: Json, name: str) -> Json:
    part = _field(config, name)
    if not isinstance(part, Mapping):
        raise ValueError(f"The open_clip configuration: `{name}` is an object, got {part!r}.")
    return part


def _heads(width: int, head_width: int) -> int:
    if width % head_width:
        raise ValueError(f"`vision_cfg`: the width {width} is not a multiple of the `head_width` {head_width}.")
    return width // head_width


def _reject_unknown(part: str, config: Json, known: set[str], only: Mapping[str, tuple[Any, ...]]) -> None:
    """
    Raises a `ValueError` that names the fields whose values the towers do not support.

    Args:
        part (`str`): name of the section of the JSON, `""` for its top level.
        config (`dict`): the section.
        known (`set[str]`): fields that are read, or have no effect on features.
        only (`dict`): fields with the values that are accepted. All other fields must be `None` or `False`.
    """
    refused = []
    for field in sorted(set(config) - known):
        value = config[field]
        if value not in only.get(field, (None, False)):
            refused.append(f"{field} ({value!r})" if isinstance(value, str | int) and value is not True else field)
    if refused:
        where = f"`{part}`" if part else "The open_clip configuration"
        error = UnsupportedTextTower if part == "text_cfg" else ValueError
        raise error(f"{where} has fields that are not converted: {', '.join(refused)}.")


def _native_side(weights: Mapping[str, Tensor], key: str, prefix: int, cell: int, image_size: int) -> int:
    """The image size of the learned position embeddings; that of the JSON if it gives the same grid."""
    if key not in weights or weights[key].ndim < 2 or weights[key].shape[-2] <= prefix:
        return image_size  # reported later as missing or misshapen
    side = round((weights[key].shape[-2] - prefix) ** 0.5)
    return image_size if image_size // cell == side else side * cell


def _clip_vit(vision: Json, config: Json, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    _reject_unknown("vision_cfg", vision, _SIZES | _IRRELEVANT | _TIMM_ONLY | {"act_kwargs", "norm_kwargs"}, _ACCEPTED)
    return {
        **_vit_sizes(vision, weights, "visual.positional_embedding"),
        "hidden_act": _activation(config, "vision_cfg", vision),
        "layer_norm_eps": _norm_eps("vision_cfg", vision),
    }


def _vit_sizes(vision: Json, weights: Mapping[str, Tensor], positions: str) -> dict[str, Any]:
    width, patch, image_size, layers = (
        _integer(vision, name, "vision_cfg.") for name in ("width", "patch_size", "image_size", "layers")
    )
    return {
        "hidden_size": width,
        "intermediate_size": int(width * _number(vision, "mlp_ratio", "vision_cfg.", 4)),
        "num_hidden_layers": layers,
        "num_attention_heads": _heads(width, _integer(vision, "head_width", "vision_cfg.", 64)),
        "image_size": _native_side(weights, positions, 1, patch, image_size),
        "patch_size": patch,
    }


def _eva02(vision: Json, config: Json, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    if "timm_model_name" in vision:  # open_clip uses timm for these towers and states no sizes
        return _eva02(_timm_eva02(vision), config, weights)
    required = {"rope", "intp_freq", "naiveswiglu", "subln"}
    known = _SIZES | _IRRELEVANT | _TIMM_ONLY | required | {"eva_model_name", "pt_hw_seq_len"}
    _reject_unknown("vision_cfg", vision, known, _ACCEPTED | {"qkv_bias": (True,)})
    if missing := sorted(name for name in required if not vision.get(name)):
        raise ValueError(f"`vision_cfg`: an EVA-02 CLIP has {', '.join(missing)}; EVA-01 towers are not supported.")
    return {
        **_vit_sizes(vision, weights, "visual.pos_embed"),
        "rope_grid": _integer(vision, "pt_hw_seq_len", "vision_cfg.", 16),
    }


def _timm_eva02(vision: Json) -> Json:
    found = re.fullmatch(r"eva02_(base|large)_patch(\d+)_clip_(\d+)", vision["timm_model_name"])
    if found is None:
        raise ValueError(
            f"`vision_cfg.timm_model_name`: timm's {vision['timm_model_name']} is not a known EVA-02 CLIP."
        )
    _check_timm(vision, pools=("token",), projections=(None, ""))
    name = {"base": "EVA02-CLIP-B-16", "large": "EVA02-CLIP-L-14"}[found[1]]
    return {**load_config(name)["vision_cfg"], "image_size": vision.get("image_size", int(found[3]))}


def _clip_resnet(vision: Json, config: Json, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    _reject_unknown("vision_cfg", vision, _SIZES | _IRRELEVANT | _TIMM_ONLY, _ACCEPTED)
    width, image_size = (_integer(vision, name, "vision_cfg.") for name in ("width", "image_size"))
    depths = [_integer({"layers": depth}, "layers", "vision_cfg.") for depth in vision["layers"]]
    if len(depths) != 4:
        raise ValueError(f"The open_clip configuration: `vision_cfg.layers` of a ResNet are 4 depths, got {depths}.")
    return {
        "stem_size": width,
        "depths": depths,
        "num_attention_heads": _heads(32 * width, _integer(vision, "head_width", "vision_cfg.", 64)),
        "image_size": _native_side(weights, "visual.attnpool.positional_embedding", 1, 32, image_size),
    }


def _check_timm(vision: Json, pools: tuple[Any, ...], projections: tuple[Any, ...]) -> None:
    """As [`_reject_unknown`] for timm towers, with open_clip's defaults; sizes and activation follow from the name."""
    given = {"timm_pool": "avg", "timm_proj": "linear", **vision}
    only = {**_ACCEPTED, "timm_pool": pools, "timm_proj": projections}
    _reject_unknown("vision_cfg", given, _SIZES | _IRRELEVANT | {"timm_proj_bias"}, only)


def _timm_projection(vision: Json) -> dict[str, Any]:
    """The projection into the image-text space: linear, an MLP, or the classifier of the network."""
    kind = vision.get("timm_proj", "linear")
    return {
        "projection": "mlp" if kind == "mlp" else "linear",
        "projection_bias": bool(vision.get("timm_proj_bias")) or not kind,
    }


def timm_trunk(architecture: str) -> Any:
    """Network of timm on the meta device, for its sizes."""
    try:
        return create_trunk(architecture, device="meta")
    except ImportError:
        raise
    except Exception as error:  # timm raises arbitrary exceptions for unknown names or combinations
        raise ValueError(
            f"`vision_cfg.timm_model_name`: timm cannot build {architecture}: {str(error) or type(error).__name__}"
        ) from None


def _timm_convnext(vision: Json, config: Json, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    own = not vision.get("timm_proj", "linear")  # the network's own classifier follows its own pool
    pools = ("avg",) if own else ("", "avg", None)
    _check_timm(vision, pools, projections=("linear", "mlp", "", None))
    sizes = _convnext_sizes(weights)
    if len(sizes) < 4:  # sizes follow from the name of the architecture
        for index, stage in enumerate(timm_trunk(vision["timm_model_name"]).stages):
            sizes.setdefault(index, (len(stage.blocks), stage.blocks[0].conv_dw.out_channels))
    depths, dims = zip(*(sizes[index] for index in range(4)))
    return {
        "architecture": vision["timm_model_name"],
        "image_size": _integer(vision, "image_size", "vision_cfg.", 224),
        "depths": list(depths),
        "dims": list(dims),
        **_timm_projection(vision),
    }


def _convnext_sizes(weights: Mapping[str, Tensor]) -> dict[int, tuple[int, int]]:
    """Depth and width of each stage, from the weights."""
    pattern = re.compile(r"visual\.trunk\.stages\.([0-3])\.blocks\.(\d+)\.conv_dw\.bias")
    sizes: dict[int, tuple[int, int]] = {}
    for key, tensor in weights.items():
        if (found := pattern.fullmatch(key)) and tensor.ndim == 1:
            stage, block = int(found[1]), int(found[2])
            sizes[stage] = (max(block + 1, sizes.get(stage, (0, 0))[0]), len(tensor))
    return sizes


def _timm_vit(vision: Json, config: Json, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    trunk = timm_trunk(vision["timm_model_name"])
    try:
        check_plain_vit(trunk, vision["timm_model_name"])
    except ValueError as error:
        raise ValueError(f"`vision_cfg.timm_model_name`: {error}") from None
    own = not vision.get("timm_proj", "linear")  # the network's own classifier follows its own pool
    pools = (trunk.global_pool,) if own else ("avg", "token", "", None)
    _check_timm(vision, pools, projections=("linear", "mlp", "", None))
    patch = trunk.patch_embed.patch_size[0]
    prefix = 0 if trunk.no_embed_class else trunk.num_prefix_tokens
    image_size = _integer(vision, "image_size", "vision_cfg.", 224)
    return {
        "architecture": vision["timm_model_name"],
        "hidden_size": trunk.embed_dim,
        "num_hidden_layers": len(trunk.blocks),
        "num_attention_heads": trunk.blocks[0].attn.num_heads,
        "image_size": _native_side(weights, "visual.trunk.pos_embed", prefix, patch, image_size),
        "patch_size": patch,
        "pooling": vision.get("timm_pool", "avg") or trunk.global_pool,
        **_timm_projection(vision),
    }


@functools.cache
def siglip_architectures() -> dict[str, dict[str, Any]]:
    """
    Configuration fields of the SigLIP towers of timm, by name. In timm, most use the exact GELU and some its tanh
    approximation; in transformers, all use the latter.
    """
    return json.loads(TIMM_SIGLIP.read_text())


def _siglip(vision: Json, config: Json, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    _check_timm(vision, pools=("map",), projections=("none",))
    known = siglip_architectures()
    if vision["timm_model_name"] not in known:
        raise ValueError(
            f"`vision_cfg.timm_model_name`: timm's {vision['timm_model_name']} is not a known SigLIP "
            f"({', '.join(known)})."
        )
    fields = known[vision["timm_model_name"]]
    image_size = _integer(vision, "image_size", "vision_cfg.", fields["image_size"])
    side = _native_side(weights, "visual.trunk.pos_embed", 0, fields["patch_size"], image_size)
    return {**fields, "image_size": side}


_VISION: dict[str, Callable[[Json, Json, Mapping[str, Tensor]], dict[str, Any]]] = {
    "clip_vision_model": _clip_vit,
    "eva02_clip_vision_model": _eva02,
    "clip_resnet_vision_model": _clip_resnet,
    "timm_convnext_vision_model": _timm_convnext,
    "timm_vit_vision_model": _timm_vit,
    "siglip_vision_model": _siglip,
}


def _arguments(part: str, tower: Json, name: str) -> dict[str, Any]:
    arguments = tower.get(name) or {}
    if not isinstance(arguments, Mapping):
        raise ValueError(f"`{part}`: `{name}` is an object, got {arguments!r}.")
    return dict(arguments)


def _activation(config: Json, part: str, tower: Json) -> str:
    arguments = _arguments(part, tower, "act_kwargs")
    approximate = arguments.pop("approximate", "none")
    if arguments or approximate not in ("none", "tanh") or (config.get("quick_gelu") and tower.get("act_kwargs")):
        raise ValueError(f"`{part}`: `act_kwargs` {tower['act_kwargs']!r} is not a supported activation.")
    if config.get("quick_gelu"):
        return "quick_gelu"
    return "gelu_pytorch_tanh" if approximate == "tanh" else "gelu"


def _norm_eps(part: str, tower: Json) -> float:
    arguments = _arguments(part, tower, "norm_kwargs")
    if set(arguments) - {"eps"}:
        raise ValueError(f"`{part}`: of `norm_kwargs` only `eps` is converted, got {arguments!r}.")
    return _number(arguments, "eps", f"{part}.norm_kwargs.", 1e-5)


def _text_config(text: Json, config: Json, family: str) -> dict[str, Any]:
    known = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "act_kwargs", "norm_kwargs"}
    # Of the tokenizer, training, kernels and towers of transformers, or without effect on the pooled token.
    known |= {"hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode", "pad_id", "eos_id", "output_tokens"}
    known |= {"hf_model_pretrained", "hf_proj_type", "hf_pooler_type", "xattn", "fusedLN", "final_ln_after_pool"}
    only = {"proj_type": ("linear",), "block_type": _ACCEPTED["block_type"]}
    if family == "siglip":
        needed = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
        only |= {field: (value,) for field, value in needed.items()}
        missing = [f"`{field}` {value!r}" for field, value in needed.items() if field not in text]
        _reject_unknown("text_cfg", text, known, only)
        if missing:
            raise UnsupportedTextTower(f"`text_cfg`: the text tower of a SigLIP has {', '.join(missing)}.")
        own = {"projection_size": config["embed_dim"]}
    else:
        _reject_unknown("text_cfg", text, known, only | {"pool_type": ("argmax",)})
        own = {}
    width, vocabulary, layers, heads, length = (
        _integer(text, name, "text_cfg.") for name in ("width", "vocab_size", "layers", "heads", "context_length")
    )
    return {
        "model_type": f"{family}_text_model",
        "hidden_size": width,
        "intermediate_size": int(width * _number(text, "mlp_ratio", "text_cfg.", 4)),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": length,
        "eos_token_id": vocabulary - 1,
        "bos_token_id": vocabulary - 2,
        "hidden_act": _activation(config, "text_cfg", text),
        "layer_norm_eps": _norm_eps("text_cfg", text),
        **own,
    }


def export_config(config: DenseVLMConfig) -> dict[str, Any]:
    """
    Converts a configuration to open_clip's JSON, for the reference code. A model without a text tower has no
    `text_cfg`.

    Args:
        config ([`DenseVLMConfig`]): the configuration.

    Returns:
        `dict`: the JSON.

    Raises:
        `ValueError` for models that open_clip's format cannot express.
    """
    kind, vision, text = config.vision_config.model_type, config.vision_config, config.text_config
    if kind not in _EXPORTED:
        raise ValueError(f"The layout of open_clip has no equivalent of a {kind}.")
    exported: dict[str, Any] = {"embed_dim": config.projection_dim, "vision_cfg": _EXPORTED[kind](vision)}
    if config.logit_bias_init_value is not None:
        exported["init_logit_bias"] = config.logit_bias_init_value
    if kind == "siglip_vision_model":
        exported["custom_text"] = True
    if text is not None:
        exported["text_cfg"] = {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "layers": text.num_hidden_layers,
        }
        if text.intermediate_size != 4 * text.hidden_size:
            exported["text_cfg"]["mlp_ratio"] = _ratio(text)
        exported["text_cfg"] |= _export_layers(text)
        if kind == "siglip_vision_model":
            exported["text_cfg"] |= {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
    if kind != "siglip_vision_model":
        activation = getattr(vision if text is None else text, "hidden_act", "gelu")
        exported["quick_gelu"] = activation == "quick_gelu"
    _check_exported(exported, config)
    return exported


_COMPARED = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size"),
    *("hidden_act", "layer_norm_eps", "rope_grid", "rope_theta", "stem_size", "depths", "dims", "architecture"),
    *("architecture_args", "pooling", "projection", "projection_bias", "vocab_size", "max_position_embeddings"),
)


def _check_exported(exported: Json, config: DenseVLMConfig) -> None:
    again = convert_config(exported, text=config.text_config is not None)
    for tower in ("vision_config", "text_config"):
        ours, theirs = getattr(config, tower), getattr(again, tower)
        for field in _COMPARED:
            values = [_plain(getattr(side, field, None)) for side in (ours, theirs)]
            if values[0] == values[1]:
                continue
            if field in ("depths", "dims", "hidden_size") and ours.model_type == "timm_convnext_vision_model":
                logger.warning(
                    f"The JSON names {ours.architecture}, whose `{field}` is {values[1]}; that of the weights, "
                    f"{values[0]}, cannot be expressed in open_clip's format."
                )
            else:
                raise ValueError(
                    f"The layout of open_clip cannot express this model: `{tower}.{field}` is {values[0]}, and would "
                    f"become {values[1]}."
                )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value or None


def _ratio(tower: Any) -> float:
    """The MLP ratio, rounded to four digits if that gives the same width."""
    width, inner = tower.hidden_size, tower.intermediate_size
    candidates = (round(inner / width, 4), inner / width, (inner + 0.5) / width)
    return next(ratio for ratio in candidates if int(width * ratio) == inner)


def _export_vit(vision: Any) -> dict[str, Any]:
    return {
        "image_size": vision.image_size,
        "layers": vision.num_hidden_layers,
        "width": vision.hidden_size,
        "head_width": vision.hidden_size // vision.num_attention_heads,
        "patch_size": vision.patch_size,
        "mlp_ratio": _ratio(vision),
    }


def _export_eva02(vision: Any) -> dict[str, Any]:
    flags = {"rope": True, "pt_hw_seq_len": vision.rope_grid, "intp_freq": True, "naiveswiglu": True, "subln": True}
    patch = vision.patch_size
    return {**_export_vit(vision), "eva_model_name": f"eva-clip-{vision.hidden_size}-{patch}-X", **flags}


def _export_resnet(vision: Any) -> dict[str, Any]:
    return {
        "image_size": vision.image_size,
        "layers": list(vision.depths),
        "width": vision.stem_size,
        "patch_size": None,
        "head_width": vision.hidden_size // vision.num_attention_heads,
    }


def _export_timm(pool: str, vision: Any) -> dict[str, Any]:
    exported = {
        "timm_model_name": vision.architecture,
        "timm_model_pretrained": False,
        "timm_pool": pool,
        "timm_proj": vision.projection,
        "image_size": vision.image_size,
    }
    return exported | ({"timm_proj_bias": True} if vision.projection_bias else {})


def _export_siglip(vision: Any) -> dict[str, Any]:
    names = [
        name
        for name, fields in siglip_architectures().items()
        if all(getattr(vision, field) == value for field, value in fields.items())
    ]
    if not names:
        raise ValueError(
            f"open_clip has no SigLIP tower of width {vision.hidden_size}, patch {vision.patch_size} and image size "
            f"{vision.image_size} with {vision.hidden_act}: its towers are timm's, mostly with the exact GELU, while "
            "those of transformers use the tanh approximation."
        )
    return {
        "image_size": vision.image_size,
        "timm_model_name": names[0],
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    }


def _export_layers(tower: Any) -> dict[str, Any]:
    """The activation and the epsilon of the norms if they differ from open_clip's defaults."""
    tanh = {"act_kwargs": {"approximate": "tanh"}} if tower.hidden_act == "gelu_pytorch_tanh" else {}
    return tanh | ({} if tower.layer_norm_eps == 1e-5 else {"norm_kwargs": {"eps": tower.layer_norm_eps}})


_EXPORTED: dict[str, Callable[[Any], dict[str, Any]]] = {
    "clip_vision_model": lambda vision: _export_vit(vision) | _export_layers(vision),
    "eva02_clip_vision_model": _export_eva02,
    "clip_resnet_vision_model": _export_resnet,
    "timm_convnext_vision_model": lambda vision: _export_timm("", vision),
    "timm_vit_vision_model": lambda vision: _export_timm(vision.pooling, vision),
    "siglip_vision_model": _export_siglip,
}


__all__ = [
    "MODEL_CONFIGS",
    "QUICK_GELU",
    "VISION_ONLY_HINT",
    "config_kind",
    "config_names",
    "convert_config",
    "export_config",
    "has_text_tower",
    "load_config",
    "siglip_architectures",
]
