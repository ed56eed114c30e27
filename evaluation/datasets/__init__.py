# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Datasets of the evaluation: panoptic annotations and semantic maps."""
