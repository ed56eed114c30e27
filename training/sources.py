# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Public import path of [`training.images.sources`]."""

from .images.sources import Source, UnreadableImage, open_source


__all__ = ["Source", "UnreadableImage", "open_source"]
