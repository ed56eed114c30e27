# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Many runs on two ranks in sequence: none may report a failure.

    python -m tests.distributed.repeat_runs [--runs 300]

A run starts as a fork of a process that has imported everything, which saves seconds, and ends as usual, with the
shutdown of both interpreters.
"""

import argparse
import gc
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.conftest import CATEGORIES, make_tower, save_folder, word_tokenizer, write_scenes
from training.engine.signals import close_process_group
from training.sandbox.tokenizer import category_sentences
from training.train import main as train


def in_a_child(function, *arguments) -> int:
    """Forks a process that runs a function and exits like a program; returns its id."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        function(*arguments)
        sys.exit()  # full interpreter shutdown, which `os._exit` would skip
    return child


def write_inputs(folder: Path) -> None:
    tokenizer = word_tokenizer(category_sentences(CATEGORIES), 32)
    for number, (role, tower) in enumerate((("student", "eva02_clip"), ("teacher", "siglip"))):
        save_folder(make_tower(tower, tokenizer, seed=number), tokenizer, 96, folder / role)
    CATEGORIES.save(folder / "categories.json")
    write_scenes(folder, 0, "train", 16)


def run_rank(folder: Path, number: int, rank: int, output: int) -> None:
    os.dup2(output, 1)
    os.dup2(output, 2)
    environment = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": 2,
        "LOCAL_WORLD_SIZE": 2,
        "MASTER_ADDR": "127.0.0.1",
    }
    os.environ.update(
        {key: str(value) for key, value in environment.items()} | {"MASTER_PORT": str(20_000 + number % 9_000)}
    )
    values = {
        "model": folder / "student",
        "teacher": folder / "teacher",
        "images": folder / "train" / "images",
        "categories": folder / "categories.json",
        "output_dir": folder / f"run{number}",
        "templates": "short",
        "threshold": 0.1,
        "global_batch_size": 8,
        "max_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    train([part for key, value in values.items() for part in (f"--{key}", str(value))])
    close_process_group()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300)
    runs = parser.parse_args().runs
    failed, began = 0, time.time()
    folder = Path(tempfile.mkdtemp())  # not TemporaryDirectory: forked children would remove it at exit
    os.waitpid(in_a_child(write_inputs, folder), 0)
    gc.freeze()
    for number in range(runs):
        output = open(folder / "output.txt", "w+")  # noqa: SIM115 - shared with the children
        ranks = [in_a_child(run_rank, folder, number, rank, output.fileno()) for rank in (0, 1)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks]
        if any(codes) or not (folder / f"run{number}" / "model.safetensors").is_file():
            failed += 1
            output.seek(0)
            print(f"run {number}: {codes}\n{output.read()[-3000:]}", flush=True)
        output.close()
        if (number + 1) % 20 == 0:
            print(f"{number + 1} runs, {failed} failed, {time.time() - began:.0f} s", flush=True)
    shutil.rmtree(folder)
    return failed


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
