# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The base of all methods: a frozen teacher computes targets for the regions of a batch, a student learns them."""

import time
from functools import partial, reduce
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import TrainerCallback
from transformers.utils import logging

from modeling_densevlm import CategoryEmbeddings, CategorySet, DenseVLMModel, DenseVLMOutput
from modeling_densevlm.templates import DEFAULT_TEMPLATES

from .arguments import DataArguments, DistillationArguments
from .card import PublishedRun
from .data import RegionCollator, as_region_dataset
from .engine.run_log import RunLog, peak_memory
from .engine.sharding import prepare_student
from .engine.signals import SkipNonFiniteSteps, StopSignal, sigterm_blocked
from .engine.weight_averaging import WeightEnsemble
from .images.sampling import EpochSampler
from .models import LoadedModel, Processing, freeze, load_model


logger = logging.get_logger(__name__)


class DistillationTrainer(RunLog, PublishedRun):
    r"""
    The base class of all methods. A subclass implements [`~DistillationTrainer.compute_targets`],
    [`~DistillationTrainer.count_terms`] and [`~DistillationTrainer.loss`], and declares its needs by class attributes.

    Loss normalizers span the global batch: before the first backward pass of a step, the teacher computes the targets
    of all its micro-batches, and their terms are summed over accumulation steps and ranks. Training on N ranks
    therefore equals training on one.

    Args:
        model (`str` or `DenseVLMModel`):
            The student. All its blocks are trained, unless some of its parameters are already frozen.
        teacher (`str` or `DenseVLMModel`, *optional*):
            The teacher. It is frozen, in eval mode, and not saved. Not needed if the method declares
            `teaches_itself`, or if the dataset is a [`CachedTeacherDataset`].
        args ([`DistillationArguments`], *optional*):
            An instance of the method's `arguments_class`. By default `arguments_class(output_dir="trainer_output")`.
        data_collator (`Callable`, *optional*): defaults to a [`RegionCollator`].
        train_dataset ([`datasets.Dataset`], [`RegionDataset`] or [`CachedTeacherDataset`]):
            A `datasets.Dataset` has a column `image` or is an index of [`open_source`]; its images get grids of up to
            6 x 6 cells.
        processing_class (`DenseVLMProcessor` or `DenseVLMImageProcessor`, *optional*):
            Of the student. Loaded from the folder of `model` by default.
        teacher_processing_class (`DenseVLMProcessor` or `DenseVLMImageProcessor`, *optional*):
            Of the teacher. Loaded from the folder of `teacher` by default.
        categories (`str` or [`CategorySet`], *optional*, defaults to `"coco_stuff_ade20k_316"`):
            The vocabulary, for methods that declare `needs_categories`.
        templates (`str`, *optional*, defaults to those of ViLD): prompt templates of the categories.
        student_embeddings ([`CategoryEmbeddings`], *optional*):
            The categories in the student's space. Computed by its text tower by default.
        teacher_embeddings ([`CategoryEmbeddings`], *optional*):
            The categories in the teacher's space. Computed by its text tower by default.
        sampler ([`EpochSampler`], *optional*): the order of the images; needed to mix several sources.
        run (`dict`, *optional*): settings that must not change on resume; saved in each checkpoint.

    Raises:
        `ValueError` if an argument is missing, or is not used by the method.
    """

    model: DenseVLMModel
    args: DistillationArguments

    arguments_class: ClassVar[type[DistillationArguments]] = DistillationArguments
    needs_categories: ClassVar[bool] = False
    """Whether the method uses `student_embeddings` and `teacher_embeddings`."""
    needs_crops: ClassVar[bool] = False
    """Whether batches contain `crop_pixel_values`, `args.crops` per image."""
    needs_captions: ClassVar[bool] = False
    """Whether batches contain one caption per image; no source provides captions yet."""
    teaches_itself: ClassVar[bool] = False
    """Whether the teacher is a copy of the student before training."""
    uses_teacher_cache: ClassVar[bool] = False
    """Whether targets can be read from a [`TeacherCache`]."""

    # The loss is already divided by normalizers of the whole accumulated batch.
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
        options = {"seed": args.seed, **crop_options(type(self), args)}
        train_dataset = as_region_dataset(train_dataset, self.image_processor, self.teacher_image_processor, **options)
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        self.sampler = sampler or EpochSampler(
            [train_dataset.index], batch, args.seed, drop_last=args.dataloader_drop_last
        )
        # The layout of the images; it speeds up convolutions.
        student.model.to(memory_format=torch.channels_last)  # type: ignore[call-arg]  # a wrapped method in the stubs
        super().__init__(
            model=student.model,
            args=args,
            data_collator=data_collator or RegionCollator(train_dataset),
            train_dataset=train_dataset,
            processing_class=student.processing,
            **kwargs,
        )
        if self.needs_categories:
            embed = partial(_embed_categories, categories or DataArguments.categories, templates)
            self.student_embeddings = student_embeddings or embed(student, "`student_embeddings`")
            if loaded_teacher is not None:
                self.teacher_embeddings = teacher_embeddings or embed(loaded_teacher, "`teacher_embeddings`")
                if self.teacher_embeddings.names != self.student_embeddings.names:
                    raise ValueError("`student_embeddings` and `teacher_embeddings` are of different categories.")
        elif categories is not None:
            raise ValueError(f"{type(self).__name__} does not use `categories`: leave it out.")
        if self.is_fsdp_enabled:
            prepare_student(self.model, self.accelerator)
        self.teacher = None if loaded_teacher is None else self._prepare_teacher(loaded_teacher.model)
        self.run = run or {}
        named_teacher = None if self.teaches_itself else loaded_teacher
        self.sources = {"student": student.name, "teacher": "" if named_teacher is None else named_teacher.name}
        self.start_sums()
        self.skipped: set[str] = set()
        self.step_names: list[str] = []
        self.non_finite_steps = SkipNonFiniteSteps(lambda: self.step_names)
        self.stop_signal: StopSignal | None = None
        self.stopped_at: int | None = None
        self.add_callback(self.non_finite_steps)
        self.add_callback(_SetEpochAndStop(self))
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
            teacher.to(self.args.device)  # type: ignore[arg-type]  # accelerate does not, if the student is sharded
        return self.accelerator.prepare_model(teacher, evaluation_mode=True)

    @property
    def needs_image_embeds(self) -> bool:
        """Whether [`~DistillationTrainer.loss`] uses `outputs.image_embeds`."""
        return False

    # Implemented by each method

    def compute_targets(self, batch: dict[str, Any]) -> Any:
        """The targets of one micro-batch, computed by the teacher without gradients."""
        raise NotImplementedError

    def count_terms(self, targets: Any) -> Tensor:
        """The loss normalizers of one micro-batch on this process, `(n,)`."""
        raise NotImplementedError

    def loss(self, outputs: DenseVLMOutput, inputs: dict[str, Any]) -> Tensor:
        """
        The loss of the student's `outputs`, scalar: the sum of its terms / `inputs["normalizers"]`, where these are
        the sum of [`~DistillationTrainer.count_terms`] over the global batch. `inputs["targets"]` come from
        [`~DistillationTrainer.compute_targets`].
        """
        raise NotImplementedError

    def teacher_region_embeds(self, batch: dict[str, Any]) -> Tensor:
        """The teacher's pooled region features of a batch, `(regions, teacher_dim)`, without gradients."""
        with torch.inference_mode():
            pixels = batch.get("teacher_pixel_values", batch["pixel_values"])
            pixel_values = self.teacher_image_processor.normalize(pixels)
            region_embeds = self.teacher(pixel_values=pixel_values, boxes=batch["boxes"]).region_embeds
        return region_embeds.clone()  # inference tensors cannot take part in a backward pass

    # Batches

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        pixel_values = self.image_processor.normalize(inputs["pixel_values"])
        images = {"return_image_embeds": True} if self.needs_image_embeds else {}
        outputs = model(pixel_values=pixel_values, boxes=inputs["boxes"], **images)
        loss = self.loss(outputs, inputs) * self.accelerator.num_processes  # DDP averages over ranks
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        # NaN would stay in Trainer's running sum; `SkipNonFiniteSteps` skips and logs the step.
        return torch.where(loss.isfinite(), loss, torch.zeros_like(loss))

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        began = time.perf_counter()
        if not self.sums:
            self.start_sums()
        with sigterm_blocked():  # the first batch of an epoch starts workers
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
        """Sums the terms over micro-batches and ranks; in the same reduction, whether any rank received a signal."""
        terms = reduce(torch.add, [self.count_terms(batch["targets"]) for batch in batches])
        stop = terms.new_tensor([float(self.stop_signal is not None and self.stop_signal.received)])
        sums = self.accelerator.reduce(torch.cat([terms, stop]), reduction="sum")
        for batch in batches:
            batch["normalizers"] = sums[:-1]
        if sums[-1] > 0:  # all ranks stop after the same step
            self.stopped_at = self.state.global_step + 1

    def _warn_of_skipped(self, messages: list[str]) -> None:
        for message in messages:
            if message not in self.skipped:
                self.skipped.add(message)
                logger.warning(f"Skipped: {message}")

    def _get_train_sampler(self, train_dataset=None):
        return self.sampler

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Weight decay applies to matrices only."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]

    # Log

    def summarize(self, sums: dict[str, float], seconds: float) -> dict[str, float]:
        """
        The log entry since the last one: `regions` (cells of the grids), `images_per_second` (all processes),
        `data_wait` (share of the time that the slowest rank waited for images), `skipped_images`, `steps_left_out`
        (skipped steps of the whole run), `memory_gib` (peak of this process; of GPU memory if there is a GPU),
        `seconds_left`.
        """
        processes = self.accelerator.num_processes
        steps_left = self.state.max_steps - self.state.global_step
        return {
            "regions": sums["regions"],
            "images_per_second": sums["images"] / seconds,
            "data_wait": sums["data_wait"] / seconds,
            "skipped_images": sums["skipped_images"],
            "steps_left_out": self.non_finite_steps.total,
            "memory_gib": peak_memory(self.args.device) / 2**30,
            "seconds_left": round(steps_left * seconds / (sums["steps"] / processes)),
        }


def crop_options(method: type[DistillationTrainer], args: DistillationArguments) -> dict[str, Any]:
    """The options of a [`RegionDataset`] about crops, from the arguments of a method that needs them."""
    if not method.needs_crops:
        return {}
    return {"crops": args.crops, "crop_size": getattr(args, "crop_size", None)}  # type: ignore[attr-defined]


def _embed_categories(
    categories: str | CategorySet, templates: str, loaded: LoadedModel, option: str
) -> CategoryEmbeddings:
    categories = categories if isinstance(categories, CategorySet) else CategorySet.load(categories)
    categories.require_flags("training")
    return loaded.embed(categories, templates, option)


class _SetEpochAndStop(TrainerCallback):
    """Sets the sampler's epoch (accelerate does not, with several ranks) and stops after the step of a signal."""

    def __init__(self, trainer: DistillationTrainer):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs):
        # `epoch` is a sum of fractions and may be slightly below the whole number.
        self.trainer.sampler.set_epoch(int((state.epoch or 0) + 1e-6))

    def on_step_end(self, args, state, control, **kwargs):
        if self.trainer.stopped_at == state.global_step:
            control.should_save = control.should_training_stop = True


__all__ = ["DistillationTrainer"]
