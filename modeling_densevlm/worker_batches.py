# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Batches that worker processes hand over: what fails on the way has to be seen where the batch is waited for."""

from typing import TypeVar

import torch
from torch.utils.data import get_worker_info


Batch = TypeVar("Batch")


class SharedMemoryFull(OSError):
    """The memory through which the workers of a loader hand over their batches is too small."""

    def __init__(self, *_: object):  # the loader raises it again, with the worker's traceback for a message
        super().__init__(
            "/dev/shm is too small for the batches of the worker processes: give it more (`--ipc=host` or "
            "`--shm-size` of Docker), or use fewer of them (`--dataloader_num_workers` in training, `--num_workers` "
            "in evaluation; 0 for none)."
        )


def to_shared_memory(batch: Batch) -> Batch:
    """
    Moves the tensors of a batch (in dicts and lists) to shared memory, in a worker; elsewhere nothing happens.

    A loader does so itself, but later and in a thread: what fails there is printed and the batch is lost, and who
    waits for it waits for ever. What fails here reaches the loop over the loader.

    Raises:
        [`SharedMemoryFull`], which names the remedies.
    """
    if get_worker_info() is not None:
        try:
            _share(batch)
        except RuntimeError as error:
            if "/torch_" not in str(error) or "open files" in str(error):  # torch's names of its pieces of that memory
                raise
            raise SharedMemoryFull from error
    return batch


def _share(value: object) -> None:
    if isinstance(value, torch.Tensor):
        value.share_memory_()
    elif isinstance(value, dict):
        _share(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            _share(part)


__all__ = ["SharedMemoryFull", "to_shared_memory"]
