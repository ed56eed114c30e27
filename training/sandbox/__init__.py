# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Synthetic scenes and tiny CLIPs that show the method on a laptop."""
