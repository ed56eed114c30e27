# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Conversion of checkpoints of other libraries to a DenseVLM and back. Saved models do not contain this code."""

from .open_clip import ConversionReport, convert_checkpoint, convert_with_report, export_checkpoint


__all__ = ["ConversionReport", "convert_checkpoint", "convert_with_report", "export_checkpoint"]
