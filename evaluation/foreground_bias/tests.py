# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Test cases of the metric, in the format of Spaces."""

test_cases = [
    {
        "predictions": [0, 0, 2, 2],
        "references": [2, 2, 2, 0],
        "category_is_thing": [True, True, False],
        "result": {"foreground_bias": 2 / 3, "background_bias": 1.0},
    },
]
