# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Where images lie, one module a kind of source, and in which order they are seen."""
