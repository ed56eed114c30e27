# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Runs the training program on several gloo ranks."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from safetensors.torch import load_file

from tests import fork_server


ROOT = Path(__file__).parents[2]


def start(arguments, ranks: int, module: str = "training.train") -> subprocess.Popen:
    """`torchrun -m module`, in a process group of its own."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", module, *arguments],
        cwd=ROOT,
        env=fork_server.rank_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def launch(arguments, ranks: int, module: str = "training.train") -> str:
    """Runs a program to its end and returns its output."""
    done = fork_server.run(module, arguments, ranks)
    text = done.stdout + done.stderr
    assert done.returncode == 0, text[-4000:]
    return text


def run_until(condition, arguments, ranks: int) -> None:
    """Starts ranks and, once a condition holds, kills them and their workers simultaneously, as in a power cut."""
    with tempfile.TemporaryFile("w+") as output:
        programs = fork_server.start("training.train", arguments, ranks, output, output)
        deadline = time.time() + 120
        while not condition():
            assert all(program.poll() is None for program in programs) and time.time() < deadline
            time.sleep(0.01)
        for pid in [pid for program in programs for pid in (program.pid, *_descendants(program.pid))]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert [program.wait(timeout=60) for program in programs] == [-signal.SIGKILL] * ranks


def ranks_of(process: subprocess.Popen) -> list[int]:
    """Process ids of the ranks, without their workers."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children]


def kill(process: subprocess.Popen) -> None:
    """Sends SIGKILL to the launcher, the ranks and their workers simultaneously, as in a power cut."""
    for pid in [process.pid, *_descendants(process.pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=60)


def _descendants(pid: int) -> list[int]:
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):  # any thread may have started them
        with contextlib.suppress(OSError):
            for child in children.read_text().split():
                found += [int(child), *_descendants(int(child))]
    return found


def wait_for(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    deadline = time.time() + seconds
    while not condition():
        assert process.poll() is None, process.stdout.read()[-4000:]
        assert time.time() < deadline
        time.sleep(0.01)


def largest_difference(first: Path, second: Path) -> float:
    """The largest absolute difference between the weights of two saved models."""
    first, second = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert first.keys() == second.keys()
    return max((first[name] - second[name]).abs().max().item() for name in first)
