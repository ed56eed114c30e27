# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""FSDP 2: models of which each process holds a share, the student while it trains and the teacher as it is."""

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
    "activation_checkpointing": "give `activation_checkpointing` of the recipe, the same with and without FSDP",
    "activation_checkpointing_offload": "activations stay on their GPU",
    "cpu_offload": "weights stay on their GPUs",
    "ignored_modules": "all of the student is sharded",
    "param_init_fn": "weights are read from a folder",
    "min_num_params": "blocks are sharded one by one, whatever their size",
    "transformer_cls_names_to_wrap": "the model knows which classes are its blocks",
}
"""Settings of FSDP 2 that end a run, and why. `fsdp_version` 2, `reshard_after_forward`, `auto_wrap_policy` by blocks,
`state_dict_type` FULL_STATE_DICT and `cpu_ram_efficient_loading` false are tested; accelerate itself refuses or drops
those that FSDP 1 alone had."""


def prepare_student(model: PreTrainedModel, accelerator: Accelerator) -> None:
    """
    Readies a model for accelerate to shard it, and accelerate to do so as DDP computes.

    Raises:
        `SystemExit` with a message for settings under which a run would be another one.
    """
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise SystemExit("FSDP 1 is not supported: set `fsdp_version` to 2 (in `fsdp_config`: `version`).")
    if plugin.cpu_ram_efficient_loading:
        raise SystemExit(
            "`cpu_ram_efficient_loading` leaves the teacher of all processes but one empty: set it to false."
        )
    if "FULL" not in str(plugin.state_dict_type):
        raise SystemExit("`state_dict_type` must be FULL_STATE_DICT: what a run saves is a whole model.")
    for name, reason in FSDP_REFUSED.items():
        value = getattr(plugin, name)
        if value and not (name == "cpu_offload" and type(value) is OffloadPolicy):  # that class offloads nothing
            raise SystemExit(f"`fsdp_config`: `{name}` is not for this program: {reason}. Leave it out.")
    _make_shardable(model)
    # No casts by FSDP: they would round the boxes, too. Autocast chooses operation by operation, as it does for DDP;
    # weights and gradients travel in float32.
    plugin.mixed_precision_policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    model.get_input_embeddings = lambda: None  # accelerate would shard them after the model they are part of
    # accelerate leaves the precision of a sharded model to FSDP; in evaluation mode this is autocast and nothing else.
    accelerator.prepare_model(model, evaluation_mode=True)


def shard_teacher(teacher: PreTrainedModel, device: torch.device, processes: int) -> None:
    """
    Freezes a model and leaves each process its share of it; the rest of a block is fetched while the block runs. All
    processes have to call it equally often, and always in inference mode if they do so the first time.
    """
    _make_shardable(teacher.eval().requires_grad_(False))
    mesh = init_device_mesh(device.type, (processes,))
    for module in reversed(list(teacher.modules())):  # inner ones first, the model itself last
        if type(module).__name__ in teacher._no_split_modules or module is teacher:
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
    register_fsdp_forward_method(teacher, "get_image_features")


@contextmanager
def own_class(model: PreTrainedModel) -> Iterator[None]:
    """A sharded model has a class of torch's; in it, it has its own, whose name and code belong to what is saved."""
    sharded = type(model)
    model.__class__ = next(base for base in sharded.__mro__ if not issubclass(base, FSDPModule))
    try:
        yield
    finally:
        model.__class__ = sharded


def _make_shardable(model: PreTrainedModel) -> None:
    # A model knows its blocks by the names of their classes, with some of classes that this one does not have.
    model._no_split_modules = set(model._no_split_modules) & {type(module).__name__ for module in model.modules()}
    # FSDP takes no parameter in another order in memory, and none without a dimension. The latter stays whole as a
    # buffer, which has the same name and place in what is saved.
    model.to(memory_format=torch.contiguous_format)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.ndim == 0 and not parameter.requires_grad:
                delattr(module, name)
                module.register_buffer(name, parameter.detach())


__all__ = ["own_class", "prepare_student", "shard_teacher"]
