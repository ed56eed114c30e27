# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
One of two processes that compute a metric together: `folder of the metric, cache, result file, columns, options`, the
last two in JSON. The process of rank 0 has the first region, the other has the rest; rank 0 writes the result.
"""

import json
import os
import sys
from pathlib import Path

import evaluate


if __name__ == "__main__":
    folder, cache, file = sys.argv[1:4]
    columns, options = map(json.loads, sys.argv[4:])
    rank = int(os.environ["RANK"])
    rows = (slice(0, 1), slice(1, None))[rank]
    metric = evaluate.load(folder, num_process=2, process_id=rank, experiment_id="two", cache_dir=cache)
    metric.add_batch(**{name: values[rows] for name, values in columns.items()})
    result = metric.compute(**options)
    assert (result is None) == (rank > 0)
    if result is not None:
        Path(file).write_text(json.dumps(result))
