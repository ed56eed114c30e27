# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Signals, the end of processes, and steps without finite gradients."""

import atexit
import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from torch.distributed.device_mesh import DeviceMesh
from transformers import TrainerCallback
from transformers.utils import logging


logger = logging.get_logger(__name__)


class StopSignal:
    """
    Context manager that records a SIGTERM (sent by schedulers before preemption), so that the run saves a checkpoint
    and ends after the current step. Repeated signals have no effect: launchers forward those that their ranks have
    received already. Must be entered in the main thread.
    """

    def __init__(self) -> None:
        self.received = False

    def __enter__(self) -> "StopSignal":
        self.process = os.getpid()
        self.before = signal.signal(signal.SIGTERM, self._record)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self.before)

    def _record(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:  # a child inherits the handler, and should end as usual
            signal.signal(signal.SIGTERM, self.before)
            os.kill(os.getpid(), signal.SIGTERM)
        elif not self.received:
            self.received = True
            logger.warning("SIGTERM: saving and ending after this step.")


@contextmanager
def sigterm_blocked() -> Iterator[None]:
    """
    Blocks SIGTERM. Workers started inside inherit that for good: schedulers send the signal to them, too, but they
    must continue so that the step can end. This process receives it afterwards.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@atexit.register
def _end_workers() -> None:
    """At exit, Python sends SIGTERM to its children and waits for them: those that block it would never end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would report them as failed workers
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def close_process_group() -> None:
    """
    Ends the threads of the process group. To be called when nothing else refers to the trainer.

    A gloo thread that releases its last tensor needs the interpreter. If that has already shut down, the process
    aborts after a successful run ("terminate called without an active exception"). The threads end with the group, and
    the group with the last reference to it. A model under DDP holds one, in reference cycles with its trainer; so does
    the mesh of a sharded model, which torch caches.
    """
    _end_workers()  # a data loader that is collected would wait for them forever
    gc.collect()
    if torch.distributed.is_initialized():
        for mesh in (found for found in gc.get_objects() if type(found) is DeviceMesh):
            getattr(mesh, "_pg_registry", {}).clear()
        torch.distributed.destroy_process_group()


class NonFiniteGradients(RuntimeError):
    """Too many consecutive steps had gradients that are not finite: the run would not recover."""


class SkipNonFiniteSteps(TrainerCallback):
    """
    Skips the optimizer step if the gradient is not finite. All ranks do so, since they have the same gradient.
    Ends the run after `MAX_CONSECUTIVE` such steps: it would not recover.

    With float16, the gradient scaler does this instead.
    """

    MAX_CONSECUTIVE = 10

    def __init__(self, names_of_step: Callable[[], list[str]]):
        self.names_of_step = names_of_step
        self.consecutive = 0
        self.total = 0

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if args.fp16 or not gradients or torch.nn.utils.get_total_norm(gradients).isfinite():
            self.consecutive = 0
            return
        model.zero_grad(set_to_none=True)  # optimizers skip parameters without a gradient
        self.consecutive += 1
        self.total += 1
        names = ", ".join(self.names_of_step()[:20])
        logger.error(
            f"Step {state.global_step + 1} is skipped: its gradient is not finite. Its images on this process: {names}"
        )
        if self.consecutive == self.MAX_CONSECUTIVE:
            raise NonFiniteGradients(
                f"The gradients of {self.MAX_CONSECUTIVE} consecutive steps were not finite; they did not change the "
                "weights. Is the learning rate too high, or half precision too narrow? The newest checkpoint is good."
            )
