# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Whole runs on two ranks, one after the other: none may report a failure.

    python -m tests.distributed.repeat_runs [--runs 300]

A run begins in a process that has imported everything, which saves the seconds of the imports, and ends as ever: with
the end of both interpreters.
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
    """Starts a process that runs a function and ends as a program does; returns its id."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        function(*arguments)
        sys.exit()  # through the interpreter's whole end, which `os._exit` would leave out
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
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({key: str(value) for key, value in told.items()} | {"MASTER_PORT": str(20_000 + number % 9_000)})
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
    folder = Path(tempfile.mkdtemp())  # no object that removes it: the children would have a copy of it, and end
    os.waitpid(in_a_child(write_inputs, folder), 0)
    gc.freeze()
    for number in range(runs):
        output = open(folder / "output.txt", "w+")  # noqa: SIM115 - likewise
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
