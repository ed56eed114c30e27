# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Semantic segmentation without training: a DenseVLM with a vocabulary, which gives every location the category whose
text embedding is nearest to the dense map.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers import initialization as init
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.utils.generic import can_return_tuple

from .categories import CategorySet, is_thing_group
from .category_embeddings import CategoryEmbeddings
from .configuration_densevlm import DenseVLMConfig
from .modeling_densevlm import DenseVLMModel, DenseVLMPreTrainedModel
from .templates import DEFAULT_TEMPLATES


@dataclass
class DenseVLMSegmenterOutput(SemanticSegmenterOutput):
    r"""
    Output of [`DenseVLMForSemanticSegmentation`].

    Args:
        logits (`torch.Tensor` of shape `(batch, categories, height, width)`):
            Cosines of each location of the map and each category, with the offset of things, / temperature.
        background (`int`, *optional*):
            Index of the background category, if there is one: post-processing assigns it to the pixels where the
            highest probability of all other categories is below `background_threshold`.
        background_threshold (`float`, *optional*): that threshold.
        upsampling (`str`, *optional*): how post-processing enlarges the logits.
    """

    logits: Tensor | None = None
    background: int | None = None
    background_threshold: float | None = None
    upsampling: str | None = None


class DenseVLMForSemanticSegmentation(DenseVLMPreTrainedModel):
    r"""
    A [`DenseVLMModel`] with a vocabulary. Nothing is trained: the head is the text embeddings of the categories.

    ```python
    >>> segmenter = DenseVLMForSemanticSegmentation.from_pretrained(folder)  # any DenseVLM, or a CLIP
    >>> segmenter.set_categories(["boat", "water", "sky"])
    >>> segmenter.save_pretrained("segmenter")  # with the vocabulary
    ```

    Its options are fields of the configuration ([`DenseVLMConfig`]): `thing_offset`, `window_size`, `window_stride`,
    `background`, `background_threshold` and `upsampling`.
    """

    auto_classes = ("AutoModelForSemanticSegmentation",)
    _keys_to_ignore_on_load_missing = ["category_embeds"]  # `set_categories` computes them

    def __init__(self, config: DenseVLMConfig):
        super().__init__(config)
        self.densevlm = DenseVLMModel(config)
        categories = config.categories or {"names": []}
        self.register_buffer("category_embeds", torch.zeros(len(categories["names"]), config.projection_dim or 0))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.zeros_(self.category_embeds)

    def _check_loading_info(self, source: Any, info: dict[str, Any]) -> None:
        super()._check_loading_info(source, info)
        if not self.category_embeds.any():  # saved by a DenseVLM that was loaded from a segmenter's folder
            self.config.categories = None

    @classmethod
    def from_densevlm(cls, model: DenseVLMModel) -> "DenseVLMForSemanticSegmentation":
        """A segmenter around a model in memory, whose weights are shared."""
        config = copy.deepcopy(model.config)
        config.categories = None
        with torch.device("meta"):
            segmenter = cls(config)
        segmenter.densevlm = model
        segmenter.category_embeds = torch.zeros(0, config.projection_dim or 0, device=model.device)
        segmenter.name_or_path = model.name_or_path
        return segmenter.train(model.training)

    def set_categories(
        self,
        categories: Sequence[str] | CategorySet | CategoryEmbeddings,
        templates: str | Sequence[str] = DEFAULT_TEMPLATES,
        processor: Any = None,
    ) -> "DenseVLMForSemanticSegmentation":
        r"""
        Sets the vocabulary. It is saved with the model: `config.id2label`, `config.categories` and the embeddings.

        Args:
            categories (list of `str`, [`CategorySet`] or [`CategoryEmbeddings`]):
                Names of the categories; a set also has synonyms and tells things from stuff. Given embeddings are used
                as they are.
            templates (`str` or `Sequence[str]`, *optional*, defaults to the paper's): as in [`get_templates`].
            processor ([`DenseVLMProcessor`] or tokenizer, *optional*):
                Its tokenizer embeds the names. By default it is loaded from the folder of the model.

        Returns:
            The segmenter itself.

        Raises:
            `ValueError` for a model without a text tower or a tokenizer, and for embeddings of another dimension.
        """
        if not isinstance(categories, CategorySet | CategoryEmbeddings):
            if isinstance(categories, str):
                raise ValueError(f"`categories` is a list of names, got {categories!r}: give {categories.split(',')}.")
            categories = CategorySet(categories)
        if isinstance(categories, CategorySet):
            tokenizer = self._tokenizer(processor)
            categories = CategoryEmbeddings.compute(categories, self.densevlm, tokenizer, templates)
        if categories.embeds.shape[1] != self.config.projection_dim:
            raise ValueError(
                f"The embeddings have {categories.embeds.shape[1]} dimensions, but the model's space has "
                f"{self.config.projection_dim}."
            )
        self.category_embeds = categories.embeds.to(self.device, torch.float32)
        self.config.categories = {
            "names": list(categories.names),
            "is_thing": categories.is_thing,
            "templates": list(categories.templates),
        }
        self.config.id2label = dict(enumerate(categories.names))
        self.config.label2id = {name: index for index, name in enumerate(categories.names)}
        return self

    def _tokenizer(self, processor: Any) -> PreTrainedTokenizerBase:
        if processor is not None:
            return getattr(processor, "tokenizer", processor)
        # Where this very code comes with the folder, it has been trusted.
        trusted = type(self).__module__.startswith("transformers_modules.")
        try:
            return AutoTokenizer.from_pretrained(self.name_or_path, trust_remote_code=trusted)
        except (OSError, ValueError, ImportError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"No tokenizer could be loaded from {self.name_or_path or 'the model'}, give `processor`: {reason}"
            ) from error

    @property
    def temperature(self) -> float:
        """Temperature of the softmax over categories: the inverse of the model's logit scale."""
        return float(1 / self.densevlm.logit_scale.detach().float().exp())

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, content_extent: Tensor | None = None, **kwargs: Any
    ) -> DenseVLMSegmenterOutput:
        r"""
        Scores every location of an image for every category.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): normalised images.
            content_extent (`torch.Tensor` of shape `(batch, 2)`, *optional*):
                Output of the processor; ignored here, and used by its post-processing to crop the padding.
            return_dict (`bool`, *optional*, defaults to `True`): whether to return an output class or a tuple.
            kwargs: further arguments that transformers passes to every model, if `None` or `False`.

        Returns:
            [`DenseVLMSegmenterOutput`] with `logits` of shape `(batch, categories, height / patch, width / patch)`.

        Raises:
            `ValueError` without categories, or for windows that are no multiples of the patch.
        """
        unknown = sorted(name for name, value in kwargs.items() if value is not None and value is not False)
        if unknown:
            raise TypeError(f"{type(self).__name__} does not support {', '.join(unknown)}.")
        if not self.config.categories:
            raise ValueError("This segmenter has no vocabulary: call `set_categories([...])` first.")
        dense = self.dense_map(pixel_values)
        cosines = torch.einsum("bdhw,cd->bhwc", dense.float(), self.category_embeds.float())
        background = self.config.background
        return DenseVLMSegmenterOutput(
            logits=self.scale_cosines(cosines).permute(0, 3, 1, 2),
            background=None if background is None else self._index_of(background, self.config.categories["names"]),
            background_threshold=None if background is None else self.config.background_threshold,
            upsampling=self.config.upsampling,
        )

    def scale_cosines(self, cosines: Tensor) -> Tensor:
        """Logits of locations or regions, of their cosines with the categories `(..., categories)`."""
        if self.config.thing_offset and self.config.categories:
            is_thing = cosines.new_tensor(self._things(self.config.categories["is_thing"]))
            cosines = cosines - self.config.thing_offset * is_thing
        return cosines * self.densevlm.logit_scale.detach().float().exp()

    def dense_map(self, pixel_values: Tensor) -> Tensor:
        """
        The dense map `(batch, dim, height, width)`, of the whole image or, with `config.window_size`, of sliding
        windows. These are processed one at a time and averaged where they overlap, so that memory grows neither with
        their number nor with that of the categories: cosines are linear in the features.
        """
        window, cell = self.config.window_size, self.densevlm.vision_model.stride
        height, width = pixel_values.shape[-2:]
        if window is None or window >= max(height, width):
            return self.densevlm.get_dense_features(pixel_values)
        stride = self.config.window_stride or window
        for name, value in (("window_size", window), ("window_stride", stride)):
            if value % cell or not 0 < value <= window:
                raise ValueError(
                    f"`config.{name}` is a multiple of the patch, {cell} pixels, and at most the window, {window}; "
                    f"got {value}."
                )
        rows, columns = height // cell, width // cell
        dim = self.category_embeds.shape[1]
        total = pixel_values.new_zeros(len(pixel_values), dim, rows, columns, dtype=torch.float32)
        coverage = total.new_zeros(rows, columns)
        for y in _starts(rows * cell, window, stride):
            for x in _starts(columns * cell, window, stride):
                dense = self.densevlm.get_dense_features(pixel_values[..., y : y + window, x : x + window])
                top, left = y // cell, x // cell
                area = (..., slice(top, top + dense.shape[-2]), slice(left, left + dense.shape[-1]))
                total[area] += dense
                coverage[area] += 1
        return total / coverage

    def _things(self, is_thing: list[bool] | list[int] | None) -> list[float]:
        """1 for each category that is a thing, 0 for the others."""
        if is_thing is None:
            raise ValueError("`config.thing_offset` needs a vocabulary with thing / stuff flags: give a CategorySet.")
        return [float(is_thing_group(flag)) for flag in is_thing]

    def _index_of(self, name: str, names: list[str]) -> int:
        if name not in names:
            raise ValueError(f"`config.background` is one of the categories, got {name!r}.")
        return names.index(name)


def _starts(side: int, window: int, stride: int) -> list[int]:
    """Starts of windows along a side; the last one ends at the border."""
    return [*range(0, side - window, stride), max(side - window, 0)]


__all__ = ["DenseVLMForSemanticSegmentation", "DenseVLMSegmenterOutput"]
