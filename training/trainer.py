# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""DenseVLM: decoupled region-language alignment, Sec. 3.2 of the paper. Its equations are in `alignment.py`."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .alignment import CONTRASTS, Contrast, Retrieval, align, region_logits, retrieve
from .arguments import DistillationArguments
from .distillation_trainer import DistillationTrainer
from .pictures import save_retrieval_picture
from .teacher_cache import expand


@dataclass
class DenseVLMArguments(DistillationArguments):
    """The method's own keys."""

    temperature: float = field(default=0.01, metadata={"help": "τ of retrieval and alignment."})
    threshold: float = field(
        default=0.3, metadata={"help": "Regions whose best teacher probability is not above it are dropped."}
    )
    contrast: str = field(
        default="decoupled",
        metadata={"help": f"{', '.join(CONTRASTS)}, or a JSON matrix: rows = region's group, columns = categories'."},
    )
    reduction: str = field(default="group_mean", metadata={"help": "group_mean or region_mean."})
    retrieval_picture_steps: int = field(
        default=0, metadata={"help": "Every N steps, a picture of an image and what was retrieved for it."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.reduction not in ("group_mean", "region_mean"):
            raise ValueError(f"`reduction` is group_mean or region_mean, got {self.reduction!r}.")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"`threshold` is a probability, 0..1, got {self.threshold}.")
        if self.temperature <= 0:
            raise ValueError(f"`temperature` is above 0, got {self.temperature}.")
        self.contrast_matrix  # noqa: B018 - a wrong one shall stop here

    @property
    def contrast_matrix(self) -> Contrast:
        if self.contrast in CONTRASTS:
            return CONTRASTS[self.contrast]
        try:
            matrix = json.loads(self.contrast)
            if matrix and all(len(row) == len(matrix) and all(isinstance(v, bool) for v in row) for row in matrix):
                return matrix
        except (json.JSONDecodeError, TypeError):
            pass
        raise ValueError(
            f"`contrast` is one of {', '.join(CONTRASTS)} or a square JSON matrix of true and false, "
            f"got {self.contrast!r}."
        )


class DenseVLMTrainer(DistillationTrainer):
    r"""
    The teacher retrieves a category for each region of an image, and regions it is unsure of are dropped; the student
    learns its distribution over the categories that a region of this group contrasts against.

    ```python
    >>> trainer = DenseVLMTrainer(model="openai/clip-vit-base-patch16", teacher=folder, train_dataset=dataset)
    >>> trainer.train()
    ```

    Arguments are those of [`DistillationTrainer`]; temperature, threshold, contrast and reduction those of `args`.
    """

    arguments_class = DenseVLMArguments
    needs_categories = True
    uses_teacher_cache = True

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.is_thing = self.student_embeddings.is_thing
        self.student_text_embeds = self.student_embeddings.embeds.to(self.args.device)
        if self.teacher is not None:
            self.teacher_text_embeds = self.teacher_embeddings.embeds.to(self.args.device)

    def compute_targets(self, batch):
        """Retrieval and denoising: the teacher's distribution over the categories for each region, Eq. 1-2."""
        if "cached_targets" in batch:
            retrieval = expand(batch["cached_targets"], self.is_thing)
        else:
            region_embeds = self.teacher_region_embeds(batch)
            logits = region_logits(region_embeds, self.teacher_text_embeds, self.args.temperature)
            retrieval = retrieve(logits, self.is_thing, self.args.threshold)
        self._draw(batch, retrieval)
        return retrieval

    def count_terms(self, targets):
        """Kept regions of each group."""
        return targets.counts(len(self.args.contrast_matrix))

    def loss(self, outputs, inputs):
        """Decoupled alignment, Eq. 3-5: the student's regions against what the teacher retrieved for them."""
        alignment = align(
            outputs.region_embeds,
            self.student_text_embeds,
            inputs["targets"],
            self.is_thing,
            self.args.temperature,
            self.args.contrast_matrix,
            self.args.reduction,
            counts=inputs["normalizers"],
        )
        self.add_to_log(kept=alignment.num_kept, things=alignment.num_things)
        return alignment.loss

    def summarize(self, sums, seconds):
        return {
            "regions_kept": sums["kept"],
            "thing_share": sums["things"] / max(sums["kept"], 1),
            **super().summarize(sums, seconds),
        }

    def _draw(self, batch: dict[str, Any], retrieval: Retrieval) -> None:
        """The first image of the batch and what was retrieved for it, every `retrieval_picture_steps` steps."""
        every, step = self.args.retrieval_picture_steps, self.state.global_step
        if every and step % every == 0 and self.is_world_process_zero():
            file = Path(self.args.output_dir) / "retrievals" / f"step-{step:07d}.jpg"
            save_retrieval_picture(
                file, batch["pixel_values"][0], batch["boxes"][0], retrieval, self.student_embeddings.names
            )


__all__ = ["DenseVLMArguments", "DenseVLMTrainer"]
