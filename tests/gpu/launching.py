# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Starts the training program on a single rank, with the environment variables of torchrun."""

import os
import socket
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).parents[2]
MODULE = "tests.gpu.train_with_one_rank"


def start(arguments: list[str]) -> subprocess.Popen:
    """Starts a new process rather than a fork, which could not use CUDA."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rank = {"WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "RANK": 0, "LOCAL_RANK": 0}
    rank |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1, "PYTHONPATH": ROOT}
    return subprocess.Popen(
        [sys.executable, "-m", MODULE, *arguments],
        cwd=ROOT,
        env=os.environ | {name: str(value) for name, value in rank.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def launch(arguments: list[str]) -> str:
    """Runs the program and returns its output."""
    process = start(arguments)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-4000:]
    return output
