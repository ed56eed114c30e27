"""CLIP's vision transformer (OpenAI, OpenCLIP, DFN, MetaCLIP ...), whose last block knows the dense path."""

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer, CLIPVisionEmbeddings

from .vision_tower import TransformerTower, resize_positions


class DenseCLIPVisionEmbeddings(CLIPVisionEmbeddings):
    """CLIP's patches, class token and positions, for images of any size."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.patch_embedding(pixel_values)
        size = patches.shape[-2:]
        patches = patches.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_embedding.expand(patches.shape[0], 1, -1), patches], dim=1)
        return tokens + resize_positions(self.position_embedding(self.position_ids)[0], size, prefix=1)


class DenseCLIPAttention(CLIPAttention):
    """CLIP's attention, which can give its value path alone: what a token would read if it looked at itself only."""

    def forward(self, hidden_states: Tensor, dense: bool = False, **kwargs):
        if dense:
            return self.out_proj(self.v_proj(hidden_states)), None
        return super().forward(hidden_states, **kwargs)


class DenseCLIPEncoderLayer(CLIPEncoderLayer):
    """CLIP's transformer block with a second way through it, in which no location looks at another."""

    def __init__(self, config: CLIPVisionConfig):
        super().__init__(config)
        self.self_attn = DenseCLIPAttention(config)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, dense: bool = False, **kwargs):
        if not dense:
            return super().forward(hidden_states, attention_mask, **kwargs)
        # Attention is replaced by its value path; residual and MLP stay. No query, key or softmax is computed.
        values, _ = self.self_attn(self.layer_norm1(hidden_states), dense=True)
        hidden_states = hidden_states + values
        return hidden_states + self.mlp(self.layer_norm2(hidden_states))


class DenseCLIPVisionModel(TransformerTower, CLIPVisionModel):
    """CLIP's vision transformer. Dense features: the last block's value path, then the final norm."""

    _no_split_modules = ["CLIPEncoderLayer", "DenseCLIPEncoderLayer", "DenseCLIPVisionEmbeddings"]

    def __init__(self, config: CLIPVisionConfig):
        super().__init__(config)
        self.embeddings = DenseCLIPVisionEmbeddings(config)
        self.encoder.layers[-1] = DenseCLIPEncoderLayer(config)
        self.post_init()

    def embed(self, pixel_values, size):
        return self.pre_layrnorm(self.embeddings(pixel_values)), (None,)  # no attention mask

    def read_dense(self, patches):
        return self.post_layernorm(patches)

    def read_pooled(self, hidden_states):
        return self.post_layernorm(hidden_states[:, 0])


__all__ = ["DenseCLIPVisionModel"]
