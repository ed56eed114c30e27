# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoint entries that are computed from the configuration: rotary tables, masks, position ids, sizes."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..configuration_densevlm import DenseVLMConfig
from ..modeling_eva_clip import rotary_tables


SIZES = ("input_resolution", "context_length", "vocab_size")
"""Sizes stored next to the weights in OpenAI's archives."""

_MASK = re.compile(r"(.*\.)?attn_mask")
_POSITION_IDS = re.compile(r"(.*\.)?position_ids")
_ROTARY = re.compile(
    r"visual\.(?:blocks\.\d+\.(?:attn\.)?)?(?:rope|rope_embed|rot_emb|rotary|rotary_emb)\.(?P<kind>"
    r"freqs_cos|freqs_sin|cos|sin|cos_cached|sin_cached|freqs|freqs_cis|pos_embed|bands|inv_freq)"
)


def is_derived(key: str) -> bool:
    """Whether a key, under the reference's names, is that of a derived entry."""
    return key in SIZES or any(pattern.fullmatch(key) for pattern in (_MASK, _POSITION_IDS, _ROTARY))


def split_derived(
    weights: Mapping[str, Tensor], config: DenseVLMConfig, in_file: Callable[[str], str]
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    r"""
    Separates learned tensors from derived entries. Rotary tables are verified for the grid of their shape. Sizes,
    causal masks and position ids are dropped: the shapes of the learned tensors imply them.

    Args:
        weights (`dict`): the checkpoint, under the reference's names.
        config ([`DenseVLMConfig`]): the configuration of the converted model.
        in_file (callable): maps a name to that in the file, for messages.

    Returns:
        `tuple`: the learned tensors; the names of the verified rotary tables; and the names of the other derived
        entries, with a remark if their value differs from that of the model.

    Raises:
        `ValueError` for a rotary table of another model.
    """
    learned, tables, others = {}, [], []
    for key, tensor in weights.items():
        rotary = _ROTARY.fullmatch(key)
        if key in SIZES and tensor.numel() == 1:
            others.append(in_file(key) + _size_remark(key, int(tensor), config))
        elif _MASK.fullmatch(key):
            others.append(in_file(key) + ("" if _is_causal(tensor) else " (not causal, as the text tower is)"))
        elif _POSITION_IDS.fullmatch(key):
            others.append(in_file(key))
        elif rotary is not None and config.vision_config.model_type == "eva02_clip_vision_model":
            vision = config.vision_config
            if not _matches_rotary_table(tensor, rotary["kind"], vision):
                raise ValueError(
                    f"The rotary table {in_file(key)!r} {tuple(tensor.shape)} differs from that of the "
                    f"configuration (`pt_hw_seq_len` {vision.rope_grid}, {vision.num_attention_heads} heads)."
                )
            tables.append(in_file(key))
        else:
            learned[key] = tensor
    return learned, tables, others


def _size_remark(key: str, found: int, config: DenseVLMConfig) -> str:
    text = config.text_config
    ours = {
        "input_resolution": config.vision_config.image_size,
        "context_length": None if text is None else text.max_position_embeddings,
        "vocab_size": None if text is None else text.vocab_size,
    }[key]
    return "" if ours in (None, found) else f" ({found}, but the learned tensors have {ours})"


def _is_causal(mask: Tensor) -> bool:
    if mask.ndim != 2 or mask.shape[0] != mask.shape[1]:
        return False
    seen = mask if mask.dtype == torch.bool else mask.float() >= -1
    above = torch.ones_like(seen).triu(1)
    return torch.equal(seen, ~above) or (mask.dtype == torch.bool and torch.equal(seen, above))


def _matches_rotary_table(table: Tensor, kind: str, vision: Any) -> bool:
    """Whether a table is that of the tower for some grid, with each frequency once or twice, flat or square."""
    head_dim = vision.hidden_size // vision.num_attention_heads
    close = 1e-2 if table.dtype in (torch.float16, torch.bfloat16) else 1e-4  # half precision has three digits
    if kind in ("bands", "inv_freq"):
        half = head_dim // 2
        ours = vision.rope_theta ** (-torch.arange(0, half, 2, dtype=torch.float32) / half)
        return table.shape == ours.shape and torch.allclose(table.float(), ours, atol=close, rtol=0)
    table = table.squeeze() if table.ndim > 2 else table
    size = tuple(table.shape[:-1])
    if len(size) == 1:
        side = round(size[0] ** 0.5)
        if side**2 != size[0]:  # with a row for the class token, which is not rotated
            table, side = table[1:], round((size[0] - 1) ** 0.5)
        size = (side, side)
    if len(size) != 2 or size[0] * size[1] == 0:
        return False
    table = table.flatten(0, -2)
    cos, sin = rotary_tables(size, head_dim, vision.rope_grid, vision.rope_theta)  # adjacent channels share an angle
    if table.is_complex():
        pairs = [(table.real, cos[:, ::2]), (table.imag, sin[:, ::2])]
    elif kind in ("freqs", "freqs_cis"):  # angles
        once = 2 * table.shape[-1] == head_dim
        cos, sin = (cos[:, ::2], sin[:, ::2]) if once else (cos, sin)
        pairs = [(table.float().cos(), cos), (table.float().sin(), sin)]
    else:
        both = {"pos_embed": [sin, cos]}.get(kind, [cos] if "cos" in kind else [sin])
        once = 2 * table.shape[-1] == head_dim * len(both)
        pairs = [(table.float(), torch.cat([part[:, ::2] if once else part for part in both], dim=-1))]
    return all(
        theirs.shape == ours.shape and torch.allclose(theirs.float(), ours, atol=close, rtol=0)
        for theirs, ours in pairs
    )


def exported_tables(vision: Any) -> dict[str, Tensor]:
    """The rotary tables that EVA-CLIP stores for an EVA-02 CLIP; empty for other towers."""
    if vision.model_type != "eva02_clip_vision_model":
        return {}
    side = vision.image_size // vision.patch_size
    head_dim = vision.hidden_size // vision.num_attention_heads
    owners = ["visual.rope", *(f"visual.blocks.{i}.attn.rope" for i in range(vision.num_hidden_layers))]
    tables: dict[str, Tensor] = {}
    for owner in owners:
        cos, sin = rotary_tables((side, side), head_dim, vision.rope_grid, vision.rope_theta)
        tables |= {f"{owner}.freqs_cos": cos, f"{owner}.freqs_sin": sin}
    return tables


__all__ = ["SIZES", "exported_tables", "is_derived", "split_derived"]
