# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Steps that are not finite, the log of a run, and signals."""

import multiprocessing
import os
import signal
import time

import pytest
import torch
from PIL import Image
from transformers import TrainerCallback

from training.build import build_trainer
from training.engine.signals import StopSignal, close_process_group
from training.recipe import parse_arguments
from training.train import main


def spoiled(recipe, steps, **options):
    """A trainer whose gradient is NaN in the given steps."""
    trainer = build_trainer(parse_arguments(recipe(**options)))
    parameter = next(p for p in trainer.model.parameters() if p.requires_grad)
    parameter.register_hook(lambda g: g * float("nan") if trainer.state.global_step + 1 in steps else g)
    return trainer


def test_a_step_whose_gradient_is_not_finite_is_skipped_named_and_counted(recipe, caplog):
    options = {"max_steps": 6, "lr_scheduler_type": "constant", "weight_decay": 0.0}
    trainer = spoiled(recipe, steps={3}, **options)
    seen = {}

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            seen[state.global_step] = {n: p.detach().clone() for n, p in model.named_parameters()}

    trainer.add_callback(Watch())
    trainer.train()
    assert all(torch.equal(seen[2][name], seen[3][name]) for name in seen[2])
    assert any(not torch.equal(seen[3][name], seen[4][name]) for name in seen[3])
    assert all(tensor.isfinite().all() for tensor in seen[6].values())
    assert (
        "Step 3 is skipped: its gradient is not finite. Its images on this process: " in caplog.text
        and ".jpg" in caplog.text
    )
    entries = [e for e in trainer.state.log_history if "loss" in e]
    assert [e["steps_left_out"] for e in entries] == [0, 0, 1, 1, 1, 1]


def test_many_consecutive_such_steps_end_the_run_before_its_weights_are_lost(recipe, student):
    trainer = spoiled(recipe, steps=set(range(2, 50)), max_steps=50)
    with pytest.raises(RuntimeError, match="The gradients of 10 consecutive steps were not finite"):
        trainer.train()
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_a_loss_that_is_nan_does_not_affect_the_log_of_later_steps(recipe):
    trainer = build_trainer(parse_arguments(recipe(max_steps=4, learning_rate=1e-4)))
    compute_loss = trainer.compute_loss
    trainer.compute_loss = lambda *args, **kwargs: (
        compute_loss(*args, **kwargs) * (float("nan") if trainer.state.global_step == 1 else 1)
    )
    trainer.train()
    losses = [e["loss"] for e in trainer.state.log_history if "loss" in e]
    assert losses[1] == 0 and all(0 < loss < 100 for loss in [losses[0], *losses[2:]])


def test_the_log_has_waiting_time_memory_speed_and_remaining_time(recipe):
    trainer = main(recipe(max_steps=4, logging_steps=2))
    entries = [e for e in trainer.state.log_history if "loss" in e]
    assert len(entries) == 2
    for entry in entries:
        assert 0 <= entry["data_wait"] <= 1
        assert entry["memory_gib"] > 0.1
        assert entry["images_per_second"] > 0
    assert entries[0]["seconds_left"] >= entries[1]["seconds_left"] == 0


def test_pictures_of_the_retrieval_are_saved_on_request(recipe, tmp_path):
    main(recipe(max_steps=4, retrieval_picture_steps=2))
    files = sorted((tmp_path / "run" / "retrievals").iterdir())
    assert [file.name for file in files] == ["step-0000000.jpg", "step-0000002.jpg"]
    assert max(Image.open(files[0]).size) == 768


def test_a_picture_that_cannot_be_written_does_not_end_the_run(recipe, tmp_path, caplog):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "retrievals").write_text("in the way")
    main(recipe(max_steps=2, retrieval_picture_steps=1))
    assert "step-0000001.jpg could not be written" in caplog.text


def test_the_last_step_of_an_epoch_is_smaller_without_drop_last(recipe):
    arguments = recipe(dataloader_drop_last=False, per_device_train_batch_size=10, max_steps=3)
    trainer, seen = build_trainer(parse_arguments(arguments)), []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append(trainer.step_names)

    trainer.add_callback(Watch())
    trainer.train()
    assert trainer.state.epoch == 1
    assert trainer.state.num_train_epochs == 1
    assert [len(names) for names in seen] == [10, 10, 4]
    assert len({name for names in seen for name in names}) == 24


def test_a_run_with_workers_ends_without_delay(recipe):
    """A data loader that is collected waits five seconds for each worker that blocks SIGTERM."""
    main(recipe(dataloader_num_workers=2, max_steps=1))
    began = time.perf_counter()
    close_process_group()
    assert time.perf_counter() - began < 4
    assert not multiprocessing.active_children()


def test_after_a_run_and_in_its_children_sigterm_ends_a_process_as_usual(recipe):
    before = signal.getsignal(signal.SIGTERM)
    main(recipe(max_steps=1))
    assert signal.getsignal(signal.SIGTERM) is before
    with StopSignal() as stop:
        context = multiprocessing.get_context("fork")
        begun = context.Event()
        child = context.Process(target=lambda: (begun.set(), time.sleep(60)))
        child.start()
        assert begun.wait(timeout=60)  # a signal during the fork is lost
        child.terminate()
        child.join(timeout=10)
        assert child.exitcode == -signal.SIGTERM and not stop.received
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received
        os.kill(os.getpid(), signal.SIGTERM)  # a launcher forwards signals that a rank has received already
