# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Weight-space ensemble: the final weights are interpolated between the initial and the trained ones."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import TrainerCallback


def trained_parameters(model: nn.Module, copied: bool = False) -> dict[str, Tensor]:
    """The trainable parameters by name, or copies of them on the CPU."""
    named = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return {name: p.cpu().clone() for name, p in named.items()} if copied else named


def mix_weights(model: nn.Module, initial: dict[str, Tensor], alpha: float) -> None:
    """Sets the trained parameters to alpha · trained + (1 - alpha) · initial, in place."""
    for name, parameter in trained_parameters(model).items():
        if name in initial:
            start = initial[name].to(parameter.device, parameter.dtype)
            if isinstance(parameter, DTensor):  # this process's shard of it
                start = distribute_tensor(start, parameter.device_mesh, parameter.placements, src_data_rank=None)
            parameter.mul_(alpha).add_(start, alpha=1 - alpha)


class WeightEnsemble(TrainerCallback):
    """
    Mixes the initial weights of a trainer into its final ones. It is created before a checkpoint is loaded, so that a
    resumed run mixes in the same weights; a stopped run is left unmixed.
    """

    def __init__(self, trainer: Any, alpha: float):
        self.trainer, self.alpha = trainer, alpha
        self.initial = trained_parameters(trainer.model, copied=True)

    @torch.no_grad()
    def on_train_end(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            mix_weights(self.trainer.model, self.initial, self.alpha)


__all__ = ["WeightEnsemble", "mix_weights", "trained_parameters"]
