# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""DenseVLM: a CLIP with a feature in the image-text space for every location of the image."""

import copy
import hashlib
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, Tipsv2Model
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_densevlm import DENSE_STAGE, HUB_KEYS, DenseVLMConfig, read_config
from .modeling_clip_resnet import CLIPResNetVisionModel
from .modeling_clip_vit import DenseCLIPVisionModel
from .modeling_eva_clip import Eva02CLIPVisionModel
from .modeling_siglip import DenseSiglip2VisionModel, DenseSiglipVisionModel
from .modeling_timm_clip import TimmConvNextVisionModel, TimmViTVisionModel
from .modeling_tipsv2 import DenseTipsv2VisionModel
from .region_pooling import pool_boxes, pool_masks
from .text_towers import CLIPTextTower, Siglip2TextTower, SiglipTextTower, Tipsv2TextTower


@dataclass
class DenseVLMOutput(ModelOutput):
    r"""
    Output of [`DenseVLMModel`], which is also that of a transformers backbone (`feature_maps`).

    Args:
        dense_embeds (`torch.Tensor` of shape `(batch, dim, height, width)`, returned with images):
            The dense map, of unit norm over `dim` at every location.
        region_embeds (`torch.Tensor` of shape `(regions, dim)`, *optional*):
            The dense map pooled over the given boxes or masks, in image order; not normalised again.
        image_embeds (`torch.Tensor` of shape `(batch, dim)`, *optional*):
            Global image features of the unmodified path, not normalised.
        text_embeds (`torch.Tensor` of shape `(texts, dim)`, returned with texts):
            Output of [`~DenseVLMModel.get_text_features`], not normalised.
        logits_per_image (`torch.Tensor` of shape `(batch, texts)`, returned with images and texts):
            Cosine similarities of images and texts, with the logit scale and bias of the model.
        logits_per_text (`torch.Tensor` of shape `(texts, batch)`, returned with images and texts):
            The transpose of `logits_per_image`.
        logits_per_region (`torch.Tensor` of shape `(regions, texts)`, returned with regions and texts):
            The same for regions: their cosine similarities with the texts, with the logit scale and bias.
        feature_maps (`tuple[torch.Tensor]`, returned with images):
            The maps named by `config.out_features`, each of shape `(batch, channels, height, width)`; by default only
            the dense map. Sequences if `config.reshape_hidden_states` is `False`.
        hidden_states (`tuple[torch.Tensor]`, *optional*):
            The maps of all blocks (stages of a CNN), each of shape `(batch, channels, height, width)`; the last one is
            from the dense path. Unlike the `hidden_states` of the vision tower, they exclude the first block's input.
        attentions (`tuple[torch.Tensor]`, *optional*):
            Attention weights of every block that computes them, each of shape `(batch, heads, tokens, tokens)`. The
            last block computes none on its dense path, so its weights are returned only with global features.
    """

    dense_embeds: Tensor | None = None
    region_embeds: Tensor | None = None
    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    logits_per_region: Tensor | None = None
    feature_maps: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


VISION_TOWERS = {
    "clip_vision_model": DenseCLIPVisionModel,
    "eva02_clip_vision_model": Eva02CLIPVisionModel,
    "clip_resnet_vision_model": CLIPResNetVisionModel,
    "siglip_vision_model": DenseSiglipVisionModel,
    "siglip2_vision_model": DenseSiglip2VisionModel,
    "tipsv2_vision_model": DenseTipsv2VisionModel,
    "timm_convnext_vision_model": TimmConvNextVisionModel,
    "timm_vit_vision_model": TimmViTVisionModel,
}
"""Vision towers by the `model_type` of `config.vision_config`. Each defines its own dense path."""

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
"""Fields of a tower's configuration that do not affect features, or are visible in the weights."""

TEXT_TOWERS = {
    "clip_text_model": CLIPTextTower,
    "siglip_text_model": SiglipTextTower,
    "siglip2_text_model": Siglip2TextTower,
    "tipsv2_text_model": Tipsv2TextTower,
}
"""Text towers by the `model_type` of `config.text_config`."""


class DenseVLMPreTrainedModel(PreTrainedModel):
    """Base of [`DenseVLMModel`] and of heads around it: initialization and strict loading."""

    config: DenseVLMConfig
    config_class = DenseVLMConfig
    base_model_prefix = "densevlm"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")  # type: ignore[assignment]  # a tuple, as in transformers
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Towers initialize themselves; heads around the model are initialized by the superclass.
        super()._init_weights(module)
        if isinstance(module, DenseVLMModel):
            projections = [p for p in (module.visual_projection, module.text_projection) if p is not None]
            for layer in (layer for projection in projections for layer in projection.modules()):
                if isinstance(layer, nn.Linear):
                    init.normal_(layer.weight, std=layer.in_features**-0.5 * self.config.initializer_factor)
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)
            if module.logit_bias is not None and self.config.logit_bias_init_value is not None:
                init.constant_(module.logit_bias, self.config.logit_bias_init_value)

    auto_classes: ClassVar[tuple[str, ...]] = ()
    """Auto classes of transformers, used by its pipelines, that load the model with the code in its folder."""

    def save_pretrained(self, *args, **kwargs):
        """As [`PreTrainedModel.save_pretrained`]; the folder can be loaded by each of `auto_classes`."""
        if self.is_remote_code():
            # transformers itself adds only the auto class for which the model was registered last.
            auto_map = dict(getattr(self.config, "auto_map", None) or {})
            for model in (self.base_model, self):
                name = f"{type(model).__module__.rpartition('.')[2]}.{type(model).__name__}"
                auto_map |= dict.fromkeys(model.auto_classes, name)
            self.config.auto_map = auto_map
        super().save_pretrained(*args, **kwargs)

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        """
        As [`PreTrainedModel.from_pretrained`], but strict: weights of the model that are missing, unexpected or of
        another shape are an error. The weights of a head around the model may be missing. The text tower of a CLIP
        checkpoint is ignored if the given `config` has none.

        Args:
            args: as in [`PreTrainedModel.from_pretrained`].
            output_loading_info (`bool`, *optional*, defaults to `False`): whether to also return the loading info.
            kwargs: as in [`PreTrainedModel.from_pretrained`].

        Returns:
            The model in eval mode; with `output_loading_info=True`, a tuple of it and a `dict`.

        Raises:
            `OSError` if there is no such folder, `ValueError` that names the weights if they do not match.
        """
        source = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        if source is not None and Path(source).is_file():
            raise OSError(
                f"{source} is a file, not a folder. Convert checkpoints first: `python -m "
                "modeling_densevlm.convert_open_clip`."
            )
        hub = {name: kwargs[name] for name in HUB_KEYS if name in kwargs}
        if source is not None and read_config(source, **hub).get("model_type") == "tipsv2":
            model = cls._from_tipsv2(source, **kwargs)
            return (model, {}) if output_loading_info else model
        try:
            loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        except OSError as error:
            if source is None or Path(source).exists():
                raise
            raise OSError(
                f"There is no folder {source}, and it is not available from the Hub: {str(error).splitlines()[0]} "
                "Convert checkpoints of other layouts first (modeling_densevlm.convert_open_clip)."
            ) from error
        model, info = loaded
        model._check_loading_info(source, info)
        return (model, info) if output_loading_info else model

    @classmethod
    def _from_tipsv2(cls, source: str | Path, **kwargs: Any) -> Any:
        """Reads a TIPSv2 by its own class, which knows the names in its authors' files."""
        config, kwargs = DenseVLMConfig.from_pretrained(source, return_unused_kwargs=True, **kwargs)
        model = DenseVLMModel.from_clip(Tipsv2Model.from_pretrained(source, **kwargs), config).eval()
        model.name_or_path = model.config._name_or_path = str(source)
        if cls is DenseVLMModel:
            return model
        if not hasattr(cls, "from_densevlm"):
            raise ValueError(f"{source}: load a TIPSv2 as a DenseVLMModel, and put {cls.__name__} around that.")
        return cls.from_densevlm(model)

    def _check_loading_info(self, source: str | Path | None, info: dict[str, Any]) -> None:
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
        prefixes: tuple[str, ...] = ("vision_model.", "visual_projection.")
        if self.config.text_config is not None:
            prefixes += ("text_model.", "text_projection.", "logit_bias")
        unexpected = sorted(
            key
            for key in info["unexpected_keys"]
            if key.removeprefix(inside).startswith(prefixes) and not _is_derived_buffer(key)
        )
        if unexpected:
            raise ValueError(
                f"{source} holds learned weights that this model does not have: {_shorten(unexpected)}. It is another "
                "model than its configuration describes, and its features would be wrong."
            )


class DenseVLMModel(BackboneMixin, DenseVLMPreTrainedModel):
    r"""
    A CLIP with dense features in the image-text space.

    ```python
    >>> model = DenseVLMModel.from_pretrained("openai/clip-vit-base-patch16")  # any CLIP or SigLIP of transformers
    >>> dense = model.get_dense_features(pixel_values)  # (batch, 512, height / 16, width / 16), unit norm
    ```

    It is also a backbone of transformers: `out_indices` (or `out_features`) select the feature maps for detectors and
    segmenters. They are from the dense pass; that of the last block is from its dense path.

    ```python
    >>> model = DenseVLMModel.from_pretrained(folder, out_indices=[3, 5, 7, 11, 12])  # four blocks and the dense map
    >>> maps = model(pixel_values).feature_maps  # with model.channels and model.strides
    ```
    """

    auto_classes = ("AutoModel", "AutoModelForZeroShotImageClassification")
    _keys_to_ignore_on_load_unexpected = ["category_embeds"]  # of a segmenter, which is another class

    def __init__(self, config: DenseVLMConfig):
        super().__init__(config)
        self.vision_model = _tower(VISION_TOWERS, config.vision_config)
        self.visual_projection = self.vision_model.make_projection(config.projection_dim)
        self.text_model: Any = None
        self.text_projection: Any = None
        if config.text_config is not None:
            self.text_model = _tower(TEXT_TOWERS, config.text_config)
            self.text_projection = self.text_model.make_projection(config.projection_dim)
        # SigLIP stores logit scale and bias with shape (1,).
        sigmoid = config.logit_bias_init_value is not None
        scale = torch.tensor(config.logit_scale_init_value)
        self.logit_scale = nn.Parameter(scale[None] if sigmoid else scale)
        self.logit_bias = nn.Parameter(torch.tensor([config.logit_bias_init_value])) if sigmoid else None
        self.num_features = [*self.vision_model.stage_channels, config.projection_dim]
        self.post_init()

    def post_init(self) -> None:
        # Skips that of `BackboneMixin`, which adds hooks to every layer that record hidden states.
        DenseVLMPreTrainedModel.post_init(self)

    @property
    def out_feature_strides(self) -> dict[str, int]:
        """Image pixels per cell of every map in `stage_names`."""
        return dict(zip(self.stage_names, [*self.vision_model.stage_strides, self.vision_model.stride]))

    @property
    def strides(self) -> list[int]:
        """Image pixels per cell of each map in `out_features`."""
        return [self.out_feature_strides[name] for name in self.out_features]

    @classmethod
    def from_clip(cls, clip: PreTrainedModel, config: DenseVLMConfig | None = None) -> "DenseVLMModel":
        """
        A DenseVLM with a copy of the weights of a CLIP, SigLIP, SigLIP 2 or TIPSv2 of transformers; by default with
        its configuration, too.
        """
        if config is None:
            config = DenseVLMConfig.from_dict(DenseVLMConfig.translate(copy.deepcopy(clip.config.to_dict())))
        config._attn_implementation = clip.config._attn_implementation
        model = cls(config)
        weights = clip.state_dict()
        if "temperature" in weights:  # of TIPSv2, whose inverse is the scale
            weights["logit_scale"] = -weights.pop("temperature").log()
        model.load_state_dict(weights)
        return model.to(clip.device, clip.dtype).train(clip.training)  # type: ignore[arg-type]

    def fingerprint(self) -> str:
        """
        Hash of all weights, their names, and configuration that is not visible in the weights (activation, number of
        heads ...). Models with the same fingerprint compute the same features.

        Returns:
            `str`: 32 hexadecimal digits.
        """
        digest = hashlib.blake2b(digest_size=16)
        # Fields common to all configurations do not describe a tower.
        not_hashed = CONFIG_FIELDS_NOT_HASHED | PreTrainedConfig().to_dict().keys() - {"model_type"}
        for part in (self.config.vision_config, self.config.text_config):
            hashed = {} if part is None else {key: v for key, v in part.to_dict().items() if key not in not_hashed}
            digest.update(json.dumps(hashed, sort_keys=True, default=str).encode())
        for name, tensor in sorted(self.state_dict().items()):
            # Viewed as bytes, as NumPy has no bfloat16.
            digest.update(
                name.encode() + tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            )
        return digest.hexdigest()

    def get_input_embeddings(self) -> nn.Module:
        """The patch embedding, the first layer of the vision tower."""
        return self.vision_model.get_input_embeddings()

    def project_dense(self, dense: Tensor, normalize: bool = True) -> Tensor:
        """Projects a tower's dense map `(batch, height, width, hidden)` to `(batch, dim, height, width)`."""
        # As `(batch, locations, hidden)`: quantized layers and adapters take at most three dimensions.
        embeds = self.visual_projection(dense.flatten(1, 2))
        embeds = nn.functional.normalize(embeds, dim=-1) if normalize else embeds
        return embeds.unflatten(1, dense.shape[1:3]).permute(0, 3, 1, 2)

    def get_dense_features(
        self, pixel_values: Tensor, normalize: bool = True, dense_residual: str = "token"
    ) -> Tensor:
        r"""
        Computes the dense map in the image-text space.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`):
                Normalised images of any size. Sides are floored to multiples of the patch size, with a warning.
            normalize (`bool`, *optional*, defaults to `True`): whether to scale each location to unit norm.
            dense_residual (`str`, *optional*, defaults to `"token"`):
                Residual to which the value path in the last block of a vision transformer is added: each location's
                own token (`"token"`), as in CLIPSelf and DenseVLM, or the class token (`"cls"`), as in CAT-Seg.

        Returns:
            `torch.Tensor` of shape `(batch, dim, height / patch, width / patch)`, of unit norm over `dim`.
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
        Pools the unit-norm dense map over regions, given as either boxes or masks.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): normalised images.
            boxes (sequence of `batch` tensors of shape `(n_i, 4)`, *optional*):
                xyxy as fractions of the map, 0..1; pooled by RoIAlign ([`pool_boxes`]).
            masks (sequence of `batch` tensors of shape `(n_i, height, width)`, *optional*):
                At the resolution of the map; pooled by weighted mean ([`pool_masks`]).

        Returns:
            `torch.Tensor` of shape `(sum n_i, dim)`, in image order, not normalised again.

        Raises:
            `ValueError` unless exactly one of `boxes` and `masks` is given.
        """
        return _pool_regions(self.get_dense_features(pixel_values), boxes, masks)

    @can_return_tuple
    def get_image_features(self, pixel_values: Tensor) -> BaseModelOutputWithPooling:
        r"""
        Computes the global image feature on the unmodified path, as [`CLIPModel`] does.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): normalised images.

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
        Computes text features. For CLIP, they are pooled at the first `eos_token_id`, as in [`CLIPModel`] (at the
        largest token id if the configuration has the legacy value 2). For SigLIP, they are pooled at the last token;
        texts are padded to the maximum length and `attention_mask` is ignored, as in its training.

        Args:
            input_ids (`torch.Tensor` of shape `(texts, tokens)`): token ids.
            attention_mask (`torch.Tensor` of shape `(texts, tokens)`, *optional*): 0 for padding.

        Returns:
            [`BaseModelOutputWithPooling`] whose `pooler_output` has shape `(texts, dim)`, not normalised.

        Raises:
            `ValueError` for a model without a text tower.
        """
        if self.text_model is None:
            raise ValueError("This model has no text tower (`config.text_config` is None).")
        output = self.text_model(input_ids=input_ids, attention_mask=attention_mask)
        return BaseModelOutputWithPooling(
            last_hidden_state=output.last_hidden_state, pooler_output=self.text_projection(output.pooler_output)
        )

    def forward_with_filtered_kwargs(self, pixel_values: Tensor, **kwargs: Any) -> DenseVLMOutput:
        """Called by segmenters of transformers, which pass on their own keyword arguments."""
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
        Computes features of images, texts or both. Training calls this method, so that it runs through the DDP or FSDP
        wrapper; it accepts all outputs of the processor, `model(**processor(...))`.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`, *optional*): normalised images.
            boxes (sequence of `batch` tensors of shape `(n_i, 4)`, *optional*):
                Regions, xyxy as fractions of the map, as in [`~DenseVLMModel.get_region_features`].
            masks (sequence of `batch` tensors of shape `(n_i, height, width)`, *optional*):
                Regions at the resolution of the map, instead of `boxes`.
            return_image_embeds (`bool`, *optional*, defaults to `False`):
                Whether to return global image features; they share all blocks but the last with the dense map. With
                texts they are always returned.
            input_ids (`torch.Tensor` of shape `(texts, tokens)`, *optional*): token ids of texts.
            attention_mask (`torch.Tensor` of shape `(texts, tokens)`, *optional*): 0 for padding.
            content_extent (`torch.Tensor` of shape `(batch, 2)`, *optional*):
                Output of the processor; ignored here, and used by its post-processing to crop the padding.
            token_type_ids (`torch.Tensor` of shape `(texts, tokens)`, *optional*):
                Output of some tokenizers; ignored.
            output_hidden_states (`bool`, *optional*):
                Whether to return the maps of all blocks (or stages); defaults to `config.output_hidden_states`.
            output_attentions (`bool`, *optional*):
                Whether to return attention weights; defaults to `config.output_attentions`. Requires eager attention,
                and is not supported by the CNNs and the towers of timm.
            return_dict (`bool`, *optional*, defaults to `True`): whether to return an output class or a tuple.
            kwargs: further arguments that transformers passes to every model, if `None` or `False`.

        Returns:
            [`DenseVLMOutput`]

        Raises:
            `TypeError` for other keyword arguments; `ValueError` for regions without images, or without any input.
        """
        unknown = sorted(name for name, value in kwargs.items() if value is not None and value is not False)
        if unknown:
            raise TypeError(f"DenseVLMModel does not support {', '.join(unknown)}.")
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
            feature_maps=tuple(self._format_feature_map(maps[name]) for name in self.out_features),
            hidden_states=tuple(maps[name] for name in blocks) if output_hidden_states else None,
            attentions=features.attentions,
        )
        if input_ids is not None and output.image_embeds is not None:
            output.text_embeds = self.get_text_features(input_ids, attention_mask).pooler_output
            output.logits_per_image = self._logits(output.image_embeds, output.text_embeds)
            output.logits_per_text = output.logits_per_image.T
            if output.region_embeds is not None:
                output.logits_per_region = self._logits(output.region_embeds, output.text_embeds)
        return output

    def _format_feature_map(self, feature_map: Tensor) -> Tensor:
        """A map `(batch, channels, height, width)` in the format chosen by `config.reshape_hidden_states`."""
        if self.config.reshape_hidden_states:
            return feature_map
        tokens = feature_map.flatten(2).transpose(1, 2)
        return torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)

    def _logits(self, embeds: Tensor, text_embeds: Tensor) -> Tensor:
        """Scaled cosine similarities of images or regions `(n, dim)` with texts, plus the logit bias of SigLIP."""
        embeds, texts = (nn.functional.normalize(some, dim=-1) for some in (embeds, text_embeds))
        logits = embeds @ texts.to(embeds.device).T * self.logit_scale.exp().to(embeds.device)
        return logits if self.logit_bias is None else logits + self.logit_bias.to(embeds.device)


def _tower(towers: dict[str, Any], config: PreTrainedConfig) -> Any:
    if config.model_type not in towers:
        raise ValueError(f"{config.model_type!r} is no tower of a DenseVLM; there are {', '.join(towers)}.")
    return towers[config.model_type]._from_config(config)


def _pool_regions(dense_embeds: Tensor, boxes: Sequence[Tensor] | None, masks: Sequence[Tensor] | None) -> Tensor:
    if (boxes is None) == (masks is None):
        raise ValueError("Give either `boxes` or `masks`. For both, pool the map of `get_dense_features` twice.")
    return pool_boxes(dense_embeds, boxes) if masks is None else pool_masks(dense_embeds, masks)


def _is_derived_buffer(key: str) -> bool:
    """Whether a tensor is computed from the configuration, and stored by some versions of some models only."""
    return re.search(r"(^|[._])(position_ids|freqs_cos|freqs_sin|inv_freq|attn_mask)$", key) is not None


def _shorten(keys: Sequence[str], max_shown: int = 8) -> str:
    shown = ", ".join(keys[:max_shown]) or "nothing"
    return shown + (f" and {len(keys) - max_shown} more" if len(keys) > max_shown else "")


__all__ = ["DenseVLMModel", "DenseVLMOutput", "DenseVLMPreTrainedModel"]
