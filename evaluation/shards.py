# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluation in shards: by any number of processes, resumed where it was interrupted."""

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

from .renamed import OlderVersion, check_provenance


logger = logging.get_logger(__name__)


INFORMATIVE = ("model", "commit")
"""Provenance that is reported and not compared: neither a model's path nor a commit changes what is measured."""


class WrongKind(ValueError):
    """A complete file that holds results of another kind."""


@dataclass(kw_only=True)
class ShardResult:
    r"""
    The result of an evaluation over a shard of the images, or over all of them.

    Args:
        images (`int`): how many were evaluated.
        skipped_images (`list[str]`): "file: reason" of each image that could not be.
        provenance (`dict`): what was evaluated on what, and how.
    """

    ARRAYS: ClassVar[tuple[str, ...]]
    """Fields that are arrays."""
    TITLE: ClassVar[str]
    """What it is, for messages."""

    images: int
    skipped_images: list[str]
    provenance: dict[str, Any] = field(default_factory=dict)

    def save(self, file: str | Path) -> None:
        """Writes a safetensors file atomically, through a staging file."""
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in self.ARRAYS}
        rest = {f.name: json.dumps(getattr(self, f.name)) for f in fields(self) if f.name not in self.ARRAYS}
        rest["kind"] = self.TITLE
        file = Path(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        staging = file.with_name(f".{file.name}")
        save_file(arrays, staging, rest)
        staging.replace(file)

    @classmethod
    def load(cls: type["R"], file: str | Path) -> "R":
        """Reads what [`ShardResult.save`] wrote; a `ValueError` names a file that holds something else."""
        try:
            with safe_open(file, framework="np") as content:
                rest = content.metadata() or {}
            if rest.pop("kind", None) != cls.TITLE:
                raise WrongKind(f"{file} holds no {cls.TITLE}, but something else.")
            check_provenance(rest, file)
            return cls(**load_file(file), **{name: json.loads(value) for name, value in rest.items()})
        except (FileNotFoundError, WrongKind, OlderVersion):
            raise
        except (SafetensorError, ValueError, TypeError, OSError) as error:
            raise ValueError(f"{file} holds no {cls.TITLE}: {error}") from error

    @classmethod
    def join(cls: type["R"], shards: Sequence["R"]) -> "R":
        """The shards of one evaluation as one result, in their order."""
        return cls(
            **cls.combine(shards),
            images=sum(shard.images for shard in shards),
            skipped_images=[message for shard in shards for message in shard.skipped_images],
            provenance=shards[0].provenance,
        )

    @classmethod
    def combine(cls: type["R"], shards: Sequence["R"]) -> dict[str, Any]:
        """The remaining fields of the shards, joined."""
        raise NotImplementedError


R = TypeVar("R", bound=ShardResult)


def in_shards(
    kind: type[R],
    evaluate: Callable[[range], R],
    images: int,
    file: Path,
    provenance: dict[str, Any],
    shard_size: int = 128,
) -> R:
    """
    Evaluates images on all processes: each takes shards of them and writes their results, the first process joins them
    in `file`. Shards that exist already are kept, so that an interrupted evaluation resumes; and since a shard's
    result does not depend on who computes it, any number of processes gives the same. Images that were skipped are
    reported again when the results are read.

    Args:
        kind (type): of the results.
        evaluate (callable): takes the indices of the images, returns a result.
        images (`int`): how many there are.
        file (path): what is written at the end; until then the shards are kept in a folder beside it.
        provenance (`dict`): what is evaluated on what, and how; results with equal provenance are of the same
            evaluation.
        shard_size (`int`, *optional*, defaults to 128): images per shard, the most that an interrupted process loses.

    Returns:
        The joined result, on every process.

    Raises:
        `ValueError` where the existing files are of another evaluation, or no image could be evaluated.
    """
    provenance = json.loads(json.dumps(provenance))
    state, folder = PartialState(), file.with_name(f"{file.name.removesuffix('.safetensors')}.shards")
    if not _exists(kind, file, provenance):
        starts = range(0, images, shard_size)
        rows = [range(start, min(start + shard_size, images)) for start in starts]
        # Named by their images: a shard of another size is another shard.
        shards = [folder / f"{shard.start:08d}-{shard.stop:08d}.safetensors" for shard in rows]
        # Before anything is evaluated: shards of another evaluation are reported at once.
        pending = [pair for pair in zip(shards, rows) if not _exists(kind, pair[0], provenance, folder)]
        state.wait_for_everyone()  # and all processes agree on what is pending
        for shard, rows_of_shard in pending[state.process_index :: state.num_processes]:
            result = evaluate(rows_of_shard)
            result.provenance = provenance
            result.save(shard)
        state.wait_for_everyone()
        if state.is_main_process:
            kind.join([kind.load(shard) for shard in shards]).save(file)
        state.wait_for_everyone()
    result = kind.load(file)
    state.wait_for_everyone()
    if state.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
        _report_skipped(result, file)
    if result.images == 0:
        raise ValueError(f"None of the {images} images could be evaluated, e.g. {result.skipped_images[0]}")
    return result


def warn_of(skipped: Sequence[str], max_shown: int = 10) -> None:
    """Names the first skipped images: a wrong folder has thousands."""
    for message in skipped[:max_shown]:
        logger.warning(f"Skipped: {message}")
    if len(skipped) > max_shown:
        logger.warning(f"Skipped: {len(skipped) - max_shown} more.")


def _report_skipped(result: ShardResult, file: Path) -> None:
    """Where nothing could be evaluated, there is nothing to keep either."""
    if result.images == 0:
        file.unlink()
        with contextlib.suppress(OSError):
            file.parent.rmdir()  # unless others' results are there
    elif result.skipped_images:
        logger.warning(
            f"{len(result.skipped_images)} images were skipped, e.g. {result.skipped_images[0]}. To try them again, "
            f"delete {file}."
        )


def _exists(kind: type[R], file: Path, provenance: dict[str, Any], folder: Path | None = None) -> bool:
    """Whether a file (in a folder of shards) of the same evaluation exists; a damaged one is computed again."""
    if not file.exists():
        return False
    try:
        before = kind.load(file).provenance
    except (WrongKind, OlderVersion) as error:
        raise ValueError(f"{error} Give another `--output`.") from error
    except ValueError as error:
        logger.warning(f"{error}. It is computed again.")
        return False
    for name in [name for name in {**provenance, **before} if name not in INFORMATIVE]:
        if before.get(name) != provenance.get(name):
            raise ValueError(
                f"{file} is of an evaluation with another {name}: {before.get(name)!r}, this one has "
                f"{provenance.get(name)!r}. Delete {folder or 'it'}, or give another `--output`."
            )
    return True


__all__ = ["ShardResult", "in_shards", "warn_of"]
