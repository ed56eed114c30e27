# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Atomic checkpoints: which one a run is resumed from, and how one comes into being."""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.utils import logging


logger = logging.get_logger(__name__)

STAGING = ".saving"
"""Folder beside the checkpoints in which the next one is staged before it is renamed."""

RUN = "run.json"
"""In a checkpoint: the invariants checked on resume, the images and the batches they make."""


def find_checkpoint(wanted: str | bool | None, output_dir: str | Path) -> str | None:
    """
    The checkpoint to resume from.

    Args:
        wanted (`str`, *optional*):
            `"last"`, the newest complete one; `"auto"`, likewise, and none where there is none (for a command that a
            scheduler repeats); a folder; `None` for a new run, which never begins over another run's checkpoints.

    Raises:
        `SystemExit` with a message where there is none, or one that was not to be resumed.
    """
    if wanted in ("last", "auto", "True", "true", True):
        last = last_checkpoint(Path(output_dir))
        if last is None and wanted != "auto":
            raise SystemExit(f"`--resume_from_checkpoint {wanted}`: there is no complete checkpoint in {output_dir}.")
        if last is None:
            _refuse_to_begin_over(Path(output_dir), "none of them is complete")
        return last
    if wanted in (None, "False", "false", False):
        _refuse_to_begin_over(Path(output_dir), "go on with `--resume_from_checkpoint last`")
        return None
    if not Path(wanted).is_dir():
        raise SystemExit(f"`--resume_from_checkpoint`: there is no folder {wanted}.")
    damage = damage_of(Path(wanted))
    if damage is not None:
        raise SystemExit(f"`--resume_from_checkpoint`: {wanted} is not complete: {damage}.")
    return wanted


def _refuse_to_begin_over(folder: Path, remark: str) -> None:
    """Stops a new run that would begin over checkpoints, whatever program has written them and however complete."""
    found = sorted(path.name for path in folder.glob("checkpoint-*") if path.is_dir())
    if found:
        raise SystemExit(
            f"`output_dir`: {folder} holds the checkpoints of a run ({', '.join(found[:3])}): {remark}, or give "
            "another `--output_dir`."
        )


def last_checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint; one that is not is named and passed over."""
    for _, checkpoint in sorted(_numbered(folder), reverse=True):
        damage = damage_of(checkpoint)
        if damage is None:
            return str(checkpoint)
        logger.warning(f"{checkpoint} is not complete and is passed over: {damage}.")
    return None


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints in a folder with their steps."""
    named = [(path.name.removeprefix("checkpoint-"), path) for path in folder.glob("checkpoint-*") if path.is_dir()]
    return [(int(number), path) for number, path in named if number.isdecimal()]


def damage_of(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint: a file that is missing, cut short or no such file. No weight is read."""
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
                with safe_open(file, framework="pt"):  # compares the header with the length of the file
                    pass
            except (OSError, SafetensorError) as error:
                return f"{file.name} is damaged ({error})"
        elif file.suffix in (".pt", ".pth", ".bin") and not zipfile.is_zipfile(file):
            return f"{file.name} is cut short"
    for name in ("optimizer.pt", "scheduler.pt"):
        if not list(checkpoint.glob(f"{Path(name).stem}*")):
            return f"{name} is missing"
    if not list(checkpoint.glob("model*.safetensors")) and not is_of_fsdp(checkpoint):
        return "model.safetensors is missing"
    return None


def is_of_fsdp(checkpoint: Path) -> bool:
    """Whether the ranks that wrote a checkpoint held a share of the model each."""
    return any(checkpoint.glob("pytorch_model_fsdp*"))


def set_aside_later(folder: Path, checkpoint: Path) -> None:
    """
    Renames those checkpoints in a run's folder that are of later steps than the one it goes on from: they are of
    another course of it, or damaged, and neither `last` nor the limit of checkpoints must count them.
    """
    step = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
    for number, later in _numbered(folder):
        if number > step:
            renamed = later.with_name(f"abandoned-{later.name}")
            while renamed.exists():
                renamed = renamed.with_name(f"{renamed.name}~")
            later.rename(renamed)
            logger.warning(f"{later} is of a later step than {checkpoint}, and is called {renamed.name} now.")


def publish(staged: Path, checkpoint: Path) -> None:
    """Makes a staged checkpoint the newest one: on the disk first, then under its name, at once."""
    for file in [*staged.rglob("*"), staged]:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    if checkpoint.exists():  # of the same step, and passed over as incomplete or gone back to
        checkpoint.rename(staged.with_name("replaced"))
    staged.rename(checkpoint)


def write_run(folder: Path, run: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RUN).write_text(json.dumps(run), encoding="utf-8")


def check_run(checkpoint: Path, run: dict[str, Any], fsdp: bool) -> None:
    """
    Raises a `SystemExit` where a run cannot go on from a checkpoint exactly: the steps done then stand for other
    images. Another number of processes is no such reason, but FSDP where there was none, or the reverse, is one: the
    optimizer's state is written in another form.
    """
    if is_of_fsdp(checkpoint) != fsdp:
        before, now = ("with", "without") if is_of_fsdp(checkpoint) else ("without", "with")
        raise SystemExit(
            f"{checkpoint} was written by a run {before} FSDP, this one is {now}. Start it as before "
            "(`accelerate launch --config_file ...`), or begin a new run in another `--output_dir` with the "
            "checkpoint as `--model`."
        )
    try:
        before = json.loads((checkpoint / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        logger.warning(f"{checkpoint} does not say which images it was trained on: not compared.")
        return
    for key, value in run.items():
        if before.get(key) != value:
            raise SystemExit(
                f"{checkpoint} is of a run with another {key}: {before.get(key)}, this one has {value}. The steps "
                "done would stand for other images than those seen. Give what it was, or begin a new run in another "
                "`--output_dir` with the checkpoint as `--model`."
            )
