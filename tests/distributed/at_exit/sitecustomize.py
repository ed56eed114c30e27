# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Imported by every Python that is started with this folder on its path: makes a process with remaining gloo threads
fail. Such a thread may need the interpreter after its shutdown, and would then abort a process that has succeeded.
"""

import atexit
import contextlib
import os
import sys
from pathlib import Path


def fail_with_threads_of_gloo() -> None:
    names = set()
    for file in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            names.add(file.read_text().strip())
    if left := sorted(name for name in names if "gloo" in name):
        print(f"Threads that remain at the exit of the process: {', '.join(left)}", file=sys.stderr, flush=True)
        os._exit(70)


atexit.register(fail_with_threads_of_gloo)  # registered first, called last
