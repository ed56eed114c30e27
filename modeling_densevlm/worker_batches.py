# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Transfer of batches from worker processes, with errors raised in the main process."""

from typing import TypeVar

import torch
from torch.utils.data import get_worker_info


Batch = TypeVar("Batch")


class SharedMemoryFull(OSError):
    """The shared memory through which DataLoader workers pass their batches is too small."""

    def __init__(self, *_: object):  # the DataLoader re-raises it with the worker's traceback as its message
        super().__init__(
            "/dev/shm is too small for the batches of the worker processes: give it more (`--ipc=host` or "
            "`--shm-size` of Docker), or use fewer of them (`--dataloader_num_workers` in training, `--num_workers` "
            "in evaluation; 0 for none)."
        )


def to_shared_memory(batch: Batch) -> Batch:
    """
    Moves the tensors of a batch (in dicts and lists) to shared memory if called in a DataLoader worker.

    The DataLoader would do so later, in a thread of the worker whose errors are only printed: the batch is lost, and
    the main process waits forever. An error raised here reaches the loop over the DataLoader.

    Args:
        batch (tensor, or nested dicts and lists of tensors): modified in place.

    Returns:
        The same batch.

    Raises:
        [`SharedMemoryFull`] if shared memory is too small.
    """
    if get_worker_info() is not None:
        try:
            _share(batch)
        except RuntimeError as error:
            if "/torch_" not in str(error) or "open files" in str(error):  # names of torch's shared memory files
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
