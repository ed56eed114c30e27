"""
CLIPSelf (Wu et al., ICLR 2024), a sibling of DenseVLM: a CLIP's dense features learn from the same CLIP's image
features of the cut-out regions. It needs no categories and cannot remove a bias that the image features have.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .trainer import DenseTrainer


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


class CLIPSelfTrainer(DenseTrainer):
    """The teacher is the model itself before training; it sees `crop_pixel_values`, one crop a box."""

    def ask_teacher(self, batch):
        crops = batch["crop_pixel_values"]
        # Images that could not be read leave none. One is looked at nevertheless: of a sharded teacher each process
        # holds a share, and all of them have to take part.
        seen = crops if len(crops) else crops.new_zeros(1, *crops.shape[1:])
        with torch.inference_mode(), self.accelerator.autocast():  # `forward` alone has it built in
            pixel_values = self.teacher_image_processor.normalize(seen)
            crop_embeds = self.teacher.get_image_features(pixel_values).pooler_output
        return crop_embeds[: len(crops)].clone()  # what was made in inference mode cannot take part in a backward pass

    def count_terms(self, answer):
        return torch.tensor([float(len(answer))], device=answer.device)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        pixel_values = self.image_processor.normalize(inputs["pixel_values"])
        outputs = model(pixel_values=pixel_values, boxes=inputs["boxes"])
        loss = clipself_loss(outputs.region_embeds, inputs["answer"], inputs["counts"][0])
        loss = loss * self.accelerator.num_processes  # DDP takes the mean over ranks
        return (loss, outputs) if return_outputs else loss
