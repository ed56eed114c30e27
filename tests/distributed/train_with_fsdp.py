# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
`training.train` under FSDP on CPUs, where accelerate silently runs DDP instead. This program declares its processes as
GPU processes, and reports at the end what was run.
"""

import accelerate.accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from training.engine.signals import close_process_group
from training.train import main


class _State(AcceleratorState):
    def __init__(self, *args, **kwargs):
        if PartialState._shared_state.get("distributed_type") == DistributedType.MULTI_CPU:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        super().__init__(*args, **kwargs)


if __name__ == "__main__":
    accelerate.accelerator.AcceleratorState = _State
    accelerator = main().accelerator
    print(f"{accelerator.distributed_type}, is_fsdp2 {accelerator.is_fsdp2}")
    del accelerator  # as in a program whose `main` has returned
    close_process_group()
