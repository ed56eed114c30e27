# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Loading student and teacher with their processors; freezing."""

import copy
from dataclasses import dataclass
from os import PathLike
from typing import Any, cast

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from modeling_densevlm import (
    CategoryEmbeddings,
    CategorySet,
    DenseVLMImageProcessor,
    DenseVLMImageProcessorTorchvision,
    DenseVLMModel,
    DenseVLMProcessor,
)
from modeling_densevlm.processing_densevlm import load_processing, require_square_canvas
from modeling_densevlm.shipped import model_source
from modeling_densevlm.vision_tower import VisionTower


logger = logging.get_logger(__name__)

Processing = DenseVLMProcessor | DenseVLMImageProcessor | DenseVLMImageProcessorTorchvision
"""The image processor of a model, with a tokenizer if it has a text tower."""


@dataclass
class LoadedModel:
    """A model and its processing class."""

    model: DenseVLMModel
    processing: Processing

    @property
    def image_processor(self) -> DenseVLMImageProcessor:
        processing: Any = self.processing
        return getattr(processing, "image_processor", processing)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        return getattr(self.processing, "tokenizer", None)

    @property
    def name(self) -> str:
        """The folder or Hub name that it was loaded from; empty for a model made in memory."""
        return self.model.name_or_path or ""

    def embed(self, categories: CategorySet, templates: str, option: str) -> CategoryEmbeddings:
        """Embeds categories with the model's text tower. If it has none, the error names `option` as the remedy."""
        return CategoryEmbeddings.resolve(categories, self.model, self.tokenizer, templates, option=option)

    def copy(self, dtype: torch.dtype | None = None) -> "LoadedModel":
        """A copy of the model, in another dtype on request."""
        model = copy.deepcopy(self.model).to(dtype)  # type: ignore[arg-type]  # a wrapped method in the stubs
        return LoadedModel(model, self.processing)


def load_model(
    model: str | PathLike | DenseVLMModel,
    processing: Processing | None = None,
    image_size: int | None = None,
    **options,
) -> LoadedModel:
    """
    Loads a model (in float32 and eval mode) and its processing class.

    Args:
        model (`str` or `DenseVLMModel`):
            A folder, a Hub name, the name of a shipped model, or a model, which is used unchanged.
        processing (`DenseVLMProcessor` or `DenseVLMImageProcessor`, *optional*):
            Loaded from the folder of the model by default.
        image_size (`int`, *optional*): longest side in pixels. Defaults to that of the processor.
        options: passed to [`~DenseVLMModel.from_pretrained`].

    Raises:
        `ValueError` if `processing` is missing and the model was not loaded from a folder, or if it does not pad
        images to a square.
    """
    if isinstance(model, str | PathLike):
        name = model_source(str(model))
        loaded: DenseVLMModel = DenseVLMModel.from_pretrained(name, dtype=torch.float32, **options).eval()
    else:
        loaded = model
        name = getattr(model, "name_or_path", "")
    folder = name if processing is None else None
    if processing is None:
        if not name:
            raise ValueError(
                "A model that was not loaded from a folder has no processing class: give `processing_class` (for the "
                "teacher: `teacher_processing_class`)."
            )
        image_processor, tokenizer = load_processing(name)
        processing = image_processor if tokenizer is None else DenseVLMProcessor(image_processor, tokenizer)
    result = LoadedModel(loaded, processing)
    require_square_canvas(result.image_processor, folder)
    if image_size is not None:
        result.image_processor.size = {"longest_edge": image_size}
    return result


def freeze(model: DenseVLMModel, trained_blocks: int | None = None) -> None:
    """
    Freezes everything but the parameters of the last `trained_blocks` blocks (all by default) that the dense path
    uses. Patch embedding, position embeddings, class token, final norm, projection and the text tower are frozen.
    """
    blocks = cast(VisionTower, model.vision_model).trainable_blocks()
    count = len(blocks) if trained_blocks is None else trained_blocks
    if not 1 <= count <= len(blocks):
        raise ValueError(f"`trained_blocks` is 1 to {len(blocks)} for this model, got {trained_blocks}.")
    model.requires_grad_(False)
    for parameter in (p for block in blocks[-count:] for p in block):
        parameter.requires_grad_(True)


def warn_about_image_size(key: str, image_processor: DenseVLMImageProcessor, model: DenseVLMModel) -> None:
    """Warns if a side is not a multiple of the tower's stride: its boxes then shift against the other tower's."""
    side, cell = image_processor.size["longest_edge"], cast(VisionTower, model.vision_model).stride
    if side % cell:
        logger.warning(
            f"`{key}` {side} is not a multiple of {cell} pixels: the feature map covers {side // cell * cell} of "
            f"them, so that boxes shift against those of the other tower. Give {side // cell * cell} or "
            f"{(side // cell + 1) * cell}."
        )


__all__ = ["LoadedModel", "Processing", "freeze", "load_model", "warn_about_image_size"]
