# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
CLIPSelf (Wu et al., ICLR 2024), a related method: the dense features of a CLIP learn the image features that the same
CLIP has for crops of the regions. It needs no categories, and keeps any bias of the image features.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from modeling_densevlm import DenseVLMModel

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
    image_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of a second term: the image features of the whole images, as before the training. Without "
            "it, as in the paper, the recognition of whole images suffers."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.image_weight < float("inf"):
            raise ValueError(f"`image_weight` is a number from 0 on, got {self.image_weight}.")
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
    """
    The teacher is a copy of the student before training, applied to `crop_pixel_values`, one crop per box; with
    `image_weight` also to the whole images, reduced to the side of the crops.
    """

    args: CLIPSelfArguments
    teacher: DenseVLMModel

    arguments_class = CLIPSelfArguments
    needs_crops = True
    method_name = "CLIPSelf"
    teaches_itself = True

    @property
    def needs_image_embeds(self) -> bool:
        return self.args.image_weight > 0

    def compute_targets(self, batch):
        """The teacher's image features: `"crops"` `(regions, dim)`, `"images"` `(images, dim)`, or none."""
        crops = batch["crop_pixel_values"]
        images = batch["pixel_values"][: len(crops)]  # none if no image could be read
        crop_embeds = self._image_embeds(crops)
        if not self.needs_image_embeds:
            return {"crops": crop_embeds, "images": crop_embeds[:0]}
        return {"crops": crop_embeds, "images": self._image_embeds(_resize(images, crops.shape[-1]))}

    def _image_embeds(self, pixels: Tensor) -> Tensor:
        # The teacher runs on a blank image if there is none: all processes must take part in the forward pass of a
        # sharded model.
        seen = pixels if len(pixels) else pixels.new_zeros(1, *pixels.shape[1:])
        with torch.inference_mode(), self.accelerator.autocast():  # only `forward` enters it by itself
            pixel_values = self.teacher_image_processor.normalize(seen)
            image_embeds = self.teacher.get_image_features(pixel_values).pooler_output
        return image_embeds[: len(pixels)].clone()  # inference tensors cannot take part in a backward pass

    def count_terms(self, targets):
        return torch.tensor([float(len(embeds)) for embeds in targets.values()], device=targets["crops"].device)

    def loss(self, outputs, inputs):
        targets, (crops, images) = inputs["targets"], inputs["normalizers"]
        loss = clipself_loss(outputs.region_embeds, targets["crops"], crops)
        if self.needs_image_embeds:
            image_embeds = outputs.image_embeds[: len(targets["images"])]
            loss = loss + self.args.image_weight * clipself_loss(image_embeds, targets["images"], images)
        return loss


def _resize(images: Tensor, side: int) -> Tensor:
    """Squares `(batch, 3, height, width)` of uint8 at another side."""
    if images.shape[-1] == side or not len(images):
        return images
    resized = interpolate(images.float(), (side, side), mode="bicubic", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8)


__all__ = ["CLIPSelfArguments", "CLIPSelfTrainer", "clipself_loss"]
