# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""FSDP 2: sharding of the student for training and of the frozen teacher."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from transformers import PreTrainedModel


FSDP_REFUSED = {
    "activation_checkpointing": "use the recipe's `activation_checkpointing`, which is the same with and without FSDP",
    "activation_checkpointing_offload": "activations stay on their GPU",
    "cpu_offload": "weights stay on their GPUs",
    "ignored_modules": "all of the student is sharded",
    "param_init_fn": "weights are read from a folder",
    "min_num_params": "blocks are sharded one by one, whatever their size",
    "transformer_cls_names_to_wrap": "the model knows which classes are its blocks",
}
"""FSDP 2 setting that is refused → reason. `fsdp_version` 2, `reshard_after_forward`, `auto_wrap_policy` by blocks,
`state_dict_type` FULL_STATE_DICT and `cpu_ram_efficient_loading` false are tested; accelerate itself refuses or
ignores
those of FSDP 1."""


def prepare_student(model: PreTrainedModel, accelerator: Accelerator) -> None:
    """
    Prepares a model and accelerate's FSDP plugin, so that the sharded model computes the same as under DDP.

    Raises:
        `SystemExit` with a message for settings that are not supported.
    """
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise SystemExit("FSDP 1 is not supported: set `fsdp_version` to 2 (in `fsdp_config`: `version`).")
    if plugin.cpu_ram_efficient_loading:
        raise SystemExit(
            "`cpu_ram_efficient_loading` leaves the teacher empty on all processes but one: set it to false."
        )
    if "FULL" not in str(plugin.state_dict_type):
        raise SystemExit("`state_dict_type` must be FULL_STATE_DICT: a run saves the whole model.")
    for name, reason in FSDP_REFUSED.items():
        value = getattr(plugin, name)
        if value and not (name == "cpu_offload" and type(value) is OffloadPolicy):  # the base class offloads nothing
            raise SystemExit(f"`fsdp_config`: `{name}` is not supported: {reason}. Leave it out.")
    _make_shardable(model)
    # FSDP's casts would round the boxes, too. Autocast chooses the precision per operation, as under DDP; weights and
    # gradients are communicated in float32.
    plugin.mixed_precision_policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    # accelerate would shard the input embeddings after their parent.
    model.get_input_embeddings = lambda: None  # type: ignore[method-assign,assignment,return-value]
    # accelerate adds no autocast to a sharded model; in evaluation mode, this adds autocast and nothing else.
    accelerator.prepare_model(model, evaluation_mode=True)


def shard_teacher(teacher: PreTrainedModel, device: torch.device, processes: int) -> None:
    """
    Freezes a model and shards it over the processes; a block's other shards are gathered while it runs. All processes
    must call it equally often, and always in inference mode if the first call is.
    """
    blocks = _make_shardable(teacher.eval().requires_grad_(False))
    mesh = init_device_mesh(device.type, (processes,))
    for module in reversed(list(teacher.modules())):  # inner modules first, the model last
        if type(module).__name__ in blocks or module is teacher:
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
    register_fsdp_forward_method(teacher, "get_image_features")


@contextmanager
def own_class(model: PreTrainedModel) -> Iterator[None]:
    """Restores the model's own class, which FSDP replaces, while it is saved: its name and code are saved, too."""
    sharded = type(model)
    own = next(base for base in sharded.__mro__ if not issubclass(base, FSDPModule))
    model.__class__ = own  # type: ignore[assignment]
    try:
        yield
    finally:
        model.__class__ = sharded


def _make_shardable(model: PreTrainedModel) -> set[str]:
    """Adapts a model to FSDP; returns the class names of its blocks."""
    # `_no_split_modules` may name classes that this model does not contain, which accelerate refuses.
    blocks = set(model._no_split_modules or ()) & {type(module).__name__ for module in model.modules()}
    model._no_split_modules = blocks
    # FSDP supports neither channels_last nor scalar parameters. Scalars become buffers, which keep their names in the
    # state dict.
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-arg]  # a wrapped method in the stubs
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.ndim == 0 and not parameter.requires_grad:
                delattr(module, name)
                module.register_buffer(name, parameter.detach())
    return blocks


__all__ = ["own_class", "prepare_student", "shard_teacher"]
