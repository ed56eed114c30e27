# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Runs programs in separate processes without importing everything again: most of a short run is spent importing torch
and transformers. A server imports them once; each program is a fork of it that exits like any process.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from transformers.conversion_mapping import get_checkpoint_conversion_mapping


ROOT = Path(__file__).parent.parent
IMPORTED = (
    *(
        "torch._dynamo",
        "torch.distributed.fsdp",
        "torch.distributed.tensor",
        "training.train",
        "training.cache_teacher",
    ),
    *("training.check_data", "evaluation.evaluate_regions", "evaluation.evaluate_segmentation"),
)
"""Modules that programs import, and those that torch imports lazily during a run."""


class Program:
    """A started program, with the part of the interface of [`subprocess.Popen`] that tests use."""

    def __init__(self, status: int):
        self.status = os.fdopen(status, "rb", buffering=0)
        self.pid = int(self.status.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self.status], [], [], 0)[0]:
            self.returncode = int(self.status.readline())
            self.status.close()
        return self.returncode

    def wait(self, timeout: float) -> int:
        deadline = time.time() + timeout
        while self.poll() is None:
            if time.time() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.01)
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


class ForkServer:
    """The server, started with the first program; it ends with this process, which closes the socket."""

    def __init__(self) -> None:
        self.socket: socket.socket | None = None

    def start(
        self, module: str, arguments: Sequence[str], environment: Mapping[str, str], output: IO, errors: IO
    ) -> Program:
        """`python -m module arguments`, as a fork of the server."""
        if self.socket is None:
            self._serve()
        read, write = os.pipe()
        request = {"module": module, "arguments": list(map(str, arguments)), "environment": dict(environment)}
        content = json.dumps(request).encode()
        socket.send_fds(self.socket, [len(content).to_bytes(4)], [output.fileno(), errors.fileno(), write])
        self.socket.sendall(content)
        os.close(write)
        return Program(read)

    def _serve(self) -> None:
        self.socket, theirs = socket.socketpair()
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tests.fork_server", str(theirs.fileno())]
        subprocess.Popen(command, cwd=ROOT, env=environment, pass_fds=[theirs.fileno()])
        theirs.close()


SERVER = ForkServer()


def start(module: str, arguments: Sequence[object], ranks: int | None, output: IO, errors: IO) -> list[Program]:
    """
    Starts `python -m module arguments`, as a single process or on `ranks` processes with the environment variables of
    torchrun.
    """
    environments: list[dict[str, str]] = [{}]
    if ranks is not None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environments = [
            {name: str(value) for name, value in (shared | {"RANK": rank, "LOCAL_RANK": rank}).items()}
            for rank in range(ranks)
        ]
    environment = rank_environment()
    return [SERVER.start(module, arguments, environment | more, output, errors) for more in environments]


def run(
    module: str, arguments: Sequence[object], ranks: int | None = None, seconds: float = 300
) -> subprocess.CompletedProcess:
    """[`start`], then wait for completion. If a rank fails, the others, which would wait for it, are killed."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        programs = start(module, arguments, ranks, output, errors)
        deadline = time.time() + seconds
        while any(p.poll() is None for p in programs) and not any(p.poll() for p in programs):
            if time.time() > deadline:
                raise subprocess.TimeoutExpired(module, seconds)
            time.sleep(0.02)
        for program in programs:
            program.kill()
            program.wait(timeout=60)
        texts = [file.seek(0) or file.read() for file in (output, errors)]
    codes = [program.returncode for program in programs]
    return subprocess.CompletedProcess([module, *map(str, arguments)], next(filter(None, codes), 0), *texts)


def rank_environment() -> dict[str, str]:
    """Environment of a program: one thread, no GPU, and a check of every process at exit."""
    threads = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    path = f"{ROOT / 'tests' / 'distributed' / 'at_exit'}{os.pathsep}{ROOT}"
    return os.environ | threads | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def serve(connection: socket.socket) -> None:
    for module in IMPORTED:
        importlib.import_module(module)
    get_checkpoint_conversion_mapping("clip")  # compiles a thousand patterns once
    gc.freeze()  # keeps garbage collection of the forks from touching, and so copying, these objects
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # reaps the children below automatically
    while True:
        size, files, _, _ = socket.recv_fds(connection, 4, 3)
        if not size:
            return
        content = b""
        while len(content) < int.from_bytes(size):
            content += connection.recv(int.from_bytes(size) - len(content))
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            connection.close()
            watch(json.loads(content), *files)
            return
        for file in files:
            os.close(file)


def watch(request: dict, output: int, errors: int, status: int) -> None:
    """Runs the program in a fork; reports its process id and, finally, its exit code."""
    child = os.fork()
    if child:
        os.write(status, f"{child}\n".encode())
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.write(status, f"{code}\n".encode())
        os._exit(0)
    os.setsid()  # its own process group, so that signals reach its workers as well
    os.close(status)
    os.dup2(output, 1)
    os.dup2(errors, 2)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(write_through=True)
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = [request["module"], *request["arguments"]]
    if any(folder.endswith("at_exit") for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        runpy.run_path(str(ROOT / "tests" / "distributed" / "at_exit" / "sitecustomize.py"))
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
