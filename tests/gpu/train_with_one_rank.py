# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
`training.train` on one rank with the wrappers of several: accelerate uses DDP for more than one process, and this
enables it for a single one. Prints the type of the wrapped model and the backend.
"""

import sys

import accelerate.accelerator
import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType

from tests.distributed.train_with_fsdp import _State
from training.engine.signals import close_process_group
from training.train import main


if __name__ == "__main__":
    torch.backends.cudnn.allow_tf32 = False  # as in the tests
    PartialState.use_distributed = property(lambda self: self.distributed_type != DistributedType.NO)
    if "--fsdp" in sys.argv:
        accelerate.accelerator.AcceleratorState = _State
    trainer = main()
    backend = torch.distributed.get_backend()
    print(f"Trained as {type(trainer.model_wrapped).__name__} over {backend}", flush=True)
    del trainer
    close_process_group()
