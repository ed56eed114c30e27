"""Trainers of dense features: DenseVLM, and what it shares with its siblings."""

import time
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback
from transformers.utils import logging

from modeling_densevlm import CategoryEmbeddings, DenseVLMModel

from .alignment import Contrast, align, region_logits, retrieve


logger = logging.get_logger(__name__)


class DenseTrainer(Trainer):
    r"""
    A frozen teacher looks at regions of a batch, a student learns from what it says. Subclasses say what the teacher
    is asked ([`~DenseTrainer.ask_teacher`]), how many terms that gives the loss ([`~DenseTrainer.count_terms`]) and
    the loss itself (`compute_loss`).

    The denominators of a loss span the whole global batch: before the first backward of a step the teacher has seen
    all its micro-batches and the counts are added up over accumulation steps and ranks. So N ranks equal one rank.

    Args:
        teacher (`DenseVLMModel`): frozen here, in eval mode, and no part of what is saved.
    """

    # The loss is divided by counts of the whole accumulated batch already.
    loss_is_scaled_for_ga = True

    def __init__(self, *args: Any, teacher: DenseVLMModel, **kwargs: Any):
        super().__init__(*args, **kwargs)
        teacher = teacher.eval().requires_grad_(False)
        self.teacher = self.accelerator.prepare_model(teacher, evaluation_mode=True)
        self.sums: dict[str, Tensor] = {}
        self.sums_since = time.perf_counter()
        self.skipped: set[str] = set()
        self.add_callback(_EpochOfDataset(self.train_dataset))

    def ask_teacher(self, batch: dict[str, Any]) -> Any:
        """What the loss needs of the teacher, without gradients."""
        raise NotImplementedError

    def count_terms(self, answer: Any) -> Tensor:
        """The numbers the loss divides by, `(n,)`, of one micro-batch on this process."""
        raise NotImplementedError

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        if not self.sums:  # the clock of the log starts with its first batch, waiting for it included
            self.sums_since = time.perf_counter()
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        for batch in batches:
            skipped = batch.pop("skipped", [])
            self._name_skipped(skipped)
            with torch.no_grad():
                batch["answer"] = self.ask_teacher(self._prepare_inputs(batch))
            for seen in ("teacher_pixel_values", "crop_pixel_values"):  # no one looks at them again
                batch.pop(seen, None)
            images = len(batch["pixel_values"]) if any(len(boxes) for boxes in batch["boxes"]) else 0
            self.add_to_log(images=images, skipped_images=len(skipped))
        if batches:
            counts = sum(self.count_terms(batch["answer"]) for batch in batches)
            counts = self.accelerator.reduce(counts, reduction="sum")
            for batch in batches:
                batch["counts"] = counts
        return batches, None

    def _name_skipped(self, messages: list[str]) -> None:
        for message in messages:
            if message not in self.skipped:
                self.skipped.add(message)
                logger.warning(f"Skipped: {message}")

    def add_to_log(self, **values: float | Tensor) -> None:
        """Adds to sums that the next log line shows, over all processes."""
        for key, value in values.items():
            value = torch.as_tensor(value, dtype=torch.float64 if self.args.device.type == "cpu" else torch.float32)
            self.sums[key] = self.sums.get(key, 0) + value.detach().to(self.args.device)

    def summarize(self, sums: dict[str, float], seconds: float) -> dict[str, float]:
        """What is logged of the sums since the last log."""
        return {"images_per_second": sums["images"] / seconds, "skipped_images": sums["skipped_images"]}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self.sums:
            keys = sorted(self.sums)
            totals = self.accelerator.reduce(torch.stack([self.sums[key] for key in keys]), reduction="sum").tolist()
            logs.update(self.summarize(dict(zip(keys, totals)), time.perf_counter() - self.sums_since))
            self.sums = {}
        super().log(logs, start_time)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Weight decay on matrices only."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]


class _EpochOfDataset(TrainerCallback):
    """Tells the dataset the epoch: its grids depend on it. (accelerate forwards `set_epoch` to the sampler alone.)"""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def on_epoch_begin(self, args, state, control, **kwargs):
        # A resumed epoch begins at a fraction; sums of fractions may end a hair below the whole number.
        self.dataset.set_epoch(int((state.epoch or 0) + 1e-6))


class DenseVLMTrainer(DenseTrainer):
    r"""
    Decoupled region-language alignment, Sec. 3 of the paper.

    Args:
        teacher (`DenseVLMModel`): P-VLM.
        student_embeddings, teacher_embeddings (`CategoryEmbeddings`):
            The same categories in each model's own space, with their groups.
        contrast (`(groups, groups)` of bool): which groups' categories a region of a group contrasts against.

    Temperature, threshold and reduction are those of `args`.
    """

    def __init__(
        self,
        *args: Any,
        student_embeddings: CategoryEmbeddings,
        teacher_embeddings: CategoryEmbeddings,
        contrast: Contrast,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.student_text_embeds = student_embeddings.embeds.to(self.args.device)
        self.teacher_text_embeds = teacher_embeddings.embeds.to(self.args.device)
        self.is_thing = student_embeddings.is_thing
        self.contrast = contrast

    def ask_teacher(self, batch):
        """Retrieval and denoising: the teacher's distribution over the categories for each region, Eq. 1-2."""
        pixel_values = batch.get("teacher_pixel_values", batch["pixel_values"])
        region_embeds = self.teacher(pixel_values=pixel_values, boxes=batch["boxes"]).region_embeds
        logits = region_logits(region_embeds, self.teacher_text_embeds, self.args.temperature)
        return retrieve(logits, self.is_thing, self.args.threshold)

    def count_terms(self, answer):
        return answer.counts(len(self.contrast))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Decoupled alignment, Eq. 3-5: the student's regions against what the teacher retrieved for them."""
        outputs = model(pixel_values=inputs["pixel_values"], boxes=inputs["boxes"])
        alignment = align(
            outputs.region_embeds,
            self.student_text_embeds,
            inputs["answer"],
            self.is_thing,
            self.args.temperature,
            self.contrast,
            self.args.reduction,
            counts=inputs["counts"],
        )
        self.add_to_log(regions=alignment.num_regions, kept=alignment.num_kept, things=alignment.num_things)
        loss = alignment.loss * self.accelerator.num_processes  # DDP takes the mean over ranks
        return (loss, outputs) if return_outputs else loss

    def summarize(self, sums, seconds):
        return {
            "regions": sums["regions"],
            "regions_kept": sums["kept"],
            "thing_share": sums["things"] / max(sums["kept"], 1),
            **super().summarize(sums, seconds),
        }
