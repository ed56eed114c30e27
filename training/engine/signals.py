# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""What may end a run or a step before its time, what is done then, and how processes end."""

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
    Notes, while it is entered, a SIGTERM (of a scheduler that takes the machine back), so that the run saves and ends
    after the step it is at. More of them change nothing: launchers pass on what their ranks have got already, and
    who cannot wait sends SIGKILL. Only to be entered in a process's main thread.
    """

    def __init__(self) -> None:
        self.received = False

    def __enter__(self) -> "StopSignal":
        self.process = os.getpid()
        self.before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self.before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:  # a child that has inherited this is to end as ever
            signal.signal(signal.SIGTERM, self.before)
            os.kill(os.getpid(), signal.SIGTERM)
        elif not self.received:
            self.received = True
            logger.warning("SIGTERM: saving and ending after this step.")


@contextmanager
def sigterm_held_back() -> Iterator[None]:
    """
    Workers that are started in it never see SIGTERM, which schedulers send to them, too: they go on reading, so that
    the step can end. This process sees it afterwards.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@atexit.register
def _end_workers() -> None:
    """Python ends its child processes by SIGTERM, and waits for them: those that do not see it would never end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would take them for workers that have failed
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def close_process_group() -> None:
    """
    Ends the threads of the process group, to be called when nothing else refers to what was trained.

    A thread of gloo that lets go of its last tensor needs Python; when Python has ended by then, the thread is
    unwound, and the process aborts although its run has ended well ("terminate called without an active exception").
    The threads end with the group, and the group when the last reference to it goes. A model under DDP has one, and
    is itself in cycles with its trainer; so has the mesh of a sharded model, which torch keeps in caches.
    """
    _end_workers()  # a loader that is collected could not end its own, and would wait for them in vain
    gc.collect()
    if torch.distributed.is_initialized():
        for mesh in (thing for thing in gc.get_objects() if type(thing) is DeviceMesh):
            getattr(mesh, "_pg_registry", {}).clear()
        torch.distributed.destroy_process_group()


class NonFiniteGradients(RuntimeError):
    """Too many steps in a row had gradients that are not finite: the run would not recover."""


class LeaveOutNonFinite(TrainerCallback):
    """
    Leaves out a step whose gradient is not finite, on all ranks alike, since they have the same gradient: neither
    weights nor optimizer see it. A run in which many follow on each other ends: it would not recover.

    With float16 the gradient scaler does the same, and is left to it.
    """

    MOST = 10

    def __init__(self, names_of_step: Callable[[], list[str]]):
        self.names_of_step = names_of_step
        self.in_a_row = 0
        self.total = 0

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if args.fp16 or not gradients or torch.nn.utils.get_total_norm(gradients).isfinite():
            self.in_a_row = 0
            return
        model.zero_grad(set_to_none=True)  # an optimizer passes over parameters without a gradient
        self.in_a_row += 1
        self.total += 1
        names = ", ".join(self.names_of_step()[:20])
        logger.error(f"Step {state.global_step + 1} is left out: its gradient is not finite. Its images here: {names}")
        if self.in_a_row == self.MOST:
            raise NonFiniteGradients(
                f"The gradients of {self.MOST} steps in a row were not finite; the weights are as they were before. "
                "Is the learning rate too high, or half precision too narrow? The newest checkpoint is sound."
            )
