# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Sizes of public models as data (`model_configs/*.json`, in open_clip's form; `timm_siglip.json`, those that open_clip
names by timm's name alone), and open_clip's form as our configuration and back.
"""

import functools
import json
import math
import re
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers.utils import logging

from ..configuration_densevlm import DenseVLMConfig
from ..modeling_timm_clip import check_plain_vit, create_trunk


MODEL_CONFIGS = Path(__file__).parent.parent / "model_configs"
TIMM_SIGLIP = Path(__file__).parent / "timm_siglip.json"
QUICK_GELU = "-quickgelu"
"""Put behind the name of a ViT or ResNet: the activation that OpenAI and DFN trained with, QuickGELU for GELU."""

VISION_TOWER_ALONE = 'The vision tower alone converts: `prefix="visual."` (`--prefix visual.`).'

logger = logging.get_logger(__name__)

Json = Mapping[str, Any]

_MODEL_FIELDS = (
    {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_scale", "init_logit_bias"}
    # Its shape, types, and what goes into golden files beside the JSON.
    | {"nonscalar_logit_scale", "cast_dtype", "output_dict", "timm_override"},
    {},
)
"""Known fields at the top level of open_clip's JSON, as arguments of [`_refuse_unknown`]."""

_SIZES = {"image_size", "layers", "width", "head_width", "patch_size", "mlp_ratio"}
_OF_TIMM = {"timm_pool", "timm_proj", "timm_proj_bias"}
"""Without meaning where no `timm_model_name` is given."""
_OF_NO_FEATURE = {
    *("timm_model_name", "timm_model_pretrained", "timm_drop", "timm_drop_path", "drop_path_rate", "patch_dropout"),
    *("output_tokens", "attn_pooler_queries", "attn_pooler_heads", "xattn", "fusedLN"),
    # Learned or not, positions are stored; a norm after taking one token is the norm before.
    *("pos_embed_type", "final_ln_after_pool"),
}
"""Fields of `vision_cfg` for training, kernels, further outputs, or of parts that are off."""
_PLAIN = {"pool_type": ("tok",), "block_type": (None, "default", "custom")}
"""A custom block is a plain one where none of its further norms and scales is on."""


class UnsupportedTextTower(ValueError):
    """A text tower that has no form here; its vision tower may have one."""


@functools.cache
def config_names(kind: str | None = None) -> tuple[str, ...]:
    """The names of all known configurations, or of those with one kind of vision tower (its `model_type`)."""
    names = []
    for file in sorted(MODEL_CONFIGS.glob("*.json"), key=lambda file: file.stem):
        its_kind = config_kind(json.loads(file.read_text()))
        if kind in (None, its_kind):
            names.append(file.stem)
            if its_kind in ("clip_vision_model", "clip_resnet_vision_model"):
                names.append(file.stem + QUICK_GELU)
    return tuple(names)


def load_config(name_or_file: str | PathLike) -> dict[str, Any]:
    """A known configuration by its name, or open_clip's JSON from a file."""
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
        raise ValueError(f"{file} is no JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file}: expected open_clip's configuration, a JSON object with `vision_cfg`.")
    return config


def model_part(config: Json) -> Json:
    """open_clip's `open_clip_config.json` wraps the model's configuration; the bare one is taken as it is."""
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
    return any(key.startswith(("token_embedding.", "ln_final.")) for key in weights)


def convert_config(
    config: Json, weights: Mapping[str, Tensor] | None = None, text: bool | None = None
) -> DenseVLMConfig:
    """
    The model configuration of open_clip's JSON (`embed_dim`, `vision_cfg`, `text_cfg`, `quick_gelu`).

    Args:
        config (`dict`): the JSON.
        weights (`dict`, *optional*):
            The checkpoint under the reference's names. Where the JSON gives timm's name of an architecture and no
            sizes, or a native image size that the learned positions disagree with, they are read from the weights.
        text (`bool`, *optional*):
            Whether the model has a text tower; by default, whether the weights have one.
    """
    config, weights = model_part(config), weights or {}
    _refuse_unknown("", config, *_MODEL_FIELDS)
    kind = config_kind(config)
    vision = _VISION[kind](_part(config, "vision_cfg"), config, weights)
    text_config = None
    if text or (text is None and (not weights or has_text_tower(weights))):
        family = "siglip" if kind == "siglip_vision_model" else "clip"
        try:
            text_config = _text_config(_part(config, "text_cfg"), config, family)
        except UnsupportedTextTower as error:
            raise ValueError(f"{error} {VISION_TOWER_ALONE}") from None
    bias = config.get("init_logit_bias")
    if isinstance(bias, bool) or not isinstance(bias, int | float | None):
        raise ValueError(f"The open_clip configuration: `init_logit_bias` is a number, got {bias!r}.")
    if bias is None and "logit_bias" in weights:
        bias = 0  # training by a sigmoid loss draws it by a flag of the command line, not by the JSON
    return DenseVLMConfig(
        vision_config={"model_type": kind, **vision},
        text_config=text_config,
        projection_dim=_whole(config, "embed_dim", ""),
        logit_bias_init_value=None if bias is None else float(bias),
    )


def _field(config: Json, name: str, where: str = "") -> Any:
    if name not in config:
        raise ValueError(f"The open_clip configuration has no field '{where}{name}'.")
    return config[name]


def _number(config: Json, name: str, where: str, default: float | None = None) -> Any:
    """A number above 0 of the configuration."""
    value = config.get(name, default) if default is not None else _field(config, name, where)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"The open_clip configuration: `{where}{name}` is a number above 0, got {value!r}.")
    return value


def _whole(config: Json, name: str, where: str, default: int | None = None) -> int:
    """A whole number above 0 of the configuration."""
    value = _number(config, name, where, default)
    if value != int(value):
        raise ValueError(f"The open_clip configuration: `{where}{name}` is a whole number, got {value!r}.")
    return int(value)


def _part(config: Json, name: str) -> Json:
    part = _field(config, name)
    if not isinstance(part, Mapping):
        raise ValueError(f"The open_clip configuration: `{name}` is an object, got {part!r}.")
    return part


def _heads(width: int, head_width: int) -> int:
    if width % head_width:
        raise ValueError(f"`vision_cfg`: a width of {width} is no multiple of the `head_width` {head_width}.")
    return width // head_width


def _refuse_unknown(part: str, config: Json, known: set[str], only: Mapping[str, tuple[Any, ...]]) -> None:
    """
    Raises a `ValueError` that names the fields that ask for what the towers do not have.

    Args:
        known (`set[str]`): fields that are read, or change no feature, whatever they say.
        only (`dict`): fields that are taken at these values. All others are taken where they are off.
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
    """The image size that the learned positions are made for; the JSON's where it makes the same grid."""
    if key not in weights or weights[key].ndim < 2 or weights[key].shape[-2] <= prefix:
        return image_size  # what is missing or misshapen will be named
    side = round((weights[key].shape[-2] - prefix) ** 0.5)
    return image_size if image_size // cell == side else side * cell


def _clip_vit(vision: Json, config: Json, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    _refuse_unknown("vision_cfg", vision, _SIZES | _OF_NO_FEATURE | _OF_TIMM | {"act_kwargs", "norm_kwargs"}, _PLAIN)
    return {
        **_vit_sizes(vision, weights, "visual.positional_embedding"),
        "hidden_act": _activation(config, "vision_cfg", vision),
        "layer_norm_eps": _norm_eps("vision_cfg", vision),
    }


def _vit_sizes(vision: Json, weights: Mapping[str, Tensor], positions: str) -> dict[str, Any]:
    width, patch, image_size, layers = (
        _whole(vision, name, "vision_cfg.") for name in ("width", "patch_size", "image_size", "layers")
    )
    return {
        "hidden_size": width,
        "intermediate_size": int(width * _number(vision, "mlp_ratio", "vision_cfg.", 4)),
        "num_hidden_layers": layers,
        "num_attention_heads": _heads(width, _whole(vision, "head_width", "vision_cfg.", 64)),
        "image_size": _native_side(weights, positions, 1, patch, image_size),
        "patch_size": patch,
    }


def _eva02(vision: Json, config: Json, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    if "timm_model_name" in vision:  # open_clip runs these towers by timm and names no sizes
        return _eva02(_timm_eva02(vision), config, weights)
    required = {"rope", "intp_freq", "naiveswiglu", "subln"}
    known = _SIZES | _OF_NO_FEATURE | _OF_TIMM | required | {"eva_model_name", "pt_hw_seq_len"}
    _refuse_unknown("vision_cfg", vision, known, _PLAIN | {"qkv_bias": (True,)})
    if missing := sorted(name for name in required if not vision.get(name)):
        raise ValueError(f"`vision_cfg`: an EVA-02 CLIP has {', '.join(missing)}; EVA-01 towers are not supported.")
    return {
        **_vit_sizes(vision, weights, "visual.pos_embed"),
        "rope_grid": _whole(vision, "pt_hw_seq_len", "vision_cfg.", 16),
    }


def _timm_eva02(vision: Json) -> Json:
    found = re.fullmatch(r"eva02_(base|large)_patch(\d+)_clip_(\d+)", vision["timm_model_name"])
    if found is None:
        raise ValueError(
            f"`vision_cfg.timm_model_name`: timm's {vision['timm_model_name']} is no EVA-02 CLIP that is known here."
        )
    _check_timm(vision, pools=("token",), projections=(None, ""))
    name = {"base": "EVA02-CLIP-B-16", "large": "EVA02-CLIP-L-14"}[found[1]]
    return {**load_config(name)["vision_cfg"], "image_size": vision.get("image_size", int(found[3]))}


def _clip_resnet(vision: Json, config: Json, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    _refuse_unknown("vision_cfg", vision, _SIZES | _OF_NO_FEATURE | _OF_TIMM, _PLAIN)
    width, image_size = (_whole(vision, name, "vision_cfg.") for name in ("width", "image_size"))
    depths = [_whole({"layers": depth}, "layers", "vision_cfg.") for depth in vision["layers"]]
    if len(depths) != 4:
        raise ValueError(f"The open_clip configuration: `vision_cfg.layers` of a ResNet are 4 depths, got {depths}.")
    return {
        "stem_size": width,
        "depths": depths,
        "num_attention_heads": _heads(32 * width, _whole(vision, "head_width", "vision_cfg.", 64)),
        "image_size": _native_side(weights, "visual.attnpool.positional_embedding", 1, 32, image_size),
    }


def _check_timm(vision: Json, pools: tuple[Any, ...], projections: tuple[Any, ...]) -> None:
    """As [`_refuse_unknown`], with open_clip's defaults; timm's name stands for sizes and activation."""
    given = {"timm_pool": "avg", "timm_proj": "linear", **vision}
    only = {**_PLAIN, "timm_pool": pools, "timm_proj": projections}
    _refuse_unknown("vision_cfg", given, _SIZES | _OF_NO_FEATURE | {"timm_proj_bias"}, only)


def _timm_projection(vision: Json) -> dict[str, Any]:
    """From the network to the image-text space: a matrix, two of them, or by the network's own classifier."""
    kind = vision.get("timm_proj", "linear")
    return {
        "projection": "mlp" if kind == "mlp" else "linear",
        "projection_bias": bool(vision.get("timm_proj_bias")) or not kind,
    }


def timm_trunk(architecture: str) -> nn.Module:
    """Timm's network of that name on the meta device, to read its sizes from."""
    try:
        return create_trunk(architecture, device="meta")
    except ImportError:
        raise
    except Exception as error:  # timm raises anything for a name or a combination it does not know
        raise ValueError(
            f"`vision_cfg.timm_model_name`: timm builds no {architecture}: {str(error) or type(error).__name__}"
        ) from None


def _timm_convnext(vision: Json, config: Json, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    own = not vision.get("timm_proj", "linear")  # the network's own classifier follows its own pool
    pools = ("avg",) if own else ("", "avg", None)
    _check_timm(vision, pools, projections=("linear", "mlp", "", None))
    sizes = _convnext_sizes(weights)
    if len(sizes) < 4:  # the JSON names sizes by their architecture alone, and timm knows them
        for index, stage in enumerate(timm_trunk(vision["timm_model_name"]).stages):
            sizes.setdefault(index, (len(stage.blocks), stage.blocks[0].conv_dw.out_channels))
    depths, dims = zip(*(sizes[index] for index in range(4)))
    return {
        "architecture": vision["timm_model_name"],
        "image_size": _whole(vision, "image_size", "vision_cfg.", 224),
        "depths": list(depths),
        "dims": list(dims),
        **_timm_projection(vision),
    }


def _convnext_sizes(weights: Mapping[str, Tensor]) -> dict[int, tuple[int, int]]:
    """Depth and width of each stage found in the weights."""
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
    image_size = _whole(vision, "image_size", "vision_cfg.", 224)
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
    Fields of the configuration of each of timm's SigLIP towers, by timm's name. timm runs most with the exact GELU,
    some with its approximation by tanh; transformers runs all of them with the latter.
    """
    return json.loads(TIMM_SIGLIP.read_text())


def _siglip(vision: Json, config: Json, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    _check_timm(vision, pools=("map",), projections=("none",))
    known = siglip_architectures()
    if vision["timm_model_name"] not in known:
        raise ValueError(
            f"`vision_cfg.timm_model_name`: timm's {vision['timm_model_name']} is no SigLIP that is known here "
            f"({', '.join(known)})."
        )
    fields = known[vision["timm_model_name"]]
    image_size = _whole(vision, "image_size", "vision_cfg.", fields["image_size"])
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
        raise ValueError(f"`{part}`: `act_kwargs` {tower['act_kwargs']!r} is no activation that is known here.")
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
    # Of the tokenizer, of training, of a tower of transformers' where one is named, kernels, and what a CLIP's readout
    # at one token does not look at.
    known |= {"hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode", "pad_id", "eos_id", "output_tokens"}
    known |= {"hf_model_pretrained", "hf_proj_type", "hf_pooler_type", "xattn", "fusedLN", "final_ln_after_pool"}
    only = {"proj_type": ("linear",), "block_type": _PLAIN["block_type"]}
    if family == "siglip":
        needed = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
        only |= {field: (value,) for field, value in needed.items()}
        missing = [f"`{field}` {value!r}" for field, value in needed.items() if field not in text]
        _refuse_unknown("text_cfg", text, known, only)
        if missing:
            raise UnsupportedTextTower(f"`text_cfg`: the text tower of a SigLIP has {', '.join(missing)}.")
        own = {"projection_size": config["embed_dim"]}
    else:
        _refuse_unknown("text_cfg", text, known, only | {"pool_type": ("argmax",)})
        own = {}
    width, vocabulary, layers, heads, length = (
        _whole(text, name, "text_cfg.") for name in ("width", "vocab_size", "layers", "heads", "context_length")
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
    open_clip's JSON of a model, as the reference code takes it. Read again, it gives the same model, or a `ValueError`
    names what its form cannot say. A model without a text tower has no `text_cfg`.
    """
    kind, vision, text = config.vision_config.model_type, config.vision_config, config.text_config
    if kind not in _EXPORTED:
        raise ValueError(f"A {kind} has no form in the layout of open_clip.")
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
                    f"The JSON names {ours.architecture}, whose `{field}` is {values[1]}; the weights have "
                    f"{values[0]}, which open_clip's form has no place for."
                )
            else:
                raise ValueError(
                    f"The layout of open_clip cannot say this model: `{tower}.{field}` is {values[0]}, and would be "
                    f"{values[1]} there."
                )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value or None


def _ratio(tower: Any) -> float:
    """An MLP's ratio, of four digits where they give the same width."""
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
            f"{vision.image_size} with {vision.hidden_act}: its towers are timm's, mostly with the exact GELU, those "
            "of transformers with the one by tanh."
        )
    return {
        "image_size": vision.image_size,
        "timm_model_name": names[0],
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    }


def _export_layers(tower: Any) -> dict[str, Any]:
    """The activation and the norms where they are others than open_clip's."""
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
    "VISION_TOWER_ALONE",
    "config_kind",
    "config_names",
    "convert_config",
    "export_config",
    "has_text_tower",
    "load_config",
    "siglip_architectures",
]
