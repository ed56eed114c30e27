# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Training of dense VLMs: methods, data, recipes and programs."""
