# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Sources of images, one module per kind, and the order in which images are sampled."""
