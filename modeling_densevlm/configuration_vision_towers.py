# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Configurations of the vision towers that transformers does not have."""

from typing import Any

from transformers import PreTrainedConfig


class Eva02CLIPVisionConfig(PreTrainedConfig):
    r"""
    Configuration of the vision tower of EVA-02 CLIP (Sun et al., 2023). The defaults are those of B/16.

    Args:
        hidden_size (`int`, *optional*, defaults to 768): width of the tokens.
        intermediate_size (`int`, *optional*, defaults to 2048): hidden width of the SwiGLU MLPs.
        num_hidden_layers (`int`, *optional*, defaults to 12): number of blocks.
        num_attention_heads (`int`, *optional*, defaults to 12): heads per block.
        num_channels (`int`, *optional*, defaults to 3): channels of the image.
        image_size (`int`, *optional*, defaults to 224): native image side in pixels; other sizes are supported.
        patch_size (`int`, *optional*, defaults to 16): side of a patch in pixels.
        layer_norm_eps (`float`, *optional*, defaults to 1e-6): epsilon of all norms.
        rope_theta (`float`, *optional*, defaults to 10000): base of the rotary frequencies.
        rope_grid (`int`, *optional*, defaults to 16):
            Side in patches of the grid on which the rotary positions were pre-trained; cell i of n on an axis has
            position `i / n * rope_grid`.
        initializer_range (`float`, *optional*, defaults to 0.02): standard deviation of randomly initialized weights.
    """

    model_type = "eva02_clip_vision_model"
    base_config_key = "vision_config"

    hidden_size: int = 768
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 16
    layer_norm_eps: float = 1e-6
    rope_theta: float | int = 10000.0
    rope_grid: int = 16
    initializer_range: float = 0.02


class CLIPResNetVisionConfig(PreTrainedConfig):
    r"""
    Configuration of CLIP's ModifiedResNet (Radford et al., 2021). The defaults are those of RN50x4.

    Args:
        stem_size (`int`, *optional*, defaults to 80): channels after the stem; the last stage has 32 times as many.
        depths (`list[int]`, *optional*, defaults to `[4, 6, 10, 6]`): bottlenecks of each of the four stages.
        num_attention_heads (`int`, *optional*, defaults to 40): heads of the attention pool.
        num_channels (`int`, *optional*, defaults to 3): channels of the image.
        image_size (`int`, *optional*, defaults to 288):
            native image side in pixels, a multiple of 32; others are supported.
        initializer_range (`float`, *optional*, defaults to 0.02): standard deviation of randomly initialized weights.
    """

    model_type = "clip_resnet_vision_model"
    base_config_key = "vision_config"
    stage_names = ["stage0", "stage1", "stage2", "stage3"]

    stem_size: int = 80
    depths: list[int] | tuple[int, ...] = (4, 6, 10, 6)
    num_attention_heads: int = 40
    num_channels: int = 3
    image_size: int = 288
    initializer_range: float = 0.02

    @property
    def hidden_size(self) -> int:
        """Channels of the last stage."""
        return 32 * self.stem_size


class TimmConvNextVisionConfig(PreTrainedConfig):
    r"""
    Configuration of a CLIP ConvNeXt of timm (OpenCLIP). The defaults are those of ConvNeXt-B.

    Args:
        architecture (`str`, *optional*, defaults to `"convnext_base"`): its name in timm.
        depths (`list[int]`, *optional*, defaults to `[3, 3, 27, 3]`): blocks of each of the four stages.
        dims (`list[int]`, *optional*, defaults to `[128, 256, 512, 1024]`): channels of each stage.
        image_size (`int`, *optional*, defaults to 224): native image side in pixels; other sizes are supported.
        projection (`str`, *optional*, defaults to `"linear"`):
            Projection into the image-text space: `"linear"`, or `"mlp"`, two layers with a GELU between them.
        projection_bias (`bool`, *optional*, defaults to `False`):
            whether the (last layer of the) projection has a bias.
        architecture_args (`dict`, *optional*): further keyword arguments of timm's constructor.
    """

    model_type = "timm_convnext_vision_model"
    base_config_key = "vision_config"
    stage_names = ["stage0", "stage1", "stage2", "stage3"]

    architecture: str = "convnext_base"
    depths: list[int] | tuple[int, ...] = (3, 3, 27, 3)
    dims: list[int] | tuple[int, ...] = (128, 256, 512, 1024)
    image_size: int = 224
    projection: str = "linear"
    projection_bias: bool = False
    architecture_args: dict[str, Any] | None = None

    @property
    def hidden_size(self) -> int:
        """Channels of the last stage."""
        return self.dims[-1]


class TimmViTVisionConfig(PreTrainedConfig):
    r"""
    Configuration of a CLIP tower that is a plain vision transformer of timm, for those that transformers' CLIP cannot
    express: without class token, with average pooling, register tokens or layer scale. The defaults are those of
    OpenCLIP's `vit_medium_patch16_gap_256`.

    Args:
        architecture (`str`, *optional*, defaults to `"vit_medium_patch16_gap_256"`): its name in timm.
        hidden_size (`int`, *optional*, defaults to 512): width of the tokens.
        num_hidden_layers (`int`, *optional*, defaults to 12): number of blocks.
        num_attention_heads (`int`, *optional*, defaults to 8): heads per block.
        image_size (`int`, *optional*, defaults to 256): native image side in pixels; other sizes are supported.
        patch_size (`int`, *optional*, defaults to 16): side of a patch in pixels.
        pooling (`str`, *optional*, defaults to `"avg"`):
            `"avg"` (mean of the patch tokens) or `"token"` (class token).
        projection (`str`, *optional*, defaults to `"linear"`): `"linear"` or `"mlp"`, as for the ConvNeXts.
        projection_bias (`bool`, *optional*, defaults to `False`):
            whether the (last layer of the) projection has a bias.
        architecture_args (`dict`, *optional*): further keyword arguments of timm's constructor.
    """

    model_type = "timm_vit_vision_model"
    base_config_key = "vision_config"

    architecture: str = "vit_medium_patch16_gap_256"
    hidden_size: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    image_size: int = 256
    patch_size: int = 16
    pooling: str = "avg"
    projection: str = "linear"
    projection_bias: bool = False
    architecture_args: dict[str, Any] | None = None


OWN_CONFIGS = {
    config.model_type: config
    for config in (Eva02CLIPVisionConfig, CLIPResNetVisionConfig, TimmConvNextVisionConfig, TimmViTVisionConfig)
}
"""Configuration classes of this file by `model_type`."""


__all__ = [
    "OWN_CONFIGS",
    "CLIPResNetVisionConfig",
    "Eva02CLIPVisionConfig",
    "TimmConvNextVisionConfig",
    "TimmViTVisionConfig",
]
