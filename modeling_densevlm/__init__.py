# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The DenseVLM model: dense features in the image-text space of a CLIP, regions and categories."""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForSemanticSegmentation,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
)

from .categories import CategorySet
from .category_embeddings import CategoryEmbeddings
from .configuration_densevlm import DenseVLMConfig
from .image_processing_densevlm import BACK_ENDS, DenseVLMImageProcessor, DenseVLMImageProcessorTorchvision
from .modeling_densevlm import DenseVLMModel, DenseVLMOutput
from .modeling_densevlm_segmentation import DenseVLMForSemanticSegmentation
from .processing_densevlm import DenseVLMProcessor
from .region_pooling import grid_boxes
from .shipped import shipped


# Registers the classes with the auto classes of this process. Saved folders carry these files as remote code, for
# processes without this package.
AutoConfig.register(DenseVLMConfig.model_type, DenseVLMConfig)
AutoModel.register(DenseVLMConfig, DenseVLMModel)
AutoBackbone.register(DenseVLMConfig, DenseVLMModel)
AutoModelForZeroShotImageClassification.register(DenseVLMConfig, DenseVLMModel)
AutoModelForSemanticSegmentation.register(DenseVLMConfig, DenseVLMForSemanticSegmentation)
AutoImageProcessor.register(DenseVLMConfig, image_processor_classes=dict(BACK_ENDS))
AutoProcessor.register(DenseVLMConfig, DenseVLMProcessor)
DenseVLMConfig.register_for_auto_class("AutoConfig")
DenseVLMModel.register_for_auto_class("AutoModel")
DenseVLMForSemanticSegmentation.register_for_auto_class("AutoModelForSemanticSegmentation")
DenseVLMImageProcessor.register_for_auto_class("AutoImageProcessor")
DenseVLMImageProcessorTorchvision.register_for_auto_class("AutoImageProcessor")
DenseVLMProcessor.register_for_auto_class("AutoProcessor")

__all__ = [
    "CategoryEmbeddings",
    "CategorySet",
    "DenseVLMConfig",
    "DenseVLMForSemanticSegmentation",
    "DenseVLMImageProcessor",
    "DenseVLMImageProcessorTorchvision",
    "DenseVLMModel",
    "DenseVLMOutput",
    "DenseVLMProcessor",
    "grid_boxes",
    "shipped",
]
