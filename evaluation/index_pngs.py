# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Former name of [`SemanticMaps`]; import it from `evaluation.datasets.semantic_maps`."""

from .datasets.semantic_maps import LAYOUTS, SemanticMaps
from .datasets.semantic_maps import SemanticMaps as IndexPngs


__all__ = ["LAYOUTS", "IndexPngs", "SemanticMaps"]
