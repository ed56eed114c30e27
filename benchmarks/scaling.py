# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Seconds per epoch of the training program over numbers of images and ranks, with tiny models, one thread per rank.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.timing import machine
from training.sandbox.scenes import write_scenes


IMAGES, RANKS = (250, 500, 1000, 2000), (1, 2)


def epoch(folder: Path, images: int, ranks: int) -> float:
    """Seconds reported by Trainer, without the start of the program."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    options = {
        "images": folder / "train" / "images",
        "max_samples": images,
        "categories": "training/sandbox/categories.json",
        "output_dir": folder / f"run-{images}-{ranks}",
        "num_train_epochs": 1,
        "max_steps": -1,
        "global_batch_size": 50,
        "per_device_train_batch_size": 50,
        "save_strategy": "no",
        "dataloader_num_workers": 0,
        "use_cpu": True,
    }
    arguments = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    command = [sys.executable, *launcher, "-m", "training.train", "training/recipes/sandbox.yaml", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return float(re.search(r"'train_runtime': '?([\d.]+)", output)[1])


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_scenes(folder, 0, "train", max(IMAGES))
        print(f"An epoch of the sandbox's models, one thread per rank. {machine()}")
        first = None
        for images in IMAGES:
            time = epoch(folder, images, 1)
            first = first or time / images
            print(f"  {images:5} images, 1 rank    {time:6.1f} s   {time / images / first:5.2f} x the cost per image")
        for ranks in RANKS[1:]:
            time_of = epoch(folder, max(IMAGES), ranks)
            print(f"  {max(IMAGES):5} images, {ranks} ranks   {time_of:6.1f} s   {time / time_of:5.2f} x as fast as 1")


if __name__ == "__main__":
    main()
