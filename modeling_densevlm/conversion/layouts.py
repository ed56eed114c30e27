# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Mapping between the tensor names of public checkpoints and of our models: one list of rules per tower, for both
directions.

The left-hand names are those of open_clip and EVA-CLIP, as used by the reference code (text keys without their `text.`
prefix). Other layouts (RegionCLIP, timm, transformers, single vision towers) are first renamed to these (`names.py`).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rule:
    r"""
    Names of a tensor, or of several that one side stacks in one tensor, on both sides. In a name, `{}` matches a
    number, `*` a last component (`weight`, `bias`) and `**` anything.

    Args:
        theirs, ours (`str` or `tuple[str, ...]`): the name, or names where the other side stacks the tensors.
        parts (`tuple[int, ...]`): relative number of rows of the stacked tensors.
        transposed (`bool`): whether one side stores the transposed matrix.
        leading (`int`): number of leading dimensions of size one of their tensor only.
    """

    theirs: str | tuple[str, ...]
    ours: str | tuple[str, ...]
    parts: tuple[int, ...] = (1, 1, 1)
    transposed: bool = False
    leading: int = 0


def rename(tensors: Mapping[str, Tensor], rules: list[Rule], to_ours: bool) -> tuple[dict[str, Tensor], list[str]]:
    """
    Applies the rules in one direction.

    Args:
        tensors (`dict`): tensors by name.
        rules (`list[Rule]`): the rules.
        to_ours (`bool`): the direction.

    Returns:
        `tuple`: the renamed tensors, and the names of those that match no rule or whose counterparts are missing.

    Raises:
        `ValueError` if two tensors get the same name.
    """
    left = dict(tensors)
    renamed: dict[str, Tensor] = {}
    for rule in rules:
        sources, targets = (rule.theirs, rule.ours) if to_ours else (rule.ours, rule.theirs)
        sources, targets = (names if isinstance(names, tuple) else (names,) for names in (sources, targets))
        pattern = _pattern(sources[0])
        for match in [match for match in map(pattern.fullmatch, list(left)) if match]:
            key, found = match[0], match.groups()
            pieces = [_fill(name, found) for name in sources]
            if not all(piece in left for piece in pieces):
                continue
            whole = sum(rule.parts) if len(targets) > 1 else 1
            if whole > 1 and (left[key].ndim == 0 or len(left[key]) % whole):
                continue  # cannot be split in these parts
            stacked = torch.cat([left.pop(piece) for piece in pieces]) if len(pieces) > 1 else left.pop(key)
            stacked = _reshape(stacked, rule, to_ours)
            rows = stacked.split([len(stacked) // whole * part for part in rule.parts]) if whole > 1 else [stacked]
            names = [_fill(name, found) for name in targets]
            if duplicates := [name for name in names if name in renamed]:
                raise ValueError(f"There are two tensors for {duplicates[0]}, one of them {key}.")
            renamed.update({name: tensor.contiguous() for name, tensor in zip(names, rows)})
    return renamed, sorted(left)


def their_names(ours: str, rules: list[Rule]) -> list[str]:
    """Their names of the tensors (usually one) that make up one of ours; empty if no rule matches."""
    return _names(ours, [(rule.ours, rule.theirs) for rule in rules])


def our_names(theirs: str, rules: list[Rule]) -> list[str]:
    """Our names of the tensors (usually one) that make up one of theirs; empty if no rule matches."""
    return _names(theirs, [(rule.theirs, rule.ours) for rule in rules])


def _names(name: str, pairs: list[tuple[str | tuple[str, ...], str | tuple[str, ...]]]) -> list[str]:
    for pair in pairs:
        sources, targets = (side if isinstance(side, tuple) else (side,) for side in pair)
        for source in sources:
            if found := _pattern(source).fullmatch(name):
                return [_fill(target, found.groups()) for target in targets]
    return []


def _pattern(name: str) -> re.Pattern[str]:
    escaped = re.escape(name)
    for sign, expression in ((r"\{\}", r"(\d+)"), (r"\*\*", r"(.+)"), (r"\*", r"([^.]+)")):
        escaped = escaped.replace(sign, expression)
    return re.compile(escaped)


def _fill(name: str, found: tuple[str, ...]) -> str:
    values = iter(found)
    return re.sub(r"\{\}|\*\*|\*", lambda _: next(values), name)


def _reshape(tensor: Tensor, rule: Rule, to_ours: bool) -> Tensor:
    if rule.transposed:
        return tensor.T if tensor.ndim == 2 else tensor
    if not to_ours:
        return tensor[(None,) * rule.leading] if rule.leading else tensor
    ones = tensor.shape[: rule.leading]
    return tensor.reshape(tensor.shape[len(ones) :]) if ones == (1,) * rule.leading else tensor


def _block(theirs: str, ours: str, names: dict[str, str]) -> list[Rule]:
    return [Rule(f"{theirs}.{left}.*", f"{ours}.{right}.*") for left, right in names.items()]


def _projections(ours: str, kind: str) -> tuple[str, ...]:
    return tuple(f"{ours}.self_attn.{name}_proj.{kind}" for name in "qkv")


def _openai_blocks(theirs: str, ours: str) -> list[Rule]:
    """Rules for OpenAI's transformer blocks, which stack query, key and value in one matrix."""
    names = {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "attn.out_proj": "self_attn.out_proj",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    stacked = [Rule(f"{theirs}.attn.in_proj_{kind}", _projections(ours, kind)) for kind in ("weight", "bias")]
    return stacked + _block(theirs, ours, names)


_TEXT = [
    Rule("token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
    Rule("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    Rule("ln_final.*", "text_model.final_layer_norm.*"),
    *_openai_blocks("transformer.resblocks.{}", "text_model.encoder.layers.{}"),
    # Shape () or (1,); the converter reshapes them.
    Rule("logit_scale", "logit_scale"),
    Rule("logit_bias", "logit_bias"),
]

CLIP_TEXT = [
    *_TEXT,
    Rule("text_projection", "text_projection.weight", transposed=True),
    Rule("text_projection.weight", "text_projection.weight"),  # stored as a layer
]

SIGLIP_TEXT = [*_TEXT, Rule("text_projection.*", "text_model.head.*")]

_VISION_BLOCK = "vision_model.encoder.layers.{}"

CLIP_VIT = [
    Rule("visual.class_embedding", "vision_model.embeddings.class_embedding"),
    Rule("visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight"),
    Rule("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    Rule("visual.ln_pre.*", "vision_model.pre_layrnorm.*"),
    *_openai_blocks("visual.transformer.resblocks.{}", _VISION_BLOCK),
    Rule("visual.ln_post.*", "vision_model.post_layernorm.*"),
    Rule("visual.proj", "visual_projection.weight", transposed=True),
    Rule("visual.proj.weight", "visual_projection.weight"),  # stored as a layer
]

EVA02_CLIP = [
    Rule("visual.cls_token", "vision_model.embeddings.class_embedding", leading=2),
    Rule("visual.pos_embed", "vision_model.embeddings.position_embedding.weight", leading=1),
    Rule("visual.patch_embed.proj.*", "vision_model.embeddings.patch_embedding.*"),
    Rule("visual.blocks.{}.attn.q_bias", f"{_VISION_BLOCK}.self_attn.q_proj.bias"),
    Rule("visual.blocks.{}.attn.v_bias", f"{_VISION_BLOCK}.self_attn.v_proj.bias"),
    *_block(
        "visual.blocks.{}",
        _VISION_BLOCK,
        {
            "norm1": "layer_norm1",
            "norm2": "layer_norm2",
            "attn.q_proj": "self_attn.q_proj",
            "attn.k_proj": "self_attn.k_proj",
            "attn.v_proj": "self_attn.v_proj",
            "attn.inner_attn_ln": "self_attn.inner_norm",
            "attn.proj": "self_attn.out_proj",
            "mlp.w1": "mlp.gate_proj",
            "mlp.w2": "mlp.up_proj",
            "mlp.ffn_ln": "mlp.inner_norm",
            "mlp.w3": "mlp.down_proj",
        },
    ),
    Rule("visual.norm.*", "vision_model.post_layernorm.*"),
    Rule("visual.head.*", "visual_projection.*"),
]

CLIP_RESNET = [
    Rule("visual.attnpool.c_proj.*", "visual_projection.*"),
    Rule("visual.**", "vision_model.**"),
]

_TIMM_HEADS = [
    Rule("visual.head.proj.*", "visual_projection.*"),
    Rule("visual.head.mlp.fc1.*", "visual_projection.fc1.*"),
    Rule("visual.head.mlp.fc2.*", "visual_projection.fc2.*"),
]

TIMM_CONVNEXT = [
    *_TIMM_HEADS,
    Rule("visual.trunk.head.fc.*", "visual_projection.*"),
    Rule("visual.trunk.**", "vision_model.trunk.**"),
]

TIMM_VIT = [
    *_TIMM_HEADS,
    Rule("visual.trunk.head.*", "visual_projection.*"),
    Rule("visual.trunk.**", "vision_model.trunk.**"),
]

SIGLIP_VIT = [
    Rule("visual.trunk.pos_embed", "vision_model.embeddings.position_embedding.weight", leading=1),
    Rule("visual.trunk.patch_embed.proj.*", "vision_model.embeddings.patch_embedding.*"),
    *(
        Rule(f"visual.trunk.blocks.{{}}.attn.qkv.{kind}", _projections(_VISION_BLOCK, kind))
        for kind in ("weight", "bias")
    ),
    *_block(
        "visual.trunk.blocks.{}",
        _VISION_BLOCK,
        {
            "norm1": "layer_norm1",
            "norm2": "layer_norm2",
            "attn.proj": "self_attn.out_proj",
            "mlp.fc1": "mlp.fc1",
            "mlp.fc2": "mlp.fc2",
        },
    ),
    Rule("visual.trunk.norm.*", "vision_model.post_layernorm.*"),
    Rule("visual.trunk.attn_pool.latent", "vision_model.head.probe"),
    *(
        Rule(
            (f"visual.trunk.attn_pool.q.{kind}", f"visual.trunk.attn_pool.kv.{kind}"),
            f"vision_model.head.attention.in_proj_{kind}",
            parts=(1, 2),
        )
        for kind in ("weight", "bias")
    ),
    Rule("visual.trunk.attn_pool.proj.*", "vision_model.head.attention.out_proj.*"),
    Rule("visual.trunk.attn_pool.norm.*", "vision_model.head.layernorm.*"),
    Rule("visual.trunk.attn_pool.mlp.fc1.*", "vision_model.head.mlp.fc1.*"),
    Rule("visual.trunk.attn_pool.mlp.fc2.*", "vision_model.head.mlp.fc2.*"),
]


@dataclass(frozen=True)
class CheckpointLayout:
    r"""
    Layout of checkpoints with one kind of vision tower.

    Args:
        name (`str`): name in messages.
        signature (`str`): a key that identifies the kind.
        rules (`list[Rule]`): rules for the vision tower and its text tower.
        text_prefix (`str`): prefix of the text tower's keys in open_clip and EVA-CLIP.
    """

    name: str
    signature: str
    rules: list[Rule]
    text_prefix: str = ""


CHECKPOINT_LAYOUTS = {
    "clip_vision_model": CheckpointLayout("CLIP ViT", "visual.class_embedding", CLIP_VIT + CLIP_TEXT),
    "eva02_clip_vision_model": CheckpointLayout(
        "EVA-02 CLIP",
        "visual.blocks.0.attn.inner_attn_ln.weight",
        EVA02_CLIP + CLIP_TEXT,
        text_prefix="text.",
    ),
    "clip_resnet_vision_model": CheckpointLayout(
        "CLIP ResNet", "visual.layer1.0.conv1.weight", CLIP_RESNET + CLIP_TEXT
    ),
    "timm_convnext_vision_model": CheckpointLayout(
        "CLIP ConvNeXt", "visual.trunk.stages.0.blocks.0.conv_dw.weight", TIMM_CONVNEXT + CLIP_TEXT
    ),
    "siglip_vision_model": CheckpointLayout(
        "SigLIP", "visual.trunk.attn_pool.latent", SIGLIP_VIT + SIGLIP_TEXT, text_prefix="text."
    ),
    "timm_vit_vision_model": CheckpointLayout(
        "timm CLIP ViT", "visual.trunk.blocks.0.attn.qkv.weight", TIMM_VIT + CLIP_TEXT
    ),
}
"""Layouts by the vision tower's `model_type`. The first one whose signature is in a checkpoint applies."""


def find_kind(tensors: Mapping[str, Tensor], in_file: Callable[[str], str] = str) -> str:
    """Detects the vision tower's `model_type` by the reference's names; `in_file` maps them to those in messages."""
    for kind, layout in CHECKPOINT_LAYOUTS.items():
        if layout.signature in tensors:
            return kind
    hint = ""
    if "visual.blocks.0.attn.qkv.weight" in tensors or "visual.blocks.0.attn.q_bias" in tensors:
        hint = " It looks like an EVA-CLIP of the first generation or without sub-LayerNorm, which is not supported."
    shown = ", ".join(map(in_file, sorted(tensors)[:5])) or "nothing"
    known = ", ".join(layout.name for layout in CHECKPOINT_LAYOUTS.values())
    raise ValueError(f"The checkpoint has no known vision tower ({known}); its keys: {shown} ...{hint}")


__all__ = ["CHECKPOINT_LAYOUTS", "CheckpointLayout", "Rule", "find_kind", "our_names", "rename", "their_names"]
