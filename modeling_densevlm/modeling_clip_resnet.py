# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""CLIP's ModifiedResNet (Radford et al., 2021): RN50, RN50x4 etc., with a dense mode of its attention pool."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import eager_attention_forward

from .configuration_vision_towers import CLIPResNetVisionConfig
from .vision_tower import ConvTower, resize_positions


class CLIPResNetBottleneck(GradientCheckpointingLayer):
    """Bottleneck whose convolutions all have stride 1; average pooling does the downsampling."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = None
        if stride > 1 or channels != 4 * width:
            self.downsample = nn.Sequential(nn.Conv2d(channels, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width))

    def forward(self, hidden_states: Tensor) -> Tensor:
        residual = nn.functional.relu(self.bn1(self.conv1(hidden_states)))
        residual = self._downsample(nn.functional.relu(self.bn2(self.conv2(residual))))
        residual = self.bn3(self.conv3(residual))
        if self.downsample is not None:
            hidden_states = self.downsample(self._downsample(hidden_states))
        return nn.functional.relu(hidden_states + residual)

    def _downsample(self, hidden_states: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(hidden_states, self.stride) if self.stride > 1 else hidden_states


class CLIPResNetAttentionPool(nn.Module):
    """
    Attention pooling with the mean of the map as query. In dense mode, every location returns its own value. The
    output projection is the `visual_projection` of the model.
    """

    is_causal = False

    def __init__(self, config: CLIPResNetVisionConfig):
        super().__init__()
        self.config = config
        dim, self.num_heads = config.hidden_size, config.num_attention_heads
        self.head_dim = dim // self.num_heads
        if dim % self.num_heads:
            raise ValueError(f"A width of {dim} is not {self.num_heads} heads (`num_attention_heads`) of equal width.")
        self.positional_embedding = nn.Parameter(torch.zeros((config.image_size // 32) ** 2 + 1, dim))
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)

    def forward(self, hidden_states: Tensor, dense: bool = False) -> Tensor:
        """
        Pools the last stage's map.

        Args:
            hidden_states (`torch.Tensor` of shape `(batch, dim, height, width)`): the last stage's map.
            dense (`bool`, *optional*, defaults to `False`): whether to return the value of every location instead.

        Returns:
            `torch.Tensor` of shape `(batch, height, width, dim)` if `dense`, otherwise `(batch, dim)`.
        """
        size = (hidden_states.shape[-2], hidden_states.shape[-1])
        positions = resize_positions(self.positional_embedding, size, prefix=1)
        # (batch, height * width, dim), contiguous: some quantized layers ignore strides
        tokens = hidden_states.flatten(2).transpose(1, 2).contiguous()
        if dense:
            return self.v_proj(tokens + positions[1:]).unflatten(1, size)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1) + positions
        query, key, value = (
            projection(states)
            .unflatten(-1, (self.num_heads, self.head_dim))
            .transpose(1, 2)  # (batch, heads, tokens, head_dim)
            for projection, states in ((self.q_proj, tokens[:, :1]), (self.k_proj, tokens), (self.v_proj, tokens))
        )
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        return attention(self, query, key, value, None, scaling=self.head_dim**-0.5, dropout=0.0)[0].flatten(1)


class CLIPResNetVisionModel(ConvTower, PreTrainedModel):
    """
    CLIP's ModifiedResNet. Dense features are the attention pool's values at every location of the last stage's map.

    Batch-norm statistics stay frozen in training, as fine-tuning batches are small and differ from those of
    pre-training. The scale and shift of the norms are trainable.
    """

    config: CLIPResNetVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]  # a tuple, as in transformers
    supports_gradient_checkpointing = True
    _no_split_modules = ["CLIPResNetBottleneck", "CLIPResNetAttentionPool"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _input_embed_layer = "conv1"
    projection_bias = True

    def __init__(self, config: CLIPResNetVisionConfig):
        super().__init__(config)
        stem = config.stem_size
        self.conv1 = nn.Conv2d(config.num_channels, stem // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem // 2)
        self.conv2 = nn.Conv2d(stem // 2, stem // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(stem // 2)
        self.conv3 = nn.Conv2d(stem // 2, stem, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(stem)
        channels, stages = stem, []
        for index, depth in enumerate(config.depths):
            width, blocks = stem * 2**index, []
            for block in range(depth):
                blocks.append(CLIPResNetBottleneck(channels, width, stride=2 if index > 0 and block == 0 else 1))
                channels = 4 * width
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.attnpool = CLIPResNetAttentionPool(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, CLIPResNetBottleneck):
            init.zeros_(module.bn3.weight)
        elif isinstance(module, CLIPResNetAttentionPool):
            init.normal_(module.positional_embedding, std=self.config.hidden_size**-0.5)

    def train(self, mode: bool = True) -> "CLIPResNetVisionModel":
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):  # also SyncBatchNorm
                module.eval()
        return self

    @property
    def stages(self) -> tuple[nn.Sequential, ...]:
        """The four stages after the stem."""
        return self.layer1, self.layer2, self.layer3, self.layer4

    @property
    def stage_channels(self):
        return [4 * self.config.stem_size * 2**index for index in range(4)]

    def embed(self, pixel_values):
        hidden_states, grid = self.crop_to_grid(pixel_values)
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            hidden_states = nn.functional.relu(norm(conv(hidden_states)))
        return nn.functional.avg_pool2d(hidden_states, 2), grid

    def run_stage(self, index, hidden_states, *_):
        stage = self.stages[index]
        return stage(self.require_input_grad(hidden_states, stage[0]))

    def read(self, hidden_states, grid, pooled=False):
        return self.attnpool(hidden_states, dense=not pooled)

    def trainable_blocks(self):
        return [list(block.parameters()) for stage in self.stages for block in stage]


__all__ = ["CLIPResNetVisionModel"]
