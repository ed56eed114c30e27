# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Evaluates region accuracies of the student during training, on a few images every N steps.

    import sys
    from evaluation.while_training import RegionEvaluation
    from training.train import main

    main(sys.argv[1:], prepare=lambda trainer: trainer.add_callback(
        RegionEvaluation(trainer, "panoptic_val2017.json", "val2017", "panoptic_val2017", steps=500)))
    close_process_group()  # from training.engine.signals; needed with several processes
"""

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import Trainer, TrainerCallback

from modeling_densevlm import CategoryEmbeddings, CategorySet
from modeling_densevlm.templates import DEFAULT_TEMPLATES

from .datasets.panoptic import PanopticRegions
from .evaluate_regions import evaluate_regions, map_side, region_metrics
from .scores import RegionScores


class RegionEvaluation(TrainerCallback):
    r"""
    Evaluates the model in training with [`evaluate_regions`] and logs the metrics with the prefix `eval_`. The images
    are distributed over all processes; only the logged metrics are stored.

    Args:
        trainer ([`Trainer`]): trainer of a [`DenseVLMModel`] with a text tower, with its processor.
        annotations (`str` or path): COCO's `panoptic_*.json`, as for [`PanopticRegions`].
        images (`str` or path): root folder of the images.
        panoptic (`str` or path): root folder of the panoptic PNGs.
        steps (`int`): evaluate before the first step, every `steps` steps, and after the last step.
        count (`int`, *optional*, defaults to 256): number of images, evenly spread over the annotated ones.
        categories ([`CategorySet`], *optional*): categories to predict; those of the annotation file by default.
        templates (`str`, *optional*, defaults to the paper's): prompt templates.
        batch_size (`int`, *optional*, defaults to 8): images per forward pass.
        num_workers (`int`, *optional*, defaults to 0): data loading processes.

    Raises:
        `ValueError` for invalid numbers, for FSDP and DeepSpeed, and for a student without text tower or tokenizer.
    """

    def __init__(
        self,
        trainer: Trainer,
        annotations: str | Path,
        images: str | Path,
        panoptic: str | Path,
        steps: int,
        count: int = 256,
        categories: CategorySet | None = None,
        templates: str = DEFAULT_TEMPLATES,
        batch_size: int = 8,
        num_workers: int = 0,
    ):
        counts = {"steps": (steps, 1), "count": (count, 1), "batch_size": (batch_size, 1)}
        for name, (value, minimum) in (counts | {"num_workers": (num_workers, 0)}).items():
            if not isinstance(value, int) or value < minimum:
                raise ValueError(f"`{name}` is a whole number, {minimum} or more, got {value!r}.")
        self.trainer, self.steps = trainer, steps
        self.options = {"batch_size": batch_size, "num_workers": num_workers}
        model: Any = trainer.model
        processor: Any = trainer.processing_class
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise ValueError(
                "Evaluation while training does not support FSDP and DeepSpeed: evaluate the checkpoints."
            )
        if model.text_model is None or getattr(processor, "tokenizer", None) is None:
            raise ValueError("Evaluation while training needs a student with its text tower and tokenizer.")
        image_processor = processor.image_processor
        side = map_side(model, image_processor.size["longest_edge"])
        self.regions = PanopticRegions(annotations, images, panoptic, image_processor, side, categories)
        self.regions.categories.require_flags("thing / stuff metrics")
        # The text tower is frozen, so the embeddings are computed once.
        self.embeddings = CategoryEmbeddings.compute(self.regions.categories, model, processor.tokenizer, templates)
        count = min(count, len(self.regions))
        self.rows = torch.linspace(0, len(self.regions) - 1, count).int().tolist()

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            self.evaluate()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.steps == 0 or state.global_step == state.max_steps:
            self.evaluate()

    def evaluate(self) -> dict[str, float]:
        """Evaluates the current weights; logs and returns the metrics."""
        model: Any = self.trainer.model
        training = model.training
        own_rows = self.rows[self.trainer.args.process_index :: self.trainer.args.world_size]
        scores = evaluate_regions(model, self.regions, self.embeddings, rows=own_rows, **self.options)
        if self.trainer.args.world_size > 1:
            scores = RegionScores.join(gather_object([scores]))
        model.train(training)
        if scores.images == 0:
            raise ValueError(f"None of the {len(self.rows)} images could be evaluated: {scores.skipped_images[0]}")
        metrics = {f"eval_{k}": v for k, v in region_metrics(scores, self.regions.categories).items()}
        self.trainer.log(metrics)
        return metrics


__all__ = ["RegionEvaluation"]
