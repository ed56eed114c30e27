# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Trains a dense VLM.

Three equivalent ways to start it:

    python -m training.train training/recipes/coco.yaml [--key value ...]
    accelerate launch -m training.train training/recipes/coco.yaml [--key value ...]
    torchrun --nproc_per_node 8 -m training.train training/recipes/coco.yaml [--key value ...]
"""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml
from transformers import set_seed
from transformers.utils import logging

from modeling_densevlm.command_line import one_line_errors
from modeling_densevlm.external_towers import is_external
from modeling_densevlm.worker_batches import SharedMemoryFull

from .build import build_trainer
from .distillation_trainer import DistillationTrainer
from .engine.checkpoints import check_run, find_checkpoint, rename_later_checkpoints
from .engine.signals import NonFiniteGradients, StopSignal, close_process_group
from .recipe import Arguments, parse_arguments, resolved_recipe, save_recipe
from .teacher_cache import TeacherCacheError


logger = logging.get_logger(__name__)


def main(
    argv: Sequence[str] | None = None, prepare: Callable[[DistillationTrainer], None] | None = None
) -> DistillationTrainer:
    """Runs a recipe and returns the trainer. `prepare` is called with it before training, e.g. to add callbacks."""
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    *_, args = arguments
    output_dir = str(args.output_dir)
    with one_line_errors():
        checkpoint = find_checkpoint(args.resume_from_checkpoint, output_dir)
    check_output_dir(output_dir)
    set_seed(args.seed)
    trainer = build_trainer(arguments)
    if prepare is not None:
        prepare(trainer)
    if checkpoint is not None:
        check_run(Path(checkpoint), trainer.run, trainer.is_fsdp_enabled)
    if trainer.is_world_process_zero():
        with one_line_errors():
            record_start(arguments, checkpoint)
    with StopSignal() as trainer.stop_signal:
        try:
            trainer.train(resume_from_checkpoint=checkpoint)
        except (SharedMemoryFull, TeacherCacheError, NonFiniteGradients) as error:
            raise SystemExit(str(error)) from error
    if trainer.stopped_at is not None and trainer.stopped_at < trainer.state.max_steps:
        report_stopped(trainer)
    else:
        trainer.save_result()
        report_result(trainer, arguments)
        if args.push_to_hub and trainer.is_world_process_zero():
            with one_line_errors():
                print(f"Uploaded: {trainer.upload_result()}")
    if trainer.skipped:
        logger.warning(f"{len(trainer.skipped)} images were skipped by this process; the log names them.")
    trainer.accelerator.wait_for_everyone()  # the launcher ends all ranks when one ends; the first may still be saving
    return trainer


def check_output_dir(output_dir: str) -> None:
    """Raises a `SystemExit` if the folder cannot be created. It is not created yet: a refused run leaves nothing."""
    folder = Path(output_dir).absolute()
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise SystemExit(f"`output_dir`: the folder {output_dir} cannot be created: {there} is not writable.")


def record_start(arguments: Arguments, checkpoint: str | None) -> None:
    """Reports whether a run starts or resumes, and writes its recipe."""
    args = arguments[2]
    folder = Path(str(args.output_dir))
    images = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    processes = "1 process" if args.world_size == 1 else f"{args.world_size} processes"
    print(f"{processes}, {images} images per step")
    recipe = folder / "recipe.yaml"
    if checkpoint is not None:
        print(f"Resumed from {checkpoint}")
        rename_later_checkpoints(folder, Path(checkpoint))
        warn_of_changes(arguments, recipe)
    save_recipe(arguments, recipe)


def report_stopped(trainer: DistillationTrainer) -> None:
    """Reports a run that was stopped by a signal. Raises a `SystemExit` if its checkpoint is missing."""
    checkpoint = Path(str(trainer.args.output_dir)) / f"checkpoint-{trainer.state.global_step}"
    if not checkpoint.is_dir():
        raise SystemExit(
            f"Stopped by SIGTERM after step {trainer.state.global_step}, but {checkpoint} was not written."
        )
    if trainer.is_world_process_zero():
        print(f"Stopped by SIGTERM after step {trainer.state.global_step}: saved in {checkpoint}.")
        print("The same command with `--resume_from_checkpoint last` (or `auto`) resumes it.")


def report_result(trainer: DistillationTrainer, arguments: Arguments) -> None:
    """Reports where the result is, and warns if nothing was learned or if the folder does not load by itself."""
    kept = [entry["regions_kept"] for entry in trainer.state.log_history if "regions_kept" in entry]
    if kept and not any(kept):
        logger.warning(
            "Nothing was learned: for no region did the highest teacher probability exceed `threshold` "
            f"{getattr(trainer.args, 'threshold', None)}. Is the teacher trained, and is `temperature` that of its "
            "logits?"
        )
    if trainer.is_world_process_zero():
        print(f"Trained by {arguments[0].method}: saved in {trainer.args.output_dir}")
        if is_external(trainer.model.vision_model):
            logger.warning(
                f"{trainer.args.output_dir} does not carry the code of its tower {arguments[0].tower}: whoever loads "
                "it registers the tower first (`modeling_densevlm.external_towers.register_tower`)."
            )


def warn_of_changes(arguments: Arguments, recipe: Path) -> None:
    """Logs the values of a resumed run that differ from those of its recipe."""
    before = yaml.safe_load(recipe.read_text()) if recipe.is_file() else {}
    after = resolved_recipe(arguments)
    for key in sorted(before.keys() | after.keys()):
        if before and before.get(key) != after.get(key):
            logger.warning(f"Resumed with another `{key}` than before: {before.get(key)} → {after.get(key)}")


if __name__ == "__main__":
    main()
    close_process_group()
