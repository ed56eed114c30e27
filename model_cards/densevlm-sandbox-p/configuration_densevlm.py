"""Configuration of a DenseVLM: a vision tower, an optional text tower and the width of the space they share."""

from transformers import CLIPTextConfig, CLIPVisionConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


class DenseVLMConfig(PreTrainedConfig):
    r"""
    Configuration of a [`DenseVLMModel`]. Its fields are those of [`CLIPConfig`], so the `config.json` of any CLIP
    checkpoint of transformers reads as one.

    Args:
        vision_config (`dict` or `CLIPVisionConfig`, *optional*):
            The vision tower. Defaults to CLIP ViT-B/32.
        text_config (`dict` or `CLIPTextConfig`, *optional*):
            The text tower. `None` (the default) builds a model without one: it gives dense features, and category
            embeddings have to come from elsewhere.
        projection_dim (`int`, *optional*, defaults to 512):
            Width of the image-text space.
        logit_scale_init_value (`float`, *optional*, defaults to 2.6592):
            Logarithm of the scale (the inverse temperature) CLIP was trained with.
        initializer_factor (`float`, *optional*, defaults to 1.0):
            Factor on the standard deviations of freshly drawn weights.
    """

    model_type = "densevlm"
    sub_configs_defaults = {
        "vision_config": CLIPVisionConfig,
        "text_config": SubConfigSpec(config_class=CLIPTextConfig, optional=True),
    }

    vision_config: dict | CLIPVisionConfig | None = None
    text_config: dict | CLIPTextConfig | None = None
    projection_dim: int = 512
    logit_scale_init_value: float = 2.6592
    initializer_factor: float = 1.0

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        config, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config.get("model_type") == "clip":  # reads as ours, field by field: nothing to be warned of
            config = {**config, "model_type": cls.model_type}
        return config, kwargs


__all__ = ["DenseVLMConfig"]
