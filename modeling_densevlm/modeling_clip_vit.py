"""CLIP's vision transformer (OpenAI, OpenCLIP, DFN, MetaCLIP ...), whose last block knows the dense path."""

from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from .vision_tower import TransformerTower


class DenseCLIPEncoderLayer(CLIPEncoderLayer):
    """CLIP's transformer block with a second way through it, in which no location looks at another."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, dense: bool = False, **kwargs):
        if not dense:
            return super().forward(hidden_states, attention_mask, **kwargs)
        # Attention is replaced by its value path; residual and MLP stay. No query, key or softmax is computed.
        values = self.self_attn.out_proj(self.self_attn.v_proj(self.layer_norm1(hidden_states)))
        hidden_states = hidden_states + values
        return hidden_states + self.mlp(self.layer_norm2(hidden_states))


class DenseCLIPVisionModel(TransformerTower, CLIPVisionModel):
    """CLIP's vision transformer. Dense features: the last block's value path, then the final norm."""

    _no_split_modules = ["CLIPEncoderLayer", "DenseCLIPEncoderLayer", "CLIPVisionEmbeddings"]

    def __init__(self, config: CLIPVisionConfig):
        super().__init__(config)
        self.encoder.layers[-1] = DenseCLIPEncoderLayer(config)
        self.post_init()

    def embed(self, pixel_values, size):
        hidden_states = self.pre_layrnorm(self.embeddings(pixel_values, interpolate_pos_encoding=True))
        return hidden_states, (None,)  # no attention mask

    def read_dense(self, patches):
        return self.post_layernorm(patches)

    def read_pooled(self, hidden_states):
        return self.post_layernorm(hidden_states[:, 0])


__all__ = ["DenseCLIPVisionModel"]
