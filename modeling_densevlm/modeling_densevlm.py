"""DenseVLM: a CLIP that gives a feature in the image-text space for every location of the image."""

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling

from .configuration_densevlm import DENSE_STAGE, DenseVLMConfig
from .modeling_clip_resnet import CLIPResNetVisionModel
from .modeling_clip_vit import DenseCLIPVisionModel
from .modeling_eva_clip import Eva02CLIPVisionModel
from .modeling_siglip import DenseSiglip2VisionModel, DenseSiglipVisionModel
from .modeling_timm_clip import TimmConvNextVisionModel, TimmViTVisionModel
from .region_pooling import pool_boxes, pool_masks
from .text_towers import CLIPTextTower, Siglip2TextTower, SiglipTextTower


@dataclass
class DenseVLMOutput(BackboneOutput):
    r"""
    What a pass gives; as that of a transformers backbone, it has `feature_maps`.

    Args:
        dense_embeds (`torch.Tensor` of shape `(batch, dim, height, width)`):
            The dense map, unit norm over `dim` at every location.
        region_embeds (`torch.Tensor` of shape `(regions, dim)`, *optional*):
            The map pooled over the given boxes or masks, in image order; not normalised again.
        image_embeds (`torch.Tensor` of shape `(batch, dim)`, *optional*):
            The global image features of the unmodified path, not normalised.
        feature_maps (`tuple[torch.Tensor]`):
            The maps named by `config.out_features`, each of shape `(batch, channels, height, width)`; by default the
            dense map alone.
    """

    dense_embeds: Tensor | None = None
    region_embeds: Tensor | None = None
    image_embeds: Tensor | None = None


VISION_TOWERS = {
    "clip_vision_model": DenseCLIPVisionModel,
    "eva02_clip_vision_model": Eva02CLIPVisionModel,
    "clip_resnet_vision_model": CLIPResNetVisionModel,
    "siglip_vision_model": DenseSiglipVisionModel,
    "siglip2_vision_model": DenseSiglip2VisionModel,
    "timm_convnext_vision_model": TimmConvNextVisionModel,
    "timm_vit_vision_model": TimmViTVisionModel,
}
"""By the `model_type` of `config.vision_config`. A tower says itself how it gives dense features."""

UNTOLD_BY_FINGERPRINT = {
    "attention_dropout",
    "initializer_factor",
    "initializer_range",
    "out_features",
    "out_indices",
    "projection",
    "projection_bias",
    "projection_dim",
}
"""Of a tower's configuration: what changes no feature, or is seen in the weights."""

TEXT_TOWERS = {
    "clip_text_model": CLIPTextTower,
    "siglip_text_model": SiglipTextTower,
    "siglip2_text_model": Siglip2TextTower,
}
"""By the `model_type` of `config.text_config`."""


class DenseVLMPreTrainedModel(PreTrainedModel):
    config: DenseVLMConfig
    config_class = DenseVLMConfig
    base_model_prefix = "densevlm"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # The towers draw their own weights; what is left are the projections into the shared space.
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=module.in_features**-0.5 * self.config.initializer_factor)
        elif isinstance(module, DenseVLMModel):
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)
            if module.logit_bias is not None:
                init.constant_(module.logit_bias, self.config.logit_bias_init_value)


class DenseVLMModel(BackboneMixin, DenseVLMPreTrainedModel):
    r"""
    A CLIP with dense features in the image-text space.

    ```python
    >>> model = DenseVLMModel.from_pretrained("openai/clip-vit-base-patch16")  # any CLIP or SigLIP of transformers
    >>> dense = model.get_dense_features(pixel_values)  # (batch, 512, height / 16, width / 16), unit norm
    ```

    It is a backbone in the sense of transformers, too: `out_indices` (or `out_features`) name the maps that detectors
    and segmenters tap. They come from the dense pass itself; the last block's is the one on the dense path.

    ```python
    >>> model = DenseVLMModel.from_pretrained(folder, out_indices=[3, 5, 7, 11, 12])  # four blocks and the dense map
    >>> maps = model(pixel_values).feature_maps  # with model.channels and model.strides
    ```
    """

    def __init__(self, config: DenseVLMConfig):
        super().__init__(config)
        self.vision_model = _tower(VISION_TOWERS, config.vision_config)
        self.visual_projection = self.vision_model.make_projection(config.projection_dim)
        self.text_model = self.text_projection = None
        if config.text_config is not None:
            self.text_model = _tower(TEXT_TOWERS, config.text_config)
            self.text_projection = self.text_model.make_projection(config.projection_dim)
        # SigLIP keeps its two numbers as vectors of one.
        sigmoid = config.logit_bias_init_value is not None
        scale = torch.tensor(config.logit_scale_init_value)
        self.logit_scale = nn.Parameter(scale[None] if sigmoid else scale)
        self.logit_bias = nn.Parameter(torch.tensor([config.logit_bias_init_value])) if sigmoid else None
        self.num_features = [*self.vision_model.stage_channels, config.projection_dim]
        self.post_init()

    def post_init(self) -> None:
        # Not the mixin's: it hooks a recorder of hidden states onto every layer; the maps are tapped without.
        DenseVLMPreTrainedModel.post_init(self)

    @property
    def out_feature_strides(self) -> dict[str, int]:
        """Pixels of the image a cell, for every map the model can give."""
        return dict(zip(self.stage_names, [*self.vision_model.stage_strides, self.vision_model.stride]))

    @property
    def strides(self) -> list[int]:
        """Pixels of the image a cell, for each map of `out_features`."""
        return [self.out_feature_strides[name] for name in self.out_features]

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        """
        As [`PreTrainedModel.from_pretrained`], but strict: weights that are missing or of another shape would be
        drawn at random, so they raise a `ValueError` that names them. The text tower of a CLIP checkpoint is left
        out where the given `config` has none.
        """
        source = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        if source is not None and Path(source).is_file():
            raise OSError(
                f"{source} is a file and no folder. A checkpoint is converted first: `python -m "
                "modeling_densevlm.convert_open_clip`."
            )
        try:
            model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        except OSError as error:
            if source is None or Path(source).exists():
                raise
            raise OSError(
                f"There is no folder {source}, and it could not be had from the Hub: {str(error).splitlines()[0]} "
                "Checkpoints of other layouts are converted first (modeling_densevlm.convert_open_clip)."
            ) from error
        missing, mismatched = sorted(info["missing_keys"]), sorted(str(key) for key in info["mismatched_keys"])
        if missing or mismatched:
            raise ValueError(
                f"{source} does not hold this model. Missing: {_shorten(missing)}. Of another shape: "
                f"{_shorten(mismatched)}. Use the folder the weights were saved with, or convert the checkpoint "
                "(modeling_densevlm.convert_open_clip)."
            )
        return (model, info) if output_loading_info else model

    @classmethod
    def from_clip(cls, clip: PreTrainedModel) -> "DenseVLMModel":
        """A DenseVLM with the weights (copied) of a [`CLIPModel`], [`SiglipModel`] or [`Siglip2Model`]."""
        config = DenseVLMConfig.from_dict(DenseVLMConfig.translate(copy.deepcopy(clip.config.to_dict())))
        config._attn_implementation = clip.config._attn_implementation
        model = cls(config)
        model.load_state_dict(clip.state_dict())
        return model.to(clip.device, clip.dtype).train(clip.training)

    def fingerprint(self) -> str:
        """
        A digest of all weights, their names, and what no tensor tells of the towers (the activation, the number of
        heads ...): models that share it give the same features.
        """
        digest = hashlib.blake2b(digest_size=16)
        # Those that every configuration has say nothing of a tower.
        untold = UNTOLD_BY_FINGERPRINT | PreTrainedConfig().to_dict().keys() - {"model_type"}
        for part in (self.config.vision_config, self.config.text_config):
            told = {} if part is None else {key: v for key, v in part.to_dict().items() if key not in untold}
            digest.update(json.dumps(told, sort_keys=True, default=str).encode())
        for name, tensor in sorted(self.state_dict().items()):
            # As bytes: bfloat16 has no counterpart in numpy.
            digest.update(
                name.encode() + tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            )
        return digest.hexdigest()

    def _project(self, dense: Tensor) -> Tensor:
        """Hidden `(batch, height, width, hidden)` to the unit-norm map `(batch, dim, height, width)`."""
        embeds = nn.functional.normalize(self.visual_projection(dense), dim=-1)
        return embeds.permute(0, 3, 1, 2)

    def get_dense_features(self, pixel_values: Tensor) -> Tensor:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`):
                Normalised images of any size. Sides that are no multiple of the patch are floored, with a warning.

        Returns:
            `torch.Tensor` of shape `(batch, dim, height / patch, width / patch)`, unit norm over `dim`.
        """
        return self._project(self.vision_model.extract(pixel_values).dense)

    def get_region_features(
        self,
        pixel_values: Tensor,
        boxes: Sequence[Tensor] | None = None,
        masks: Sequence[Tensor] | None = None,
    ) -> Tensor:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`):
                Normalised images.
            boxes (sequence of `batch` tensors of shape `(n_i, 4)`, *optional*):
                xyxy as fractions of the map, 0..1: pooled by RoIAlign.
            masks (sequence of `batch` tensors of shape `(n_i, height, width)`, *optional*):
                At the map's resolution: pooled by weighted mean. Exactly one of `boxes` and `masks` is given.

        Returns:
            `torch.Tensor` of shape `(sum n_i, dim)`, in image order: pooled from the unit-norm map, not normalised
            again.
        """
        return _pool_regions(self.get_dense_features(pixel_values), boxes, masks)

    def get_image_features(self, pixel_values: Tensor) -> BaseModelOutputWithPooling:
        r"""
        The global image feature of the unmodified path, as [`CLIPModel`] gives it.

        Returns:
            [`BaseModelOutputWithPooling`] whose `pooler_output` has shape `(batch, dim)`, not normalised.
        """
        pooled = self.vision_model.extract(pixel_values, dense=False, pooled=True).pooled
        return BaseModelOutputWithPooling(pooler_output=self.visual_projection(pooled))

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> BaseModelOutputWithPooling:
        r"""
        The feature of a text. CLIP's is taken at the position of its largest token id, the end-of-text token; SigLIP's
        at the last of a text padded to full length (`attention_mask` is then not used, as in its training).

        Returns:
            [`BaseModelOutputWithPooling`] whose `pooler_output` has shape `(batch, dim)`, not normalised.
        """
        if self.text_model is None:
            raise ValueError("This model has no text tower (`config.text_config` is None).")
        output = self.text_model.encode(input_ids, attention_mask)
        output.pooler_output = self.text_projection(output.pooler_output)
        return output

    def forward_with_filtered_kwargs(self, pixel_values: Tensor, **_) -> DenseVLMOutput:
        """How transformers' segmenters call a backbone; hidden states and attentions are not kept."""
        return self(pixel_values)

    def forward(
        self,
        pixel_values: Tensor,
        boxes: Sequence[Tensor] | None = None,
        masks: Sequence[Tensor] | None = None,
        return_image_embeds: bool = False,
    ) -> DenseVLMOutput:
        r"""
        The training entry, so that DDP and FSDP wrap what is trained. Arguments as in
        [`~DenseVLMModel.get_region_features`], both regions optional.

        Args:
            return_image_embeds (`bool`, *optional*, defaults to `False`):
                Whether to give the global image features too; they share all blocks but the last.

        Returns:
            [`DenseVLMOutput`]
        """
        features = self.vision_model.extract(pixel_values, pooled=return_image_embeds, stages=self.out_features)
        dense_embeds = self._project(features.dense)
        maps = {**features.stages, DENSE_STAGE: dense_embeds}
        return DenseVLMOutput(
            dense_embeds=dense_embeds,
            region_embeds=None if boxes is None and masks is None else _pool_regions(dense_embeds, boxes, masks),
            image_embeds=self.visual_projection(features.pooled) if return_image_embeds else None,
            feature_maps=tuple(maps[name] for name in self.out_features),
        )


def _tower(towers: dict[str, type[PreTrainedModel]], config: PreTrainedConfig) -> PreTrainedModel:
    if config.model_type not in towers:
        raise ValueError(f"{config.model_type!r} is no tower of a DenseVLM; there are {', '.join(towers)}.")
    return towers[config.model_type]._from_config(config)


def _pool_regions(dense_embeds: Tensor, boxes: Sequence[Tensor] | None, masks: Sequence[Tensor] | None) -> Tensor:
    if (boxes is None) == (masks is None):
        raise ValueError("Give either `boxes` or `masks`. For both, pool the map of `get_dense_features` twice.")
    return pool_boxes(dense_embeds, boxes) if masks is None else pool_masks(dense_embeds, masks)


def _shorten(keys: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(keys[:most]) or "nothing"
    return shown + (f" and {len(keys) - most} more" if len(keys) > most else "")


__all__ = ["DenseVLMModel", "DenseVLMOutput", "DenseVLMPreTrainedModel"]
