# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""What the methods share: a frozen teacher gives targets for regions of a batch, a student learns to match them."""

import time
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import Trainer, TrainerCallback
from transformers.utils import logging

from modeling_densevlm import CategoryEmbeddings, CategorySet, DenseVLMModel, DenseVLMOutput
from modeling_densevlm.templates import DEFAULT_TEMPLATES

from .arguments import DataArguments, DistillationArguments
from .data import RegionCollator, as_region_dataset
from .engine.atomic_checkpoints import AtomicCheckpoints
from .engine.run_log import RunLog, peak_memory
from .engine.sharding import prepare_student
from .engine.signals import LeaveOutNonFinite, StopSignal, sigterm_held_back
from .engine.weight_averaging import WeightEnsemble
from .images.sampling import EpochSampler
from .models import LoadedModel, Processing, freeze, load_model


logger = logging.get_logger(__name__)


class DistillationTrainer(RunLog, AtomicCheckpoints, Trainer):
    r"""
    The base of all methods. A method gives [`~DistillationTrainer.compute_targets`],
    [`~DistillationTrainer.count_terms`] and [`~DistillationTrainer.loss`], and declares by class attributes what it
    needs.

    The normalizers of a loss span the whole global batch: before the first backward of a step the teacher has seen
    all its micro-batches and their terms are added up over accumulation steps and ranks. So N ranks equal one rank.

    Args:
        model (`str` or `DenseVLMModel`):
            The student. All its blocks are trained, unless some of its parameters are frozen already.
        teacher (`str` or `DenseVLMModel`, *optional*):
            Frozen here, in eval mode, and no part of what is saved. None where the model teaches itself, or where
            the dataset is a [`CachedTeacherDataset`].
        args ([`DistillationArguments`], *optional*): of the method's `arguments_class`; its defaults by default.
        data_collator (*optional*): defaults to a [`RegionCollator`].
        train_dataset ([`datasets.Dataset`], [`RegionDataset`] or [`CachedTeacherDataset`]):
            With a column `image`, or an index of [`open_source`]; then grids have up to 6 rows and columns.
        processing_class, teacher_processing_class (`DenseVLMProcessor` or `DenseVLMImageProcessor`, *optional*):
            By default those of the folders that the models come from.
        categories (`str` or [`CategorySet`], *optional*, defaults to `"coco_stuff_ade20k_316"`):
            For a method that needs categories.
        templates (`str`, *optional*, defaults to the paper's): prompt templates of the categories.
        student_embeddings, teacher_embeddings ([`CategoryEmbeddings`], *optional*):
            The categories in each model's own space; by default computed by its text tower.
        sampler ([`EpochSampler`], *optional*): the order of the images, where they are of several sources.
        run (`dict`, *optional*): the invariants that are checked on resume, kept with each checkpoint.
    """

    arguments_class: ClassVar[type[DistillationArguments]] = DistillationArguments
    needs_categories: ClassVar[bool] = False
    """Whether the method has `student_embeddings` and `teacher_embeddings`."""
    needs_crops: ClassVar[bool] = False
    """Whether batches have `crop_pixel_values`, `args.crops` an image."""
    needs_captions: ClassVar[bool] = False
    """Whether batches have a caption for each image; no source gives any yet."""
    teaches_itself: ClassVar[bool] = False
    """Whether the teacher is the student before training."""
    uses_teacher_cache: ClassVar[bool] = False
    """Whether its targets may come from a [`TeacherCache`]."""

    # The loss is divided by normalizers of the whole accumulated batch already.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: str | DenseVLMModel,
        teacher: str | DenseVLMModel | None = None,
        args: DistillationArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        processing_class: Processing | None = None,
        teacher_processing_class: Processing | None = None,
        categories: str | CategorySet | None = None,
        templates: str = DEFAULT_TEMPLATES,
        student_embeddings: CategoryEmbeddings | None = None,
        teacher_embeddings: CategoryEmbeddings | None = None,
        sampler: EpochSampler | None = None,
        run: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        args = args or self.arguments_class(output_dir="trainer_output")
        student = load_model(model, processing_class)
        if all(parameter.requires_grad for parameter in student.model.parameters()):
            freeze(student.model)
        loaded_teacher = self._load_teacher(teacher, teacher_processing_class, student, train_dataset)
        self.image_processor = student.image_processor
        self.teacher_image_processor = (loaded_teacher or student).image_processor
        crops = args.crops if self.needs_crops else 0
        train_dataset = as_region_dataset(
            train_dataset, self.image_processor, self.teacher_image_processor, crops=crops, seed=args.seed
        )
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        self.sampler = sampler or EpochSampler(
            [train_dataset.index], batch, args.seed, drop_last=args.dataloader_drop_last
        )
        super().__init__(
            model=student.model.to(memory_format=torch.channels_last),  # as images come; it helps convolutions alone
            args=args,
            data_collator=data_collator or RegionCollator(train_dataset),
            train_dataset=train_dataset,
            processing_class=student.processing,
            **kwargs,
        )
        if self.needs_categories:
            categories = categories or DataArguments.categories
            categories = categories if isinstance(categories, CategorySet) else CategorySet.load(categories)
            categories.require_flags("training")
            options = (categories, templates)
            self.student_embeddings = student_embeddings or student.embed(*options, "`student_embeddings`")
            if loaded_teacher is not None:
                self.teacher_embeddings = teacher_embeddings or loaded_teacher.embed(*options, "`teacher_embeddings`")
                if self.teacher_embeddings.names != self.student_embeddings.names:
                    raise ValueError("`student_embeddings` and `teacher_embeddings` are of different categories.")
        elif categories is not None:
            raise ValueError(f"`categories` means nothing to {type(self).__name__}; leave it out.")
        if self.is_fsdp_enabled:
            prepare_student(self.model, self.accelerator)
        self.teacher = None if loaded_teacher is None else self._prepare_teacher(loaded_teacher.model)
        self.run = run or {}
        self.start_sums()
        self.skipped: set[str] = set()
        self.step_names: list[str] = []
        self.left_out = LeaveOutNonFinite(lambda: self.step_names)
        self.stop_signal: StopSignal | None = None
        self.stopped_at: int | None = None
        self.add_callback(self.left_out)
        self.add_callback(_FollowSampler(self))
        if args.ensemble_alpha < 1:
            self.add_callback(WeightEnsemble(self, args.ensemble_alpha))

    def _load_teacher(
        self, teacher: Any, processing: Processing | None, student: LoadedModel, train_dataset: Any
    ) -> LoadedModel | None:
        if teacher is not None:
            return load_model(teacher, processing)
        if self.teaches_itself:
            return student.copy()
        if not (self.uses_teacher_cache and getattr(train_dataset, "has_targets", False)):
            raise ValueError("`teacher` is missing: a model, a folder or a Hub name.")
        return None

    def _prepare_teacher(self, teacher: DenseVLMModel) -> DenseVLMModel:
        teacher = teacher.eval().requires_grad_(False)
        if not isinstance(teacher, FSDPModule):
            teacher = teacher.to(self.args.device)  # where the student is sharded, accelerate moves nothing
        return self.accelerator.prepare_model(teacher, evaluation_mode=True)

    # What a method gives

    def compute_targets(self, batch: dict[str, Any]) -> Any:
        """What the student is to match, by the teacher, without gradients."""
        raise NotImplementedError

    def count_terms(self, targets: Any) -> Tensor:
        """The numbers the loss is divided by, `(n,)`, of one micro-batch on this process."""
        raise NotImplementedError

    def loss(self, outputs: DenseVLMOutput, inputs: dict[str, Any]) -> Tensor:
        """
        The loss of the student's `outputs`, scalar: its terms over `inputs["normalizers"]`, the sum of
        [`~DistillationTrainer.count_terms`] over the global batch. `inputs["targets"]` are those computed before.
        """
        raise NotImplementedError

    def teacher_region_embeds(self, batch: dict[str, Any]) -> Tensor:
        """The teacher's pooled features of a batch's regions, `(regions, teacher_dim)`, without gradients."""
        with torch.inference_mode():
            pixels = batch.get("teacher_pixel_values", batch["pixel_values"])
            pixel_values = self.teacher_image_processor.normalize(pixels)
            region_embeds = self.teacher(pixel_values=pixel_values, boxes=batch["boxes"]).region_embeds
        return region_embeds.clone()  # what was made in inference mode cannot take part in a backward pass

    # Batches

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        pixel_values = self.image_processor.normalize(inputs["pixel_values"])
        outputs = model(pixel_values=pixel_values, boxes=inputs["boxes"])
        loss = self.loss(outputs, inputs) * self.accelerator.num_processes  # DDP takes the mean over ranks
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        # One that is not finite would stay in Trainer's sum for ever; the step is left out, named and counted.
        return torch.where(loss.isfinite(), loss, torch.zeros_like(loss))

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        began = time.perf_counter()
        if not self.sums:
            self.start_sums()
        with sigterm_held_back():  # the first batch of an epoch starts workers
            batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.add_to_log(data_wait=time.perf_counter() - began, steps=1)
        self.step_names = [name for batch in batches for name in batch["name"] if name]
        for batch in batches:
            skipped = batch.pop("skipped")
            self._warn_of_skipped(skipped)
            images = sum(bool(name) for name in batch.pop("name"))
            self.add_to_log(images=images, skipped_images=len(skipped), regions=sum(batch.pop("num_regions")))
            batch["targets"] = self.compute_targets(self._prepare_inputs(batch))
            for key in ("teacher_pixel_values", "crop_pixel_values", "cached_targets"):  # no longer needed
                batch.pop(key, None)
        if batches:
            self._add_normalizers(batches)
        return batches, None

    def _add_normalizers(self, batches: list[dict[str, Any]]) -> None:
        """The terms of all micro-batches and ranks, to each batch; and whether any rank is to stop."""
        terms = sum(self.count_terms(batch["targets"]) for batch in batches)
        stop = terms.new_tensor([float(self.stop_signal is not None and self.stop_signal.received)])
        *terms, stop = self.accelerator.reduce(torch.cat([terms, stop]), reduction="sum").split(1)
        for batch in batches:
            batch["normalizers"] = torch.cat(terms)
        if stop > 0:  # a signal to any rank stops all of them, after the same step
            self.stopped_at = self.state.global_step + 1

    def _warn_of_skipped(self, messages: list[str]) -> None:
        for message in messages:
            if message not in self.skipped:
                self.skipped.add(message)
                logger.warning(f"Skipped: {message}")

    def _get_train_sampler(self, train_dataset=None):
        return self.sampler

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Weight decay on matrices only."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]

    # Log

    def summarize(self, sums: dict[str, float], seconds: float) -> dict[str, float]:
        """
        What is logged of the sums since the last log: `regions` the grids gave, `images_per_second` over all
        processes, `data_wait` (share of the time that the slowest rank was waiting for images), `skipped_images`,
        `steps_left_out` so far, `memory_gib` (the most this process had, of GPU memory where there is a GPU),
        `seconds_left`.
        """
        processes = self.accelerator.num_processes
        steps_left = self.state.max_steps - self.state.global_step
        return {
            "regions": sums["regions"],
            "images_per_second": sums["images"] / seconds,
            "data_wait": sums["data_wait"] / seconds,
            "skipped_images": sums["skipped_images"],
            "steps_left_out": self.left_out.total,
            "memory_gib": peak_memory(self.args.device) / 2**30,
            "seconds_left": round(steps_left * seconds / (sums["steps"] / processes)),
        }


class _FollowSampler(TrainerCallback):
    """Sets the sampler's epoch (accelerate does not, with several ranks), and stops the run when it is to stop."""

    def __init__(self, trainer: DistillationTrainer):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs):
        # A resumed epoch begins at a fraction; sums of fractions may end a hair below the whole number.
        self.trainer.sampler.set_epoch(int((state.epoch or 0) + 1e-6))

    def on_step_end(self, args, state, control, **kwargs):
        if self.trainer.stopped_at == state.global_step:
            control.should_save = control.should_training_stop = True


__all__ = ["DistillationTrainer"]
