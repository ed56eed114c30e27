# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Configuration of a DenseVLM: a vision tower, an optional text tower and the width of the space they share."""

from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import SubConfigSpec

from .configuration_vision_towers import OWN_CONFIGS


DENSE_STAGE = "dense"
"""The last stage of the model as a backbone: its dense map."""


class _TowerSpec(SubConfigSpec):
    """A tower's configuration by its `model_type`: one of ours or of transformers."""

    def get_config_class(self, model_type: str | None = None) -> type[PreTrainedConfig]:
        if model_type in OWN_CONFIGS:
            return OWN_CONFIGS[model_type]
        try:
            return super().get_config_class(model_type)
        except ValueError as error:
            raise ValueError(
                f"{model_type!r} is no tower that is known here. One from elsewhere is registered before its models "
                "are loaded: `modeling_densevlm.external_towers.register_tower(MyTower)`; no folder carries its code."
            ) from error


class DenseVLMConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""
    Configuration of a [`DenseVLMModel`]. Its fields are those of [`CLIPConfig`], so the `config.json` of any CLIP,
    SigLIP or SigLIP 2 checkpoint of transformers reads as one.

    Args:
        vision_config (`dict` or `PreTrainedConfig`, *optional*):
            The vision tower; its `model_type` says which: `"clip_vision_model"` (the default, a ViT-B/32),
            `"eva02_clip_vision_model"`, `"clip_resnet_vision_model"`, `"siglip_vision_model"`,
            `"siglip2_vision_model"`, `"timm_convnext_vision_model"` or `"timm_vit_vision_model"`.
        text_config (`dict` or `PreTrainedConfig`, *optional*):
            The text tower: `"clip_text_model"`, `"siglip_text_model"` or `"siglip2_text_model"`. `None` (the default)
            builds a model without one: it gives dense features, and category embeddings have to come from elsewhere.
        projection_dim (`int`, *optional*):
            Width of the image-text space. Defaults to 512, and to the vision tower's width where it has no
            projection (SigLIP).
        logit_scale_init_value (`float`, *optional*, defaults to 2.6592):
            Logarithm of the scale (the inverse temperature) CLIP was trained with.
        logit_bias_init_value (`float`, *optional*):
            Bias of the logits of a sigmoid loss (SigLIP). `None` (the default) for a model without one.
        initializer_factor (`float`, *optional*, defaults to 1.0):
            Factor on the standard deviations of randomly initialized weights.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the randomly initialized weights of a head around the model.
        out_features (`list[str]`, *optional*):
            Maps the model gives as a backbone: `"block0"`, `"block1"` ... of a transformer, `"stage0"` to `"stage3"`
            of a CNN, and `"dense"`, the dense map (the default).
        out_indices (`list[int]`, *optional*):
            The same by number: 0 is the first block (or stage), the last number is the dense map.
        reshape_hidden_states (`bool`, *optional*, defaults to `True`):
            Whether the maps a backbone gives are `(batch, channels, height, width)`. Some heads (DPT, Depth Anything)
            need `False`: sequences `(batch, 1 + height * width, channels)`, each with the map's mean in front, where
            such heads look for a class token.
    """

    model_type = "densevlm"
    sub_configs_defaults = {
        "vision_config": _TowerSpec(AutoConfig, model_type="clip_vision_model"),
        "text_config": _TowerSpec(AutoConfig, model_type="clip_text_model", optional=True),
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    projection_dim: int | None = None
    logit_scale_init_value: float = 2.6592
    logit_bias_init_value: float | None = None
    initializer_factor: float = 1.0
    initializer_range: float = 0.02
    reshape_hidden_states: bool = True
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any):
        wanted = {key: kwargs.pop(key, None) for key in ("out_features", "out_indices")}
        super().__post_init__(**kwargs)
        if self.projection_dim is None:
            is_siglip = self.vision_config.model_type.startswith("siglip")
            self.projection_dim = self.vision_config.hidden_size if is_siglip else 512
        self.set_output_features_output_indices(**wanted)

    def verify_out_features_out_indices(self) -> None:
        # Names say which maps are meant, whatever their numbers are in a tower of another depth.
        if self._out_features is not None and set(self._out_features) <= set(self.stage_names):
            self._out_indices = [self.stage_names.index(name) for name in self._out_features]
        super().verify_out_features_out_indices()

    @property
    def stage_names(self) -> list[str]:
        """The maps a backbone can give, in the order they are computed."""
        own = getattr(self.vision_config, "stage_names", None)
        return [*(own or (f"block{i}" for i in range(self.vision_config.num_hidden_layers))), DENSE_STAGE]

    # What heads of transformers read off the configuration of a backbone, where the vision tower has it.

    @property
    def hidden_size(self) -> int:
        return self.vision_config.hidden_size

    @property
    def image_size(self) -> int:
        return self.vision_config.image_size

    @property
    def num_channels(self) -> int:
        return self.vision_config.num_channels

    @property
    def patch_size(self) -> int:
        return self.vision_config.patch_size

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        config, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return cls.translate(config), kwargs

    @classmethod
    def translate(cls, config: dict[str, Any]) -> dict[str, Any]:
        """
        The `config.json` of a CLIP or SigLIP of transformers as ours.

        Raises:
            `ValueError` for one of another kind of model.
        """
        family = config.get("model_type")
        if family in (None, cls.model_type):
            return config
        if family not in ("clip", "siglip", "siglip2"):
            raise ValueError(
                f"This is the configuration of a {family}. A DenseVLM is read from a CLIP, SigLIP or SigLIP 2 with "
                "both towers, or from a folder of its own."
            )
        # Read by its own class, which knows the forms it had over the years (`vision_config_dict`, left-out defaults).
        theirs = CONFIG_MAPPING[family].from_dict(config).to_dict()
        own = {**theirs, "model_type": cls.model_type}
        return own if family == "clip" else {**own, "projection_dim": None, "logit_bias_init_value": 0.0}


__all__ = ["DENSE_STAGE", "DenseVLMConfig"]
