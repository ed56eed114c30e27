"""The keys of a recipe: three dataclasses, filled from YAML and from the command line."""

import difflib
import json
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.utils import logging

from modeling_densevlm.templates import DEFAULT_TEMPLATES, TEMPLATES

from .alignment import CONTRASTS, Contrast
from .engine.settings import FIXED, adopt_mixed_precision, check_launcher, check_settings, read_accelerator_config
from .images.sources import Source


logger = logging.get_logger(__name__)

METHODS = ("densevlm", "clipself")

RENAMED = {"retrieval": "teacher_cache", "retrieval_top_k": "teacher_cache_top_k"}
"""Keys of earlier versions → what they are called now."""


@dataclass
class ModelArguments:
    """Which models, and what of the student is trained."""

    model: str = field(metadata={"help": "U-VLM, the student: a folder or a Hub name of a DenseVLM or a CLIP."})
    teacher: str | None = field(
        default=None,
        metadata={"help": "P-VLM, the teacher. CLIPSelf has none: there, the student before training teaches."},
    )
    teacher_dtype: str = field(default="float32", metadata={"help": "float32, bfloat16 or float16."})
    teacher_sharded: bool = field(
        default=False,
        metadata={"help": "Each process holds its share of the teacher's weights instead of all: for one too large."},
    )
    attn_implementation: str = field(default="sdpa", metadata={"help": "sdpa, eager or flash_attention_2."})
    trained_blocks: int | None = field(
        default=None,
        metadata={"help": "Train so many of the student's last blocks; all by default. The rest is always frozen."},
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
    max_samples: int | None = field(default=None, metadata={"help": "Only so many images, the first ones."})
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
    max_grid: int = field(default=6, metadata={"help": "Grids have 1 to so many rows and columns."})
    crops: int = field(default=6, metadata={"help": "CLIPSelf only: regions an image, each cut out for the teacher."})
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
        for key in ("image_size", "teacher_image_size", "crops"):
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
class MethodArguments(TrainingArguments):
    """transformers' [`TrainingArguments`] and the method's own keys."""

    method: str = field(default="densevlm", metadata={"help": f"{' or '.join(METHODS)}."})
    temperature: float = field(default=0.01, metadata={"help": "τ of retrieval and alignment."})
    threshold: float = field(
        default=0.3, metadata={"help": "Regions whose best teacher probability is not above it are dropped."}
    )
    contrast: str = field(
        default="decoupled",
        metadata={"help": f"{', '.join(CONTRASTS)}, or a JSON matrix: rows = region's group, columns = categories'."},
    )
    reduction: str = field(default="group_mean", metadata={"help": "group_mean or region_mean."})
    ensemble_alpha: float = field(
        default=1.0, metadata={"help": "Share of the trained weights in what is saved at the end; the rest initial."}
    )
    global_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Images a step, over all processes. Sets gradient_accumulation_steps; "
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
    retrieval_picture_steps: int = field(
        default=0, metadata={"help": "Every so many steps, a picture of an image and what was retrieved for it."}
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
        if self.method not in METHODS:
            raise ValueError(f"`method` is {' or '.join(METHODS)}, got {self.method!r}.")
        if self.reduction not in ("group_mean", "region_mean"):
            raise ValueError(f"`reduction` is group_mean or region_mean, got {self.reduction!r}.")
        if not 0 <= self.ensemble_alpha <= 1:
            raise ValueError(f"`ensemble_alpha` is a share, 0..1, got {self.ensemble_alpha}.")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"`threshold` is a probability, 0..1, got {self.threshold}.")
        if self.temperature <= 0:
            raise ValueError(f"`temperature` is above 0, got {self.temperature}.")
        self.contrast_matrix  # noqa: B018 - a wrong one shall stop here
        if self.method == "clipself" and self.retrieval_picture_steps:
            raise ValueError("`retrieval_picture_steps`: CLIPSelf retrieves nothing; leave it out.")
        if self.dataloader_num_workers == 0:
            self.dataloader_persistent_workers = False  # there are none to keep
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False  # exactly the parameters that get gradients are trainable
        if self.n_gpu > 1:  # Trainer would split batches by DataParallel, and the regions' lists with them
            raise ValueError(
                f"{self.n_gpu} GPUs are visible to one process: start one process a GPU, with `accelerate launch` or "
                "`torchrun`, or show it a single one by CUDA_VISIBLE_DEVICES."
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

    @property
    def contrast_matrix(self) -> Contrast:
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


Arguments = tuple[ModelArguments, DataArguments, MethodArguments]
CLASSES = (ModelArguments, DataArguments, MethodArguments)


def parse_arguments(argv: Sequence[str], program: str = "training.train") -> Arguments:
    """
    `RECIPE.yaml [--key value ...]`: the recipe's values, overridden by the command line's.

    Raises:
        `SystemExit` with a message for a key that nobody knows, naming the nearest known one, or a missing key.
    """
    usage = "%(prog)s RECIPE.yaml [--key value ...]"
    parser = HfArgumentParser(CLASSES, prog=f"python -m {program}", usage=usage, allow_abbrev=False)
    argv = list(argv)
    if argv and not argv[0].startswith("-"):
        recipe = read_recipe(Path(argv.pop(0)), parser)
        parser.set_defaults(**recipe)
        for action in parser._actions:
            if action.dest in recipe:
                action.required = False
    try:
        *arguments, remaining = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    except (ValueError, TypeError, OSError) as error:
        parser.error(str(error))
    if remaining:
        key = remaining[0].lstrip("-").partition("=")[0]
        parser.error(f"unknown: {' '.join(remaining)}{_nearest(key, parser)}")
    _, data_args, args = arguments
    if args.method == "clipself" and data_args.teacher_cache is not None:
        parser.error("`teacher_cache`: in CLIPSelf the student teaches itself, nobody is asked; leave it out.")
    return tuple(arguments)


def read_recipe(file: Path, parser: HfArgumentParser) -> dict[str, Any]:
    """The keys and values of a YAML file; an unknown key ends the program with the file's name and the key."""
    try:
        recipe = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except OSError as error:
        parser.error(f"recipe {file}: {error.strerror or error}")
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        parser.error(f"recipe {file} is no YAML: {error}")
    if not isinstance(recipe, dict):
        parser.error(f"recipe {file}: expected `key: value` lines.")
    known = {action.dest for action in parser._actions}
    for key in recipe:
        if key not in known:
            parser.error(f"recipe {file}: unknown key `{key}`{_nearest(str(key), parser)}")
    for key in ("save_strategy", "eval_strategy", "logging_strategy"):
        if recipe.get(key) is False:  # YAML reads a bare `no` as false
            recipe[key] = "no"
    # argparse converts texts only: a number in a text field, or 1e-4 (a text to YAML), becomes what the field is.
    return {
        key: value if isinstance(value, bool | list | dict | None) else str(value) for key, value in recipe.items()
    }


def _nearest(key: str, parser: HfArgumentParser) -> str:
    if key in RENAMED:
        return f" (it is called `{RENAMED[key]}` now)"
    close = difflib.get_close_matches(key, [action.dest for action in parser._actions], n=1)
    return f" (did you mean `{close[0]}`?)" if close else ""


def resolved_recipe(arguments: Arguments) -> dict[str, Any]:
    """The resolved configuration as keys and plain values."""
    recipe = {}
    for part in arguments:
        values = {f.name: getattr(part, f.name) for f in fields(part) if f.init}
        if isinstance(part, TrainingArguments):
            own = MethodArguments.__annotations__
            values = {name: v for name, v in values.items() if name in own or v != _default(part, name)}
            values.pop("resume_from_checkpoint", None)
            if values.pop("accelerator_config", None) and part.accelerator_config.non_blocking:
                values["accelerator_config"] = {"non_blocking": True}
        recipe.update({name: _as_written(value) for name, value in values.items()})
    if recipe.get("global_batch_size") is not None:
        recipe.pop("gradient_accumulation_steps", None)  # follows from it, on any number of processes
    return {key: value for key, value in recipe.items() if _plain(value)}


def save_recipe(arguments: Arguments, file: Path) -> None:
    """Writes the resolved configuration as a recipe that starts the same run again."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(resolved_recipe(arguments), sort_keys=False), encoding="utf-8")


def _default(part: TrainingArguments, name: str) -> Any:
    found = next(f for f in fields(part) if f.name == name)
    return found.default_factory() if found.default_factory is not MISSING else found.default


def _as_written(value: Any) -> Any:
    """An enum as its text, and a list of them as one, as they stand in a recipe."""
    if isinstance(value, list) and value and all(isinstance(part, Enum) for part in value):
        return " ".join(part.value for part in value)
    return value.value if isinstance(value, Enum) else value


def _plain(value: Any) -> bool:
    return value is not None and isinstance(value, str | int | float | bool | list | dict)


__all__ = [
    "Arguments",
    "DataArguments",
    "MethodArguments",
    "ModelArguments",
    "parse_arguments",
    "resolved_recipe",
    "save_recipe",
]
