"""Trainers of dense features: DenseVLM, and what it shares with its siblings."""

import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import rotate_checkpoints
from transformers.utils import logging

from modeling_densevlm import CategoryEmbeddings, DenseVLMImageProcessor, DenseVLMModel

from .alignment import Contrast, Retrieval, align, region_logits, retrieve
from .engine.checkpoints import STAGING, publish, write_run
from .engine.sharding import own_class, prepare_student
from .engine.signals import LeaveOutNonFinite, StopSignal, sigterm_held_back
from .images.sampling import EpochSampler
from .pictures import best, draw_retrieval
from .teacher_cache import expand


logger = logging.get_logger(__name__)


class DenseTrainer(Trainer):
    r"""
    A frozen teacher looks at regions of a batch, a student learns from what it says. Subclasses say what the teacher
    is asked ([`~DenseTrainer.ask_teacher`]), how many terms that gives the loss ([`~DenseTrainer.count_terms`]) and
    the loss itself (`compute_loss`).

    The denominators of a loss span the whole global batch: before the first backward of a step the teacher has seen
    all its micro-batches and the counts are added up over accumulation steps and ranks. So N ranks equal one rank.

    Args:
        teacher (`DenseVLMModel`, *optional*):
            Frozen here, in eval mode, and no part of what is saved. None where its answers come with the batches.
        sampler ([`EpochSampler`]): the order of the images.
        image_processor, teacher_image_processor ([`DenseVLMImageProcessor`]):
            Bytes to `pixel_values`, for the student and the teacher.
        run (`dict`): what a resumed run must have in common with this one, kept with each checkpoint.
    """

    # The loss is divided by counts of the whole accumulated batch already.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *args: Any,
        teacher: DenseVLMModel | None,
        sampler: EpochSampler,
        image_processor: DenseVLMImageProcessor,
        teacher_image_processor: DenseVLMImageProcessor | None = None,
        run: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        if self.is_fsdp_enabled:
            prepare_student(self.model, self.accelerator)
        if teacher is not None:
            teacher = teacher.eval().requires_grad_(False)
            if not isinstance(teacher, FSDPModule):
                teacher = teacher.to(self.args.device)  # where the student is sharded, accelerate moves nothing
            teacher = self.accelerator.prepare_model(teacher, evaluation_mode=True)
        self.teacher = teacher
        self.sampler = sampler
        self.image_processor = image_processor
        self.teacher_image_processor = teacher_image_processor or image_processor
        self.run = run or {}
        self.sums: dict[str, Tensor] = {}
        self.sums_since = time.perf_counter()
        self.skipped: set[str] = set()
        self.step_names: list[str] = []
        self.left_out = LeaveOutNonFinite(lambda: self.step_names)
        self.stop_signal: StopSignal | None = None
        self.stopped_at: int | None = None
        self._run_dir = self.args.output_dir
        self.add_callback(self.left_out)
        self.add_callback(_FollowSampler(self))

    # Batches

    def _get_train_sampler(self, train_dataset=None):
        return self.sampler

    def ask_teacher(self, batch: dict[str, Any]) -> Any:
        """What the loss needs of the teacher, without gradients."""
        raise NotImplementedError

    def count_terms(self, answer: Any) -> Tensor:
        """The numbers the loss divides by, `(n,)`, of one micro-batch on this process."""
        raise NotImplementedError

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        began = time.perf_counter()
        if not self.sums:  # the clock of the log starts with its first batch, waiting for it included
            self.sums_since = began
        with sigterm_held_back():  # the first batch of an epoch starts workers
            batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.add_to_log(data_wait=time.perf_counter() - began, steps=1)
        self.step_names = [name for batch in batches for name in batch["name"] if name]
        for batch in batches:
            skipped = batch.pop("skipped")
            self._name_skipped(skipped)
            images = sum(bool(name) for name in batch.pop("name"))
            self.add_to_log(images=images, skipped_images=len(skipped), regions=sum(batch.pop("num_regions")))
            batch["answer"] = self.ask_teacher(self._prepare_inputs(batch))
            for seen in ("teacher_pixel_values", "crop_pixel_values", "retrieved"):  # no one looks at them again
                batch.pop(seen, None)
        if batches:
            counts = sum(self.count_terms(batch["answer"]) for batch in batches)
            stop = counts.new_tensor([float(self.stop_signal is not None and self.stop_signal.received)])
            *counts, stop = self.accelerator.reduce(torch.cat([counts, stop]), reduction="sum").split(1)
            for batch in batches:
                batch["counts"] = torch.cat(counts)
            if stop > 0:  # a signal to any rank stops all of them, after the same step
                self.stopped_at = self.state.global_step + 1
        return batches, None

    def _name_skipped(self, messages: list[str]) -> None:
        for message in messages:
            if message not in self.skipped:
                self.skipped.add(message)
                logger.warning(f"Skipped: {message}")

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        # One that is not finite would stay in Trainer's sum for ever; the step is left out, named and counted.
        return torch.where(loss.isfinite(), loss, torch.zeros_like(loss))

    # Log

    def add_to_log(self, **values: float | Tensor) -> None:
        """Adds to sums that the next log line shows, over all processes."""
        for key, value in values.items():
            value = torch.as_tensor(value, dtype=torch.float64 if self.args.device.type == "cpu" else torch.float32)
            self.sums[key] = self.sums.get(key, 0) + value.detach().to(self.args.device)

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
            "memory_gib": _peak_memory(self.args.device) / 2**30,
            "seconds_left": round(steps_left * seconds / (sums["steps"] / processes)),
        }

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self.sums:
            keys = sorted(self.sums)
            of_ranks = self.accelerator.gather(torch.stack([self.sums[key] for key in keys])[None])
            totals, most = (dict(zip(keys, of.tolist())) for of in (of_ranks.sum(0), of_ranks.amax(0)))
            # One rank that waits for images keeps all of them waiting.
            totals["data_wait"] = most["data_wait"]
            logs.update(self.summarize(totals, time.perf_counter() - self.sums_since))
            self.sums = {}
        super().log(logs, start_time)

    # Checkpoints

    def _save(self, output_dir=None, state_dict=None):
        with own_class(self.model):
            super()._save(output_dir, state_dict)

    def _get_output_dir(self, trial):
        return self._run_dir

    def _save_checkpoint(self, model, trial):
        """
        Writes the checkpoint aside and renames it, so that one that is there is complete. Where the disk is full the
        run goes on without it, says so, and tries again when the next one is due.
        """
        first, folder = self.is_world_process_zero(), Path(self.args.output_dir)
        aside, checkpoint = (f / f"checkpoint-{self.state.global_step}" for f in (folder / STAGING, folder))
        save = super()._save_checkpoint

        def begin() -> None:
            shutil.rmtree(folder / STAGING, ignore_errors=True)
            write_run(aside, self.run)

        def write() -> None:
            self._run_dir = str(folder / STAGING)
            try:
                save(model, trial)
            finally:
                self._run_dir = self.args.output_dir

        def finish() -> None:
            publish(aside, checkpoint)
            rotate_checkpoints(self.args.output_dir, self.args.save_total_limit)

        # Each of these has succeeded on all ranks before the next one is begun.
        all(self._succeeds(part, here) for part, here in ((begin, first), (write, True), (finish, first)))
        if first:
            shutil.rmtree(folder / STAGING, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _succeeds(self, part: Callable[[], None], here: bool) -> bool:
        """Whether a part of saving a checkpoint succeeded on all ranks; on this one it is run if `here`."""
        failure = None
        try:
            if here:
                part()
        except (OSError, RuntimeError, SafetensorError) as error:
            if self.is_fsdp_enabled:  # its ranks gather what is saved: one that failed has left the others waiting
                raise
            failure = error
        if self.accelerator.reduce(torch.tensor(float(failure is not None), device=self.args.device)) == 0:
            return True
        logger.error(
            f"The checkpoint of step {self.state.global_step} could not be written in {self.args.output_dir}: "
            f"{failure or 'another process failed'}. The run goes on; those written before are whole. Make room: the "
            "next one is tried when it is due."
        )
        return False

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Weight decay on matrices only."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class _FollowSampler(TrainerCallback):
    """Tells the sampler the epoch (accelerate does not, with several ranks), and stops the run when it is to stop."""

    def __init__(self, trainer: DenseTrainer):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs):
        # A resumed epoch begins at a fraction; sums of fractions may end a hair below the whole number.
        self.trainer.sampler.set_epoch(int((state.epoch or 0) + 1e-6))

    def on_step_end(self, args, state, control, **kwargs):
        if self.trainer.stopped_at == state.global_step:
            control.should_save = control.should_training_stop = True


class DenseVLMTrainer(DenseTrainer):
    r"""
    Decoupled region-language alignment, Sec. 3 of the paper.

    Args:
        teacher (`DenseVLMModel`, *optional*): P-VLM.
        student_embeddings (`CategoryEmbeddings`):
            The categories in the student's own space, with their groups.
        teacher_embeddings (`CategoryEmbeddings`, *optional*):
            Likewise in the teacher's, if there is one.
        contrast (`(groups, groups)` of bool): which groups' categories a region of a group contrasts against.

    Temperature, threshold and reduction are those of `args`.
    """

    def __init__(
        self,
        *args: Any,
        student_embeddings: CategoryEmbeddings,
        teacher_embeddings: CategoryEmbeddings | None,
        contrast: Contrast,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.names = student_embeddings.names
        self.student_text_embeds = student_embeddings.embeds.to(self.args.device)
        if teacher_embeddings is not None:
            self.teacher_text_embeds = teacher_embeddings.embeds.to(self.args.device)
        self.is_thing = student_embeddings.is_thing
        self.contrast = contrast

    def ask_teacher(self, batch):
        """Retrieval and denoising: the teacher's distribution over the categories for each region, Eq. 1-2."""
        if "retrieved" in batch:
            retrieval = expand(batch["retrieved"], self.is_thing)
        else:
            with torch.inference_mode():
                pixels = batch.get("teacher_pixel_values", batch["pixel_values"])
                pixel_values = self.teacher_image_processor.normalize(pixels)
                region_embeds = self.teacher(pixel_values=pixel_values, boxes=batch["boxes"]).region_embeds
                logits = region_logits(region_embeds, self.teacher_text_embeds, self.args.temperature)
                retrieval = retrieve(logits, self.is_thing, self.args.threshold)
            # What was made in inference mode cannot take part in a backward pass; its copy can.
            retrieval = Retrieval(*(tensor.clone() for tensor in (retrieval.logits, retrieval.kept, retrieval.group)))
        self._draw(batch, retrieval)
        return retrieval

    def _draw(self, batch: dict[str, Any], retrieval: Retrieval) -> None:
        """The first image of the batch and what was retrieved for it, every `retrieval_picture_steps` steps."""
        every, step = self.args.retrieval_picture_steps, self.state.global_step
        file = Path(self.args.output_dir) / "retrievals" / f"step-{step:07d}.jpg"
        if not every or step % every or not self.is_world_process_zero() or file.exists():
            return
        count = len(batch["boxes"][0])
        labels, probabilities = best(retrieval.logits[:count])
        names = [self.names[label] for label in labels]
        picture = draw_retrieval(
            batch["pixel_values"][0], batch["boxes"][0].cpu(), names, probabilities, retrieval.kept[:count].tolist()
        )
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            picture.save(file, quality=90)
        except OSError as error:
            logger.error(f"The picture {file} could not be written: {error}. The run goes on.")

    def count_terms(self, answer):
        return answer.counts(len(self.contrast))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Decoupled alignment, Eq. 3-5: the student's regions against what the teacher retrieved for them."""
        pixel_values = self.image_processor.normalize(inputs["pixel_values"])
        outputs = model(pixel_values=pixel_values, boxes=inputs["boxes"])
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
        self.add_to_log(kept=alignment.num_kept, things=alignment.num_things)
        loss = alignment.loss * self.accelerator.num_processes  # DDP takes the mean over ranks
        return (loss, outputs) if return_outputs else loss

    def summarize(self, sums, seconds):
        return {
            "regions_kept": sums["kept"],
            "thing_share": sums["things"] / max(sums["kept"], 1),
            **super().summarize(sums, seconds),
        }
