# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Sharded evaluation: distributed over any number of processes, resumable."""

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
"""Provenance that is reported but not compared on resume: it does not influence the results."""


class WrongKind(ValueError):
    """A valid file with results of another kind."""


@dataclass(kw_only=True)
class ShardResult:
    r"""
    The result of an evaluation on a shard of the images or on all of them.

    Args:
        images (`int`): number of evaluated images.
        skipped_images (`list[str]`): "file: reason" for each image that could not be evaluated.
        provenance (`dict`): model, data, settings and versions of the evaluation.
    """

    ARRAYS: ClassVar[tuple[str, ...]]
    """Names of the array fields."""
    TITLE: ClassVar[str]
    """Name of this kind of result in messages."""

    images: int
    skipped_images: list[str]
    provenance: dict[str, Any] = field(default_factory=dict)

    def save(self, file: str | Path) -> None:
        """Writes a safetensors file atomically, through a staging file."""
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in self.ARRAYS}
        metadata = {f.name: json.dumps(getattr(self, f.name)) for f in fields(self) if f.name not in self.ARRAYS}
        metadata["kind"] = self.TITLE
        file = Path(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        staging = file.with_name(f".{file.name}")
        save_file(arrays, staging, metadata)
        staging.replace(file)

    @classmethod
    def load(cls: type["R"], file: str | Path) -> "R":
        """Reads a file written by [`ShardResult.save`]; a `ValueError` names a file with other content."""
        try:
            with safe_open(file, framework="np") as content:
                metadata = content.metadata() or {}
            if metadata.pop("kind", None) != cls.TITLE:
                raise WrongKind(f"{file} holds no {cls.TITLE}, but something else.")
            check_provenance(metadata, file)
            arrays: dict[str, Any] = load_file(file)
            return cls(**arrays, **{name: json.loads(value) for name, value in metadata.items()})
        except (FileNotFoundError, WrongKind, OlderVersion):
            raise
        except (SafetensorError, ValueError, TypeError, OSError) as error:
            raise ValueError(f"{file} holds no {cls.TITLE}: {error}") from error

    @classmethod
    def join(cls: type["R"], shards: Sequence["R"]) -> "R":
        """Concatenates the shards of one evaluation, in order."""
        return cls(
            **cls.combine(shards),
            images=sum(shard.images for shard in shards),
            skipped_images=[message for shard in shards for message in shard.skipped_images],
            provenance=shards[0].provenance,
        )

    @classmethod
    def combine(cls: type["R"], shards: Sequence["R"]) -> dict[str, Any]:
        """Combines the fields of a subclass over shards."""
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
    Evaluates images in shards, distributed over all processes; the main process joins the results in `file`. Existing
    shards are reused, so an interrupted evaluation resumes. A shard's result does not depend on the process that
    computes it, so any number of processes gives the same result. Skipped images are reported again when existing
    results are read.

    Args:
        kind (`type`): subclass of [`ShardResult`] of the results.
        evaluate (callable): takes the indices of the images of a shard, returns its result.
        images (`int`): number of images.
        file (path): file of the joined result; the shards are stored in a folder beside it until it is written.
        provenance (`dict`): Model, data and settings; results with equal provenance belong to the same evaluation.
        shard_size (`int`, *optional*, defaults to 128): images per shard, the maximal loss of an interrupted process.

    Returns:
        The joined result, on all processes.

    Raises:
        `ValueError` if existing files belong to another evaluation, or if no image could be evaluated.
    """
    provenance = json.loads(json.dumps(provenance))
    state, folder = PartialState(), file.with_name(f"{file.name.removesuffix('.safetensors')}.shards")
    if not _exists(kind, file, provenance):
        starts = range(0, images, shard_size)
        rows = [range(start, min(start + shard_size, images)) for start in starts]
        # Named by their range of images, so that shards of another size are not reused.
        shards = [folder / f"{shard.start:08d}-{shard.stop:08d}.safetensors" for shard in rows]
        # Checked before anything is evaluated: shards of another evaluation fail early.
        pending = [pair for pair in zip(shards, rows) if not _exists(kind, pair[0], provenance, folder)]
        state.wait_for_everyone()  # so that all processes agree on the pending shards
        for shard, shard_rows in pending[state.process_index :: state.num_processes]:
            result = evaluate(shard_rows)
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


def warn_skipped(skipped: Sequence[str], max_shown: int = 10) -> None:
    """Warns of skipped images, naming the first `max_shown`."""
    for message in skipped[:max_shown]:
        logger.warning(f"Skipped: {message}")
    if len(skipped) > max_shown:
        logger.warning(f"Skipped: {len(skipped) - max_shown} more.")


def _report_skipped(result: ShardResult, file: Path) -> None:
    """Warns of skipped images; removes the result if no image could be evaluated."""
    if result.images == 0:
        file.unlink()
        with contextlib.suppress(OSError):
            file.parent.rmdir()  # unless it has other results
    elif result.skipped_images:
        logger.warning(
            f"{len(result.skipped_images)} images were skipped, e.g. {result.skipped_images[0]}. To try them again, "
            f"delete {file}."
        )


def _exists(kind: type[R], file: Path, provenance: dict[str, Any], folder: Path | None = None) -> bool:
    """Whether a result of the same evaluation exists; a damaged file is computed again."""
    if not file.exists():
        return False
    try:
        existing = kind.load(file).provenance
    except (WrongKind, OlderVersion) as error:
        raise ValueError(f"{error} Give another `--output`.") from error
    except ValueError as error:
        logger.warning(f"{error}. It is computed again.")
        return False
    for name in [name for name in {**provenance, **existing} if name not in INFORMATIVE]:
        if existing.get(name) != provenance.get(name):
            raise ValueError(
                f"{file} belongs to an evaluation with another {name}: {existing.get(name)!r}, this one has "
                f"{provenance.get(name)!r}. Delete {folder or 'it'}, or give another `--output`."
            )
    return True


__all__ = ["ShardResult", "in_shards", "warn_skipped"]
