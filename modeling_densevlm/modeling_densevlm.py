# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""DenseVLM: a CLIP that gives a feature in the image-text space for every location of the image."""

import copy
import hashlib
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_densevlm import DENSE_STAGE, DenseVLMConfig
from .modeling_clip_resnet import CLIPResNetVisionModel
from .modeling_clip_vit import DenseCLIPVisionModel
from .modeling_eva_clip import Eva02CLIPVisionModel
from .modeling_siglip import DenseSiglip2VisionModel, DenseSiglipVisionModel
from .modeling_timm_clip import TimmConvNextVisionModel, TimmViTVisionModel
from .region_pooling import pool_boxes, pool_masks
from .text_towers import CLIPTextTower, Siglip2TextTower, SiglipTextTower


@dataclass
class DenseVLMOutput(ModelOutput):
    r"""
    What a pass gives; as that of a transformers backbone, it has `feature_maps`.

    Args:
        dense_embeds (`torch.Tensor` of shape `(batch, dim, height, width)`, given with images):
            The dense map, unit norm over `dim` at every location.
        region_embeds (`torch.Tensor` of shape `(regions, dim)`, *optional*):
            The map pooled over the given boxes or masks, in image order; not normalised again.
        image_embeds (`torch.Tensor` of shape `(batch, dim)`, *optional*):
            The global image features of the unmodified path, not normalised.
        text_embeds (`torch.Tensor` of shape `(texts, dim)`, given with texts):
            As [`~DenseVLMModel.get_text_features`] gives them, not normalised.
        logits_per_image (`torch.Tensor` of shape `(batch, texts)`, given with images and texts):
            Cosines of images and texts, scaled and shifted as the model was trained with.
        logits_per_text (`torch.Tensor` of shape `(texts, batch)`, given with images and texts):
            The same, transposed.
        feature_maps (`tuple[torch.Tensor]`, given with images):
            The maps named by `config.out_features`, each of shape `(batch, channels, height, width)`; by default the
            dense map alone. As sequences where `config.reshape_hidden_states` is `False`.
        hidden_states (`tuple[torch.Tensor]`, *optional*):
            The maps of all blocks (of a CNN: stages), each of shape `(batch, channels, height, width)`; the last
            block's is that of the dense path. What enters the first block is no map, and is not among them: a vision
            tower called alone gives `hidden_states` as those of transformers do.
        attentions (`tuple[torch.Tensor]`, *optional*):
            Of each block that computes some, `(batch, heads, tokens, tokens)`: the last one only where global features
            are given, for its dense path has none.
    """

    dense_embeds: Tensor | None = None
    region_embeds: Tensor | None = None
    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    feature_maps: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


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

CONFIG_FIELDS_NOT_HASHED = {
    "attention_dropout",
    "initializer_factor",
    "initializer_range",
    "out_features",
    "out_indices",
    "projection",
    "projection_bias",
    "projection_dim",
}
"""Of a tower's configuration: what changes no feature, or shows in the weights."""

AUTO_CLASSES = ("AutoModel", "AutoModelForZeroShotImageClassification")
"""Of transformers, which load the model by its folder's own code: pipelines take one or the other."""

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
        # The towers initialize themselves; a head around the model is initialized as transformers does.
        super()._init_weights(module)
        if isinstance(module, DenseVLMModel):
            projections = [p for p in (module.visual_projection, module.text_projection) if p is not None]
            for layer in (layer for projection in projections for layer in projection.modules()):
                if isinstance(layer, nn.Linear):
                    init.normal_(layer.weight, std=layer.in_features**-0.5 * self.config.initializer_factor)
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)
            if module.logit_bias is not None:
                init.constant_(module.logit_bias, self.config.logit_bias_init_value)

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        """
        As [`PreTrainedModel.from_pretrained`], strict about the model itself (a head around it may be new). Weights
        that are missing or of another shape would be random, and learned ones without a place in it would be
        left out, so they raise a `ValueError` that names them. The text tower of a CLIP checkpoint is left out where
        the given `config` has none.
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
                f"There is no folder {source}, and it is not available from the Hub: {str(error).splitlines()[0]} "
                "Checkpoints of other layouts are converted first (modeling_densevlm.convert_open_clip)."
            ) from error
        model._refuse_what_is_not_its_own(source, info)
        return (model, info) if output_loading_info else model

    def _refuse_what_is_not_its_own(self, source: str | Path | None, info: dict[str, Any]) -> None:
        def own(keys: Collection[Any]) -> list[str]:
            names = (key if isinstance(key, str) else str(key[0]) for key in keys)
            return sorted(name for name in names if name.startswith(inside) or self is self.base_model)

        inside = f"{self.base_model_prefix}."
        missing, mismatched = own(info["missing_keys"]), own(info["mismatched_keys"])
        if missing or mismatched:
            raise ValueError(
                f"{source} does not hold this model. Missing: {_shorten(missing)}. Of another shape: "
                f"{_shorten(mismatched)}. Use the folder the weights were saved with, or convert the checkpoint "
                "(modeling_densevlm.convert_open_clip)."
            )
        parts = ("vision_model.", "visual_projection.")
        if self.config.text_config is not None:
            parts += ("text_model.", "text_projection.", "logit_bias")
        more = sorted(
            key for key in info["unexpected_keys"] if key.removeprefix(inside).startswith(parts) and not _follows(key)
        )
        if more:
            raise ValueError(
                f"{source} holds learned weights that this model has no place for: {_shorten(more)}. Without them its "
                "features would be others; it is another model than its configuration says."
            )


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

    def save_pretrained(self, *args, **kwargs):
        """As [`PreTrainedModel.save_pretrained`]; the folder says for each auto class that this is its model."""
        if self.is_remote_code():
            name = f"{type(self).__module__.rpartition('.')[2]}.{type(self).__name__}"
            # transformers adds the one auto class that it last registered the model for.
            self.config.auto_map = {
                **(getattr(self.config, "auto_map", None) or {}),
                **dict.fromkeys(AUTO_CLASSES, name),
            }
        super().save_pretrained(*args, **kwargs)

    @property
    def out_feature_strides(self) -> dict[str, int]:
        """Pixels of the image per cell, for every map the model can give."""
        return dict(zip(self.stage_names, [*self.vision_model.stage_strides, self.vision_model.stride]))

    @property
    def strides(self) -> list[int]:
        """Pixels of the image per cell, for each map of `out_features`."""
        return [self.out_feature_strides[name] for name in self.out_features]

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
        A digest of all weights, their names, and what does not show in the weights of the towers (the activation, the
        number of heads ...): models that share it give the same features.
        """
        digest = hashlib.blake2b(digest_size=16)
        # Fields that every configuration has say nothing of a tower.
        not_hashed = CONFIG_FIELDS_NOT_HASHED | PreTrainedConfig().to_dict().keys() - {"model_type"}
        for part in (self.config.vision_config, self.config.text_config):
            hashed = {} if part is None else {key: v for key, v in part.to_dict().items() if key not in not_hashed}
            digest.update(json.dumps(hashed, sort_keys=True, default=str).encode())
        for name, tensor in sorted(self.state_dict().items()):
            # As bytes: bfloat16 has no counterpart in numpy.
            digest.update(
                name.encode() + tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            )
        return digest.hexdigest()

    def get_input_embeddings(self) -> nn.Module:
        """The layer that reads the image's patches, the first of the vision tower."""
        return self.vision_model.get_input_embeddings()

    def project_dense(self, dense: Tensor, normalize: bool = True) -> Tensor:
        """A tower's dense map `(batch, height, width, hidden)` to the model's, `(batch, dim, height, width)`."""
        # As `(batch, locations, hidden)`: quantised layers and adapters take no more.
        embeds = self.visual_projection(dense.flatten(1, 2))
        embeds = nn.functional.normalize(embeds, dim=-1) if normalize else embeds
        return embeds.unflatten(1, dense.shape[1:3]).permute(0, 3, 1, 2)

    def get_dense_features(
        self, pixel_values: Tensor, normalize: bool = True, dense_residual: str = "token"
    ) -> Tensor:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`):
                Normalised images of any size. Sides that are no multiple of the patch are floored, with a warning.
            normalize (`bool`, *optional*, defaults to `True`): whether to scale each location to unit norm.
            dense_residual (`str`, *optional*, defaults to `"token"`):
                What the value path of a vision transformer's last block is added to: each location's own token, as in
                CLIPSelf and DenseVLM, or the class token (`"cls"`), as in CAT-Seg.

        Returns:
            `torch.Tensor` of shape `(batch, dim, height / patch, width / patch)`, unit norm over `dim`.
        """
        features = self.vision_model(pixel_values, pooled=False, dense_residual=dense_residual)
        return self.project_dense(features.dense, normalize)

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

    @can_return_tuple
    def get_image_features(self, pixel_values: Tensor) -> BaseModelOutputWithPooling:
        r"""
        The global image feature of the unmodified path, as [`CLIPModel`] gives it.

        Returns:
            [`BaseModelOutputWithPooling`] whose `pooler_output` has shape `(batch, dim)`, not normalised.
        """
        features = self.vision_model(pixel_values, dense=False)
        return BaseModelOutputWithPooling(
            last_hidden_state=features.last_hidden_state, pooler_output=self.visual_projection(features.pooler_output)
        )

    @can_return_tuple
    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> BaseModelOutputWithPooling:
        r"""
        The feature of a text. CLIP's is taken as [`CLIPModel`] does, at the first `eos_token_id` of the configuration
        (at the largest token id where that is the historic 2); SigLIP's at the last of a text padded to full length
        (`attention_mask` is then not used, as in its training; shorter texts are padded here).

        Returns:
            [`BaseModelOutputWithPooling`] whose `pooler_output` has shape `(batch, dim)`, not normalised.
        """
        if self.text_model is None:
            raise ValueError("This model has no text tower (`config.text_config` is None).")
        output = self.text_model(input_ids=input_ids, attention_mask=attention_mask)
        return BaseModelOutputWithPooling(
            last_hidden_state=output.last_hidden_state, pooler_output=self.text_projection(output.pooler_output)
        )

    def forward_with_filtered_kwargs(self, pixel_values: Tensor, **kwargs: Any) -> DenseVLMOutput:
        """How transformers' segmenters call a backbone, with what they were called with themselves."""
        return self(pixel_values, **{name: kwargs.get(name) for name in ("output_hidden_states", "output_attentions")})

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        boxes: Sequence[Tensor] | None = None,
        masks: Sequence[Tensor] | None = None,
        return_image_embeds: bool = False,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        content_extent: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> DenseVLMOutput:
        r"""
        The training entry, so that DDP and FSDP wrap what is trained, and what `model(**processor(...))` calls.
        Arguments as in [`~DenseVLMModel.get_region_features`] and [`~DenseVLMModel.get_text_features`], all optional;
        images, texts or both are given.

        Args:
            return_image_embeds (`bool`, *optional*, defaults to `False`):
                Whether to give the global image features too; they share all blocks but the last. With texts they are
                always given.
            content_extent (`torch.Tensor` of shape `(batch, 2)`, *optional*):
                Which part of the canvas an image covers, as the processor gives it. Features do not depend on it: the
                processor's post-processing takes it to cut the padding off.
            token_type_ids (`torch.Tensor` of shape `(texts, tokens)`, *optional*):
                Given by some tokenizers; the text towers have no token types.
            output_hidden_states (`bool`, *optional*):
                Whether to give the maps of all blocks (or stages); `config.output_hidden_states` by default.
            output_attentions (`bool`, *optional*):
                Whether to give the attentions of the blocks; `config.output_attentions` by default. With eager
                attention, and towers whose blocks give them: not the CNNs, not those of timm.
            return_dict (`bool`, *optional*, defaults to `True`): a tuple of what there is if `False`.
            kwargs: what transformers and wrappers around its models pass to all of them, if it asks for nothing
                (`None` or `False`).

        Returns:
            [`DenseVLMOutput`]
        """
        unknown = sorted(name for name, value in kwargs.items() if value is not None and value is not False)
        if unknown:
            raise TypeError(f"DenseVLMModel has no {', '.join(unknown)} to take or give.")
        if pixel_values is None:
            if input_ids is None:
                raise ValueError("Give `pixel_values`, `input_ids` or both.")
            if boxes is not None or masks is not None:
                raise ValueError("Regions (`boxes`, `masks`) need `pixel_values`.")
            return DenseVLMOutput(text_embeds=self.get_text_features(input_ids, attention_mask).pooler_output)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        blocks = self.stage_names[:-1] if output_hidden_states else ()
        stages = {*self.out_features, *blocks} - {DENSE_STAGE}
        pooled = return_image_embeds or input_ids is not None
        features = self.vision_model(pixel_values, pooled=pooled, stages=stages, output_attentions=output_attentions)
        dense_embeds = self.project_dense(features.dense)
        maps = {**(features.stages or {}), DENSE_STAGE: dense_embeds}
        output = DenseVLMOutput(
            dense_embeds=dense_embeds,
            region_embeds=None if boxes is None and masks is None else _pool_regions(dense_embeds, boxes, masks),
            image_embeds=self.visual_projection(features.pooler_output) if pooled else None,
            feature_maps=tuple(self._for_head(maps[name]) for name in self.out_features),
            hidden_states=tuple(maps[name] for name in blocks) if output_hidden_states else None,
            attentions=features.attentions,
        )
        if input_ids is not None:
            output.text_embeds = self.get_text_features(input_ids, attention_mask).pooler_output
            output.logits_per_image = self._logits(output.image_embeds, output.text_embeds)
            output.logits_per_text = output.logits_per_image.T
        return output

    def _for_head(self, feature_map: Tensor) -> Tensor:
        """A map `(batch, channels, height, width)` in the form that the head around the model takes."""
        if self.config.reshape_hidden_states:
            return feature_map
        tokens = feature_map.flatten(2).transpose(1, 2)
        return torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)

    def _logits(self, image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
        """Scaled cosines `(batch, texts)`, with SigLIP's bias where there is one."""
        images, texts = (nn.functional.normalize(embeds, dim=-1) for embeds in (image_embeds, text_embeds))
        logits = images @ texts.to(images.device).T * self.logit_scale.exp().to(images.device)
        return logits if self.logit_bias is None else logits + self.logit_bias.to(images.device)


def _tower(towers: dict[str, type[PreTrainedModel]], config: PreTrainedConfig) -> PreTrainedModel:
    if config.model_type not in towers:
        raise ValueError(f"{config.model_type!r} is no tower of a DenseVLM; there are {', '.join(towers)}.")
    return towers[config.model_type]._from_config(config)


def _pool_regions(dense_embeds: Tensor, boxes: Sequence[Tensor] | None, masks: Sequence[Tensor] | None) -> Tensor:
    if (boxes is None) == (masks is None):
        raise ValueError("Give either `boxes` or `masks`. For both, pool the map of `get_dense_features` twice.")
    return pool_boxes(dense_embeds, boxes) if masks is None else pool_masks(dense_embeds, masks)


def _follows(key: str) -> bool:
    """Whether a tensor follows from the configuration, so that it is computed wherever it was kept."""
    return re.search(r"(^|[._])(position_ids|freqs_cos|freqs_sin|inv_freq|attn_mask)$", key) is not None


def _shorten(keys: Sequence[str], max_shown: int = 8) -> str:
    shown = ", ".join(keys[:max_shown]) or "nothing"
    return shown + (f" and {len(keys) - max_shown} more" if len(keys) > max_shown else "")


__all__ = ["DenseVLMModel", "DenseVLMOutput", "DenseVLMPreTrainedModel"]
