# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The sources of images by the name they have from outside; they are in [`training.images.sources`]."""

from .images.sources import Source, UnreadableImage, open_source


__all__ = ["Source", "UnreadableImage", "open_source"]
