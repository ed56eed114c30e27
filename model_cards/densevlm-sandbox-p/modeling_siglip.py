"""SigLIP and SigLIP 2 (Zhai et al., 2023; Tschannen et al., 2025) as dense backbones."""

import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers import Siglip2VisionConfig, Siglip2VisionModel, SiglipVisionConfig, SiglipVisionModel
from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead
from transformers.models.siglip2.modeling_siglip2 import Siglip2MultiheadAttentionPoolingHead

from .vision_tower import TransformerTower


class DensePoolingHead:
    """
    Mixin of SigLIP's attention pool, with a second way through it: what the head gives when its probe looks at one
    location alone. The softmax over a single location is 1, so its attention is the value path; the residual MLP
    follows as in the head.
    """

    def forward(self, hidden_state: Tensor, attention_mask: Tensor | None = None, dense: bool = False) -> Tensor:
        """`(batch, locations, hidden)` to `(batch, locations, hidden)` in dense mode, to `(batch, hidden)` else."""
        if not dense:
            arguments = () if attention_mask is None else (attention_mask,)
            return super().forward(hidden_state, *arguments)
        weight, bias = (parameter.chunk(3)[2] for parameter in (self.attention.in_proj_weight,
                                                                self.attention.in_proj_bias))  # fmt: skip
        values = self.attention.out_proj(linear(hidden_state, weight, bias))
        return values + self.mlp(self.layernorm(values))


class DenseSiglipPoolingHead(DensePoolingHead, SiglipMultiheadAttentionPoolingHead):
    pass


class DenseSiglip2PoolingHead(DensePoolingHead, Siglip2MultiheadAttentionPoolingHead):
    pass


class SiglipTower(TransformerTower):
    r"""
    Mixin of both towers. There is no class token and no projection: an attention pool reads the patch tokens, and its
    output is the image's feature in the image-text space.

    Dense features are that head's value path at every location, after all blocks have run as they were trained. It is
    the counterpart of the attention pool of CLIP's ResNet in dense mode: the readout was trained to be applied to
    these tokens, so it is what swaps its attention. (In CLIP's ViTs the readout is the last block, whose class token
    looks at the patches; here the last block is part of the trunk, and swapping its attention, too, would leave the
    head with tokens it has never seen.)
    """

    prefix = 0
    dense_last_block = False
    projection_bias = None
    pooling_head: type

    def __init__(self, config: SiglipVisionConfig | Siglip2VisionConfig):
        super().__init__(config)
        if not config.vision_use_head:
            raise ValueError("A SigLIP tower without its attention pool (`vision_use_head`) has no image-text space.")
        self.head = self.pooling_head(config)
        self.post_init()

    def read_dense(self, patches):
        return self.head(self.post_layernorm(patches), dense=True)

    def read_pooled(self, hidden_states):
        return self.head(self.post_layernorm(hidden_states))


class DenseSiglipVisionModel(SiglipTower, SiglipVisionModel):
    __doc__ = f"""SigLIP's vision tower, and that of SigLIP 2 at a fixed resolution. {SiglipTower.__doc__}"""

    _no_split_modules = ["SiglipVisionEmbeddings", "SiglipEncoderLayer", "DenseSiglipPoolingHead"]
    pooling_head = DenseSiglipPoolingHead

    def embed(self, pixel_values, size):
        return self.embeddings(pixel_values, interpolate_pos_encoding=True), (None,)  # no attention mask


class DenseSiglip2VisionModel(SiglipTower, Siglip2VisionModel):
    __doc__ = f"""The vision tower of SigLIP 2 at any aspect (NaFlex). {SiglipTower.__doc__}"""

    _no_split_modules = ["Siglip2VisionEmbeddings", "Siglip2EncoderLayer", "DenseSiglip2PoolingHead"]
    pooling_head = DenseSiglip2PoolingHead

    def embed(self, pixel_values, size):
        patch = self.stride
        # This tower takes patches, row by row, each with its channels last.
        patches = pixel_values.unflatten(2, (-1, patch)).unflatten(4, (-1, patch))  # (batch, channels, h, p, w, p)
        patches = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        shapes = torch.tensor([size] * len(patches), device=patches.device)
        return self.embeddings(patches, shapes), (None,)  # no attention mask


__all__ = ["DenseSiglip2VisionModel", "DenseSiglipVisionModel"]
