# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""DenseVLM: decoupled region-language alignment, Sec. 3.2 of the paper. The equations are in `alignment.py`."""

import json
from dataclasses import dataclass, field
from typing import Any

from .alignment import CONTRASTS, Contrast, Retrieval, align, region_logits, retrieve
from .arguments import DistillationArguments
from .distillation_trainer import DistillationTrainer
from .pictures import save_retrieval_picture
from .teacher_cache import expand


@dataclass
class DenseVLMArguments(DistillationArguments):
    """The keys of DenseVLM."""

    temperature: float = field(default=0.01, metadata={"help": "τ of retrieval (Eq. 1) and alignment (Eq. 3-4)."})
    threshold: float = field(
        default=0.3, metadata={"help": "A region is kept if the teacher's highest probability exceeds it."}
    )
    contrast: str = field(
        default="decoupled",
        metadata={"help": f"{', '.join(CONTRASTS)}, or a JSON matrix (rows: region's group, columns: categories')."},
    )
    reduction: str = field(default="group_mean", metadata={"help": "group_mean or region_mean (Eq. 5)."})
    retrieval_picture_steps: int = field(
        default=0,
        metadata={"help": "Save a picture of an image and its retrieved categories every N steps; 0 for never."},
    )

    def __post_init__(self):
        super().__post_init__()
        if self.reduction not in ("group_mean", "region_mean"):
            raise ValueError(f"`reduction` is group_mean or region_mean, got {self.reduction!r}.")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"`threshold` is a probability, 0..1, got {self.threshold}.")
        if self.temperature <= 0:
            raise ValueError(f"`temperature` is above 0, got {self.temperature}.")
        self.contrast_matrix  # noqa: B018 - raises for a malformed matrix

    @property
    def contrast_matrix(self) -> Contrast:
        """`contrast` as a matrix over groups."""
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
    The teacher retrieves a category for each region of an image (Eq. 1-2); regions below the threshold are dropped.
    The student learns the teacher's distribution over the categories that the region's group is contrasted against
    (Eq. 3-5).

    ```python
    >>> trainer = DenseVLMTrainer(model="openai/clip-vit-base-patch16", teacher=folder, train_dataset=dataset)
    >>> trainer.train()
    ```

    The arguments are those of [`DistillationTrainer`]; `args` is a [`DenseVLMArguments`].
    """

    args: DenseVLMArguments

    arguments_class = DenseVLMArguments
    method_name = "DenseVLM"
    needs_categories = True
    uses_teacher_cache = True

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.is_thing = self.student_embeddings.is_thing
        self.student_text_embeds = self.student_embeddings.embeds.to(self.args.device)
        if self.teacher is not None:
            self.teacher_text_embeds = self.teacher_embeddings.embeds.to(self.args.device)

    def compute_targets(self, batch):
        """Retrieval and denoising, Eq. 1-2: the teacher's distribution over the categories for each region."""
        if "cached_targets" in batch:
            retrieval = expand(batch["cached_targets"], self.is_thing)
        else:
            region_embeds = self.teacher_region_embeds(batch)
            logits = region_logits(region_embeds, self.teacher_text_embeds, self.args.temperature)
            retrieval = retrieve(logits, self.is_thing, self.args.threshold)
        self._save_picture(batch, retrieval)
        return retrieval

    def count_terms(self, targets):
        """The number of kept regions per group."""
        return targets.counts(len(self.args.contrast_matrix))

    def loss(self, outputs, inputs):
        """Decoupled alignment, Eq. 3-5."""
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

    def _save_picture(self, batch: dict[str, Any], retrieval: Retrieval) -> None:
        """Every `retrieval_picture_steps` steps: the batch's first image with its retrieved categories."""
        every, step = self.args.retrieval_picture_steps, self.state.global_step
        if every and step % every == 0 and self.is_world_process_zero():
            file = self._folder / "retrievals" / f"step-{step:07d}.jpg"
            save_retrieval_picture(
                file, batch["pixel_values"][0], batch["boxes"][0], retrieval, self.student_embeddings.names
            )


__all__ = ["DenseVLMArguments", "DenseVLMTrainer"]
