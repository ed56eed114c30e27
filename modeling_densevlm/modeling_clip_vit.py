# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""CLIP's vision transformer (OpenAI, OpenCLIP, DFN, MetaCLIP ...) with a dense path in its last block."""

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer, CLIPVisionEmbeddings

from .vision_tower import TransformerTower, resize_positions


class DenseCLIPVisionEmbeddings(CLIPVisionEmbeddings):
    """CLIP's patch, class and position embeddings, for images of any size."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.patch_embedding(pixel_values)
        size = patches.shape[-2:]
        patches = patches.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_embedding.expand(patches.shape[0], 1, -1), patches], dim=1)
        return tokens + resize_positions(self.position_embedding(self.position_ids)[0], size, prefix=1)


class DenseCLIPAttention(CLIPAttention):
    """CLIP's attention, with its value path alone as an option: the output of a token that attends only to itself."""

    def forward(self, hidden_states: Tensor, dense: bool = False, **kwargs):
        if dense:
            return self.out_proj(self.v_proj(hidden_states)), None
        return super().forward(hidden_states, **kwargs)


class DenseCLIPEncoderLayer(CLIPEncoderLayer):
    """CLIP's transformer block with a dense path, on which locations do not attend to each other."""

    def __init__(self, config: CLIPVisionConfig):
        super().__init__(config)
        self.self_attn = DenseCLIPAttention(config)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, dense_residual: str | None = None, **kwargs
    ):
        if dense_residual is None:
            return super().forward(hidden_states, attention_mask, **kwargs)  # type: ignore[arg-type]  # may be None
        # The value path replaces the attention; residual and MLP stay. Queries, keys and softmax are not computed.
        values, _ = self.self_attn(self.layer_norm1(hidden_states), dense=True)
        hidden_states = values + (hidden_states[:, :1] if dense_residual == "cls" else hidden_states)
        return hidden_states + self.mlp(self.layer_norm2(hidden_states))


class DenseCLIPVisionModel(TransformerTower, CLIPVisionModel):
    """CLIP's vision transformer. Dense features are the last block's value path followed by the final norm."""

    _no_split_modules = ["CLIPEncoderLayer", "DenseCLIPEncoderLayer", "DenseCLIPVisionEmbeddings"]
    _can_record_outputs = {"attentions": CLIPAttention}

    def __init__(self, config: CLIPVisionConfig):
        super().__init__(config)
        self.embeddings = DenseCLIPVisionEmbeddings(config)
        self.encoder.layers[-1] = DenseCLIPEncoderLayer(config)
        self.post_init()

    def embed(self, pixel_values):
        pixel_values, grid = self.crop_to_grid(pixel_values)
        return self.pre_layrnorm(self.embeddings(pixel_values)), grid

    def read_tokens(self, hidden_states):
        return self.post_layernorm(hidden_states)

    def read_pooled(self, hidden_states):
        return self.post_layernorm(hidden_states[:, 0])


__all__ = ["DenseCLIPVisionModel"]
