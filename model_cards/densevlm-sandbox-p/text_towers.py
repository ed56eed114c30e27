"""The text towers: where a text's feature is read, how texts are padded, whether a projection follows."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, Siglip2TextModel, SiglipTextModel
from transformers.modeling_outputs import BaseModelOutputWithPooling


class TextTower:
    r"""
    Mixin of all text towers. `padding` is how texts have to be padded, in the words of transformers' tokenizers: with
    `"max_length"` the tower was trained on texts of full length and takes no attention mask.
    """

    padding: ClassVar[str] = "longest"

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> BaseModelOutputWithPooling:
        """`pooler_output` `(batch, hidden)` before the projection."""
        raise NotImplementedError

    def make_projection(self, dim: int) -> nn.Module:
        """What takes `pooler_output` into an image-text space of width `dim`."""
        raise NotImplementedError


class CLIPTextTower(TextTower, CLIPTextModel):
    """CLIP's text transformer; with GELU that of EVA-CLIP."""

    def encode(self, input_ids, attention_mask=None):
        hidden_states = self(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        # The end of the text is CLIP's largest token, whatever the configuration calls it.
        end = input_ids.argmax(dim=-1).to(hidden_states.device)
        pooled = hidden_states[torch.arange(len(end), device=hidden_states.device), end]
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=pooled)

    def make_projection(self, dim):
        return nn.Linear(self.config.hidden_size, dim, bias=False)


class SiglipTextTowerMixin(TextTower):
    """Reads the last token of a text padded to full length; its head ends in the image-text space."""

    padding = "max_length"

    def encode(self, input_ids, attention_mask=None):
        longest = self.config.max_position_embeddings
        if input_ids.shape[-1] != longest:
            raise ValueError(
                f"SigLIP reads texts padded to {longest} tokens, got {input_ids.shape[-1]}: "
                'tokenize with `padding="max_length"`.'
            )
        output = self(input_ids=input_ids)
        return BaseModelOutputWithPooling(
            last_hidden_state=output.last_hidden_state, pooler_output=output.pooler_output
        )

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
