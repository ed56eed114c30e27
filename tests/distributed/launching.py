"""Starts the training program on several gloo ranks."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from safetensors.torch import load_file


ROOT = Path(__file__).parents[2]


def start(arguments, ranks: int, module: str = "training.train") -> subprocess.Popen:
    """`torchrun -m module`, in a process group of its own."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", module, *arguments],
        cwd=ROOT,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def launch(arguments, ranks: int, module: str = "training.train") -> str:
    """
    Runs it to its end and returns what it printed. Ranks are started with what torchrun tells them, but without it:
    it takes seconds before it starts any.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-m", module, *arguments]
    with tempfile.TemporaryFile("w+") as output:
        processes = []
        for rank in range(ranks):
            told = {name: str(value) for name, value in (shared | {"RANK": rank, "LOCAL_RANK": rank}).items()}
            options = {"stdout": output, "stderr": subprocess.STDOUT, "cwd": ROOT, "env": _environment() | told}
            processes.append(subprocess.Popen(command, **options))
        deadline = time.time() + 300
        while any(p.poll() is None for p in processes) and not any(p.poll() for p in processes):
            assert time.time() < deadline
            time.sleep(0.02)
        for process in processes:  # those that wait for one that has failed
            process.kill()
            process.wait(timeout=60)
        output.seek(0)
        text = output.read()
    assert all(process.returncode == 0 for process in processes), text[-4000:]
    return text


def _environment() -> dict[str, str]:
    threads = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    path = f"{Path(__file__).parent / 'at_exit'}{os.pathsep}{ROOT}"  # every rank is checked when it ends
    return os.environ | threads | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def ranks_of(process: subprocess.Popen) -> list[int]:
    """Process ids of the ranks, their workers not among them."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children]


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to the launcher, the ranks and their workers, all at once, as when a machine goes."""
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


def compare(first: Path, second: Path) -> float:
    """The largest difference of two saved models."""
    first, second = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert first.keys() == second.keys()
    return max((first[name] - second[name]).abs().max().item() for name in first)
