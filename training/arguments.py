# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The keys common to the recipes of all methods: dataclasses for models, data and training."""

import json
from dataclasses import dataclass, field, fields

from transformers import TrainingArguments
from transformers.utils import logging

from modeling_densevlm.templates import DEFAULT_TEMPLATES, TEMPLATES

from .engine.settings import FIXED, adopt_mixed_precision, check_launcher, check_settings, read_accelerator_config
from .images.sources import Source


logger = logging.get_logger(__name__)


@dataclass
class ModelArguments:
    """The models, and which parameters of the student are trained."""

    model: str = field(metadata={"help": "U-VLM, the student: a folder or a Hub name of a DenseVLM or a CLIP."})
    teacher: str | None = field(
        default=None,
        metadata={"help": "P-VLM, the teacher. Not for methods whose teacher is the student before training."},
    )
    tower: str | None = field(
        default=None,
        metadata={"help": "Import path of a vision tower of your own (my_package.my_module:MyTower)."},
    )
    teacher_dtype: str = field(default="float32", metadata={"help": "float32, bfloat16 or float16."})
    teacher_sharded: bool = field(
        default=False,
        metadata={"help": "Shard the teacher's weights over the processes (FSDP 2), if it fits on no single GPU."},
    )
    attn_implementation: str = field(default="sdpa", metadata={"help": "sdpa, eager or flash_attention_2."})
    trained_blocks: int | None = field(
        default=None,
        metadata={"help": "Number of the student's last blocks to train; all by default. Everything else is frozen."},
    )
    method: str = field(
        default="densevlm",
        metadata={
            "help": "A name of training.methods, or the import path of a trainer (my_package.my_module:MyTrainer)."
        },
    )

    license: str | None = field(
        default=None,
        metadata={"help": "Licence of the result, for its model card; by default that of the student's card."},
    )

    def __post_init__(self):
        if self.teacher_dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"`teacher_dtype` is float32, bfloat16 or float16, got {self.teacher_dtype!r}.")


@dataclass
class DataArguments:
    """The images, their size, and the categories."""

    images: str | None = field(
        default=None,
        metadata={
            "help": "A folder of images, or the root of the annotation file's images; tars (URL, pattern, folder, "
            "or a .txt that lists them); a Parquet dataset (files, a folder, or hf://datasets/owner/name)."
        },
    )
    annotations: str | None = field(
        default=None, metadata={"help": "COCO annotation file; only its list of images is used."}
    )
    split: str = field(default="train", metadata={"help": "Split of a Parquet dataset."})
    column: str = field(default="image", metadata={"help": "Column of a Parquet dataset that holds the images."})
    max_samples: int | None = field(default=None, metadata={"help": "Use only the first N images."})
    sources: str | None = field(
        default=None,
        metadata={
            "help": "A mix of several sources, instead of `images`: a list of {images, annotations, split, column, "
            "max_samples, weight}; `weight` is the relative share of the source in an epoch."
        },
    )
    teacher_cache: str | None = field(
        default=None,
        metadata={"help": "Folder of cached teacher predictions, written by `python -m training.cache_teacher`."},
    )
    teacher_cache_top_k: int = field(
        default=32, metadata={"help": "For training.cache_teacher: number of categories stored per region, 0 for all."}
    )
    image_size: int | None = field(
        default=None,
        metadata={
            "help": "Longest side of the student's input in pixels, a multiple of its patch size. "
            "Defaults to that of its processor."
        },
    )
    teacher_image_size: int | None = field(
        default=None,
        metadata={"help": "The same for the teacher, e.g. 518 with a patch size of 14 if the student has 512."},
    )
    max_grid: int = field(default=6, metadata={"help": "Grids have 1 to max_grid rows and columns."})
    categories: str = field(
        default="coco_stuff_ade20k_316", metadata={"help": "A built-in category set or a JSON file."}
    )
    templates: str = field(default=DEFAULT_TEMPLATES, metadata={"help": f"Prompt templates: {', '.join(TEMPLATES)}."})
    student_embeddings: str | None = field(
        default=None,
        metadata={"help": "Category embeddings (safetensors) in the student's space; computed by default."},
    )
    teacher_embeddings: str | None = field(default=None, metadata={"help": "The same for the teacher."})

    def __post_init__(self):
        if self.templates not in TEMPLATES:
            raise ValueError(f"`templates` is one of {', '.join(TEMPLATES)}, got {self.templates!r}.")
        for key in ("image_size", "teacher_image_size"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"`{key}` is a whole number from 1 on, got {value}.")
        if not 1 <= self.max_grid <= 20:
            raise ValueError(f"`max_grid` is 1 to 20, got {self.max_grid}.")
        if self.teacher_cache_top_k < 0:
            raise ValueError(
                f"`teacher_cache_top_k` is a number of categories, or 0 for all, got {self.teacher_cache_top_k}."
            )
        if self.max_samples is not None and self.max_samples < 1:
            raise ValueError(f"`max_samples` is 1 or more, got {self.max_samples}.")
        if (self.images is None) == (self.sources is None):
            raise ValueError("Give either `images` or a list of `sources`.")
        self.all_sources  # noqa: B018 - raises for malformed sources

    @property
    def all_sources(self) -> list[Source]:
        """The list `sources`, or the single source of `images` and the keys that belong to it."""
        if self.sources is None:
            assert self.images is not None  # one of the two is given
            return [Source(self.images, self.annotations, self.split, self.column, self.max_samples)]
        try:
            sources = json.loads(self.sources) if isinstance(self.sources, str) else self.sources
        except json.JSONDecodeError as error:
            raise ValueError(f"`sources` on the command line is a JSON list, got {self.sources!r}: {error}") from error
        if not isinstance(sources, list) or not sources:
            raise ValueError(f"`sources` is a list of {{images: ..., weight: ...}}, got {sources!r}.")
        own = ("annotations", "max_samples", "split", "column")
        for f in fields(self):
            if f.name in own and getattr(self, f.name) != f.default:
                raise ValueError(f"`{f.name}` belongs to a source: write it into the list `sources`.")
        return [Source.from_dict(source) for source in sources]


@dataclass
class DistillationArguments(TrainingArguments):
    """transformers' [`TrainingArguments`] and the keys common to all methods; a method adds its own in a subclass."""

    ensemble_alpha: float = field(
        default=1.0,
        metadata={"help": "α of the weight-space ensemble saved at the end: α · trained + (1 - α) · initial weights."},
    )
    global_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Images per step, over all processes. Sets gradient_accumulation_steps; "
            "per_device_train_batch_size is then an upper bound."
        },
    )
    dataloader_drop_last: bool = field(
        default=True,
        metadata={"help": "Drop the last incomplete step of an epoch; otherwise it has fewer images."},
    )
    dataloader_persistent_workers: bool = field(
        default=True,
        # Not only for speed: forking a process with threads may deadlock the child on one of their locks, and each
        # epoch would fork again.
        metadata={"help": "Keep the workers for the next epoch; otherwise each epoch starts its own."},
    )

    def __post_init__(self):
        check_settings(self)
        check_launcher()
        adopt_mixed_precision(self)
        self.accelerator_config = read_accelerator_config(self.accelerator_config)
        super().__post_init__()
        for name, (value, _) in FIXED.items():
            setattr(self, name, value)
        if self.fp16 and self.device.type == "cpu":
            raise ValueError("`fp16` needs a GPU, and this run is on a CPU: give `bf16`, or leave it out.")
        if not 0 <= self.ensemble_alpha <= 1:
            raise ValueError(f"`ensemble_alpha` is a share, 0..1, got {self.ensemble_alpha}.")
        if self.dataloader_num_workers == 0:
            self.dataloader_persistent_workers = False  # there are none to keep
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False  # all trainable parameters receive gradients
        if self.n_gpu > 1:  # DataParallel cannot split the lists of boxes
            raise ValueError(
                f"{self.n_gpu} GPUs are visible to one process: start one process per GPU, with `accelerate launch` "
                "or `torchrun`, or make a single one visible by CUDA_VISIBLE_DEVICES."
            )
        if self.global_batch_size is not None:
            self._set_accumulation()

    def _set_accumulation(self) -> None:
        share, rest = divmod(self.global_batch_size, self.world_size)
        if rest or share == 0:
            raise ValueError(
                f"`global_batch_size` {self.global_batch_size} cannot be divided among {self.world_size} processes."
            )
        # The largest number up to `per_device_train_batch_size` that divides the images of a process.
        most = min(self.per_device_train_batch_size, share)
        fitting = next(n for n in range(most, 0, -1) if share % n == 0)
        if fitting <= most // 2:
            logger.warning(
                f"Each process has {share} of the {self.global_batch_size} images of a step, in micro-batches of "
                f"{fitting}: the largest number up to `per_device_train_batch_size` {most} that divides {share}."
            )
        self.per_device_train_batch_size = fitting
        self.gradient_accumulation_steps = share // fitting


__all__ = ["DataArguments", "DistillationArguments", "ModelArguments"]
