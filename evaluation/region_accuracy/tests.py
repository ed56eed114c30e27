# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Test cases of the metric, in the format of Spaces."""

test_cases = [
    {
        "predictions": [[0, 1, 2, 3, 4], [0, 2, 1, 3, 4]],
        "references": [0, 2],
        "is_thing": [True, False],
        "result": {"thing_top1": 1.0, "thing_top5": 1.0, "stuff_top1": 0.0, "stuff_top5": 1.0},
    },
]
