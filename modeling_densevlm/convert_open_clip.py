"""
Checkpoints of open_clip, under the key names the reference code uses, to a DenseVLM.

    python -m modeling_densevlm.convert_open_clip CHECKPOINT CONFIG.json OUTPUT [--processor FOLDER]

Nothing is unpickled: `.pt` files are read with `weights_only=True`. A key that is missing, left over or of another
shape is an error that names it. So far: the OpenAI-style CLIP ViTs.
"""

import argparse
import json
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .configuration_densevlm import DenseVLMConfig
from .image_processing_densevlm import DenseVLMImageProcessor
from .modeling_densevlm import DenseVLMModel
from .processing_densevlm import DenseVLMProcessor


_TOP = {
    "logit_scale": "logit_scale",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.proj": "visual_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "text_projection": "text_projection.weight",
}
_NORMS = {
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "ln_final": "text_model.final_layer_norm",
}
_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_TRANSPOSED = ("visual.proj", "text_projection")
_VISION_FIELDS = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"}
_TEXT_FIELDS = {"context_length", "vocab_size", "width", "heads", "layers"}
_BLOCK_KEY = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)")


def convert_config(config: Mapping[str, Any]) -> DenseVLMConfig:
    """The model configuration of open_clip's JSON (`embed_dim`, `vision_cfg`, `text_cfg`, `quick_gelu`)."""
    try:
        vision, text = config["vision_cfg"], config["text_cfg"]
        activation = "quick_gelu" if config.get("quick_gelu") else "gelu"
        if "eva_model_name" in vision or "timm_model_name" in vision or isinstance(vision["layers"], list):
            raise ValueError("Only OpenAI-style vision transformers are converted so far; this is another tower.")
        for name, part, known in (("vision_cfg", vision, _VISION_FIELDS), ("text_cfg", text, _TEXT_FIELDS)):
            if unknown := {field for field in set(part) - known if part[field] not in (None, False)}:
                raise ValueError(f"`{name}` has fields that are not converted: {', '.join(sorted(unknown))}.")
        return DenseVLMConfig(
            vision_config={
                "hidden_size": vision["width"],
                "intermediate_size": int(vision["width"] * vision.get("mlp_ratio", 4)),
                "num_hidden_layers": vision["layers"],
                "num_attention_heads": vision["width"] // vision.get("head_width", 64),
                "image_size": vision["image_size"],
                "patch_size": vision["patch_size"],
                "hidden_act": activation,
            },
            text_config={
                "hidden_size": text["width"],
                "intermediate_size": text["width"] * 4,
                "num_hidden_layers": text["layers"],
                "num_attention_heads": text["heads"],
                "vocab_size": text["vocab_size"],
                "max_position_embeddings": text["context_length"],
                "eos_token_id": text["vocab_size"] - 1,
                "bos_token_id": text["vocab_size"] - 2,
                "hidden_act": activation,
            },
            projection_dim=config["embed_dim"],
        )
    except KeyError as error:
        raise ValueError(f"The open_clip configuration has no field {error}.") from None


def convert_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names for the reference's keys. Raises a `ValueError` that names a key it does not know."""
    converted = {}
    for key, tensor in state_dict.items():
        name = key.removeprefix("module.").removeprefix("text.")
        norm, _, kind = name.rpartition(".")
        block = _BLOCK_KEY.fullmatch(name)
        if name in _TOP:
            converted[_TOP[name]] = tensor.T if name in _TRANSPOSED else tensor
        elif norm in _NORMS:
            converted[f"{_NORMS[norm]}.{kind}"] = tensor
        elif block:
            converted.update(_convert_block(key, tensor, *block.groups()))
        else:
            raise ValueError(f"Left over: the key {key!r} belongs to no part of a CLIP ViT.")
    return {name: tensor.contiguous() for name, tensor in converted.items()}


def _convert_block(key: str, tensor: Tensor, visual: str | None, layer: str, part: str) -> dict[str, Tensor]:
    prefix = f"{'vision' if visual else 'text'}_model.encoder.layers.{layer}"
    module, _, kind = part.rpartition(".")
    if module in _BLOCK:
        return {f"{prefix}.{_BLOCK[module]}.{kind}": tensor}
    if part in ("attn.in_proj_weight", "attn.in_proj_bias"):
        kind = part.rpartition("_")[2]
        return {f"{prefix}.self_attn.{name}_proj.{kind}": rows for name, rows in zip("qkv", tensor.chunk(3))}
    raise ValueError(f"Left over: the key {key!r} belongs to no part of a CLIP ViT.")


def read_checkpoint(file: str | PathLike) -> dict[str, Tensor]:
    """Tensors of a `.safetensors` or `.pt` file; a training checkpoint's `state_dict` is unwrapped."""
    if not Path(file).is_file():
        raise FileNotFoundError(f"There is no checkpoint {file}.")
    try:
        if Path(file).suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"{file} is truncated or no checkpoint: {error}") from None
    except Exception as error:  # pickle.UnpicklingError: code that weights_only refuses, or garbage
        raise ValueError(f"{file} holds more than tensors, or is none; it was not unpickled: {error}") from None
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{file}: expected a dict of tensors, or one under `state_dict`.")
    return content


def convert_checkpoint(checkpoint: str | PathLike | Mapping[str, Tensor], config: Mapping[str, Any]) -> DenseVLMModel:
    r"""
    Args:
        checkpoint (path or `dict`): a `.safetensors` or `.pt` file, or its tensors, under the reference's key names.
        config (`dict`): the reference's JSON.

    Returns:
        [`DenseVLMModel`] in eval mode, float32.

    Raises:
        `ValueError` naming every key that is missing, left over or of another shape.
    """
    state_dict = checkpoint if isinstance(checkpoint, Mapping) else read_checkpoint(checkpoint)
    converted = convert_state_dict(state_dict)
    model = DenseVLMModel(convert_config(config))
    expected = model.state_dict()
    problems = {
        "missing": sorted(set(expected) - set(converted)),
        "left over": sorted(set(converted) - set(expected)),
        "of another shape": [
            f"{key} {tuple(converted[key].shape)} instead of {tuple(expected[key].shape)}"
            for key in sorted(set(expected) & set(converted))
            if converted[key].shape != expected[key].shape
        ],
    }
    if any(problems.values()):
        told = "; ".join(f"{kind}: {', '.join(keys)}" for kind, keys in problems.items() if keys)
        raise ValueError(f"The checkpoint does not fit its configuration. {told}.")
    model.load_state_dict({key: tensor.float() for key, tensor in converted.items()})
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("config", type=Path, help="open_clip's JSON")
    parser.add_argument("output", type=Path, help="folder to save to")
    parser.add_argument("--processor", help="folder or Hub name of the tokenizer, mean and standard deviation")
    arguments = parser.parse_args()
    model = convert_checkpoint(arguments.checkpoint, json.loads(arguments.config.read_text()))
    model.save_pretrained(arguments.output)
    if arguments.processor:
        DenseVLMProcessor.from_pretrained(arguments.processor).save_pretrained(arguments.output)
    else:
        DenseVLMImageProcessor(model.config.vision_config.image_size).save_pretrained(arguments.output)
        print("No tokenizer is saved: training and evaluation need one for texts. Give its folder by --processor.")
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters in {arguments.output}")


if __name__ == "__main__":
    main()
