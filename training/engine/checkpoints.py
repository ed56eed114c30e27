# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints on disk: finding, verifying, publishing and comparing them."""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.utils import logging


logger = logging.get_logger(__name__)

STAGING = ".saving"
"""Folder in `output_dir` in which a checkpoint is staged before it is renamed."""

RUN = "run.json"
"""File in a checkpoint with the invariants checked on resume: the images and how they are batched."""


def find_checkpoint(wanted: str | bool | None, output_dir: str | Path) -> str | None:
    """
    The checkpoint to resume from.

    Args:
        wanted (`str` or `bool`, *optional*):
            `"last"` (or True), the newest complete checkpoint; `"auto"`, the same or a new run if there is none (for
            schedulers that repeat a command); a folder; `None` (or False) for a new run.
        output_dir (`str` or path): folder of the run.

    Returns:
        `str`, or None for a new run.

    Raises:
        `ValueError` if there is no such checkpoint, or if a new run would overwrite checkpoints.
    """
    if wanted in ("last", "auto", "True", "true", True):
        last = last_checkpoint(Path(output_dir))
        if last is None and wanted != "auto":
            raise ValueError(f"`--resume_from_checkpoint {wanted}`: there is no complete checkpoint in {output_dir}.")
        if last is None:
            _refuse_to_overwrite(Path(output_dir), "none of them is complete")
        return last
    if wanted in (None, "False", "false", False):
        _refuse_to_overwrite(Path(output_dir), "resume with `--resume_from_checkpoint last`")
        return None
    folder = Path(str(wanted))
    if not folder.is_dir():
        raise ValueError(f"`--resume_from_checkpoint`: there is no folder {wanted}.")
    damage = find_damage(folder)
    if damage is not None:
        raise ValueError(f"`--resume_from_checkpoint`: {wanted} is not complete: {damage}.")
    return str(wanted)


def _refuse_to_overwrite(folder: Path, remark: str) -> None:
    """Stops a new run in a folder that holds checkpoints, complete or not."""
    found = sorted(path.name for path in folder.glob("checkpoint-*") if path.is_dir())
    if found:
        raise ValueError(
            f"`output_dir`: {folder} holds the checkpoints of a run ({', '.join(found[:3])}): {remark}, or give "
            "another `--output_dir`."
        )


def last_checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint. Incomplete ones are logged and skipped."""
    for _, checkpoint in sorted(_numbered(folder), reverse=True):
        damage = find_damage(checkpoint)
        if damage is None:
            return str(checkpoint)
        logger.warning(f"{checkpoint} is not complete and is skipped: {damage}.")
    return None


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints in a folder with their steps."""
    named = [(path.name.removeprefix("checkpoint-"), path) for path in folder.glob("checkpoint-*") if path.is_dir()]
    return [(int(number), path) for number, path in named if number.isdecimal()]


def find_damage(checkpoint: Path) -> str | None:
    """The first missing, truncated or invalid file of a checkpoint, or None. No weights are read."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        if not isinstance(state["global_step"], int):
            return "trainer_state.json has no step"
    except FileNotFoundError:
        return "trainer_state.json is missing"
    except (ValueError, KeyError, TypeError):
        return "trainer_state.json is damaged"
    for file in sorted(checkpoint.rglob("*")):
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, framework="pt"):  # compares the header with the file size
                    pass
            except (OSError, SafetensorError) as error:
                return f"{file.name} is damaged ({error})"
        elif file.suffix in (".pt", ".pth", ".bin") and not zipfile.is_zipfile(file):
            return f"{file.name} is cut short"
    for name in ("optimizer.pt", "scheduler.pt"):
        if not list(checkpoint.glob(f"{Path(name).stem}*")):
            return f"{name} is missing"
    if not list(checkpoint.glob("model*.safetensors")) and not is_fsdp_checkpoint(checkpoint):
        return "model.safetensors is missing"
    return None


def is_fsdp_checkpoint(checkpoint: Path) -> bool:
    """Whether a checkpoint was written under FSDP."""
    return any(checkpoint.glob("pytorch_model_fsdp*"))


def rename_later_checkpoints(folder: Path, checkpoint: Path) -> None:
    """
    Renames the checkpoints of later steps than the one that a run resumes from: they belong to an abandoned
    continuation, or are damaged, and must count neither for `last` nor for `save_total_limit`.
    """
    step = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
    for number, later in _numbered(folder):
        if number > step:
            renamed = later.with_name(f"abandoned-{later.name}")
            while renamed.exists():
                renamed = renamed.with_name(f"{renamed.name}~")
            later.rename(renamed)
            logger.warning(f"{later} is of a later step than {checkpoint} and was renamed to {renamed.name}.")


def publish_checkpoint(staged: Path, checkpoint: Path) -> None:
    """Syncs a staged checkpoint to disk and renames it."""
    for file in [*staged.rglob("*"), staged]:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    if checkpoint.exists():  # of the same step: incomplete, or from an abandoned continuation
        checkpoint.rename(staged.with_name("replaced"))
    staged.rename(checkpoint)


def write_run(folder: Path, run: dict[str, Any]) -> None:
    """Writes the invariants checked on resume into a (staged) checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RUN).write_text(json.dumps(run), encoding="utf-8")


def check_run(checkpoint: Path, run: dict[str, Any], fsdp: bool) -> None:
    """
    Raises a `SystemExit` if a run cannot resume exactly from a checkpoint: if the completed steps would stand for
    other images, or if only one of the two is under FSDP, which stores the optimizer's state in another format. The
    number of processes may differ.
    """
    if is_fsdp_checkpoint(checkpoint) != fsdp:
        before, now = ("with", "without") if is_fsdp_checkpoint(checkpoint) else ("without", "with")
        raise SystemExit(
            f"{checkpoint} was written by a run {before} FSDP, this one is {now}. Start it as before "
            "(`accelerate launch --config_file ...`), or start a new run in another `--output_dir` with the "
            "checkpoint as `--model`."
        )
    try:
        before = json.loads((checkpoint / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        logger.warning(f"{checkpoint} does not record which images it was trained on: not compared.")
        return
    for key, value in run.items():
        if before.get(key) != value:
            raise SystemExit(
                f"{checkpoint} is of a run with another {key}: {before.get(key)}, this one has {value}. The "
                "completed steps would stand for other images. Give the former value, or start a new run in another "
                "`--output_dir` with the checkpoint as `--model`."
            )
