# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Checks the images of a recipe before a long run: reads them all, counts, measures the speed, lists what is broken.

    python -m training.check_data training/recipes/coco.yaml [--samples 10000] [--report report.json] [--key value ...]

Exits with 1 if an image is broken. It also builds the indices of tars, so that the run can start at once.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.compute
import torch

from modeling_densevlm.command_line import one_line_errors

from .build import open_sources
from .data import read_image, resize_and_pad
from .images.sampling import shard_starts
from .images.sources import Source, UnreadableImage, format_counts, passed_over
from .recipe import Arguments, parse_arguments


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Checks each source of a recipe; returns the report."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--samples", type=int)
    parser.add_argument("--report", type=Path)
    own, argv = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    if own.samples is not None and own.samples < 1:
        parser.error(f"`--samples` is a whole number from 1 on, got {own.samples}.")
    arguments = parse_arguments(argv, "training.check_data", "[--samples N] [--report FILE] ")
    if own.report is not None:
        check_report_file(own.report)
    with one_line_errors():
        return check_sources(arguments, own.samples, own.report)


def check_sources(arguments: Arguments, samples: int | None, report_file: Path | None) -> list[dict[str, Any]]:
    """Checks and prints each source, writes the report, and returns it: one dict per source."""
    _, data_args, args = arguments
    report = []
    for source, index in zip(data_args.all_sources, open_sources(arguments)):
        side = max(data_args.image_size or 0, data_args.teacher_image_size or 0) or 512
        result = check_index(index, side, samples, args.dataloader_num_workers)
        report.append({"source": {**asdict(source), "images": str(source.images)}, **result})
        print_summary(source, result, args.global_batch_size or args.per_device_train_batch_size)
    if report_file is not None:
        report_file.write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")
        print(f"Full report: {report_file}")
    return report


def check_report_file(file: Path) -> None:
    """Creates the report file and its folder, so that hours of reading are not lost if it is not writable."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8"):
            pass
    except OSError as error:
        raise SystemExit(f"`--report`: {file} cannot be written: {error}.") from error


class _Images(torch.utils.data.Dataset):
    def __init__(self, index: datasets.Dataset, side: int):
        self.index, self.side = index, side

    def __getitem__(self, number: int) -> dict[str, Any]:
        began = time.perf_counter()
        try:
            image, size, content = read_image(self.index[number], self.side)
        except UnreadableImage as error:
            return {"broken": str(error)}
        resize_and_pad(image, self.side)
        return {"size": size, "bytes": len(content), "seconds": time.perf_counter() - began}


def check_index(index: datasets.Dataset, side: int, samples: int | None, workers: int) -> dict[str, Any]:
    """
    Reads the images of an index as training does.

    Args:
        index ([`datasets.Dataset`]): an index of [`open_source`].
        side (`int`): longest side in pixels that training uses.
        samples (`int`, *optional*): number of images to read, evenly spaced. Defaults to all.
        workers (`int`): number of reading processes.

    Returns:
        A dict of `images` and `shards` (numbers in the index), `read` (number of images), `broken` (list of messages),
        `images_per_second`, `milliseconds_an_image` (of one core), `bytes_an_image`, `width` and `height` (minimum,
        median, maximum), `repeated_ids` (number), `passed_over` (numbers of files of other kinds).
    """
    count = min(samples or len(index), len(index))
    numbers = np.linspace(0, len(index) - 1, count).astype(int).tolist()
    # In batches, to save messages between processes.
    loader = torch.utils.data.DataLoader(
        _Images(index, side), batch_size=16, sampler=numbers, num_workers=workers, collate_fn=list
    )
    began, read, broken = time.perf_counter(), 0, []
    found = np.full((count, 4), np.nan, dtype=np.float32)  # width, height, bytes, seconds of readable images
    for results in loader:
        for result in results:
            if "broken" in result:
                broken.append(result["broken"])
            else:
                found[read] = (*result["size"], result["bytes"], result["seconds"])
            read += 1
        if read % 16_384 == 0:
            print(f"{read} of {count} images read", flush=True)
    seconds = time.perf_counter() - began
    found = found[~np.isnan(found[:, 0])]
    means = found.mean(0, dtype=np.float64).tolist() if len(found) else [0.0] * 4
    sides = {
        name: [int(summary(found[:, axis])) for summary in (np.min, np.median, np.max)] if len(found) else []
        for axis, name in enumerate(("width", "height"))
    }
    return {
        "images": len(index),
        "shards": len(shard_starts(index)),
        "read": count,
        "broken": broken,
        "images_per_second": count / seconds,
        "milliseconds_an_image": 1e3 * means[3],
        "bytes_an_image": round(means[2]),
        **sides,
        "repeated_ids": _count_repeated_ids(index),
        "passed_over": passed_over(index),
    }


def _count_repeated_ids(index: datasets.Dataset) -> int:
    """The number of ids that occur more than once."""
    tables = index.select_columns("id").with_format("arrow").iter(batch_size=100_000)
    counts = pyarrow.compute.value_counts(pyarrow.chunked_array(table["id"].combine_chunks() for table in tables))
    return pyarrow.compute.sum(pyarrow.compute.greater(counts.field("counts"), 1)).as_py()


def print_summary(source: Source, result: dict[str, Any], batch: int) -> None:
    """Prints the result of [`check_index`]; `batch` is the number of images per step."""
    print(
        f"{source.images}: {result['images']} images in {result['shards']} files or row groups, {result['read']} read"
    )
    print(
        f"  {result['images_per_second']:.1f} images per second here, {result['milliseconds_an_image']:.1f} ms of one "
        f"core and {result['bytes_an_image'] / 1024:.0f} KiB per image"
    )
    for name in ("width", "height"):
        if result[name]:
            least, middle, most = result[name]
            print(f"  {name}: {least} to {most} pixels, median {middle:.0f}")
    steps = result["images"] // batch
    print(
        f"  an epoch: {steps} steps of {batch}, {result['images'] / result['images_per_second'] / 3600:.2f} h to read"
    )
    if result["repeated_ids"]:
        print(f"  {result['repeated_ids']} ids occur more than once: their images get the same grids")
    if result["passed_over"]:
        print(f"  passed over: {format_counts(result['passed_over'])}")
    print(f"  broken: {len(result['broken'])}")
    for message in result["broken"][:20]:
        print(f"    {message}")
    if len(result["broken"]) > 20:
        print(f"    and {len(result['broken']) - 20} more (`--report FILE` lists all)")


if __name__ == "__main__":
    sys.exit(1 if any(result["broken"] for result in main()) else 0)
