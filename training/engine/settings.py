# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
The keys of transformers' `TrainingArguments` and of its `accelerator_config`. Each either works and is tested, is
fixed, or is refused: no setting is silently ignored, and none changes the images of a step. A test compares these
lists with the installed version, so that a new key must be added to one.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.utils import logging


logger = logging.get_logger(__name__)

WORKS = {
    # The optimizer and its schedule.
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "num_train_epochs", "max_steps"),
    *("optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
    # Batches and data loading.
    *("per_device_train_batch_size", "gradient_accumulation_steps", "dataloader_drop_last"),
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
    *("dataloader_prefetch_factor", "dataloader_multiprocessing_context"),
    # Precision, memory and speed.
    *("bf16", "fp16", "tf32", "activation_checkpointing", "activation_checkpointing_kwargs"),
    *("gradient_checkpointing", "gradient_checkpointing_kwargs", "torch_compile", "torch_compile_backend"),
    *("torch_compile_mode", "torch_empty_cache_steps"),
    # The log.
    *("logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node", "log_level", "log_level_replica"),
    *("disable_tqdm", "report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id"),
    *("trackio_static_space_id", "hub_private_repo", "skip_memory_metrics", "debug"),
    # Checkpoints and repeatability.
    *("output_dir", "save_strategy", "save_steps", "save_total_limit", "resume_from_checkpoint"),
    *("seed", "full_determinism"),
    # The Hub.
    *("push_to_hub", "hub_model_id", "hub_token", "hub_revision"),
    # Processes.
    *("use_cpu", "accelerator_config", "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers"),
    *("ddp_static_graph", "ddp_backend", "ddp_timeout", "fsdp", "fsdp_config", "local_rank"),
}

FIXED: dict[str, tuple[Any, str]] = {
    "logging_nan_inf_filter": (False, "a loss that is not finite must be visible"),
    "remove_unused_columns": (False, "the collator's keys are no arguments of `forward`"),
}
"""Key → its fixed value and the reason."""

_NO_EVALUATION = (
    "a run does not evaluate; `evaluation.while_training` adds an evaluation to it, `evaluation.evaluate_regions` "
    "compares its checkpoints"
)
_NO_HUB = "the result is uploaded once, at the end of the run"
_NO_TEXT = "it is for language models"
_ORDER = "the order of the images follows from `seed` alone, the same on any number of processes"

REFUSED: dict[str, str] = {
    **dict.fromkeys(("do_eval", "do_predict", "eval_strategy", "eval_steps", "eval_delay"), _NO_EVALUATION),
    **dict.fromkeys(("per_device_eval_batch_size", "prediction_loss_only", "eval_on_start"), _NO_EVALUATION),
    **dict.fromkeys(("eval_do_concat_batches", "eval_use_gather_object", "eval_accumulation_steps"), _NO_EVALUATION),
    **dict.fromkeys(("include_for_metrics", "batch_eval_metrics", "bf16_full_eval", "fp16_full_eval"), _NO_EVALUATION),
    **dict.fromkeys(("load_best_model_at_end", "metric_for_best_model", "greater_is_better"), _NO_EVALUATION),
    **dict.fromkeys(("hub_strategy", "hub_always_push"), _NO_HUB),
    **dict.fromkeys(("use_cache", "use_liger_kernel", "liger_kernel_config", "neftune_noise_alpha"), _NO_TEXT),
    **dict.fromkeys(("include_num_input_tokens_seen", "length_column_name"), _NO_TEXT),
    **dict.fromkeys(("train_sampling_strategy", "data_seed", "dataloader_in_order"), _ORDER),
    "do_train": "the program always trains",
    "label_names": "images have no labels",
    "label_smoothing_factor": "the targets are the teacher's distributions",
    "average_tokens_across_devices": "loss normalizers always span the global batch",
    "auto_find_batch_size": "it would change the images per step; give a smaller `per_device_train_batch_size`, from "
    "which `global_batch_size` sets the accumulation",
    "optim_target_modules": "optimizers that treat layers differently (GaLore, APOLLO) are not supported",
    "save_only_model": "a run cannot be resumed from such checkpoints; the final folder holds the model alone",
    "save_on_each_node": "all nodes share the disk of `output_dir`",
    "enable_jit_checkpoint": "SIGTERM saves a checkpoint anyway",
    "ignore_data_skip": "a resumed run always continues after the last image seen",
    "restore_callback_states_from_checkpoint": "no callback of a run has a state",
    "deepspeed": "use FSDP 2 for models that fit on no single GPU",
    "parallelism_config": "processes share the images (DDP) or the weights (FSDP 2) and nothing else",
}
"""Key → why any value but its default is refused."""

ACCELERATOR_WORKS = {"non_blocking"}
ACCELERATOR_REFUSED: dict[str, str] = {
    "split_batches": "it would change the images per step; `global_batch_size` is their number on any machine",
    "dispatch_batches": "each process reads its own images",
    "even_batches": "batches are equal on all processes already",
    "use_seedable_sampler": _ORDER,
    "gradient_accumulation_kwargs": "give `gradient_accumulation_steps` or `global_batch_size`",
    "use_configured_state": "a run creates accelerate's state itself",
}

REFUSED_VALUES: dict[str, tuple[tuple[str, ...], str]] = {
    "optim": (("galore", "apollo", "lomo", "adalomo"), "it would update weights during the backward pass"),
    "save_strategy": (("best",), _NO_EVALUATION),
    "lr_scheduler_type": (("reduce_lr_on_plateau", "greedy"), _NO_EVALUATION),
    "debug": (("tpu_metrics_debug",), "it is for TPUs"),
}
"""Key → prefixes of refused values and the reason."""

SGD_ARGS = {"momentum", "dampening", "nesterov"}

MIXED_PRECISION = "ACCELERATE_MIXED_PRECISION"
LAUNCHER_REFUSED = {
    "ACCELERATE_USE_DEEPSPEED": "deepspeed_config",
    "ACCELERATE_USE_MEGATRON_LM": "megatron_lm_config",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "parallelism_config",
}
"""Environment variable set by `accelerate launch` → key of its configuration file."""


def check_settings(args: TrainingArguments) -> None:
    """
    Checks the settings; to be called before transformers' `__post_init__`, which rewrites some.

    Raises:
        `RefusedSetting` that names a refused key and the reason.
    """
    for field in fields(TrainingArguments):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        value = getattr(args, field.name)
        if field.name in REFUSED and not _is_default(value, default):
            _refuse_setting(f"`{field.name}`", value, REFUSED[field.name])
    for name, (beginnings, reason) in REFUSED_VALUES.items():
        if _as_string(getattr(args, name)).startswith(beginnings):
            _refuse_setting(f"`{name}`", getattr(args, name), reason)
    if args.optim_args:
        names = {part.partition("=")[0].strip() for part in args.optim_args.split(",")}
        if _as_string(args.optim) != "sgd" or not names <= SGD_ARGS:
            _refuse_setting(
                "`optim_args`", args.optim_args, f"only those of sgd are supported ({', '.join(sorted(SGD_ARGS))})"
            )


def read_accelerator_config(given: AcceleratorConfig | dict[str, Any] | str | None) -> AcceleratorConfig:
    """
    `accelerator_config` from a dict, a JSON string or the path of a JSON file.

    Raises:
        `RefusedSetting` that names a refused key in it and the reason.
    """
    values: Any = given
    if isinstance(given, str):
        values = json.loads(given if given.startswith("{") else Path(given).read_text(encoding="utf-8"))
    config = values if isinstance(values, AcceleratorConfig) else AcceleratorConfig(**(values or {}))
    for field in fields(AcceleratorConfig):
        value = getattr(config, field.name)
        if field.name in ACCELERATOR_REFUSED and value != field.default:
            _refuse_setting(f"`accelerator_config`: `{field.name}`", value, ACCELERATOR_REFUSED[field.name])
    return config


def check_launcher(environment: Mapping[str, str] = os.environ) -> None:
    """Raises a `RefusedSetting` for unsupported settings in the configuration file of `accelerate launch`."""
    for variable, key in LAUNCHER_REFUSED.items():
        if environment.get(variable, "false").lower() in ("true", "1", "yes"):
            _refuse_setting(f"accelerate's configuration: `{key}`", True, REFUSED["parallelism_config"])
    precision = environment.get(MIXED_PRECISION, "no")
    if precision not in ("no", "bf16", "fp16"):
        _refuse_setting("accelerate's configuration: `mixed_precision`", precision, "bf16 and fp16 are supported")


def adopt_mixed_precision(args: TrainingArguments, environment: Mapping[str, str] = os.environ) -> None:
    """
    Applies `mixed_precision` of accelerate's configuration if the recipe sets neither `bf16` nor `fp16`; the saved
    recipe then contains it.
    """
    precision = environment.get(MIXED_PRECISION, "no")
    if precision != "no" and not (args.bf16 or args.fp16):
        logger.warning(f"accelerate's configuration has `mixed_precision: {precision}`: `{precision}` is set to true.")
        setattr(args, precision, True)


def _is_default(value: Any, default: Any) -> bool:
    return _as_string(value) == _as_string(default) or (
        value is False and default == "no"
    )  # YAML reads a bare no as false


def _as_string(value: Any) -> str:
    """A value as a string, the same for an enum and its value, and for a list and its parts separated by spaces."""
    if isinstance(value, list | tuple):
        return " ".join(map(_as_string, value))
    return str(getattr(value, "value", value))


class RefusedSetting(ValueError):
    """A setting that has no effect here, or contradicts how this package trains."""


def _refuse_setting(setting: str, value: Any, reason: str) -> None:
    raise RefusedSetting(f"{setting} is not supported, got {_as_string(value)!r}: {reason}. Leave it out.")


__all__ = [
    "ACCELERATOR_REFUSED",
    "ACCELERATOR_WORKS",
    "FIXED",
    "LAUNCHER_REFUSED",
    "REFUSED",
    "REFUSED_VALUES",
    "RefusedSetting",
    "WORKS",
    "adopt_mixed_precision",
    "check_launcher",
    "check_settings",
    "read_accelerator_config",
]
