"""Evaluations in parts: by any number of processes, and from where they were stopped."""

import contextlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file
from transformers.utils import logging


logger = logging.get_logger(__name__)


INFORMATIVE = ("model", "commit")
"""Facts that are told and not compared: where a model lies says nothing of it, nor a commit of what it changed."""


class OtherKind(ValueError):
    """A file that is whole, and no such part."""


@dataclass(kw_only=True)
class Part:
    r"""
    What an evaluation of some of the images gives, or of all.

    Args:
        images (`int`): how many were evaluated.
        skipped_images (`list[str]`): "file: reason" of each image that could not be.
        facts (`dict`): what was evaluated on what, and how.
    """

    ARRAYS: ClassVar[tuple[str, ...]]
    """Fields that are arrays."""
    TITLE: ClassVar[str]
    """What it is, for messages."""

    images: int
    skipped_images: list[str]
    facts: dict[str, Any] = field(default_factory=dict)

    def save(self, file: str | Path) -> None:
        """Writes a safetensors file, aside first: one that is there is complete."""
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in self.ARRAYS}
        rest = {f.name: json.dumps(getattr(self, f.name)) for f in fields(self) if f.name not in self.ARRAYS}
        rest["kind"] = self.TITLE
        file = Path(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_name(f".{file.name}")
        save_file(arrays, aside, rest)
        aside.replace(file)

    @classmethod
    def load(cls: type["P"], file: str | Path) -> "P":
        """Reads what [`Part.save`] wrote; a `ValueError` says where a file is something else."""
        try:
            with safe_open(file, framework="np") as content:
                rest = content.metadata() or {}
            if rest.pop("kind", None) != cls.TITLE:
                raise OtherKind(f"{file} holds no {cls.TITLE}, but something else.")
            return cls(**load_file(file), **{name: json.loads(value) for name, value in rest.items()})
        except (FileNotFoundError, OtherKind):
            raise
        except (SafetensorError, ValueError, TypeError, OSError) as error:
            raise ValueError(f"{file} holds no {cls.TITLE}: {error}") from error

    @classmethod
    def join(cls: type["P"], parts: Sequence["P"]) -> "P":
        """Parts of one evaluation as one, in their order."""
        return cls(
            **cls.combine(parts),
            images=sum(part.images for part in parts),
            skipped_images=[message for part in parts for message in part.skipped_images],
            facts=parts[0].facts,
        )

    @classmethod
    def combine(cls: type["P"], parts: Sequence["P"]) -> dict[str, Any]:
        """The further fields of the parts as one."""
        raise NotImplementedError


P = TypeVar("P", bound=Part)


def in_parts(
    kind: type[P],
    evaluate: Callable[[range], P],
    images: int,
    file: Path,
    facts: dict[str, Any],
    part_size: int = 128,
) -> P:
    """
    Evaluates images by all processes: each takes parts of them and writes what it finds, the first one joins the parts
    in `file`. Parts that are there already are kept, so that an evaluation goes on where it was stopped; and since a
    part is the same whoever takes it, any number of processes gives the same. Images that were skipped are told again
    where the results are read.

    Args:
        kind (type): of a part.
        evaluate (callable): takes which images, gives the part.
        images (`int`): how many there are.
        file (path): what is written in the end; the parts stand in a folder beside it until then.
        facts (`dict`): what is evaluated on what, and how; results are of the same evaluation where they are the same.
        part_size (`int`, *optional*, defaults to 128): images of a part, what is lost at most where a process ends.

    Returns:
        The parts joined, on every process.

    Raises:
        `ValueError` where what is there already is of another evaluation, or no image could be evaluated.
    """
    facts = json.loads(json.dumps(facts))
    state, folder = PartialState(), file.with_name(f"{file.name.removesuffix('.safetensors')}.parts")
    if not _is_there(kind, file, facts):
        starts = range(0, images, part_size)
        rows = [range(start, min(start + part_size, images)) for start in starts]
        # Named by their images: a part of another size is another part.
        parts = [folder / f"{part.start:08d}-{part.stop:08d}.safetensors" for part in rows]
        # Before anything is evaluated: parts of another evaluation are told at once.
        left = [(part, of_part) for part, of_part in zip(parts, rows) if not _is_there(kind, part, facts, folder)]
        state.wait_for_everyone()  # and what is left is the same for all
        for part, of_part in left[state.process_index :: state.num_processes]:
            found = evaluate(of_part)
            found.facts = facts
            found.save(part)
        state.wait_for_everyone()
        if state.is_main_process:
            kind.join([kind.load(part) for part in parts]).save(file)
        state.wait_for_everyone()
    found = kind.load(file)
    state.wait_for_everyone()
    if state.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
        _tell_skipped(found, file)
    if found.images == 0:
        raise ValueError(f"None of the {images} images could be evaluated, e.g. {found.skipped_images[0]}")
    return found


def warn_of(skipped: Sequence[str], most: int = 10) -> None:
    """Names images that were skipped, the first of them: a wrong folder has thousands."""
    for message in skipped[:most]:
        logger.warning(f"Skipped: {message}")
    if len(skipped) > most:
        logger.warning(f"Skipped: {len(skipped) - most} more.")


def _tell_skipped(found: Part, file: Path) -> None:
    """Where nothing could be evaluated, there is nothing to keep either."""
    if found.images == 0:
        file.unlink()
        with contextlib.suppress(OSError):
            file.parent.rmdir()  # unless others' results are there
    elif found.skipped_images:
        logger.warning(
            f"{len(found.skipped_images)} images were skipped, e.g. {found.skipped_images[0]}. To try them again, "
            f"delete {file}."
        )


def _is_there(kind: type[P], file: Path, facts: dict[str, Any], folder: Path | None = None) -> bool:
    """Whether a file (of a folder of parts) of the same evaluation is there; one that is damaged is made anew."""
    if not file.exists():
        return False
    try:
        before = kind.load(file).facts
    except OtherKind as error:
        raise ValueError(f"{error} Give another `--output`.") from error
    except ValueError as error:
        logger.warning(f"{error}. It is made anew.")
        return False
    for name in [name for name in {**facts, **before} if name not in INFORMATIVE]:
        if before.get(name) != facts.get(name):
            raise ValueError(
                f"{file} is of an evaluation with another {name}: {before.get(name)!r}, this one has "
                f"{facts.get(name)!r}. Delete {folder or 'it'}, or give another `--output`."
            )
    return True


__all__ = ["Part", "in_parts", "warn_of"]
