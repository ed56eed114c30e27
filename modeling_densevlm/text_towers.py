# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The text towers: where a text's feature is read, how texts are padded, whether a projection follows."""

from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, Siglip2TextModel, SiglipTextModel
from transformers.modeling_outputs import BaseModelOutputWithPooling


GEMMA_VOCABULARY = 256000
"""Tokens of the tokenizer of SigLIP 2."""


class TextTower:
    r"""
    Mixin of all text towers, which are those of transformers: the `pooler_output` of a pass is `(batch, hidden)`,
    before the projection. `padding` is how texts have to be padded, in the words of transformers' tokenizers: with
    `"max_length"` the tower was trained on texts of full length and takes no attention mask.
    """

    padding: ClassVar[str] = "longest"

    def make_projection(self, dim: int) -> nn.Module:
        """What takes `pooler_output` into an image-text space of width `dim`."""
        raise NotImplementedError


class CLIPTextTower(TextTower, CLIPTextModel):
    """
    CLIP's text transformer; with GELU that of EVA-CLIP. A text is read at its first `eos_token_id`, or at its largest
    token where the configuration has 2 there, which the first ones of transformers had by mistake, or what is no token
    of its vocabulary: CLIP would read every text at its first token, and all alike.
    """

    def __init__(self, config: CLIPTextConfig):
        super().__init__(config)
        if config.eos_token_id is None or config.eos_token_id >= config.vocab_size:
            self.eos_token_id = 2

    def make_projection(self, dim):
        return nn.Linear(self.config.hidden_size, dim, bias=False)


class SiglipTextTowerMixin(TextTower):
    """
    Reads the last token of a text padded to full length; its head ends in the image-text space. Shorter texts, as
    pipelines of transformers give them, are padded here.
    """

    padding = "max_length"

    @property
    def pad_token_id(self) -> int | None:
        """What its texts are padded with: Gemma's vocabulary has 0, which configurations of SigLIP 2 do not say."""
        return 0 if self.config.vocab_size == GEMMA_VOCABULARY else self.config.pad_token_id

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        missing, pad = self.config.max_position_embeddings - input_ids.shape[-1], self.pad_token_id
        if missing:
            padded_with = () if attention_mask is None else input_ids[attention_mask == 0].unique().tolist()
            if missing < 0 or pad is None or any(token != pad for token in padded_with):
                raise ValueError(
                    f"SigLIP reads texts padded to {self.config.max_position_embeddings} tokens with token {pad}, got "
                    f'{input_ids.shape[-1]} tokens, padded with {padded_with}: tokenize with `padding="max_length"`.'
                )
            input_ids = nn.functional.pad(input_ids, (0, missing), value=pad)
        return super().forward(input_ids=input_ids, **kwargs)

    def make_projection(self, dim):
        if self.config.projection_size != dim:
            raise ValueError(
                f"The text tower's space has {self.config.projection_size} dimensions, the image's {dim}."
            )
        return nn.Identity()


class SiglipTextTower(SiglipTextTowerMixin, SiglipTextModel):
    """The text tower of SigLIP and of SigLIP 2 at a fixed resolution."""


class Siglip2TextTower(SiglipTextTowerMixin, Siglip2TextModel):
    """The text tower of SigLIP 2 at any aspect (NaFlex)."""


__all__ = ["CLIPTextTower", "Siglip2TextTower", "SiglipTextTower"]
