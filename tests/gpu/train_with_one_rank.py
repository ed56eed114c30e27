# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
`training.train` on one rank as on many: accelerate wraps a model in DDP where there is more than one, and this tells
it that one is enough. Says in the end what has run, and over what.
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
    torch.backends.cudnn.allow_tf32 = False  # as in the tests themselves
    PartialState.use_distributed = property(lambda self: self.distributed_type != DistributedType.NO)
    if "--fsdp" in sys.argv:
        accelerate.accelerator.AcceleratorState = _State
    trainer = main()
    backend = torch.distributed.get_backend()
    print(f"Trained as {type(trainer.model_wrapped).__name__} over {backend}", flush=True)
    del trainer
    close_process_group()
