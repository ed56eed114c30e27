# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The vision transformer of EVA-02 CLIP (Sun et al., 2023): rotary positions, sub-LayerNorm, SwiGLU."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import eager_attention_forward

from .configuration_vision_towers import Eva02CLIPVisionConfig
from .vision_tower import TransformerTower, resize_positions


def rotary_tables(
    size: tuple[int, int], head_dim: int, grid: int, theta: float, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """
    Cosines and sines of the 2D rotary position embedding: the first half of a head's channels encodes the row, the
    second half the column; each pair of adjacent channels shares an angle.

    Args:
        size (`tuple[int, int]`): height and width in patches.
        head_dim (`int`): channels per head.
        grid (`int`): side of the pre-training grid, onto whose positions the cells of an axis are interpolated.
        theta (`float`): base of the frequencies.
        device (`torch.device`, *optional*): where the tables are computed.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`, each of shape `(height * width, head_dim)`, float32 also under autocast.
    """
    half = head_dim // 2
    frequencies = theta ** (-torch.arange(0, half, 2, dtype=torch.float32, device=device) / half)
    rows, columns = (
        torch.arange(n, dtype=torch.float32, device=device)[:, None] / n * grid * frequencies for n in size
    )  # (n, half / 2)
    rows = rows.repeat_interleave(2, dim=-1)[:, None].expand(*size, half)
    columns = columns.repeat_interleave(2, dim=-1)[None].expand(*size, half)
    angles = torch.cat([rows, columns], dim=-1).flatten(0, 1)
    return angles.cos(), angles.sin()


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """
    Rotates pairs of adjacent channels of the patch tokens. Prefix tokens (the class token) have no position and are
    not rotated.

    Args:
        states (`torch.Tensor` of shape `(batch, heads, prefix + patches, head_dim)`): queries or keys.
        cos (`torch.Tensor` of shape `(patches, head_dim)`): cosines of [`rotary_tables`].
        sin (`torch.Tensor` of shape `(patches, head_dim)`): sines of [`rotary_tables`].

    Returns:
        `torch.Tensor` of the shape and dtype of `states`.
    """
    prefix = states.shape[2] - cos.shape[0]
    patches = states[:, :, prefix:].to(torch.promote_types(states.dtype, torch.float32))
    even, odd = patches[..., 0::2], patches[..., 1::2]
    rotated = torch.stack([-odd, even], dim=-1).flatten(-2)
    return torch.cat([states[:, :, :prefix], (patches * cos + rotated * sin).to(states.dtype)], dim=2)


class Eva02CLIPVisionEmbeddings(nn.Module):
    """Patch, class and position embeddings, for images of any size."""

    def __init__(self, config: Eva02CLIPVisionConfig):
        super().__init__()
        patch = config.patch_size
        self.class_embedding = nn.Parameter(torch.zeros(config.hidden_size))
        self.patch_embedding = nn.Conv2d(config.num_channels, config.hidden_size, kernel_size=patch, stride=patch)
        self.position_embedding = nn.Embedding((config.image_size // patch) ** 2 + 1, config.hidden_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.patch_embedding(pixel_values)
        size = patches.shape[-2:]
        patches = patches.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_embedding.expand(patches.shape[0], 1, -1), patches], dim=1)
        native = torch.arange(self.position_embedding.num_embeddings, device=patches.device)
        return tokens + resize_positions(self.position_embedding(native), size, prefix=1)


class Eva02CLIPAttention(nn.Module):
    """Attention with rotary positions, keys without bias and a norm after the heads are concatenated."""

    is_causal = False

    def __init__(self, config: Eva02CLIPVisionConfig):
        super().__init__()
        self.config = config
        dim, self.num_heads = config.hidden_size, config.num_attention_heads
        self.head_dim = dim // self.num_heads
        if dim % self.num_heads or self.head_dim % 4:
            raise ValueError(
                f"A `hidden_size` of {dim} is not {self.num_heads} heads (`num_attention_heads`) of a multiple of "
                "four channels each, as rotary positions of rows and columns need."
            )
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim)
        self.inner_norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.out_proj = nn.Linear(dim, dim)

    def forward(
        self, hidden_states: Tensor, mask: Tensor | None, cos: Tensor, sin: Tensor, dense: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """With `dense=True` the value path alone: the output of a token that attends only to itself."""
        if dense:
            return self.out_proj(self.inner_norm(self.v_proj(hidden_states))), None
        query, key, value = (
            projection(hidden_states)
            .unflatten(-1, (self.num_heads, self.head_dim))
            .transpose(1, 2)  # (batch, heads, tokens, dim)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        merged, weights = attention(self, query, key, value, mask, scaling=self.head_dim**-0.5, dropout=0.0)
        return self.out_proj(self.inner_norm(merged.flatten(2))), weights


class Eva02CLIPMLP(nn.Module):
    """SwiGLU with a norm before the down projection."""

    def __init__(self, config: Eva02CLIPVisionConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.inner_norm = nn.LayerNorm(config.intermediate_size, eps=config.layer_norm_eps)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        gated = nn.functional.silu(self.gate_proj(hidden_states)) * self.up_proj(hidden_states)
        return self.down_proj(self.inner_norm(gated))


class Eva02CLIPEncoderLayer(GradientCheckpointingLayer):
    """EVA-02's transformer block with a dense path, on which locations do not attend to each other."""

    def __init__(self, config: Eva02CLIPVisionConfig):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = Eva02CLIPAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Eva02CLIPMLP(config)

    def forward(self, hidden_states: Tensor, *context: Tensor | None, dense_residual: str | None = None) -> Tensor:
        """`context` holds the attention mask and the rotary tables."""
        values, _ = self.self_attn(self.layer_norm1(hidden_states), *context, dense=dense_residual is not None)
        hidden_states = values + (hidden_states[:, :1] if dense_residual == "cls" else hidden_states)
        return hidden_states + self.mlp(self.layer_norm2(hidden_states))


class Eva02CLIPEncoder(nn.Module):
    """The stack of blocks."""

    def __init__(self, config: Eva02CLIPVisionConfig):
        super().__init__()
        self.layers = nn.ModuleList([Eva02CLIPEncoderLayer(config) for _ in range(config.num_hidden_layers)])


class Eva02CLIPVisionModel(TransformerTower, PreTrainedModel):
    """EVA-02 CLIP's vision transformer. Dense features are the last block's value path followed by the final norm."""

    config: Eva02CLIPVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]  # a tuple, as in transformers
    supports_gradient_checkpointing = True
    _no_split_modules = ["Eva02CLIPEncoderLayer", "Eva02CLIPVisionEmbeddings"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"attentions": Eva02CLIPAttention}
    _input_embed_layer = "patch_embedding"
    projection_bias = True

    def __init__(self, config: Eva02CLIPVisionConfig):
        super().__init__(config)
        self.embeddings = Eva02CLIPVisionEmbeddings(config)
        self.encoder = Eva02CLIPEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Eva02CLIPVisionEmbeddings):
            init.normal_(module.class_embedding, std=self.config.initializer_range)

    def embed(self, pixel_values):
        pixel_values, grid = self.crop_to_grid(pixel_values)
        hidden_states, config = self.embeddings(pixel_values), self.config
        # Computed in every forward pass (a few kilobytes), so that no buffer depends on image size or dtype.
        head_dim, device = config.hidden_size // config.num_attention_heads, hidden_states.device
        tables = rotary_tables((grid.height, grid.width), head_dim, config.rope_grid, config.rope_theta, device)
        return hidden_states, grid._replace(rotary=tables)

    def read_tokens(self, hidden_states):
        return self.post_layernorm(hidden_states)

    def read_pooled(self, hidden_states):
        return self.post_layernorm(hidden_states[:, 0])


__all__ = ["Eva02CLIPVisionModel"]
