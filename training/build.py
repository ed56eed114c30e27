# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Assembly: builds sources, models, category embeddings, teacher cache and trainer from a recipe's arguments."""

import hashlib
from pathlib import Path
from typing import Any

import datasets
import torch

from modeling_densevlm import CategoryEmbeddings, CategorySet, DenseVLMImageProcessor
from modeling_densevlm.command_line import one_line_errors
from modeling_densevlm.external_towers import import_tower

from .alignment import as_groups
from .arguments import DataArguments, DistillationArguments, ModelArguments
from .data import RegionDataset
from .distillation_trainer import DistillationTrainer, crop_options
from .engine.sharding import shard_teacher
from .images.sampling import EpochSampler
from .images.sources import fingerprint, open_source
from .methods import find_method
from .models import LoadedModel, freeze, load_model, warn_about_image_size
from .recipe import Arguments
from .teacher_cache import CachedTeacherDataset, TeacherCache


SANDBOX_DATA = "runs/sandbox/data"
"""Where the recipes of the sandbox expect its scenes."""


def build_trainer(arguments: Arguments) -> DistillationTrainer:
    """The trainer of a recipe, with all checks that are possible before the first step."""
    with one_line_errors():
        return _build_trainer(arguments)


def _build_trainer(arguments: Arguments) -> DistillationTrainer:
    model_args, data_args, args = arguments
    method = find_method(model_args.method)
    student = load_student(arguments)
    indices = open_sources(arguments)
    index = datasets.concatenate_datasets(indices)
    freeze(student.model, model_args.trained_blocks)
    weights = [source.weight for source in data_args.all_sources]
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    sampler = EpochSampler(indices, batch, args.seed, weights, args.dataloader_drop_last)
    check_number_of_images(sampler, args)
    extras: dict[str, Any] = {}
    if method.needs_categories:
        extras["student_embeddings"] = category_embeddings(arguments, "student", student)
    teacher = cache = None
    if data_args.teacher_cache is not None:
        cache = open_teacher_cache(arguments, index)
    elif not method.teaches_itself:
        teacher = load_teacher(arguments)
        if method.needs_categories:
            extras["teacher_embeddings"] = category_embeddings(arguments, "teacher", teacher)
        # Only now: texts are embedded in float32.
        teacher.model.to(getattr(torch, model_args.teacher_dtype))
        warn_about_image_size("teacher_image_size", teacher.image_processor, teacher.model)
    else:
        teacher = student.copy(getattr(torch, model_args.teacher_dtype))
    if model_args.teacher_sharded and teacher is not None and args.world_size > 1:
        shard_teacher(teacher.model, args.device, args.world_size)
    images = RegionDataset(
        index,
        student.image_processor,
        None if teacher is None else teacher.image_processor,
        max_grid=data_args.max_grid,
        **crop_options(method, args),
        seed=args.seed,
        decoded_side=0 if cache is None else cache.description.get("teacher_image_size", 0),
    )
    dataset = images if cache is None else CachedTeacherDataset(images, cache)
    check_readable(dataset)
    warn_about_image_size("image_size", student.image_processor, student.model)
    trainer = method(
        model=student.model,
        teacher=None if teacher is None else teacher.model,
        args=args,
        train_dataset=dataset,
        processing_class=student.processing,
        teacher_processing_class=None if teacher is None else teacher.processing,
        sampler=sampler,
        run=describe_run(sampler, index),
        **extras,
    )
    trainer.sources = {"student": model_args.model, "teacher": model_args.teacher or ""}
    trainer.card_facts = describe_data(data_args, len(index), method.needs_categories)
    trainer.card_options = {"licence": model_args.license, "datasets": hub_datasets(data_args)}
    return trainer


def describe_data(data_args: DataArguments, images: int, with_categories: bool) -> dict[str, str]:
    """The rows of the model card about images and categories."""
    names = [Path(source.images).name for source in data_args.all_sources]
    facts = {"images": f"{images:,}, of {', '.join(names)}", "annotation": "none is used"}
    if with_categories:
        categories = load_categories(data_args)
        things = sum(categories.things())
        facts["categories"] = (
            f"{categories.name}: {things} things, {len(categories) - things} stuff; templates {data_args.templates}"
        )
    return facts


def hub_datasets(data_args: DataArguments) -> list[str]:
    """The names of the sources that are datasets of the Hub."""
    prefix = "hf://datasets/"
    names = [
        source.images.removeprefix(prefix) for source in data_args.all_sources if source.images.startswith(prefix)
    ]
    return ["/".join(name.split("/")[:2]) for name in names]


def open_sources(arguments: Arguments) -> list[datasets.Dataset]:
    """The index of each source, built by one process per machine."""
    _, data_args, args = arguments
    with args.main_process_first(desc="index of the images"), one_line_errors():
        for source in data_args.all_sources:
            if source.images.startswith(SANDBOX_DATA) and not Path(SANDBOX_DATA).exists():
                raise FileNotFoundError(
                    f"`images`: there is no {source.images}: write the scenes of the sandbox by `python -m "
                    f"training.sandbox.scenes --output {SANDBOX_DATA}`."
                )
        return [open_source(source) for source in data_args.all_sources]


def describe_run(sampler: EpochSampler, index: datasets.Dataset) -> dict[str, Any]:
    """The invariants checked on resume; they determine the batches of the run."""
    return {
        "number of images a step": sampler.batch_size,
        "number of images": len(index),
        "list of images": fingerprint(index),
        "share of the sources": sampler.shares,
        "seed": sampler.seed,
        "`dataloader_drop_last`": sampler.drop_last,
    }


def register_external_tower(model_args: ModelArguments) -> None:
    """Registers the tower class given by the key `tower`, if any."""
    if model_args.tower is not None:
        import_tower(model_args.tower, "tower")


def load_student(arguments: Arguments) -> LoadedModel:
    """The student (U-VLM) in float32."""
    model_args, data_args, _ = arguments
    register_external_tower(model_args)
    return load_model(
        model_args.model, image_size=data_args.image_size, attn_implementation=model_args.attn_implementation
    )


def load_teacher(arguments: Arguments) -> LoadedModel:
    """The teacher (P-VLM) in float32."""
    model_args, data_args, _ = arguments
    if model_args.teacher is None:
        raise SystemExit(
            f"`teacher` is missing: {model_args.method} needs a teacher, the P-VLM (a folder or a Hub name)."
        )
    register_external_tower(model_args)
    return load_model(
        model_args.teacher, image_size=data_args.teacher_image_size, attn_implementation=model_args.attn_implementation
    )


def describe_targets(arguments: Arguments, teacher: LoadedModel | None) -> dict[str, Any]:
    """
    The provenance of cached targets: everything that they depend on. Facts about the teacher are left out if it is
    None, since a run that uses a cache need not name its teacher.
    """
    _, data_args, args = arguments
    categories = load_categories(data_args)
    provenance = {
        "categories": list(categories.names),
        "groups": as_groups(categories.require_flags("training")).tolist(),
        "templates": data_args.templates,
        **{key: getattr(args, key) for key in ("temperature", "threshold")},
        "max_grid": data_args.max_grid,
    }
    if teacher is not None:
        image_processor: DenseVLMImageProcessor = teacher.image_processor
        provenance |= {
            "teacher": teacher.model.fingerprint(),
            "teacher_image_size": image_processor.size["longest_edge"],
            "teacher_image_mean": list(image_processor.image_mean),
            "teacher_image_std": list(image_processor.image_std),
        }
    if data_args.teacher_embeddings is not None:
        embeddings = CategoryEmbeddings.load(data_args.teacher_embeddings)
        provenance["teacher_embeddings"] = hashlib.blake2b(
            embeddings.embeds.numpy().tobytes(), digest_size=16
        ).hexdigest()
    return provenance


def open_teacher_cache(arguments: Arguments, index: datasets.Dataset) -> TeacherCache:
    """Opens the teacher cache of a run and checks that it holds what the run would compute."""
    model_args, data_args, args = arguments
    assert data_args.teacher_cache is not None
    cache = TeacherCache(data_args.teacher_cache)
    # The teacher is loaded for the comparison only.
    compared = model_args.teacher is not None and args.process_index == 0
    cache.check(describe_targets(arguments, load_teacher(arguments) if compared else None), index)
    return cache


def load_categories(data_args: DataArguments) -> CategorySet:
    """The category set of the key `categories`. Raises a `SystemExit` if it has no thing / stuff flags."""
    try:
        categories = CategorySet.load(data_args.categories)
        categories.require_flags("training")
    except (ValueError, OSError) as error:
        raise SystemExit(f"`categories`: {error}") from error
    return categories


def category_embeddings(arguments: Arguments, role: str, loaded: LoadedModel) -> CategoryEmbeddings:
    """
    The category embeddings of the student or the teacher (`role`): from the given file, after a check against the
    categories and the model; else from the cache in `output_dir`, if it matches; else computed by the first process
    and cached there.
    """
    _, data_args, args = arguments
    with args.main_process_first(local=False, desc=f"{role} embeddings"):
        return CategoryEmbeddings.resolve(
            load_categories(data_args),
            loaded.model,
            loaded.tokenizer,
            data_args.templates,
            given=getattr(data_args, f"{role}_embeddings"),
            cached=Path(args.output_dir or "") / f"{role}_embeddings.safetensors",
            write_cache=args.process_index == 0,
            device=args.device,
            option=f"`{role}_embeddings`",
        )


def check_number_of_images(sampler: EpochSampler, args: DistillationArguments) -> None:
    """Raises a `SystemExit` if the images do not suffice for a single step."""
    if len(sampler) == 0:
        raise SystemExit(
            f"{sum(sampler.shares)} images are too few for a step of {sampler.batch_size} "
            f"(`per_device_train_batch_size` {args.per_device_train_batch_size} · "
            f"`gradient_accumulation_steps` {args.gradient_accumulation_steps} · "
            f"{args.world_size} processes, `dataloader_drop_last`). Give a smaller `global_batch_size` or "
            "`per_device_train_batch_size`."
        )


def check_readable(dataset: RegionDataset | CachedTeacherDataset, max_read: int = 100) -> None:
    """Raises a `SystemExit` if none of the first `max_read` images can be read."""
    reasons = []
    for index in range(min(len(dataset), max_read)):
        sample = dataset[0, index]
        if "skipped" not in sample:
            return
        reasons.append(sample["skipped"])
    raise SystemExit(f"None of the first {len(reasons)} images can be used, e.g. {reasons[0]}")


__all__ = [
    "build_trainer",
    "category_embeddings",
    "describe_targets",
    "load_categories",
    "load_student",
    "load_teacher",
    "open_sources",
]
