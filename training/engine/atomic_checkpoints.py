# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Atomic saving of checkpoints and of the final model."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import Trainer
from transformers.trainer_utils import rotate_checkpoints
from transformers.utils import logging

from .checkpoints import STAGING, find_checkpoint, publish_checkpoint, write_run
from .sharding import own_class


logger = logging.get_logger(__name__)


class AtomicCheckpoints(Trainer):
    """
    A [`Trainer`] whose checkpoints are staged and renamed. `run`, the invariants checked on resume, is
    written into each.
    """

    run: dict[str, Any]
    _run_dir: str | None = None
    """The staging folder while a checkpoint is written; None otherwise."""

    @property
    def _folder(self) -> Path:
        assert self.args.output_dir is not None  # transformers sets it
        return Path(self.args.output_dir)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """
        As [`Trainer.train`], resuming by default from `args.resume_from_checkpoint`. Raises a `ValueError` if a new
        run would overwrite checkpoints.
        """
        wanted = self.args.resume_from_checkpoint if resume_from_checkpoint is None else resume_from_checkpoint
        return super().train(resume_from_checkpoint=find_checkpoint(wanted, self._folder), **kwargs)

    def _save(self, output_dir=None, state_dict=None):
        with own_class(self.model):
            super()._save(output_dir, state_dict)

    def _get_output_dir(self, trial):
        return self._run_dir or self.args.output_dir

    def _save_checkpoint(self, model, trial):
        """
        Stages the checkpoint and renames it, so that a checkpoint under its final name is complete. If it cannot be
        written (e.g. the disk is full), that is logged and the run continues; the next one is tried when it is due.
        """
        first, folder = self.is_world_process_zero(), self._folder
        staged, checkpoint = (f / f"checkpoint-{self.state.global_step}" for f in (folder / STAGING, folder))
        save = super()._save_checkpoint

        def begin() -> None:
            shutil.rmtree(folder / STAGING, ignore_errors=True)
            write_run(staged, self.run)

        def write() -> None:
            self._run_dir = str(folder / STAGING)
            try:
                save(model, trial)
            finally:
                self._run_dir = None

        def finish() -> None:
            publish_checkpoint(staged, checkpoint)
            rotate_checkpoints(str(folder), self.args.save_total_limit)

        # Each part starts after the one before has succeeded on all ranks.
        all(self._succeeds(part, here) for part, here in ((begin, first), (write, True), (finish, first)))
        if first:
            shutil.rmtree(folder / STAGING, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _succeeds(self, part: Callable[[], None], here: bool) -> bool:
        """Runs a part of saving a checkpoint, on this rank if `here`; returns whether it succeeded on all ranks."""
        failure = None
        try:
            if here:
                part()
        except (OSError, RuntimeError, SafetensorError) as error:
            if self.is_fsdp_enabled:  # the other ranks wait in a gather
                raise
            failure = error
        if self.accelerator.reduce(torch.tensor(float(failure is not None), device=self.args.device)) == 0:
            return True
        logger.error(
            f"The checkpoint of step {self.state.global_step} could not be written in {self.args.output_dir}: "
            f"{failure or 'another process failed'}. The run continues; earlier checkpoints are complete. Make room: "
            "the next one is tried when it is due."
        )
        return False

    def save_result(self) -> None:
        """
        Saves the trained model, its processor and the state of the run; files are staged and renamed.

        Raises:
            `SystemExit` with a message if they cannot be written.
        """
        folder, staged = self._folder, self._folder / STAGING
        try:
            self.save_model(str(staged), _internal_call=True)  # uploads nothing
            if self.is_world_process_zero():
                for file in staged.iterdir():
                    os.replace(file, folder / file.name)
                staged.rmdir()
            self.save_state()
        except (OSError, SafetensorError) as error:
            shutil.rmtree(staged, ignore_errors=True)
            raise SystemExit(
                f"The result could not be written in {folder}: {error}. Make room; the same command with "
                "`--resume_from_checkpoint last` resumes from the newest checkpoint and writes it."
            ) from error


__all__ = ["AtomicCheckpoints"]
