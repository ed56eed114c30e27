# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
CLIPSelf (Wu et al., ICLR 2024), a sibling of DenseVLM: a CLIP's dense features learn from the same CLIP's image
features of the cut-out regions. It needs no categories and cannot remove a bias that the image features have.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .arguments import DistillationArguments
from .distillation_trainer import DistillationTrainer


@dataclass
class CLIPSelfArguments(DistillationArguments):
    """The method's own keys."""

    crops: int = field(default=6, metadata={"help": "Regions per image, each cut out for the teacher."})

    def __post_init__(self):
        super().__post_init__()
        if self.crops < 1:
            raise ValueError(f"`crops` is a whole number from 1 on, got {self.crops}.")


def clipself_loss(region_embeds: Tensor, crop_embeds: Tensor, count: Tensor | None = None) -> Tensor:
    r"""
    1 - cosine of each region's pooled feature and its crop's image feature, averaged.

    Args:
        region_embeds (`Tensor` of shape `(regions, dim)`): pooled from the student's dense map.
        crop_embeds (`Tensor` of shape `(regions, dim)`): image features of the crops by the teacher.
        count (`Tensor`, *optional*): regions of the whole global batch; defaults to those given.

    Returns:
        `Tensor`, scalar; 0 without regions.
    """
    with torch.autocast(region_embeds.device.type, enabled=False):
        cosine = (normalize(region_embeds.float(), dim=-1) * normalize(crop_embeds.float(), dim=-1)).sum(-1)
        denominator = len(cosine) if count is None else count
        return (1 - cosine).sum() / torch.as_tensor(denominator, device=cosine.device).clamp(min=1)


class CLIPSelfTrainer(DistillationTrainer):
    """The teacher is the model itself before training; it sees `crop_pixel_values`, one crop per box."""

    arguments_class = CLIPSelfArguments
    needs_crops = True
    teaches_itself = True

    def compute_targets(self, batch):
        crops = batch["crop_pixel_values"]
        # Images that could not be read leave none. A blank one is run nevertheless: of a sharded teacher each process
        # holds a share, and all of them have to take part.
        seen = crops if len(crops) else crops.new_zeros(1, *crops.shape[1:])
        with torch.inference_mode(), self.accelerator.autocast():  # `forward` alone has it built in
            pixel_values = self.teacher_image_processor.normalize(seen)
            crop_embeds = self.teacher.get_image_features(pixel_values).pooler_output
        return crop_embeds[: len(crops)].clone()  # what was made in inference mode cannot take part in a backward pass

    def count_terms(self, targets):
        return torch.tensor([float(len(targets))], device=targets.device)

    def loss(self, outputs, inputs):
        return clipself_loss(outputs.region_embeds, inputs["targets"], inputs["normalizers"][0])


__all__ = ["CLIPSelfArguments", "CLIPSelfTrainer", "clipself_loss"]
