# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Finds the tensors of a CLIP in a checkpoint, whatever it is part of, and gives them the reference's names."""

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
"""Parts of names added by data-parallel, sharded, checkpointed and compiled modules."""

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

REGIONCLIP_SET_ASIDE = (
    "teacher_backbone.",
    "teacher_roi_heads.",
    "offline_backbone.",
    "offline_proposal_generator.",
    "proposal_generator.",
    "roi_heads.",
    "pixel_mean",
    "pixel_std",
)
"""Tensors of RegionCLIP's files that are no part of the CLIP: detectors and the frozen teacher."""

_BESIDE = re.compile(
    r"(neck|rpn_head|roi_head|bbox_head|mask_head|decode_head|auxiliary_head|proposal_generator|roi_heads|"
    r"sem_seg_head|fpn\d*|lateral_convs)\..+|pixel_mean|pixel_std|n_averaged"
)
"""Tensors of detectors, segmenters and weight averaging at the same level as a CLIP's own names."""

_PARTS = {
    "open_clip": {
        *("visual", "text", "token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection"),
        *("logit_scale", "logit_bias", "attn_mask", "input_resolution", "context_length", "vocab_size"),
    },
    "transformers": {
        *("vision_model", "text_model", "visual_projection", "text_projection", "logit_scale", "logit_bias")
    },
}
"""First parts of a CLIP's names; in the forms that are not here, all are its own."""

_ALONE = "vision tower alone"


def _signatures() -> dict[str, str]:
    """Names that identify a CLIP, and their form; longest first, since shorter ones are suffixes of them."""
    forms = {layout.signature: "open_clip" for layout in CHECKPOINT_LAYOUTS.values()}
    forms |= {f"visual.{trunk}{_TIMM_EVA_SIGNATURE}": "open_clip" for trunk in ("", "trunk.")}
    ours = {our_names(layout.signature, layout.rules)[0]: "transformers" for layout in CHECKPOINT_LAYOUTS.values()}
    alone = {name.removeprefix("visual."): _ALONE for name in forms}
    return dict(sorted((alone | ours | forms).items(), key=lambda item: -len(item[0])))


_SIGNATURES = _signatures()
_COMPANIONS = {"class_embedding": "conv1.weight", "layer1.0.conv1.weight": "attnpool.positional_embedding"}
"""Names that occur in other networks too, with one that occurs in CLIPs only."""


@dataclass(frozen=True)
class ClipTensors:
    r"""
    A CLIP's tensors, taken out of a checkpoint.

    Args:
        tensors (`dict`): under the reference's names.
        layout (`str`): the layout they came in.
        prefix (`str`): what stands before its names in the file.
        set_aside (`list[str]`): the file's names of tensors that are no part of a CLIP.
        origin (`dict[str, str]`): the file's name by the reference's, where one tensor is one there.
        name (callable): the file's name for a tensor that is missing in it.
    """

    tensors: dict[str, Tensor]
    layout: str
    prefix: str
    set_aside: list[str]
    origin: Mapping[str, str]
    name: Callable[[str], str]

    def in_file(self, reference_name: str) -> str:
        """The name that a tensor has, or would have, in the file."""
        return self.origin.get(reference_name) or self.prefix + self.name(reference_name)

    def ours_in_file(self, our_name: str, rules: list) -> list[str]:
        """The same for one of our names: one, or those of the tensors it is made of."""
        if self.layout == "transformers":
            return [self.origin.get(our_name) or self.prefix + our_name]
        return [self.in_file(name) for name in their_names(our_name, rules)]


def clean(name: str) -> str:
    """The name without the parts that wrappers of modules add."""
    return _WRAPPED.sub("", name)


def clip_prefixes(tensors: Mapping[Any, Any]) -> list[str]:
    """What stands before the names of each CLIP among them, `""` for one that stands at the top."""
    names = {clean(name): name for name in tensors if isinstance(name, str)}
    found: dict[str, str] = {}
    for name in names:
        for signature, form in _SIGNATURES.items():
            prefix = name.removesuffix(signature)
            if prefix != name and (not prefix or prefix.endswith(".")):
                companion = _COMPANIONS.get(signature)
                if form != _ALONE or not prefix or companion is None or prefix + companion in names:
                    found.setdefault(prefix, form)
                break
    if "backbone." in found:  # RegionCLIP's, beside its teacher
        found = {prefix: form for prefix, form in found.items() if not prefix.startswith(REGIONCLIP_SET_ASIDE)}

    def tower(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): tensors[key] for name, key in names.items() if name.startswith(prefix)}

    # A program that keeps a CLIP and its image encoder names the same tensors twice.
    whole = [tower(f"{prefix}visual.") for prefix, form in found.items() if form == "open_clip"]
    alone = [prefix for prefix, form in found.items() if form == _ALONE]
    return [
        prefix for prefix in found if prefix not in alone or not any(same_tensors(tower(prefix), t) for t in whole)
    ]


def same_tensors(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    """Whether both have the same names and numbers."""
    return left.keys() == right.keys() and all(
        isinstance(tensor, Tensor) and isinstance(right[name], Tensor) and torch.equal(tensor, right[name])
        for name, tensor in left.items()
    )


def to_reference_names(tensors: Mapping[str, Tensor], prefix: str = "") -> ClipTensors:
    """
    The CLIP under a prefix (one of [`clip_prefixes`]) in the names of the reference.

    Raises:
        `ValueError` where two tensors would have the same name.
    """
    named, origin = _each(tensors, clean)
    named, origin = _norms_by_weight(named, origin)
    within = tuple(other for other in clip_prefixes(named) if other != prefix and other.startswith(prefix))
    inside = [name for name in named if name.startswith(prefix) and not name.startswith(within)]
    form = _form({name.removeprefix(prefix) for name in inside})
    if (
        prefix == "backbone."
        and form == _ALONE
        and any(name.startswith(("lang_encoder.", *REGIONCLIP_SET_ASIDE)) for name in named)
    ):
        form = "RegionCLIP"
        inside += [name for name in named if name.startswith("lang_encoder.")]
    elif prefix and form in _PARTS:
        inside = [name for name in inside if name.removeprefix(prefix).split(".")[0] in _PARTS[form]]
    inside = {name: name.removeprefix(prefix) for name in inside}
    inside = {name: short for name, short in inside.items() if not _BESIDE.fullmatch(short)}
    set_aside = sorted(origin[name] for name in named if name not in inside)

    if form == "transformers":
        theirs = {short: named[name] for name, short in inside.items()}
        return ClipTensors(
            with_counters(_from_transformers(theirs)),
            *(form, prefix, set_aside),
            {short: origin[name] for name, short in inside.items()},
            lambda name: name,
        )
    reference, back = _naming(form, inside.values())
    theirs = {name: named[name] for name in inside}
    renamed, origin = _each(theirs, lambda name: reference(inside[name]), origin)
    layout = "timm" if _is_timm_eva(inside.values()) else form
    # RegionCLIP's two towers have a prefix each, which `back` knows.
    return ClipTensors(with_counters(renamed), layout, "" if form == "RegionCLIP" else prefix, set_aside, origin, back)


def _form(names: set[str]) -> str:
    for signature, form in _SIGNATURES.items():
        if signature in names:
            return form
    # The tensor that identifies the form is missing.
    return "transformers" if any(name.startswith(("vision_model.", "text_model.")) for name in names) else "open_clip"


def _is_timm_eva(names: Iterable[str]) -> bool:
    return any(name.removeprefix("visual.").removeprefix("trunk.") == _TIMM_EVA_SIGNATURE for name in names)


def _each(
    tensors: Mapping[str, Tensor], name: Callable[[str], str], origin: Mapping[str, str] | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors under other names, and what the file calls them (`origin`: those that they have now)."""
    renamed, found = {}, {}
    for key, tensor in tensors.items():
        new, before = name(key), key if origin is None else origin[key]
        if new in renamed:
            raise ValueError(f"The checkpoint holds {new} twice, as {found[new]} and as {before}.")
        renamed[new], found[new] = tensor, before
    return renamed, found


def _norms_by_weight(named: dict[str, Tensor], origin: dict[str, str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """`gamma` and `beta` of a norm, TensorFlow's names, as `weight` and `bias`. A layer scale is a `gamma` alone."""
    both = {name[:-6] for name in named if name.endswith(".gamma") and f"{name[:-6]}.beta" in named}

    def new(name: str) -> str:
        owner, _, last = name.rpartition(".")
        return (
            f"{owner}.{'weight' if last == 'gamma' else 'bias'}"
            if owner in both and last in ("gamma", "beta")
            else name
        )

    return _each(named, new, origin)


def _naming(form: str, names: Iterable[str]) -> tuple[Callable[[str], str], Callable[[str], str]]:
    """From the names of a form to the reference's, and back."""
    names = list(names)
    if _is_timm_eva(names):
        own = next(name for name in names if name.endswith(_TIMM_EVA_SIGNATURE)).removesuffix(_TIMM_EVA_SIGNATURE)
        return _from_timm_eva, lambda name: _to_timm_eva(name, own)
    if form == "RegionCLIP":
        return (
            lambda name: name.removeprefix("lang_encoder.") if name.startswith("lang_encoder.") else f"visual.{name}",
            lambda name: (
                f"backbone.{name.removeprefix('visual.')}" if name.startswith("visual.") else f"lang_encoder.{name}"
            ),
        )
    if form == _ALONE:
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
    """Those of transformers' CLIP and SigLIP are ours; ours are of every tower."""
    results = {layout.signature: rename(named, layout.rules, to_ours=False) for layout in CHECKPOINT_LAYOUTS.values()}
    _, (renamed, left) = min(results.items(), key=lambda item: (item[0] not in item[1][0], len(item[1][1])))
    return renamed | {key: named[key] for key in left}


def with_counters(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Frozen batch norms, of detectors say, count no batches; ours have the counter, which changes no feature."""
    counters = {
        key.replace("running_mean", "num_batches_tracked"): torch.zeros((), dtype=torch.int64, device=tensor.device)
        for key, tensor in tensors.items()
        if key.endswith(".running_mean")
    }
    return counters | tensors


__all__ = ["ClipTensors", "clean", "clip_prefixes", "same_tensors", "to_reference_names"]
