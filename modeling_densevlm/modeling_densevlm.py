"""DenseVLM: a CLIP whose last block gives a feature in the image-text space for every location of the image."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPVisionConfig, CLIPVisionModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPEncoderLayer
from transformers.utils import ModelOutput, logging

from .configuration_densevlm import DenseVLMConfig
from .region_pooling import pool_boxes, pool_masks


logger = logging.get_logger(__name__)


@dataclass
class DenseVLMOutput(ModelOutput):
    r"""
    Args:
        dense_embeds (`torch.Tensor` of shape `(batch, dim, height, width)`):
            The dense map, unit norm over `dim` at every location.
        region_embeds (`torch.Tensor` of shape `(regions, dim)`, *optional*):
            The map pooled over the given boxes or masks, in image order; not normalised again.
        image_embeds (`torch.Tensor` of shape `(batch, dim)`, *optional*):
            The global image features of the unmodified path, not normalised.
    """

    dense_embeds: Tensor | None = None
    region_embeds: Tensor | None = None
    image_embeds: Tensor | None = None


class VisionFeatures(NamedTuple):
    """What a vision tower gives, before the projection: whichever of the two was asked for."""

    dense: Tensor | None  # (batch, height, width, hidden)
    pooled: Tensor | None  # (batch, hidden)


class DenseCLIPEncoderLayer(CLIPEncoderLayer):
    """CLIP's transformer block with a second way through it, in which no location looks at another."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, dense: bool = False, **kwargs):
        if not dense:
            return super().forward(hidden_states, attention_mask, **kwargs)
        # Attention is replaced by its value path; residual and MLP stay. No query, key or softmax is computed.
        values = self.self_attn.out_proj(self.self_attn.v_proj(self.layer_norm1(hidden_states)))
        hidden_states = hidden_states + values
        return hidden_states + self.mlp(self.layer_norm2(hidden_states))


class DenseCLIPVisionModel(CLIPVisionModel):
    """CLIP's vision transformer; its last block knows the dense path. Takes images of any size and aspect."""

    _no_split_modules = ["CLIPEncoderLayer", "DenseCLIPEncoderLayer", "CLIPVisionEmbeddings"]

    def __init__(self, config: CLIPVisionConfig):
        super().__init__(config)
        self.encoder.layers[-1] = DenseCLIPEncoderLayer(config)
        self.post_init()

    def extract(self, pixel_values: Tensor, dense: bool = True, pooled: bool = False) -> VisionFeatures:
        """
        Dense and pooled features; they share every block but the last.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): any size of a patch or more.
            dense (`bool`, *optional*, defaults to `True`): whether to compute the map.
            pooled (`bool`, *optional*, defaults to `False`): whether to compute the class token's feature.
        """
        patch = self.config.patch_size
        if pixel_values.ndim != 4:
            raise ValueError(f"`pixel_values` is (batch, channels, height, width), got {tuple(pixel_values.shape)}.")
        height, width = (side // patch for side in pixel_values.shape[-2:])
        if min(height, width) < 1:
            raise ValueError(f"An image of {tuple(pixel_values.shape[-2:])} pixels holds no patch of {patch}.")
        if (height * patch, width * patch) != tuple(pixel_values.shape[-2:]):
            logger.warning_once(
                f"Image sides {tuple(pixel_values.shape[-2:])} are no multiples of the patch size {patch}: the "
                "remainder at the right and below is dropped, so boxes are fractions of what is left."
            )
        hidden_states = self.embeddings(pixel_values, interpolate_pos_encoding=True)
        hidden_states = self.pre_layrnorm(hidden_states)
        *trunk, last = self.encoder.layers
        for layer in trunk:
            hidden_states = layer(hidden_states, None)
        patches = class_token = None
        if dense:
            patches = last(hidden_states[:, 1:], None, dense=True)
            patches = self.post_layernorm(patches).unflatten(1, (height, width))
        if pooled:
            class_token = self.post_layernorm(last(hidden_states, None)[:, 0])
        return VisionFeatures(patches, class_token)

    def trainable_blocks(self) -> list[list[nn.Parameter]]:
        """The parameters of each block that the dense path uses: all but the last block's query and key."""
        attention = self.encoder.layers[-1].self_attn
        unused = {id(p) for projection in (attention.q_proj, attention.k_proj) for p in projection.parameters()}
        return [[p for p in layer.parameters() if id(p) not in unused] for layer in self.encoder.layers]


class DenseVLMPreTrainedModel(PreTrainedModel):
    config: DenseVLMConfig
    config_class = DenseVLMConfig
    base_model_prefix = "densevlm"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    _no_split_modules = ["CLIPTextEmbeddings", *DenseCLIPVisionModel._no_split_modules]
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


class DenseVLMModel(DenseVLMPreTrainedModel):
    r"""
    A CLIP with dense features in the image-text space.

    ```python
    >>> model = DenseVLMModel.from_pretrained("openai/clip-vit-base-patch16")  # any CLIP of transformers
    >>> dense = model.get_dense_features(pixel_values)  # (batch, 512, height / 16, width / 16), unit norm
    ```
    """

    def __init__(self, config: DenseVLMConfig):
        super().__init__(config)
        self.vision_model = DenseCLIPVisionModel._from_config(config.vision_config)
        self.visual_projection = nn.Linear(config.vision_config.hidden_size, config.projection_dim, bias=False)
        if config.text_config is not None:
            self.text_model = CLIPTextModel._from_config(config.text_config)
            self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
        else:
            self.text_model = None
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        """
        As [`PreTrainedModel.from_pretrained`], but strict: weights that are missing or of another shape would be
        drawn at random, so they raise a `ValueError` that names them. The text tower of a CLIP checkpoint is left
        out where the given `config` has none.
        """
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        missing, mismatched = sorted(info["missing_keys"]), sorted(str(key) for key in info["mismatched_keys"])
        if missing or mismatched:
            source = args[0] if args else kwargs.get("pretrained_model_name_or_path")
            raise ValueError(
                f"{source} does not hold this model. Missing: {_shorten(missing)}. Of another shape: "
                f"{_shorten(mismatched)}. Use the folder the weights were saved with, or convert the checkpoint "
                "(modeling_densevlm.convert_open_clip)."
            )
        return (model, info) if output_loading_info else model

    @classmethod
    def from_clip(cls, clip: PreTrainedModel) -> "DenseVLMModel":
        """A DenseVLM with the weights (copied) of a [`CLIPModel`]."""
        model = cls(DenseVLMConfig(**{key: copy.deepcopy(getattr(clip.config, key)) for key in _CLIP_FIELDS}))
        model.load_state_dict(clip.state_dict())
        return model.to(clip.device, clip.dtype).train(clip.training)

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
        The feature of a text, taken at the position of its largest token id (CLIP's end-of-text token).

        Returns:
            [`BaseModelOutputWithPooling`] whose `pooler_output` has shape `(batch, dim)`, not normalised.
        """
        if self.text_model is None:
            raise ValueError("This model has no text tower (`config.text_config` is None).")
        hidden_states = self.text_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        end = input_ids.argmax(dim=-1)
        pooled = hidden_states[torch.arange(len(end), device=hidden_states.device), end.to(hidden_states.device)]
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=self.text_projection(pooled))

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
        features = self.vision_model.extract(pixel_values, pooled=return_image_embeds)
        dense_embeds = self._project(features.dense)
        return DenseVLMOutput(
            dense_embeds=dense_embeds,
            region_embeds=None if boxes is None and masks is None else _pool_regions(dense_embeds, boxes, masks),
            image_embeds=self.visual_projection(features.pooled) if return_image_embeds else None,
        )


_CLIP_FIELDS = ("vision_config", "text_config", "projection_dim", "logit_scale_init_value", "initializer_factor")


def _pool_regions(dense_embeds: Tensor, boxes: Sequence[Tensor] | None, masks: Sequence[Tensor] | None) -> Tensor:
    if (boxes is None) == (masks is None):
        raise ValueError("Give either `boxes` or `masks`. For both, pool the map of `get_dense_features` twice.")
    return pool_boxes(dense_embeds, boxes) if masks is None else pool_masks(dense_embeds, masks)


def _shorten(keys: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(keys[:most]) or "nothing"
    return shown + (f" and {len(keys) - most} more" if len(keys) > most else "")


__all__ = ["DenseVLMModel", "DenseVLMOutput", "DenseVLMPreTrainedModel"]
