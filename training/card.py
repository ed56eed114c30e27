# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The model card of a training run, and its upload to the Hub."""

import os
import platform
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub import ModelCard

from modeling_densevlm.model_card import CARD, licence_of, new_card, shown
from modeling_densevlm.publish import upload

from .arguments import DistillationArguments
from .engine.atomic_checkpoints import AtomicCheckpoints


class PublishedRun(AtomicCheckpoints):
    """
    A [`Trainer`] whose result has a model card, and is uploaded once, at the end: no checkpoints, no optimizer, no
    settings. `sources` are the student and the teacher as they were named, `card_facts` further rows of the card,
    `card_options` further arguments of [`new_card`].
    """

    model: Any
    image_processor: Any
    sources: dict[str, str]
    card_facts: dict[str, str] = {}
    card_options: dict[str, Any] = {}
    method_name: ClassVar[str] = ""

    @property
    def method(self) -> str:
        """What the card calls the method."""
        return self.method_name or type(self).__name__

    def save_result(self) -> None:
        """As [`~AtomicCheckpoints.save_result`], with the model card."""
        super().save_result()
        if self.is_world_process_zero():
            self.create_model_card()

    def create_model_card(self, **kwargs: Any) -> None:
        """Writes the card. `kwargs` are those of [`new_card`], e.g. `licence` or `limits`."""
        folder = self._folder
        name = self.args.hub_model_id or folder.absolute().name
        options = {
            "summary": f"A CLIP whose dense features were trained without annotation, by {self.method}.",
            "training": self.describe_training(),
            "base_models": list(dict.fromkeys(filter(None, self.sources.values()))),
            **self.card_options,
            **kwargs,
        }
        if "license" in options:  # as transformers spells it
            options["licence"] = options.pop("license")
        student = self.sources["student"]
        options["licence"] = options.get("licence") or (licence_of(student) if student else None)
        side = self.image_processor.size["longest_edge"]
        card: ModelCard = new_card(name, self.accelerator.unwrap_model(self.model), side, **options)
        card.save(folder / CARD)

    def describe_training(self) -> dict[str, str]:
        """The rows of the card's table."""
        args = self.args
        images = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        runtime = next((entry["train_runtime"] for entry in self.state.log_history if "train_runtime" in entry), None)
        precision = "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32"
        trained = sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
        rows = {role: f"`{shown(source)}`" for role, source in self.sources.items() if source}
        rows |= {
            "method": ", ".join([self.method, *self._method_settings()]),
            **self.card_facts,
            "image side": f"{self.image_processor.size['longest_edge']} pixels",
            "steps": f"{self.state.global_step:,} of {images} images, {self.state.epoch or 0:.2f} epochs",
            "optimizer": f"{getattr(args.optim, 'value', args.optim)}, learning rate {args.learning_rate:g} "
            f"({getattr(args.lr_scheduler_type, 'value', args.lr_scheduler_type)}, {args.warmup_steps:g} steps of "
            f"warm-up), weight decay {args.weight_decay:g}",
            "trained parameters": f"{trained / 1e6:.1f} M",
            "precision": precision,
            "hardware": describe_hardware(args.world_size, args.device),
            "time": "not recorded" if runtime is None else f"{runtime / 3600:.2f} hours",
            "seed": str(args.seed),
            "versions": ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "accelerate")),
        }
        return rows

    def _method_settings(self) -> list[str]:
        """The method's own arguments, those that other methods do not have."""
        own = {field.name for field in fields(self.args)} - {field.name for field in fields(DistillationArguments)}
        return [f"{name} {getattr(self.args, name)}" for name in sorted(own)]

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """
        Saves the result, with a card if there is none, and uploads what [`~modeling_densevlm.publish.publish`]
        writes. Arguments as in [`Trainer.push_to_hub`]; the upload always ends before it returns.

        Returns:
            `str`: address of the commit; `None` on all processes but the first.
        """
        super().save_result()
        if not self.is_world_process_zero():
            return None
        if kwargs or not (self._folder / CARD).is_file():
            self.create_model_card(**kwargs)
        return self.upload_result(commit_message, token, revision, private)

    def upload_result(
        self,
        message: str | None = None,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
    ) -> str | None:
        """Uploads what [`~PublishedRun.save_result`] has written; on the first process alone."""
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        return upload(
            self._folder,
            str(self.hub_model_id),
            private=self.args.hub_private_repo if private is None else private,
            revision=revision or self.args.hub_revision,
            token=token or self.args.hub_token,
            message=message or "End of training",
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Checkpoints are not uploaded."""


def describe_hardware(processes: int, device: torch.device) -> str:
    """The machine, as seen by this process."""
    if device.type == "cuda":
        return f"{processes} x {torch.cuda.get_device_name(device)}"
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = next(iter(models), name)
    return f"{os.cpu_count()} cores of a CPU ({name}), {processes} processes"


__all__ = ["PublishedRun"]
