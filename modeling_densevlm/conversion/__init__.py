# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of other libraries to our models, and back. Nothing here travels with a saved model."""

from .open_clip import ConversionReport, convert_checkpoint, convert_with_report, export_checkpoint


__all__ = ["ConversionReport", "convert_checkpoint", "convert_with_report", "export_checkpoint"]
