# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The vision towers of SigLIP and SigLIP 2 (Zhai et al., 2023; Tschannen et al., 2025) with dense features."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import Siglip2VisionConfig, Siglip2VisionModel, SiglipVisionConfig, SiglipVisionModel
from transformers.models.siglip.modeling_siglip import (
    SiglipAttention,
    SiglipMultiheadAttentionPoolingHead,
    SiglipVisionEmbeddings,
)
from transformers.models.siglip2.modeling_siglip2 import (
    Siglip2Attention,
    Siglip2MultiheadAttentionPoolingHead,
    Siglip2VisionEmbeddings,
)

from .vision_tower import TransformerTower, resize_positions


class DenseSiglipVisionEmbeddings(SiglipVisionEmbeddings):
    """SigLIP's patch and position embeddings, for images of any size."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.patch_embedding(pixel_values)
        size = patches.shape[-2:]
        positions = resize_positions(self.position_embedding(self.position_ids)[0], size, prefix=0)
        return patches.flatten(2).transpose(1, 2) + positions


class DenseSiglip2VisionEmbeddings(Siglip2VisionEmbeddings):
    """The patch and position embeddings of SigLIP 2, for images of any size, the same for a whole batch."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        # The patch embedding takes flattened patches in row-major order, each with its channels last.
        patch = (-1, self.patch_size)
        patches = pixel_values.unflatten(2, patch).unflatten(4, patch)  # (batch, channels, h, p, w, p)
        size = patches.shape[2], patches.shape[4]
        patches = self.patch_embedding(patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2))
        native = torch.arange(self.num_patches, device=patches.device)
        return patches + self.resize(self.position_embedding(native), size)

    def resize(self, positions: Tensor, size: tuple[int, int]) -> Tensor:
        """Bilinear with antialiasing, as SigLIP 2 was trained: `(side * side, dim)` to `(height * width, dim)`."""
        side = self.position_embedding_size
        plane = positions.float().unflatten(0, (side, side)).permute(2, 0, 1)[None]  # (1, dim, side, side)
        plane = nn.functional.interpolate(plane, size=size, mode="bilinear", align_corners=False, antialias=True)
        return plane[0].flatten(1).T.to(positions.dtype)


class PoolingAttention(nn.MultiheadAttention):
    """
    The attention of SigLIP's pooling head, with the parameter names of `nn.MultiheadAttention`. The latter reads the
    weights of its output projection; here the projection is called, so that it can be replaced (adapters,
    quantization).
    """

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__(hidden_size, num_heads, batch_first=True)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, dense: bool = False) -> tuple[Tensor, None]:
        """
        Computes the attention, or its value path alone.

        Args:
            query (`torch.Tensor` of shape `(batch, queries, hidden)`): the queries.
            key (`torch.Tensor` of shape `(batch, locations, hidden)`): the keys.
            value (`torch.Tensor` of shape `(batch, locations, hidden)`): the values.
            dense (`bool`, *optional*, defaults to `False`):
                Whether to return the output of a query that attends to a single location, whose attention weight is
                then 1, for every location.

        Returns:
            `torch.Tensor` of shape `(batch, queries, hidden)`, or `(batch, locations, hidden)` if `dense`; and `None`
            in place of attention weights.
        """
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        value = linear(value, weights[2], biases[2])
        if dense:
            return self.out_proj(value), None
        query, key = linear(query, weights[0], biases[0]), linear(key, weights[1], biases[1])
        query, key, value = (
            states.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for states in (query, key, value)
        )  # (batch, heads, tokens, head_dim)
        # With a single query per image, a fused kernel would save nothing.
        attention = (query * self.head_dim**-0.5 @ key.transpose(-1, -2)).softmax(dim=-1)
        return self.out_proj((attention @ value).transpose(1, 2).flatten(2)), None


class DensePoolingHead(nn.Module):
    """
    Mixin that adds a dense mode to SigLIP's attention pooling head: its output, at every location, for a probe that
    attends to that location only. This is the value path of the attention, followed by the head's residual MLP.
    """

    probe: nn.Parameter
    mlp: nn.Module
    layernorm: nn.Module

    def __init__(self, config: SiglipVisionConfig | Siglip2VisionConfig):
        super().__init__(config)
        self.attention = PoolingAttention(config.hidden_size, config.num_attention_heads)

    def forward(self, hidden_state: Tensor, dense: bool = False) -> Tensor:
        """From `(batch, locations, hidden)` to `(batch, hidden)`, or to `(batch, locations, hidden)` if `dense`."""
        probe = self.probe.expand(hidden_state.shape[0], -1, -1)
        hidden_state, _ = self.attention(probe, hidden_state, hidden_state, dense=dense)
        hidden_state = hidden_state + self.mlp(self.layernorm(hidden_state))
        return hidden_state if dense else hidden_state[:, 0]


class DenseSiglipPoolingHead(DensePoolingHead, SiglipMultiheadAttentionPoolingHead):
    """SigLIP's pooling head with a dense mode."""


class DenseSiglip2PoolingHead(DensePoolingHead, Siglip2MultiheadAttentionPoolingHead):
    """The pooling head of SigLIP 2 with a dense mode."""


class SiglipTower(TransformerTower):
    r"""
    Mixin of both towers. They have no class token and no projection: an attention pooling head reads the patch tokens,
    and its output is the image feature in the image-text space.

    Dense features are the value path of this head at every location; all blocks run unmodified. As in CLIP's ResNet,
    the readout is the layer whose attention is replaced, because it was trained on these tokens. (In CLIP's ViTs, the
    readout is the last block, whose class token attends to the patches. Here the last block belongs to the trunk:
    replacing its attention too would feed the head tokens unlike those of its training.)
    """

    num_prefix_tokens = 0
    dense_last_block = False
    has_class_token = False
    projection_bias = None
    pooling_head: type
    patch_embeddings: type
    post_init: Any

    def __init__(self, config: SiglipVisionConfig | Siglip2VisionConfig):
        super().__init__(config)
        if not config.vision_use_head:
            raise ValueError("A SigLIP tower without its attention pool (`vision_use_head`) has no image-text space.")
        self.embeddings = self.patch_embeddings(config)
        self.head = self.pooling_head(config)
        self.post_init()

    def embed(self, pixel_values):
        pixel_values, grid = self.crop_to_grid(pixel_values)
        return self.embeddings(pixel_values), grid

    def read_tokens(self, hidden_states):
        return self.head(self.post_layernorm(hidden_states), dense=True)

    def read_pooled(self, hidden_states):
        return self.head(self.post_layernorm(hidden_states))


class DenseSiglipVisionModel(SiglipTower, SiglipVisionModel):
    """The vision tower of SigLIP, and of SigLIP 2 at a fixed resolution; see [`SiglipTower`]."""

    _no_split_modules = ["DenseSiglipVisionEmbeddings", "SiglipEncoderLayer", "DenseSiglipPoolingHead"]
    _can_record_outputs = {"attentions": SiglipAttention}
    pooling_head = DenseSiglipPoolingHead
    patch_embeddings = DenseSiglipVisionEmbeddings


class DenseSiglip2VisionModel(SiglipTower, Siglip2VisionModel):
    """The vision tower of SigLIP 2 at any aspect ratio (NaFlex); see [`SiglipTower`]."""

    _no_split_modules = ["DenseSiglip2VisionEmbeddings", "Siglip2EncoderLayer", "DenseSiglip2PoolingHead"]
    _can_record_outputs = {"attentions": Siglip2Attention}
    pooling_head = DenseSiglip2PoolingHead
    patch_embeddings = DenseSiglip2VisionEmbeddings


__all__ = ["DenseSiglip2VisionModel", "DenseSiglipVisionModel"]
