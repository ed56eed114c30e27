# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Configuration of a DenseVLM: a vision tower, an optional text tower and their joint image-text space."""

import math
from os import PathLike
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import SubConfigSpec

from .configuration_vision_towers import OWN_CONFIGS


DENSE_STAGE = "dense"
"""Name of the dense map, the last stage of the model as a backbone."""

HUB_KEYS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
"""Options of loading from the Hub."""


class _TowerSpec(SubConfigSpec):
    """Finds the configuration class of a tower by its `model_type`, in this package or in transformers."""

    def get_config_class(self, model_type: str | None = None) -> type[PreTrainedConfig]:
        if model_type in OWN_CONFIGS:
            return OWN_CONFIGS[model_type]
        try:
            return super().get_config_class(model_type)
        except ValueError as error:
            raise ValueError(
                f"{model_type!r} is no tower of this package. Register external towers before their models are "
                "loaded: `modeling_densevlm.external_towers.register_tower(MyTower)`, or `--tower` of the programs; "
                "saved folders lack their code."
            ) from error


class DenseVLMConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""
    Configuration of a [`DenseVLMModel`]. It extends [`CLIPConfig`]: the `config.json` of any CLIP, SigLIP or SigLIP 2
    checkpoint of transformers can be loaded as a `DenseVLMConfig`.

    Args:
        vision_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration of the vision tower, with `model_type` `"clip_vision_model"` (the default, a ViT-B/32),
            `"eva02_clip_vision_model"`, `"clip_resnet_vision_model"`, `"siglip_vision_model"`,
            `"siglip2_vision_model"`, `"tipsv2_vision_model"`, `"timm_convnext_vision_model"` or
            `"timm_vit_vision_model"`.
        text_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration of the text tower, with `model_type` `"clip_text_model"`, `"siglip_text_model"`,
            `"siglip2_text_model"` or `"tipsv2_text_model"`. If `None` (the default), the model has no text tower, and
            category embeddings must be given as a file.
        projection_dim (`int`, *optional*):
            Dimension of the image-text space. Defaults to 512, or to the width of the vision tower for SigLIP and
            TIPSv2, which have no projection.
        logit_scale_init_value (`float`, *optional*, defaults to 2.6592):
            Logarithm of the scale (inverse temperature) of the logits.
        logit_bias_init_value (`float`, *optional*):
            Bias of the logits of a sigmoid loss (SigLIP). `None` (the default) for a model without such a bias.
        initializer_factor (`float`, *optional*, defaults to 1.0):
            Factor on the standard deviations of randomly initialized weights.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the randomly initialized weights of a head around the model.
        out_features (`list[str]`, *optional*):
            Feature maps returned by the model as a backbone: `"block0"`, `"block1"` ... of a transformer, `"stage0"`
            to `"stage3"` of a CNN, and `"dense"`, the dense map (the default).
        out_indices (`list[int]`, *optional*):
            The same by index: 0 is the first block (or stage), the last index is the dense map.
        reshape_hidden_states (`bool`, *optional*, defaults to `True`):
            Whether feature maps have shape `(batch, channels, height, width)`. If `False`, as some heads (DPT, Depth
            Anything) require, they are sequences `(batch, 1 + height * width, channels)`, whose first token, in the
            place of a class token, is the mean of the map.
        categories (`dict`, *optional*):
            Vocabulary of a [`DenseVLMForSemanticSegmentation`], set by its `set_categories`: `names`, `is_thing` and
            `templates`. The fields below are its options.
        thing_offset (`float`, *optional*, defaults to 0.0):
            Offset δ that is subtracted from the cosines of things, to shift the balance between things and stuff.
        window_size (`int`, *optional*):
            Side of sliding windows in pixels, a multiple of the patch. By default the image is processed as a whole.
        window_stride (`int`, *optional*):
            Distance between windows in pixels, a multiple of the patch. Defaults to `window_size`.
        background (`str`, *optional*):
            Name of a category that is assigned to the pixels where no other category is probable.
        background_threshold (`float`, *optional*, defaults to 0.5):
            A pixel is background if the highest probability of all other categories is below.
        upsampling (`str`, *optional*, defaults to `"bilinear"`):
            How the logits are enlarged to the image: `"bilinear"`, `"bicubic"` or `"nearest"`.
    """

    model_type = "densevlm"
    sub_configs_defaults = {
        "vision_config": _TowerSpec(AutoConfig, model_type="clip_vision_model"),
        "text_config": _TowerSpec(AutoConfig, model_type="clip_text_model", optional=True),
    }

    vision_config: Any = None
    text_config: Any = None
    projection_dim: int | None = None
    logit_scale_init_value: float = 2.6592
    logit_bias_init_value: float | None = None
    initializer_factor: float = 1.0
    initializer_range: float = 0.02
    reshape_hidden_states: bool = True
    categories: dict[str, Any] | None = None
    thing_offset: float = 0.0
    window_size: int | None = None
    window_stride: int | None = None
    background: str | None = None
    background_threshold: float = 0.5
    upsampling: str = "bilinear"
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any):
        requested = {key: kwargs.pop(key, None) for key in ("out_features", "out_indices")}
        if isinstance(self.vision_config, dict):  # that of a backbone of transformers may name maps of another depth
            self.vision_config = {k: v for k, v in self.vision_config.items() if k not in requested}
        super().__post_init__(**kwargs)
        if self.projection_dim is None:
            without_projection = self.vision_config.model_type.startswith(("siglip", "tipsv2"))
            self.projection_dim = self.vision_config.hidden_size if without_projection else 512
        self.set_output_features_output_indices(**requested)

    def verify_out_features_out_indices(self) -> None:
        # Names take precedence over indices, which change with the depth of the tower.
        if self._out_features is not None and set(self._out_features) <= set(self.stage_names):
            self._out_indices = [self.stage_names.index(name) for name in self._out_features]
        super().verify_out_features_out_indices()

    @property
    def stage_names(self) -> list[str]:
        """Names of the maps that the model can return as a backbone, in order of computation."""
        is_backbone = isinstance(self.vision_config, BackboneConfigMixin)  # of transformers, with names of its own
        own = None if is_backbone else getattr(self.vision_config, "stage_names", None)
        return [*(own or (f"block{i}" for i in range(self.vision_config.num_hidden_layers))), DENSE_STAGE]

    # Attributes that heads of transformers read from the configuration of their backbone.

    @property
    def hidden_size(self) -> int:
        """Width of the vision tower."""
        return self.vision_config.hidden_size

    @property
    def image_size(self) -> int:
        """Native side in pixels of the vision tower."""
        return self.vision_config.image_size

    @property
    def num_channels(self) -> int:
        """Channels of the image."""
        return self.vision_config.num_channels

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.vision_config.patch_size

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        config, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return cls.translate(config), kwargs

    @classmethod
    def translate(cls, config: dict[str, Any]) -> dict[str, Any]:
        """
        Converts the `config.json` of a CLIP, SigLIP or TIPSv2 of transformers; that of a DenseVLM is returned
        unchanged.

        Args:
            config (`dict`): content of the file.

        Returns:
            `dict`: content of the `config.json` of a DenseVLM.

        Raises:
            `ValueError` for other kinds of models.
        """
        family = config.get("model_type")
        if family in (None, cls.model_type):
            return config
        if family not in ("clip", "siglip", "siglip2", "tipsv2"):
            raise ValueError(
                f"This is the configuration of a {family}. A DenseVLM is loaded from a CLIP, SigLIP, SigLIP 2 or "
                "TIPSv2 with both towers, or from a folder of its own."
            )
        # Parsed by its own class, which handles legacy forms (`vision_config_dict`, omitted defaults).
        theirs = CONFIG_MAPPING[family].from_dict(config).to_dict()
        own = {**theirs, "model_type": cls.model_type}
        if family == "tipsv2":
            own["logit_scale_init_value"] = -math.log(own.pop("temperature_init_value"))
            return {**own, "projection_dim": None}
        return own if family == "clip" else {**own, "projection_dim": None, "logit_bias_init_value": 0.0}


def read_config(source: str | PathLike, **kwargs: Any) -> dict[str, Any]:
    """The `config.json` of a folder or Hub name as it is, empty without one; `kwargs` are for loading from the Hub."""
    if Path(source).is_file():
        return {}
    try:
        return PreTrainedConfig.get_config_dict(source, **kwargs)[0]
    except (OSError, ValueError):
        return {}


__all__ = ["DENSE_STAGE", "HUB_KEYS", "DenseVLMConfig", "read_config"]
