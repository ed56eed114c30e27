# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Finds the tensors of a CLIP in a checkpoint, also of a larger model, and renames them to the reference's names."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .layouts import CHECKPOINT_LAYOUTS, our_names, rename, their_names


_WRAPPED = re.compile(
    r"(?:(?<=\.)|^)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)
"""Components of names added by module wrappers: data parallelism, sharding, checkpointing, compilation."""

_TEXT_KEYS = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.", "text_projection")

_TIMM_EVA = {
    "attn.q_proj.bias": "attn.q_bias",
    "attn.v_proj.bias": "attn.v_bias",
    "attn.norm.": "attn.inner_attn_ln.",
    "mlp.fc1_g.": "mlp.w1.",
    "mlp.fc1_x.": "mlp.w2.",
    "mlp.norm.": "mlp.ffn_ln.",
    "mlp.fc2.": "mlp.w3.",
}
_TIMM_EVA_SIGNATURE = "blocks.0.attn.norm.weight"

REGIONCLIP_IGNORED = (
    "teacher_backbone.",
    "teacher_roi_heads.",
    "offline_backbone.",
    "offline_proposal_generator.",
    "proposal_generator.",
    "roi_heads.",
    "pixel_mean",
    "pixel_std",
)
"""Prefixes of tensors in RegionCLIP's files outside the CLIP: detectors and the frozen teacher."""

_OTHER_MODULES = re.compile(
    r"(neck|rpn_head|roi_head|bbox_head|mask_head|decode_head|auxiliary_head|proposal_generator|roi_heads|"
    r"sem_seg_head|fpn\d*|lateral_convs)\..+|pixel_mean|pixel_std|n_averaged"
)
"""Names of other tensors beside those of a CLIP: of detectors, segmenters and weight averaging."""

_PARTS = {
    "open_clip": {
        *("visual", "text", "token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection"),
        *("logit_scale", "logit_bias", "attn_mask", "input_resolution", "context_length", "vocab_size"),
    },
    "transformers": {
        *("vision_model", "text_model", "visual_projection", "text_projection", "logit_scale", "logit_bias")
    },
}
"""First components of the names of a CLIP, per layout. In other layouts, all tensors belong to the CLIP."""

_VISION_ONLY = "vision tower alone"


def _signatures() -> dict[str, str]:
    """Names that identify a CLIP, with their layout; longest first, as some are suffixes of others."""
    layouts = {layout.signature: "open_clip" for layout in CHECKPOINT_LAYOUTS.values()}
    layouts |= {f"visual.{trunk}{_TIMM_EVA_SIGNATURE}": "open_clip" for trunk in ("", "trunk.")}
    ours = {our_names(layout.signature, layout.rules)[0]: "transformers" for layout in CHECKPOINT_LAYOUTS.values()}
    vision_only = {name.removeprefix("visual."): _VISION_ONLY for name in layouts}
    return dict(sorted((vision_only | ours | layouts).items(), key=lambda item: -len(item[0])))


_SIGNATURES = _signatures()
_COMPANIONS = {"class_embedding": "conv1.weight", "layer1.0.conv1.weight": "attnpool.positional_embedding"}
"""Signatures that other networks have too, each with a second name that only CLIPs have."""


@dataclass(frozen=True)
class ClipTensors:
    r"""
    The tensors of a CLIP from a checkpoint.

    Args:
        tensors (`dict`): tensors under the reference's names.
        layout (`str`): their layout in the file.
        prefix (`str`): prefix of their names in the file.
        ignored (`list[str]`): names in the file of tensors outside the CLIP.
        origin (`dict[str, str]`): maps names of the reference to those in the file, where tensors correspond.
        name (callable): the same mapping for tensors that are missing in the file.
    """

    tensors: dict[str, Tensor]
    layout: str
    prefix: str
    ignored: list[str]
    origin: Mapping[str, str]
    name: Callable[[str], str]

    def in_file(self, reference_name: str) -> str:
        """The name of a tensor in the file, also if it is missing there."""
        return self.origin.get(reference_name) or self.prefix + self.name(reference_name)

    def ours_in_file(self, our_name: str, rules: list) -> list[str]:
        """The names in the file of the tensors (usually one) that make up one of ours."""
        if self.layout == "transformers":
            return [self.origin.get(our_name) or self.prefix + our_name]
        return [self.in_file(name) for name in their_names(our_name, rules)]


def clean(name: str) -> str:
    """A name without the components added by module wrappers."""
    return _WRAPPED.sub("", name)


def clip_prefixes(tensors: Mapping[Any, Any]) -> list[str]:
    """The prefix of each CLIP among the tensors; `""` for one without a prefix."""
    names = {clean(name): name for name in tensors if isinstance(name, str)}
    found: dict[str, str] = {}
    for name in names:
        for signature, layout in _SIGNATURES.items():
            prefix = name.removesuffix(signature)
            if prefix != name and (not prefix or prefix.endswith(".")):
                companion = _COMPANIONS.get(signature)
                if layout != _VISION_ONLY or not prefix or companion is None or prefix + companion in names:
                    found.setdefault(prefix, layout)
                break
    if "backbone." in found:  # RegionCLIP, with its teacher
        found = {prefix: layout for prefix, layout in found.items() if not prefix.startswith(REGIONCLIP_IGNORED)}

    def tower(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): tensors[key] for name, key in names.items() if name.startswith(prefix)}

    # Without vision towers whose tensors are also part of a complete CLIP in the same file.
    complete = [tower(f"{prefix}visual.") for prefix, layout in found.items() if layout == "open_clip"]
    vision_only = [prefix for prefix, layout in found.items() if layout == _VISION_ONLY]
    return [
        prefix
        for prefix in found
        if prefix not in vision_only or not any(same_tensors(tower(prefix), tensors) for tensors in complete)
    ]


def same_tensors(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    """Whether both dicts have the same names and equal tensors."""
    return left.keys() == right.keys() and all(
        isinstance(tensor, Tensor) and isinstance(right[name], Tensor) and torch.equal(tensor, right[name])
        for name, tensor in left.items()
    )


def to_reference_names(tensors: Mapping[str, Tensor], prefix: str = "") -> ClipTensors:
    """
    Extracts the CLIP under a prefix and renames its tensors to the reference's names.

    Args:
        tensors (`dict`): all tensors of the checkpoint.
        prefix (`str`, *optional*, defaults to `""`): one of [`clip_prefixes`].

    Returns:
        [`ClipTensors`]

    Raises:
        `ValueError` if two tensors get the same name.
    """
    named, origin = _rename_each(tensors, clean)
    named, origin = _rename_gamma_beta(named, origin)
    nested = tuple(other for other in clip_prefixes(named) if other != prefix and other.startswith(prefix))
    names = [name for name in named if name.startswith(prefix) and not name.startswith(nested)]
    layout = _detect_layout({name.removeprefix(prefix) for name in names})
    if (
        prefix == "backbone."
        and layout == _VISION_ONLY
        and any(name.startswith(("lang_encoder.", *REGIONCLIP_IGNORED)) for name in named)
    ):
        layout = "RegionCLIP"
        names += [name for name in named if name.startswith("lang_encoder.")]
    elif prefix and layout in _PARTS:
        names = [name for name in names if name.removeprefix(prefix).split(".")[0] in _PARTS[layout]]
    inside = {name: name.removeprefix(prefix) for name in names}
    inside = {name: short for name, short in inside.items() if not _OTHER_MODULES.fullmatch(short)}
    ignored = sorted(origin[name] for name in named if name not in inside)

    if layout == "transformers":
        theirs = {short: named[name] for name, short in inside.items()}
        return ClipTensors(
            with_batch_counters(_from_transformers(theirs)),
            *(layout, prefix, ignored),
            {short: origin[name] for name, short in inside.items()},
            lambda name: name,
        )
    reference, back = _name_mappings(layout, inside.values())
    theirs = {name: named[name] for name in inside}
    renamed, origin = _rename_each(theirs, lambda name: reference(inside[name]), origin)
    # The two towers of RegionCLIP have different prefixes, which `back` adds.
    prefix = "" if layout == "RegionCLIP" else prefix
    layout = "timm" if _is_timm_eva(inside.values()) else layout
    return ClipTensors(with_batch_counters(renamed), layout, prefix, ignored, origin, back)


def _detect_layout(names: set[str]) -> str:
    for signature, layout in _SIGNATURES.items():
        if signature in names:
            return layout
    # The tensor that identifies the layout is missing.
    return "transformers" if any(name.startswith(("vision_model.", "text_model.")) for name in names) else "open_clip"


def _is_timm_eva(names: Iterable[str]) -> bool:
    return any(name.removeprefix("visual.").removeprefix("trunk.") == _TIMM_EVA_SIGNATURE for name in names)


def _rename_each(
    tensors: Mapping[str, Tensor], name: Callable[[str], str], origin: Mapping[str, str] | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Renames tensors. Also returns the file's name by the new one; `origin` has those by the current one."""
    renamed: dict[str, Tensor] = {}
    found: dict[str, str] = {}
    for key, tensor in tensors.items():
        new, in_file = name(key), key if origin is None else origin[key]
        if new in renamed:
            raise ValueError(f"The checkpoint holds {new} twice, as {found[new]} and as {in_file}.")
        renamed[new], found[new] = tensor, in_file
    return renamed, found


def _rename_gamma_beta(named: dict[str, Tensor], origin: dict[str, str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Renames `gamma` and `beta` of norms to `weight` and `bias`. A `gamma` without `beta` is a layer scale."""
    both = {name[:-6] for name in named if name.endswith(".gamma") and f"{name[:-6]}.beta" in named}

    def new(name: str) -> str:
        owner, _, last = name.rpartition(".")
        return (
            f"{owner}.{'weight' if last == 'gamma' else 'bias'}"
            if owner in both and last in ("gamma", "beta")
            else name
        )

    return _rename_each(named, new, origin)


def _name_mappings(layout: str, names: Iterable[str]) -> tuple[Callable[[str], str], Callable[[str], str]]:
    """Two functions: from the names of a layout to the reference's, and back."""
    names = list(names)
    if _is_timm_eva(names):
        own = next(name for name in names if name.endswith(_TIMM_EVA_SIGNATURE)).removesuffix(_TIMM_EVA_SIGNATURE)
        return _from_timm_eva, lambda name: _to_timm_eva(name, own)
    if layout == "RegionCLIP":
        return (
            lambda name: name.removeprefix("lang_encoder.") if name.startswith("lang_encoder.") else f"visual.{name}",
            lambda name: (
                f"backbone.{name.removeprefix('visual.')}" if name.startswith("visual.") else f"lang_encoder.{name}"
            ),
        )
    if layout == _VISION_ONLY:
        return lambda name: f"visual.{name}", lambda name: name.removeprefix("visual.")
    text = "text." if any(name.startswith("text.") for name in names) else ""
    return lambda name: name.removeprefix("text."), lambda name: text + name if name.startswith(_TEXT_KEYS) else name


def _from_timm_eva(key: str) -> str:
    if key.startswith(("text.", *_TEXT_KEYS)) or key in ("logit_scale", "logit_bias"):
        return key.removeprefix("text.")
    key = key.removeprefix("visual.").removeprefix("trunk.")
    for theirs, ours in _TIMM_EVA.items():
        key = key.replace(theirs, ours)
    return f"visual.{key}"


def _to_timm_eva(name: str, prefix: str) -> str:
    if not name.startswith("visual."):
        return name
    for theirs, ours in _TIMM_EVA.items():
        name = name.replace(ours, theirs)
    return prefix + name.removeprefix("visual.")


def _from_transformers(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From our names, which are those of transformers for its CLIP and SigLIP, to the reference's."""
    results = {layout.signature: rename(named, layout.rules, to_ours=False) for layout in CHECKPOINT_LAYOUTS.values()}
    _, (renamed, left) = min(results.items(), key=lambda item: (item[0] not in item[1][0], len(item[1][1])))
    return renamed | {key: named[key] for key in left}


def with_batch_counters(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Adds the batch counters that frozen batch norms (of detectors, say) lack; they do not affect features."""
    counters = {
        key.replace("running_mean", "num_batches_tracked"): torch.zeros((), dtype=torch.int64, device=tensor.device)
        for key, tensor in tensors.items()
        if key.endswith(".running_mean")
    }
    return counters | tensors


__all__ = ["ClipTensors", "clean", "clip_prefixes", "same_tensors", "to_reference_names"]
