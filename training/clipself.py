# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
CLIPSelf (Wu et al., ICLR 2024), a related method: the dense features of a CLIP learn the image features that the same
CLIP has for crops of the regions. It needs no categories, and keeps any bias of the image features.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .arguments import DistillationArguments
from .distillation_trainer import DistillationTrainer


@dataclass
class CLIPSelfArguments(DistillationArguments):
    """The keys of CLIPSelf."""

    crops: int = field(default=6, metadata={"help": "Number of regions per image; the teacher sees the crop of each."})
    crop_size: int | None = field(
        default=None,
        metadata={
            "help": "Side of the crops in pixels, e.g. the 224 of the pre-training while images have 512. "
            "Defaults to that of the images."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        for key in ("crops", "crop_size"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"`{key}` is a whole number from 1 on, got {value}.")


def clipself_loss(region_embeds: Tensor, crop_embeds: Tensor, count: Tensor | None = None) -> Tensor:
    r"""
    The mean over regions of 1 - the cosine similarity of the pooled feature and the image feature of the crop.

    Args:
        region_embeds (`Tensor` of shape `(regions, dim)`): pooled from the student's dense features.
        crop_embeds (`Tensor` of shape `(regions, dim)`): the teacher's image features of the crops.
        count (`Tensor`, *optional*): number of regions in the global batch. Defaults to `regions`.

    Returns:
        `Tensor`, scalar; 0 if there are no regions.
    """
    with torch.autocast(region_embeds.device.type, enabled=False):
        cosine = (normalize(region_embeds.float(), dim=-1) * normalize(crop_embeds.float(), dim=-1)).sum(-1)
        denominator = len(cosine) if count is None else count
        return (1 - cosine).sum() / torch.as_tensor(denominator, device=cosine.device).clamp(min=1)


class CLIPSelfTrainer(DistillationTrainer):
    """The teacher is a copy of the student before training, applied to `crop_pixel_values`, one crop per box."""

    arguments_class = CLIPSelfArguments
    needs_crops = True
    teaches_itself = True

    def compute_targets(self, batch):
        crops = batch["crop_pixel_values"]
        # If no image could be read, there are no crops. The teacher runs on a blank one all the same: all processes
        # must take part in the forward pass of a sharded model.
        seen = crops if len(crops) else crops.new_zeros(1, *crops.shape[1:])
        with torch.inference_mode(), self.accelerator.autocast():  # only `forward` enters it by itself
            pixel_values = self.teacher_image_processor.normalize(seen)
            crop_embeds = self.teacher.get_image_features(pixel_values).pooler_output
        return crop_embeds[: len(crops)].clone()  # inference tensors cannot take part in a backward pass

    def count_terms(self, targets):
        return torch.tensor([float(len(targets))], device=targets.device)

    def loss(self, outputs, inputs):
        return clipself_loss(outputs.region_embeds, inputs["targets"], inputs["normalizers"][0])


__all__ = ["CLIPSelfArguments", "CLIPSelfTrainer", "clipself_loss"]
