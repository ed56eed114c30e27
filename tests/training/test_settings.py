# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Settings of transformers and accelerate work, are fixed, or are refused by key before a model is loaded."""

import re
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.parallelism_config import ParallelismConfig
from accelerate.utils import FullyShardedDataParallelPlugin
from torch.distributed.fsdp import CPUOffloadPolicy
from transformers import TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig

from training.arguments import DistillationArguments
from training.engine.settings import (
    ACCELERATOR_REFUSED,
    ACCELERATOR_WORKS,
    FIXED,
    LAUNCHER_REFUSED,
    REFUSED,
    REFUSED_VALUES,
    WORKS,
)
from training.engine.sharding import FSDP_REFUSED, prepare_student
from training.recipe import parse_arguments
from training.train import main


ROOT = Path(__file__).parents[2]

REFUSED_EXAMPLES = {
    "eval_strategy": "steps",
    "eval_steps": 2,
    "eval_delay": 1,
    "per_device_eval_batch_size": 4,
    "eval_do_concat_batches": False,
    "eval_accumulation_steps": 2,
    "include_for_metrics": "loss",
    "metric_for_best_model": "loss",
    "hub_strategy": "end",
    "neftune_noise_alpha": 0.1,
    "length_column_name": "size",
    "train_sampling_strategy": "group_by_length",
    "data_seed": 1,
    "dataloader_in_order": False,
    "label_names": "boxes",
    "label_smoothing_factor": 0.1,
    "average_tokens_across_devices": False,
    "optim_target_modules": "all-linear",
    "deepspeed": "zero.json",
}
"""Values other than the default for refused settings that are not booleans."""

ELSEWHERE = {
    **dict.fromkeys(("push_to_hub", "hub_model_id", "hub_token", "hub_revision"), "tests/test_hub.py"),
    "activation_checkpointing": "tests/training/test_train.py",
    "bf16": "tests/training/test_train.py",
    "ddp_backend": "tests/distributed/test_ranks.py",
    "ddp_broadcast_buffers": "tests/distributed/test_ranks.py",
    "ddp_bucket_cap_mb": "tests/distributed/test_ranks.py",
    "ddp_find_unused_parameters": "tests/distributed/test_ranks.py",
    "ddp_static_graph": "tests/distributed/test_ranks.py",
    "ddp_timeout": "tests/distributed/test_ranks.py",
    "fsdp": "tests/distributed/test_fsdp.py",
    "fsdp_config": "tests/training/test_launch.py",
    "local_rank": "tests/fork_server.py",
    "output_dir": "tests/training/test_train.py",
    "per_device_train_batch_size": "tests/distributed/test_ranks.py",
    "resume_from_checkpoint": "tests/training/test_checkpoints.py",
    "save_steps": "tests/training/test_checkpoints.py",
    "save_strategy": "tests/training/test_checkpoints.py",
    "save_total_limit": "tests/training/test_checkpoints.py",
    "seed": "tests/training/test_checkpoints.py",
    "dataloader_drop_last": "tests/training/test_checkpoints.py",
    "dataloader_num_workers": "tests/distributed/test_ranks.py",
    "learning_rate": "tests/training/test_train.py",
    "max_steps": "tests/training/test_train.py",
    "num_train_epochs": "tests/training/test_checkpoints.py",
    "torch_compile": "tests/training/test_train.py",
    "use_cpu": "tests/conftest.py",
    "max_grad_norm": "tests/distributed/test_ranks.py",
    "gradient_accumulation_steps": "tests/training/test_arguments.py",
    "weight_decay": "tests/training/test_train.py",
}
"""Setting → the file that tests its effect."""

GPU_ONLY = {"dataloader_pin_memory", "fp16", "tf32", "torch_empty_cache_steps"}
"""Settings that have an effect on GPUs only."""


def given(**values) -> list[str]:
    return [part for key, value in values.items() for part in (f"--{key}", str(value))]


def parse(**values):
    required = {"model": "u", "teacher": "p", "images": "folder", "output_dir": "run", "use_cpu": True}
    return parse_arguments(given(**required | values))[2]


def test_every_field_of_the_installed_transformers_is_in_exactly_one_list():
    names = [field.name for field in fields(TrainingArguments)]
    assert sorted(names) == sorted([*WORKS, *FIXED, *REFUSED])
    assert sorted(f.name for f in fields(AcceleratorConfig)) == sorted([*ACCELERATOR_WORKS, *ACCELERATOR_REFUSED])
    assert set(REFUSED_VALUES) <= WORKS
    assert {f.name for f in fields(FullyShardedDataParallelPlugin)} >= set(FSDP_REFUSED)


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_setting_is_named_before_a_model_is_loaded(name):
    objects = {"parallelism_config": ParallelismConfig(), "liger_kernel_config": {"rope": True}}
    with pytest.raises((SystemExit, ValueError), match=f"`{name}` is not supported"):
        if name in objects:  # not representable on a command line
            DistillationArguments(output_dir="run", use_cpu=True, **{name: objects[name]})
        else:
            parse(**{name: REFUSED_EXAMPLES.get(name, True)})


def test_a_refused_setting_in_python_is_an_error_that_can_be_caught():
    with pytest.raises(ValueError, match="`do_eval` is not supported"):
        DistillationArguments(output_dir="run", use_cpu=True, do_eval=True)


@pytest.mark.parametrize("name", ACCELERATOR_REFUSED)
def test_a_refused_setting_of_accelerate_is_named(name):
    value = {"even_batches": "false", "use_seedable_sampler": "false", "gradient_accumulation_kwargs": '{"a": 1}'}
    with pytest.raises(SystemExit, match=f"`accelerator_config`: `{name}`"):
        parse(accelerator_config=f'{{"{name}": {value.get(name, "true")}}}')


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, (values, _) in REFUSED_VALUES.items() for value in values]
)
def test_the_key_of_a_refused_value_is_named(name, value):
    full = {"galore": "galore_adamw", "apollo": "apollo_adamw"}.get(value, value)
    with pytest.raises(SystemExit, match=f"`{name}` is not supported, got '{full}'"):
        parse(**{name: full})


@pytest.mark.parametrize(
    "values",
    [{"optim_args": "momentum=0.9"}, {"optim": "sgd", "optim_args": "momentun=0.9"}],
    ids=["of AdamW, which ignores them", "misspelt"],
)
def test_arguments_that_the_optimizer_would_ignore_are_refused(values):
    with pytest.raises(SystemExit, match="`optim_args`"):
        parse(**values)


def test_defaults_may_be_given_explicitly_also_as_a_bare_no_of_yaml():
    args = parse(eval_strategy="no", include_num_input_tokens_seen="no", do_eval=False, label_smoothing_factor=0.0)
    assert args.eval_strategy == "no"


def test_float16_is_refused_on_a_cpu(capsys):
    with pytest.raises(SystemExit):
        parse(fp16=True)
    assert "`fp16` needs a GPU" in capsys.readouterr().err


@pytest.mark.parametrize("variable", LAUNCHER_REFUSED)
def test_unsupported_settings_in_a_configuration_of_accelerate_are_refused(monkeypatch, variable):
    monkeypatch.setenv(variable, "true")
    with pytest.raises(SystemExit, match=f"accelerate's configuration: `{LAUNCHER_REFUSED[variable]}`"):
        parse()


def test_mixed_precision_of_accelerates_configuration_is_applied(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert parse().bf16
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(SystemExit, match="`mixed_precision`"):
        parse()


@pytest.mark.parametrize("name", sorted(WORKS))
def test_every_setting_that_works_is_tested(name):
    if name in ELSEWHERE:
        assert re.search(rf"\b{name}\b", (ROOT / ELSEWHERE[name]).read_text(), re.IGNORECASE)
    else:
        assert name in GPU_ONLY or re.search(rf"\b{name}=", Path(__file__).read_text())


# What works


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_the_schedule_and_the_optimizer_are_those_of_the_recipe(recipe):
    trainer = main(
        recipe(
            lr_scheduler_type="polynomial",
            lr_scheduler_kwargs='{"power": 2.0, "lr_end": 1e-4}',
            warmup_steps=1,
            adam_beta1=0.8,
            adam_beta2=0.95,
            adam_epsilon=1e-6,
            optim="adamw_torch",
        )
    )
    assert trainer.optimizer.defaults["betas"] == (0.8, 0.95) and trainer.optimizer.defaults["eps"] == 1e-6
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    # The rate per step: warm-up, the full rate, then quadratic decay to `lr_end`.
    assert rates == pytest.approx([0.0, 1e-3, 0.9e-3 * 0.5**2 + 1e-4], rel=1e-6)


def test_sgd_takes_a_momentum(recipe):
    trainer = main(recipe(optim="sgd", optim_args="momentum=0.9,nesterov=true"))
    assert trainer.optimizer.defaults["momentum"] == 0.9 and trainer.optimizer.defaults["nesterov"]


@pytest.mark.parametrize("kind", ["spawn", "forkserver"])
def test_workers_started_by_spawn_and_forkserver_read_the_same(recipe, tmp_path, kind):
    one = main(recipe(output_dir=tmp_path / "one", max_steps=2))
    two = main(
        recipe(
            output_dir=tmp_path / "two",
            max_steps=2,
            dataloader_num_workers=1,
            dataloader_multiprocessing_context=kind,
            dataloader_prefetch_factor=1,
            dataloader_persistent_workers=False,
        )
    )
    assert losses(one) == losses(two)


def test_settings_of_memory_determinism_and_debugging_do_not_change_the_numbers(recipe, tmp_path):
    plain = main(recipe(output_dir=tmp_path / "plain"))
    try:
        other = main(
            recipe(
                output_dir=tmp_path / "other",
                full_determinism=True,
                skip_memory_metrics=False,
                debug="underflow_overflow",
                gradient_checkpointing=True,
                gradient_checkpointing_kwargs='{"use_reentrant": false}',
                activation_checkpointing_kwargs='{"use_reentrant": false}',
                accelerator_config='{"non_blocking": true}',
            )
        )
    finally:
        torch.use_deterministic_algorithms(False)
    assert losses(other) == pytest.approx(losses(plain), rel=1e-5)
    again = parse_arguments([str(tmp_path / "other" / "recipe.yaml")])[2]
    assert again.debug == other.args.debug and again.accelerator_config.non_blocking


def test_the_settings_of_the_log_are_applied(recipe, tmp_path, monkeypatch):
    trainer = main(
        recipe(
            logging_steps=2,
            logging_first_step=True,
            log_level="error",
            log_level_replica="error",
            log_on_each_node=False,
            disable_tqdm=True,
        )
    )
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [1, 2]
    quiet = main(recipe(output_dir=tmp_path / "quiet", logging_strategy="no"))
    assert not losses(quiet)


def test_a_tracker_receives_the_settings_of_the_recipe(recipe, tmp_path, monkeypatch):
    """The run is tracked in a local folder, since a Space would need the network."""
    trackio = pytest.importorskip("trackio", reason="a tracker (extra `tracking`)")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    init, seen = trackio.init, {}

    def local(**options):
        seen.update(options)
        return init(project=options["project"], name=options["name"])

    monkeypatch.setattr(trackio, "init", local)
    main(
        recipe(
            report_to="trackio",
            run_name="run",
            project="project",
            hub_private_repo=True,
            trackio_space_id="space",
            trackio_bucket_id="bucket",
            trackio_static_space_id=False,
            max_steps=1,
        )
    )
    named = ("name", "project", "private", "space_id", "bucket_id")
    assert [seen[key] for key in named] == ["run", "project", True, "space", "bucket"]


def test_backend_and_mode_of_torch_compile_are_applied(recipe):
    args = parse(torch_compile_backend="eager", torch_compile_mode="default")
    assert args.torch_compile and args.torch_compile_backend == "eager" and args.torch_compile_mode == "default"


@pytest.mark.parametrize("name", FSDP_REFUSED)
def test_an_unsupported_setting_of_fsdp_is_refused(model, monkeypatch, name):
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="FULL_STATE_DICT")
    setattr(plugin, name, CPUOffloadPolicy() if name == "cpu_offload" else ["x"])
    with pytest.raises(SystemExit, match=f"`fsdp_config`: `{name}`"):
        prepare_student(model, SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin)))
