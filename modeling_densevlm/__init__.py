# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The model: dense features of a CLIP in the image-text space, regions, categories."""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
)

from .categories import CategorySet
from .category_embeddings import CategoryEmbeddings
from .configuration_densevlm import DenseVLMConfig
from .image_processing_densevlm import BACK_ENDS, DenseVLMImageProcessor, DenseVLMImageProcessorTorchvision
from .modeling_densevlm import DenseVLMModel, DenseVLMOutput
from .processing_densevlm import DenseVLMProcessor
from .region_pooling import grid_boxes


# In this process, `AutoModel` and its kin know the classes by their model type; a saved folder carries these files
# as remote code for processes in which the package is not installed.
AutoConfig.register(DenseVLMConfig.model_type, DenseVLMConfig)
AutoModel.register(DenseVLMConfig, DenseVLMModel)
AutoBackbone.register(DenseVLMConfig, DenseVLMModel)
AutoModelForZeroShotImageClassification.register(DenseVLMConfig, DenseVLMModel)
AutoImageProcessor.register(DenseVLMConfig, image_processor_classes=dict(BACK_ENDS))
AutoProcessor.register(DenseVLMConfig, DenseVLMProcessor)
DenseVLMConfig.register_for_auto_class("AutoConfig")
DenseVLMModel.register_for_auto_class("AutoModel")
DenseVLMImageProcessor.register_for_auto_class("AutoImageProcessor")
DenseVLMImageProcessorTorchvision.register_for_auto_class("AutoImageProcessor")
DenseVLMProcessor.register_for_auto_class("AutoProcessor")

__all__ = [
    "CategoryEmbeddings",
    "CategorySet",
    "DenseVLMConfig",
    "DenseVLMImageProcessor",
    "DenseVLMImageProcessorTorchvision",
    "DenseVLMModel",
    "DenseVLMOutput",
    "DenseVLMProcessor",
    "grid_boxes",
]
