# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The keys that recipes of all methods have: dataclasses of the models, of the data and of training itself."""

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
    """Which models, and what of the student is trained."""

    model: str = field(metadata={"help": "U-VLM, the student: a folder or a Hub name of a DenseVLM or a CLIP."})
    teacher: str | None = field(
        default=None,
        metadata={"help": "P-VLM, the teacher. A method that teaches itself has none."},
    )
    tower: str | None = field(
        default=None,
        metadata={"help": "Import path of a vision tower from elsewhere (my_package.my_module:MyTower)."},
    )
    teacher_dtype: str = field(default="float32", metadata={"help": "float32, bfloat16 or float16."})
    teacher_sharded: bool = field(
        default=False,
        metadata={"help": "Each process holds its share of the teacher's weights instead of all: for one too large."},
    )
    attn_implementation: str = field(default="sdpa", metadata={"help": "sdpa, eager or flash_attention_2."})
    trained_blocks: int | None = field(
        default=None,
        metadata={"help": "Train the student's last N blocks; all by default. The rest is always frozen."},
    )
    method: str = field(
        default="densevlm",
        metadata={"help": "How it learns: a name of training.methods, or a trainer's my_package.my_module:MyTrainer."},
    )

    def __post_init__(self):
        if self.teacher_dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"`teacher_dtype` is float32, bfloat16 or float16, got {self.teacher_dtype!r}.")


@dataclass
class DataArguments:
    """Which images at which size, and which categories are retrieved."""

    images: str | None = field(
        default=None,
        metadata={
            "help": "Folder of images, or the root of the annotation file's images; tars (an address, a pattern, a "
            "folder, or a .txt that lists them); a Parquet dataset (files, a folder, or hf://datasets/owner/name)."
        },
    )
    annotations: str | None = field(
        default=None, metadata={"help": "COCO annotation file; only its list of images is read."}
    )
    split: str = field(default="train", metadata={"help": "Of a dataset."})
    column: str = field(default="image", metadata={"help": "Of a dataset, where its images are."})
    max_samples: int | None = field(default=None, metadata={"help": "Only the first N images."})
    sources: str | None = field(
        default=None,
        metadata={
            "help": "Several sources mixed, in place of `images`: a list of {images, annotations, split, column, "
            "max_samples, weight}; `weight` is the source's share of the images of an epoch."
        },
    )
    teacher_cache: str | None = field(
        default=None,
        metadata={"help": "Folder of cached teacher predictions, made by `python -m training.cache_teacher`."},
    )
    teacher_cache_top_k: int = field(
        default=32, metadata={"help": "For training.cache_teacher: categories kept per region, 0 for all."}
    )
    image_size: int | None = field(
        default=None,
        metadata={"help": "The student's input side in pixels, a multiple of its patch. Its processor's by default."},
    )
    teacher_image_size: int | None = field(
        default=None, metadata={"help": "The teacher's, likewise. 518 for a patch of 14 where the student has 512."}
    )
    max_grid: int = field(default=6, metadata={"help": "Grids have 1 to N rows and columns."})
    categories: str = field(
        default="coco_stuff_ade20k_316", metadata={"help": "A built-in category set or a JSON file."}
    )
    templates: str = field(default=DEFAULT_TEMPLATES, metadata={"help": f"Prompt templates: {', '.join(TEMPLATES)}."})
    student_embeddings: str | None = field(
        default=None,
        metadata={"help": "Category embeddings (safetensors) of the student's text tower; computed by default."},
    )
    teacher_embeddings: str | None = field(default=None, metadata={"help": "Likewise of the teacher's."})

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
            raise ValueError("Give `images`, or a list of `sources`, and not both.")
        self.all_sources  # noqa: B018 - a wrong one shall stop here

    @property
    def all_sources(self) -> list[Source]:
        """The list `sources`, or the one source that `images` and its companions are."""
        if self.sources is None:
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
    """transformers' [`TrainingArguments`] and the keys that all methods have; a method's own are in a subclass."""

    ensemble_alpha: float = field(
        default=1.0, metadata={"help": "Share of the trained weights in what is saved at the end; the rest initial."}
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
        metadata={"help": "Leave out images of an epoch that make no whole step; else the last step has fewer."},
    )
    dataloader_persistent_workers: bool = field(
        default=True,
        # Not for speed alone: a process that has run threads for hours is seldom, but not never, copied into a child
        # that waits for one of their locks for ever.
        metadata={"help": "Keep the workers of an epoch for the next; else each epoch starts its own."},
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
            raise ValueError("`fp16` is for GPUs, and this runs on a CPU: give `bf16`, or leave it out.")
        if not 0 <= self.ensemble_alpha <= 1:
            raise ValueError(f"`ensemble_alpha` is a share, 0..1, got {self.ensemble_alpha}.")
        if self.dataloader_num_workers == 0:
            self.dataloader_persistent_workers = False  # there are none to keep
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False  # exactly the parameters that get gradients are trainable
        if self.n_gpu > 1:  # Trainer would split batches by DataParallel, and the regions' lists with them
            raise ValueError(
                f"{self.n_gpu} GPUs are visible to one process: start one process per GPU, with `accelerate launch` "
                "or `torchrun`, or show it a single one by CUDA_VISIBLE_DEVICES."
            )
        if self.global_batch_size is not None:
            self._set_accumulation()

    def _set_accumulation(self) -> None:
        share, rest = divmod(self.global_batch_size, self.world_size)
        if rest or share == 0:
            raise ValueError(
                f"`global_batch_size` {self.global_batch_size} cannot be divided among {self.world_size} processes."
            )
        # At most `per_device_train_batch_size` images at a time: the largest number that divides the share.
        most = min(self.per_device_train_batch_size, share)
        fitting = next(n for n in range(most, 0, -1) if share % n == 0)
        if fitting <= most // 2:
            logger.warning(
                f"A process takes {share} of the {self.global_batch_size} images of a step, {fitting} at a time: no "
                f"number up to `per_device_train_batch_size` {most} that is nearer divides {share}."
            )
        self.per_device_train_batch_size = fitting
        self.gradient_accumulation_steps = share // fitting


__all__ = ["DataArguments", "DistillationArguments", "ModelArguments"]
