# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The vision tower of TIPSv2 (Cao et al., CVPR 2026), whose patch tokens were trained to match texts."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Tipsv2VisionConfig, Tipsv2VisionModel
from transformers.models.tipsv2.modeling_tipsv2 import Tipsv2VisionAttention, Tipsv2VisionEmbeddings

from .vision_tower import TransformerTower, is_exporting


class DenseTipsv2VisionEmbeddings(Tipsv2VisionEmbeddings):
    """The patch, class, register and position embeddings of TIPSv2, for images of any size."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.patch_embeddings.projection(pixel_values)
        positions = self.resize(patches.shape[-2:])
        patches = patches.flatten(2).transpose(1, 2) + positions[1:]
        first = (self.cls_token + positions[:1], self.register_tokens)
        return torch.cat([*(tokens.expand(patches.shape[0], -1, -1) for tokens in first), patches], dim=1)

    def resize(self, size: Any) -> Tensor:
        """Position embeddings `(1 + height * width, dim)`: bilinear with antialiasing, as TIPSv2 was trained."""
        positions = self.position_embeddings[0]
        side = round((len(positions) - 1) ** 0.5)
        if not is_exporting() and (side, side) == tuple(size):
            return positions
        plane = positions[1:].float().unflatten(0, (side, side)).permute(2, 0, 1)[None]  # (1, dim, side, side)
        plane = nn.functional.interpolate(plane, size=size, mode="bilinear", align_corners=False, antialias=True)
        return torch.cat([positions[:1], plane[0].flatten(1).T.to(positions.dtype)])


class DenseTipsv2VisionModel(TransformerTower, Tipsv2VisionModel):
    """
    The vision tower of TIPSv2. Its features have no projection: the image feature is the class token after the final
    norm. So are dense features the patch tokens after the final norm; no attention is replaced, since the loss of its
    training (iBOT++) was applied to these tokens.
    """

    _no_split_modules = ["DenseTipsv2VisionEmbeddings", "Tipsv2VisionLayer"]
    _can_record_outputs = {"attentions": Tipsv2VisionAttention}
    dense_last_block = False
    has_class_token = False
    projection_bias = None

    def __init__(self, config: Tipsv2VisionConfig):
        super().__init__(config)
        self.embeddings = DenseTipsv2VisionEmbeddings(config)
        self.post_init()

    @property
    def num_prefix_tokens(self) -> int:  # type: ignore[override]  # a constant of the other towers
        """The class token and the register tokens."""
        return 1 + self.config.num_register_tokens

    @property
    def blocks(self):
        return self.encoder.layer

    def get_input_embeddings(self):
        return self.embeddings.patch_embeddings.projection

    def embed(self, pixel_values):
        pixel_values, grid = self.crop_to_grid(pixel_values)
        return self.embeddings(pixel_values), grid

    def read_tokens(self, hidden_states):
        return self.layernorm(hidden_states)

    def read_pooled(self, hidden_states):
        return self.layernorm(hidden_states[:, 0])


__all__ = ["DenseTipsv2VisionModel"]
