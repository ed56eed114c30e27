# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""What any Trainer needs: checkpoints, signals, sharding, log, weight averaging, transformers' settings."""
