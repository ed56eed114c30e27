# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The models of a run: student and teacher with what belongs to them, and which parameters are trained."""

import copy
from dataclasses import dataclass
from os import PathLike

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from modeling_densevlm import (
    CategoryEmbeddings,
    CategorySet,
    DenseVLMImageProcessor,
    DenseVLMModel,
    DenseVLMProcessor,
)
from modeling_densevlm.processing_densevlm import load_processing


logger = logging.get_logger(__name__)

Processing = DenseVLMProcessor | DenseVLMImageProcessor
"""The image processor of a model, with its tokenizer where it has a text tower."""


@dataclass
class LoadedModel:
    """A model with what belongs to it: image processor and tokenizer in one, or the former alone."""

    model: DenseVLMModel
    processing: Processing

    @property
    def image_processor(self) -> DenseVLMImageProcessor:
        return getattr(self.processing, "image_processor", self.processing)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        return getattr(self.processing, "tokenizer", None)

    def embed(self, categories: CategorySet, templates: str, option: str) -> CategoryEmbeddings:
        """The categories in the model's own space, by its text tower; `option` is the remedy where it has none."""
        return CategoryEmbeddings.resolve(categories, self.model, self.tokenizer, templates, option=option)

    def copy(self, dtype: torch.dtype | None = None) -> "LoadedModel":
        """Another model with the same weights."""
        return LoadedModel(copy.deepcopy(self.model).to(dtype), self.processing)


def load_model(
    model: str | PathLike | DenseVLMModel,
    processing: Processing | None = None,
    image_size: int | None = None,
    **options,
) -> LoadedModel:
    """
    A model in float32 and eval mode with its processing class, each read by name unless it is given.

    Args:
        model (`str` or `DenseVLMModel`): a folder, a Hub name, or the model itself, which is used as it stands.
        processing (`DenseVLMProcessor` or `DenseVLMImageProcessor`, *optional*): by default that of the same folder.
        image_size (`int`, *optional*): pixels of the longest side; the processor's own by default.
        options: for [`~DenseVLMModel.from_pretrained`].
    """
    by_name = isinstance(model, str | PathLike)
    name = model if by_name else getattr(model, "name_or_path", "")
    if by_name:
        model = DenseVLMModel.from_pretrained(model, dtype=torch.float32, **options).eval()
    if processing is None:
        if not name:
            raise ValueError(
                "A model that comes from no folder has no processing class: give `processing_class` (of the teacher "
                "`teacher_processing_class`)."
            )
        image_processor, tokenizer = load_processing(name)
        processing = image_processor if tokenizer is None else DenseVLMProcessor(image_processor, tokenizer)
    loaded = LoadedModel(model, processing)
    if image_size is not None:
        loaded.image_processor.size = {"longest_edge": image_size}
    return loaded


def freeze(model: DenseVLMModel, trained_blocks: int | None = None) -> None:
    """
    Leaves the last `trained_blocks` blocks trainable (all by default), less what the dense path does not use of them.
    Patch embedding, positions, class token, final norm, projection and the text tower stay as they are.
    """
    blocks = model.vision_model.trainable_blocks()
    count = len(blocks) if trained_blocks is None else trained_blocks
    if not 1 <= count <= len(blocks):
        raise ValueError(f"`trained_blocks` is 1 to {len(blocks)} for this model, got {trained_blocks}.")
    model.requires_grad_(False)
    for parameter in (p for block in blocks[-count:] for p in block):
        parameter.requires_grad_(True)


def warn_of_remainder(key: str, image_processor: DenseVLMImageProcessor, model: DenseVLMModel) -> None:
    """A side that is no multiple of a tower's cells is cut: boxes are then other places for it than for the other."""
    side, cell = image_processor.size["longest_edge"], model.vision_model.stride
    if side % cell:
        logger.warning(
            f"`{key}` {side} is no multiple of {cell} pixels: the map covers {side // cell * cell} of them, and a box "
            f"is another place there than for a tower that is given whole cells. Give {side // cell * cell} or "
            f"{(side // cell + 1) * cell}."
        )


__all__ = ["LoadedModel", "Processing", "freeze", "load_model", "warn_of_remainder"]
