"""
Trains a dense VLM. One program, however it is started:

    python -m training.train training/recipes/coco.yaml [--key value ...]
    accelerate launch -m training.train training/recipes/coco.yaml [--key value ...]
    torchrun --nproc_per_node 8 -m training.train training/recipes/coco.yaml [--key value ...]
"""

import copy
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
import yaml
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedTokenizerBase, set_seed
from transformers.utils import logging

from modeling_densevlm import (
    CategoryEmbeddings,
    CategorySet,
    DenseVLMImageProcessor,
    DenseVLMModel,
    DenseVLMProcessor,
)
from modeling_densevlm.processing_densevlm import load_processing
from modeling_densevlm.worker_batches import SharedMemoryFull

from .alignment import as_groups
from .arguments import Arguments, DataArguments, MethodArguments, parse_arguments, resolved_recipe, save_recipe
from .clipself import CLIPSelfTrainer
from .data import RegionCollator, RegionDataset
from .engine.checkpoints import STAGING, check_run, find_checkpoint, set_aside_later
from .engine.sharding import shard_teacher
from .engine.signals import StopSignal, close_process_group
from .images.sampling import EpochSampler
from .images.sources import fingerprint, open_source
from .teacher_cache import TeacherCache
from .trainer import DenseTrainer, DenseVLMTrainer


logger = logging.get_logger(__name__)


def main(argv: Sequence[str] | None = None, prepare: Callable[[DenseTrainer], None] | None = None) -> DenseTrainer:
    """Runs a recipe from the first image to the saved folder. `prepare` may add to the trainer, which is returned."""
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    *_, args = arguments
    checkpoint = find_checkpoint(args.resume_from_checkpoint, args.output_dir)
    folder = Path(args.output_dir).absolute()
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):  # not made yet: a run that is refused leaves nothing
        raise SystemExit(f"`output_dir`: the folder {args.output_dir} cannot be made: {there} cannot be written in.")
    set_seed(args.seed)
    trainer = build_trainer(arguments)
    if prepare is not None:
        prepare(trainer)
    if checkpoint is not None:
        check_run(Path(checkpoint), trainer.run, trainer.is_fsdp_enabled)
    if trainer.is_world_process_zero():
        images = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        print(f"{args.world_size} processes, {images} images a step")
        recipe = Path(args.output_dir) / "recipe.yaml"
        if checkpoint is not None:
            print(f"Resumed from {checkpoint}")
            set_aside_later(Path(args.output_dir), Path(checkpoint))
            warn_of_changes(arguments, recipe)
        save_recipe(arguments, recipe)
    initial = trained_parameters(trainer.model, copied=True) if args.ensemble_alpha < 1 else {}
    with StopSignal() as trainer.stop_signal:
        try:
            trainer.train(resume_from_checkpoint=checkpoint)
        except SharedMemoryFull as error:
            raise SystemExit(str(error)) from error
    if trainer.stopped_at is not None and trainer.stopped_at < trainer.state.max_steps:
        say_stopped(trainer)
    else:
        mix_weights(trainer.model, initial, args.ensemble_alpha)
        save_result(trainer)
    if trainer.skipped:
        logger.warning(f"{len(trainer.skipped)} images were skipped by this process; the log names them.")
    trainer.accelerator.wait_for_everyone()  # a rank that ends while the first is saving would end it, too
    return trainer


def say_stopped(trainer: DenseTrainer) -> None:
    """Ends a run that was asked to stop; what was learned is in its checkpoint."""
    checkpoint = Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.global_step}"
    if not checkpoint.is_dir():
        raise SystemExit(f"Stopped by SIGTERM after step {trainer.state.global_step}, but {checkpoint} is not there.")
    if trainer.is_world_process_zero():
        print(f"Stopped by SIGTERM after step {trainer.state.global_step}: saved in {checkpoint}.")
        print("The same command with `--resume_from_checkpoint last` (or `auto`) goes on.")


def save_result(trainer: DenseTrainer) -> None:
    """The trained model with its processor, written aside and renamed, so that a file that is there is complete."""
    args = trainer.args
    folder, aside = Path(args.output_dir), Path(args.output_dir) / STAGING
    try:
        trainer.save_model(str(aside))
        if trainer.is_world_process_zero():
            for file in aside.iterdir():
                os.replace(file, folder / file.name)
            aside.rmdir()
        trainer.save_state()
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise SystemExit(
            f"The result could not be written in {folder}: {error}. Make room; the same command with "
            "`--resume_from_checkpoint last` goes on from the newest checkpoint and writes it."
        ) from error
    kept = [entry["regions_kept"] for entry in trainer.state.log_history if "regions_kept" in entry]
    if kept and not any(kept):
        logger.warning(
            f"Nothing was learned: no region had a best teacher probability above `threshold` {args.threshold}. Is "
            "the teacher trained, and `temperature` that of its logits?"
        )
    if trainer.is_world_process_zero():
        print(f"Trained by {args.method}: saved in {args.output_dir}")


def warn_of_changes(arguments: Arguments, recipe: Path) -> None:
    """Says which values of a resumed run differ from those it began with."""
    before = yaml.safe_load(recipe.read_text()) if recipe.is_file() else {}
    after = resolved_recipe(arguments)
    for key in sorted(before.keys() | after.keys()):
        if before and before.get(key) != after.get(key):
            logger.warning(f"Resumed with another `{key}` than before: {before.get(key)} → {after.get(key)}")


def build_trainer(arguments: Arguments) -> DenseTrainer:
    """Everything a run consists of, checked before the first step."""
    model_args, data_args, args = arguments
    model = DenseVLMModel.from_pretrained(
        model_args.model, dtype=torch.float32, attn_implementation=model_args.attn_implementation
    ).eval()
    image_processor, tokenizer = load_at_size(model_args.model, data_args.image_size)
    indices = open_sources(arguments)
    index = datasets.concatenate_datasets(indices)
    freeze(model, model_args.trained_blocks)
    sampler = EpochSampler(
        indices,
        args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
        args.seed,
        [source.weight for source in data_args.all_sources],
        args.dataloader_drop_last,
    )
    check_size(sampler, args)
    trainer_class, teacher_image_processor, retrieval = DenseVLMTrainer, None, None
    if args.method == "clipself":
        trainer_class, extras = CLIPSelfTrainer, {"teacher": copy.deepcopy(model)}
    else:
        extras = {
            "student_embeddings": category_embeddings(arguments, "student", model, tokenizer),
            "contrast": args.contrast_matrix,
        }
        if data_args.teacher_cache is None:
            teacher, extras["teacher_embeddings"], teacher_image_processor = prepare_teacher(arguments)
            # After its texts were embedded in float32.
            extras["teacher"] = teacher.to(getattr(torch, model_args.teacher_dtype))
            warn_of_remainder("teacher_image_size", teacher_image_processor, teacher)
        else:
            extras |= {"teacher": None, "teacher_embeddings": None}
            retrieval = open_retrieval(arguments, index)
    if model_args.teacher_sharded and extras["teacher"] is not None and args.world_size > 1:
        shard_teacher(extras["teacher"], args.device, args.world_size)
    dataset = RegionDataset(
        index,
        image_processor,
        teacher_image_processor,
        max_grid=data_args.max_grid,
        crops=data_args.crops if args.method == "clipself" else 0,
        retrieval=retrieval,
        seed=args.seed,
    )
    check_readable(dataset)
    warn_of_remainder("image_size", image_processor, model)
    return trainer_class(
        model=model.to(memory_format=torch.channels_last),  # as images come; of weight to convolutions alone
        args=args,
        train_dataset=dataset,
        data_collator=RegionCollator(dataset),
        processing_class=image_processor if tokenizer is None else DenseVLMProcessor(image_processor, tokenizer),
        sampler=sampler,
        image_processor=image_processor,
        teacher_image_processor=teacher_image_processor,
        run=describe_run(sampler, index),
        **extras,
    )


def open_sources(arguments: Arguments) -> list[datasets.Dataset]:
    """The index of each source, made by one process of a machine for all of them."""
    _, data_args, args = arguments
    with args.main_process_first(desc="index of the images"):
        try:
            return [open_source(source) for source in data_args.all_sources]
        except (ValueError, FileNotFoundError) as error:
            raise SystemExit(str(error)) from error


def describe_run(sampler: EpochSampler, index: datasets.Dataset) -> dict[str, Any]:
    """What a resumed run must have in common with the one that it goes on with, for its batches to be the same."""
    return {
        "number of images a step": sampler.batch_size,
        "number of images": len(index),
        "list of images": fingerprint(index),
        "share of the sources": sampler.shares,
        "seed": sampler.seed,
        "`dataloader_drop_last`": sampler.drop_last,
    }


def prepare_teacher(
    arguments: Arguments,
) -> tuple[DenseVLMModel, CategoryEmbeddings, DenseVLMImageProcessor]:
    """The teacher in float32, the categories in its space, and its image processor."""
    model_args, data_args, _ = arguments
    if model_args.teacher is None:
        raise SystemExit("`teacher` is missing: DenseVLM learns from a P-VLM (a folder or a Hub name).")
    teacher = DenseVLMModel.from_pretrained(
        model_args.teacher, dtype=torch.float32, attn_implementation=model_args.attn_implementation
    ).eval()
    image_processor, tokenizer = load_at_size(model_args.teacher, data_args.teacher_image_size)
    return teacher, category_embeddings(arguments, "teacher", teacher, tokenizer), image_processor


def describe_retrieval(
    arguments: Arguments, teacher: DenseVLMModel | None, image_processor: DenseVLMImageProcessor | None
) -> dict[str, Any]:
    """What a teacher is asked, as far as this run knows: a run need not name the teacher whose answers it uses."""
    _, data_args, args = arguments
    categories = load_categories(data_args)
    asked = {
        "categories": list(categories.names),
        "groups": as_groups(categories.is_thing).tolist(),
        "templates": data_args.templates,
        "temperature": args.temperature,
        "threshold": args.threshold,
        "max_grid": data_args.max_grid,
    }
    if teacher is not None:
        asked |= {
            "teacher": teacher.fingerprint(),
            "teacher_image_size": image_processor.size["longest_edge"],
            "teacher_image_mean": list(image_processor.image_mean),
            "teacher_image_std": list(image_processor.image_std),
        }
    if data_args.teacher_embeddings is not None:
        embeddings = CategoryEmbeddings.load(data_args.teacher_embeddings)
        asked["teacher_embeddings"] = hashlib.blake2b(embeddings.embeds.numpy().tobytes(), digest_size=16).hexdigest()
    return asked


def open_retrieval(arguments: Arguments, index: datasets.Dataset) -> TeacherCache:
    """The teacher's answers that a run uses, after a check that they are answers to what the run asks."""
    model_args, data_args, args = arguments
    try:
        cache = TeacherCache(data_args.teacher_cache)
        teacher = image_processor = None
        if model_args.teacher is not None and args.process_index == 0:  # read to be compared, and let go of again
            teacher = DenseVLMModel.from_pretrained(model_args.teacher, dtype=torch.float32)
            image_processor, _ = load_at_size(model_args.teacher, data_args.teacher_image_size)
        cache.check(describe_retrieval(arguments, teacher, image_processor), index)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from error
    return cache


def load_categories(data_args: DataArguments) -> CategorySet:
    try:
        categories = CategorySet.load(data_args.categories)
        categories.require_flags("training")
    except (ValueError, OSError) as error:
        raise SystemExit(f"`categories`: {error}") from error
    return categories


def category_embeddings(
    arguments: Arguments,
    role: str,
    model: DenseVLMModel,
    tokenizer: PreTrainedTokenizerBase | None,
) -> CategoryEmbeddings:
    """
    Those of the given file, checked against the categories and the model; else those that the run has kept, if they
    fit; else computed, by the first process, and kept with the run.
    """
    _, data_args, args = arguments
    with args.main_process_first(local=False, desc=f"{role} embeddings"):
        try:
            return CategoryEmbeddings.resolve(
                load_categories(data_args),
                model,
                tokenizer,
                data_args.templates,
                given=getattr(data_args, f"{role}_embeddings"),
                cached=Path(args.output_dir) / f"{role}_embeddings.safetensors",
                write_cache=args.process_index == 0,
                device=args.device,
                option=f"`{role}_embeddings`",
            )
        except (ValueError, OSError) as error:
            raise SystemExit(str(error)) from error


def load_at_size(source: str, image_size: int | None) -> tuple[DenseVLMImageProcessor, PreTrainedTokenizerBase | None]:
    """Image processor and tokenizer of a model; the former at `image_size` where one is given."""
    image_processor, tokenizer = load_processing(source)
    if image_size is not None:
        image_processor.size = {"longest_edge": image_size}
    return image_processor, tokenizer


def freeze(model: DenseVLMModel, trained_blocks: int | None) -> None:
    """
    Leaves the last `trained_blocks` blocks trainable (all by default), less what the dense path does not use of them.
    Patch embedding, positions, class token, final norm, projection and the text tower stay as they are.
    """
    blocks = model.vision_model.trainable_blocks()
    count = len(blocks) if trained_blocks is None else trained_blocks
    if not 1 <= count <= len(blocks):
        raise SystemExit(f"`trained_blocks` is 1 to {len(blocks)} for this model, got {trained_blocks}.")
    model.requires_grad_(False)
    for parameter in (p for block in blocks[-count:] for p in block):
        parameter.requires_grad_(True)


def warn_of_remainder(key: str, image_processor: DenseVLMImageProcessor, model: DenseVLMModel) -> None:
    """A side that is no multiple of a tower's cells is cut: boxes are then other places for it than for the other."""
    side, cell = image_processor.size["longest_edge"], model.vision_model.stride
    if side % cell:
        logger.warning(
            f"`{key}` {side} is no multiple of {cell} pixels: the map covers {side // cell * cell} of them, and a box "
            f"is another place there than for a tower that is given whole cells. Give {side // cell * cell} or "
            f"{(side // cell + 1) * cell}."
        )


def check_size(sampler: EpochSampler, args: MethodArguments) -> None:
    if len(sampler) == 0:
        raise SystemExit(
            f"{sum(sampler.shares)} images make no step of {sampler.batch_size} (`per_device_train_batch_size` "
            f"{args.per_device_train_batch_size} · `gradient_accumulation_steps` {args.gradient_accumulation_steps} · "
            f"{args.world_size} processes, `dataloader_drop_last`). Give a smaller `global_batch_size` or "
            "`per_device_train_batch_size`."
        )


def check_readable(dataset: RegionDataset, most: int = 100) -> None:
    """Stops where none of the first images can be read: the run would train on nothing."""
    reasons = []
    for index in range(min(len(dataset), most)):
        try:
            sample = dataset[0, index]
        except ValueError as error:  # of answers that are not to this image
            raise SystemExit(str(error)) from error
        if "skipped" not in sample:
            return
        reasons.append(sample["skipped"])
    raise SystemExit(f"None of the first {len(reasons)} images can be used, e.g. {reasons[0]}")


def trained_parameters(model: DenseVLMModel, copied: bool = False) -> dict[str, Tensor]:
    """The trainable parameters by name; copied to the CPU, or themselves."""
    named = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return {name: p.cpu().clone() for name, p in named.items()} if copied else named


def mix_weights(model: DenseVLMModel, initial: dict[str, Tensor], alpha: float) -> None:
    """Weight-space ensemble: alpha · trained + (1 - alpha) · initial."""
    for name, parameter in trained_parameters(model).items():
        if name in initial:
            start = initial[name].to(parameter.device, parameter.dtype)
            if isinstance(parameter, DTensor):  # this process's share of it
                start = distribute_tensor(start, parameter.device_mesh, parameter.placements, src_data_rank=None)
            parameter.mul_(alpha).add_(start, alpha=1 - alpha)


if __name__ == "__main__":
    main()
    close_process_group()
