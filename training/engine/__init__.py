# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""What a run needs whatever it learns: checkpoints, signals, sharding, settings of transformers."""
