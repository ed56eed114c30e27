# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""CLIP towers that only timm has: ConvNeXts, and plain vision transformers that differ from transformers' CLIP."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .configuration_vision_towers import TimmConvNextVisionConfig, TimmViTVisionConfig
from .vision_tower import ConvTower, TransformerTower, VisionTower, resize_positions


try:
    import timm
    from timm.layers import Mlp, PatchEmbed
    from timm.models.vision_transformer import Attention, Block, VisionTransformer
except ImportError:
    timm = None  # type: ignore[assignment]
    Attention = Block = Mlp = PatchEmbed = VisionTransformer = nn.Module  # type: ignore


def create_trunk(architecture: str, **arguments: Any) -> nn.Module:
    """A timm network without classifier, randomly initialized; nothing is downloaded."""
    if timm is None:
        raise ImportError(f"The vision tower {architecture} is built by timm: `pip install timm`.")
    return timm.create_model(architecture, pretrained=False, num_classes=0, **arguments)


def check_plain_vit(trunk: nn.Module, architecture: str) -> None:
    """Raises a `ValueError` unless the blocks of a network have the value path that [`DenseTimmBlock`] requires."""
    plain = (
        isinstance(trunk, VisionTransformer)
        and type(trunk.patch_embed) is PatchEmbed
        and trunk.attn_pool is None
        and trunk.pos_embed is not None
        and all(type(block) is Block and type(block.attn) is Attention for block in trunk.blocks)
        and getattr(trunk.blocks[-1].attn, "gate", None) is None
    )
    if not plain:
        raise ValueError(f"timm's {architecture} is not a plain vision transformer and has no dense path here.")


class MLPProjection(nn.Module):
    """Projection by a two-layer MLP, the head of open_clip's larger ConvNeXts."""

    def __init__(self, hidden_size: int, dim: int, bias: bool):
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, 2 * dim)
        self.fc2 = nn.Linear(2 * dim, dim, bias=bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(features)))


class TimmTower(VisionTower, PreTrainedModel):
    """Base of the timm towers: initialization, gradient checkpointing per block, and the MLP projection."""

    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]  # a tuple, as in transformers
    supports_gradient_checkpointing = True
    gradient_checkpointing = False
    _supports_sdpa = True

    def _init_weights(self, module: nn.Module) -> None:
        """Does nothing: timm initializes the trunk, and loading raises an error for missing weights."""

    @property
    def projection_bias(self):
        return self.config.projection_bias

    def make_projection(self, dim):
        if self.config.projection not in ("linear", "mlp"):
            raise ValueError(f"`projection` is 'linear' or 'mlp', got {self.config.projection!r}.")
        if self.config.projection == "mlp":
            return MLPProjection(self.hidden_size, dim, bias=self.projection_bias)
        return super().make_projection(dim)

    def run_block(self, block: nn.Module, hidden_states: Tensor, *context: Any, **options: Any) -> Tensor:
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(partial(block, **options), hidden_states, *context)
        return block(hidden_states, *context, **options)


class LocationMlp(Mlp):
    """MLP of timm that calls its layers on three dimensions, `(batch, locations, hidden)`, as replaced layers need."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1, 2)).unflatten(1, x.shape[1:3])


class TimmConvNextVisionModel(ConvTower, TimmTower):
    """
    A CLIP ConvNeXt. Dense features are the head's norm, applied at every location of the last stage's map. The global
    feature is the norm of the map's mean, not the mean of the dense features.
    """

    config: TimmConvNextVisionConfig
    _no_split_modules = ["ConvNeXtBlock"]

    def __init__(self, config: TimmConvNextVisionConfig):
        super().__init__(config)
        sizes = {"depths": tuple(config.depths), "dims": tuple(config.dims)}
        self.trunk = create_trunk(config.architecture, **sizes, **(config.architecture_args or {}))
        if not isinstance(self.trunk.norm_pre, nn.Identity):
            raise ValueError(f"timm's {config.architecture} norms before it pools: it has no dense path here.")
        for module in self.trunk.modules():
            if type(module) is Mlp and isinstance(module.fc1, nn.Linear):  # not those of convolutions
                module.__class__ = LocationMlp
        self.post_init()

    def get_input_embeddings(self):
        return self.trunk.stem[0]

    @property
    def stage_channels(self):
        return list(self.config.dims)

    def embed(self, pixel_values):
        pixel_values, grid = self.crop_to_grid(pixel_values)
        return self.trunk.stem(pixel_values), grid

    def run_stage(self, index, hidden_states, *_):
        stage = self.trunk.stages[index]
        hidden_states = stage.downsample(self.require_input_grad(hidden_states, stage))
        for block in stage.blocks:
            hidden_states = self.run_block(block, hidden_states)
        return hidden_states

    def read(self, hidden_states, grid, pooled=False):
        norm = self.trunk.head.norm
        if pooled:
            return norm(hidden_states.mean((2, 3), keepdim=True)).flatten(1)
        return norm(hidden_states).permute(0, 2, 3, 1)

    def trainable_blocks(self):
        blocks = []
        for stage in self.trunk.stages:
            first, *rest = stage.blocks
            # The downsampling layer is counted with the stage's first block.
            blocks.append([*stage.downsample.parameters(), *first.parameters()])
            blocks += [list(block.parameters()) for block in rest]
        return blocks


class DenseTimmAttention(Attention):
    """Attention of timm, with its value path alone as an option: the output of a token that attends only to itself."""

    def forward(self, x: Tensor, *args: Any, dense: bool = False, **kwargs: Any) -> Tensor:
        if not dense:
            return super().forward(x, *args, **kwargs)
        # Query, key and value are one layer. It is called as a whole: adapters and quantized layers cannot be sliced.
        return self.proj(self.norm(self.qkv(x).chunk(3, dim=-1)[2]))


class DenseTimmBlock(Block):
    """Transformer block of timm with a dense path, on which locations do not attend to each other."""

    def forward(self, x: Tensor, *args: Any, dense_residual: str | None = None, **kwargs: Any) -> Tensor:
        if dense_residual is None:
            return super().forward(x, *args, **kwargs)
        x = (x[:, :1] if dense_residual == "cls" else x) + self.ls1(self.attn(self.norm1(x), dense=True))
        return x + self.ls2(self.mlp(self.norm2(x)))


class TimmTrunk(VisionTransformer):
    """
    Vision transformer of timm whose call returns the input of its first block: prefix and patch tokens with positions.
    The prefix tokens and positions are parameters of this module, so this is the module to call (hooks run).
    """

    def forward(self, pixel_values: Tensor, size: tuple[int, int]) -> Tensor:
        hidden_states = self.patch_embed(pixel_values).flatten(1, 2)  # (batch, patches, hidden)
        assert self.pos_embed is not None  # by `check_plain_vit`
        positions = self.pos_embed[0]
        prefix = [token for token in (self.cls_token, self.reg_token) if token is not None]
        prefix = [token.expand(hidden_states.shape[0], -1, -1) for token in prefix]
        if self.no_embed_class:
            hidden_states = hidden_states + resize_positions(positions, size, prefix=0)
        hidden_states = torch.cat([*prefix, hidden_states], dim=1)
        if not self.no_embed_class:
            hidden_states = hidden_states + resize_positions(positions, size, self.num_prefix_tokens)
        return self.norm_pre(hidden_states)


class TimmViTVisionModel(TransformerTower, TimmTower):
    """
    A plain vision transformer of timm. Dense features are the last block's value path followed by the final norm.

    Query, key and value are one layer in timm. Dense training gives zero gradients to the query and key rows of the
    last block, but weight decay still shrinks them, which changes the global feature and not the dense features.
    """

    config: TimmViTVisionConfig
    _no_split_modules = ["Block", "DenseTimmBlock"]

    def __init__(self, config: TimmViTVisionConfig):
        super().__init__(config)
        self.trunk: Any = create_trunk(
            config.architecture,
            img_size=config.image_size,
            patch_size=config.patch_size,
            embed_dim=config.hidden_size,
            depth=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            dynamic_img_size=True,
            **(config.architecture_args or {}),
        )
        check_plain_vit(self.trunk, config.architecture)
        if config.pooling not in ("avg", "token") or (config.pooling == "token" and self.trunk.cls_token is None):
            raise ValueError(f"`pooling` is 'avg', or 'token' where there is a class token; got {config.pooling!r}.")
        # `embed` crops the image already, and timm's check would make the image size a constant of traced graphs.
        patch_embed: Any = self.trunk.patch_embed
        patch_embed.img_size = None
        self.trunk.__class__ = TimmTrunk
        self.blocks[-1].__class__ = DenseTimmBlock
        self.blocks[-1].attn.__class__ = DenseTimmAttention
        self.post_init()

    def get_input_embeddings(self):
        return self.trunk.patch_embed.proj

    @property
    def num_prefix_tokens(self):
        return self.trunk.num_prefix_tokens

    @property
    def has_class_token(self):
        return self.trunk.cls_token is not None

    @property
    def blocks(self):
        return self.trunk.blocks

    def embed(self, pixel_values):
        pixel_values, grid = self.crop_to_grid(pixel_values)
        fused = self.config._attn_implementation != "eager"
        if self.blocks[0].attn.fused_attn != fused:  # `set_attn_implementation` may have been called
            for block in self.blocks:
                block.attn.fused_attn = fused
        return self.trunk(pixel_values, (grid.height, grid.width)), grid

    def read_tokens(self, hidden_states):
        return self.trunk.fc_norm(self.trunk.norm(hidden_states))

    def read_pooled(self, hidden_states):
        hidden_states = self.trunk.norm(hidden_states)
        pooled = (
            hidden_states[:, 0]
            if self.config.pooling == "token"
            else hidden_states[:, self.num_prefix_tokens :].mean(1)
        )
        return self.trunk.fc_norm(pooled)

    def unused_when_dense(self, last):
        return [last.attn.q_norm, last.attn.k_norm]


__all__ = ["TimmConvNextVisionModel", "TimmViTVisionModel"]
