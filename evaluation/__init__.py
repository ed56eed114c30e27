# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluation of region classification and semantic segmentation with dense features."""
