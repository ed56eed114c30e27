# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Read by every Python that is started with this folder on its path: a process that leaves threads of gloo behind fails.
Such a thread may need Python when there is none any more, and would then abort a process that has done its work.
"""

import atexit
import os
import sys
from pathlib import Path


def fail_with_threads_of_gloo() -> None:
    names = {file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")}
    if left := sorted(name for name in names if "gloo" in name):
        print(f"Threads that are left when the process ends: {', '.join(left)}", file=sys.stderr, flush=True)
        os._exit(70)


atexit.register(fail_with_threads_of_gloo)  # the first that is registered is the last that is called
