# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Text towers: those of transformers, with their pooling, padding and projection."""

from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, Siglip2TextModel, SiglipTextModel, Tipsv2TextModel
from transformers.modeling_outputs import BaseModelOutputWithPooling


GEMMA_VOCABULARY = 256000
"""Vocabulary size of SigLIP 2, whose tokenizer is Gemma's."""


class TextTower:
    r"""
    Mixin of all text towers, which are those of transformers. Their `pooler_output` has shape `(batch, hidden)` and
    precedes the projection. `padding` is the argument of transformers' tokenizers with which the tower was trained:
    with `"max_length"`, texts are padded to the maximum length and there is no attention mask.
    """

    config: Any
    padding: ClassVar[str] = "longest"

    def make_projection(self, dim: int) -> nn.Module:
        """The projection of `pooler_output` into an image-text space of `dim` dimensions."""
        raise NotImplementedError


class CLIPTextTower(TextTower, CLIPTextModel):
    """
    CLIP's text transformer (with GELU, that of EVA-CLIP). It pools at the first `eos_token_id`, or at the largest
    token id for the value 2 of early transformers configurations. An `eos_token_id` outside the vocabulary is treated
    as 2: [`CLIPTextModel`] would pool every text at its first token, with the same feature for all.
    """

    def __init__(self, config: CLIPTextConfig):
        super().__init__(config)
        eos_token_id: Any = config.eos_token_id
        if eos_token_id is None or eos_token_id >= config.vocab_size:
            self.eos_token_id = 2

    def make_projection(self, dim):
        return nn.Linear(self.config.hidden_size, dim, bias=False)


class SiglipTextTowerMixin(TextTower):
    """
    Mixin of SigLIP's text transformers, which pool at the last token of a text padded to the maximum length. Shorter
    texts, such as those of transformers' pipelines, are padded here. Their head projects into the image-text space.
    """

    padding = "max_length"

    @property
    def pad_token_id(self) -> int | None:
        """The padding token: 0 for SigLIP 2, whose configurations do not state that of Gemma's vocabulary."""
        return 0 if self.config.vocab_size == GEMMA_VOCABULARY else self.config.pad_token_id

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        missing, pad = self.config.max_position_embeddings - input_ids.shape[-1], self.pad_token_id
        if missing:
            padded_with = () if attention_mask is None else input_ids[attention_mask == 0].unique().tolist()
            if missing < 0 or pad is None or any(token != pad for token in padded_with):
                raise ValueError(
                    f"SigLIP requires texts padded to {self.config.max_position_embeddings} tokens with token {pad}, "
                    f'got {input_ids.shape[-1]}, padded with {padded_with}: tokenize with `padding="max_length"`.'
                )
            input_ids = nn.functional.pad(input_ids, (0, missing), value=pad)
        return super().forward(input_ids=input_ids, **kwargs)

    def make_projection(self, dim):
        if self.config.projection_size != dim:
            raise ValueError(
                f"The text tower projects to {self.config.projection_size} dimensions, the vision tower to {dim}."
            )
        return nn.Identity()


class SiglipTextTower(SiglipTextTowerMixin, SiglipTextModel):
    """The text tower of SigLIP and of SigLIP 2 at a fixed resolution."""


class Siglip2TextTower(SiglipTextTowerMixin, Siglip2TextModel):
    """The text tower of SigLIP 2 at any aspect ratio (NaFlex)."""


class Tipsv2TextTower(TextTower, Tipsv2TextModel):
    """The text tower of TIPSv2, whose feature is the mean over the tokens, without padding and projection."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        if attention_mask is None:
            attention_mask = (input_ids != self.config.pad_token_id).long()
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    def make_projection(self, dim):
        if self.config.hidden_size != dim:
            raise ValueError(f"The text tower has {self.config.hidden_size} dimensions, the image-text space {dim}.")
        return nn.Identity()


__all__ = ["CLIPTextTower", "Siglip2TextTower", "SiglipTextTower", "Tipsv2TextTower"]
