# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Timing for comparisons in one run."""

import datetime
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch


def machine() -> str:
    """Where and when a figure was measured."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, {datetime.date.today()}"


def clock(function: Callable[[], object]) -> float:
    """Wall time of a call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def alternate(
    sides: dict[str, Callable[[], object]],
    repeats: int = 7,
    summary: Callable[[list[float]], float] = median,
) -> dict[str, float]:
    """
    Wall time of a call of each side: the median (or the `min`) of calls in turn, so that a machine that becomes slower
    does so for all of them, after one call that does not count.
    """
    for function in sides.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, function in sides.items():
            times[name].append(clock(function))
    return {name: summary(values) for name, values in times.items()}


def compare(
    title: str, ours: Callable[[], object], baseline: Callable[[], object], against: str, repeats: int = 7
) -> float:
    """Prints and returns how many times as fast `ours` is as `baseline`."""
    times = alternate({"ours": ours, "baseline": baseline}, repeats)
    fast, slow = times["ours"], times["baseline"]
    print(f"{title:54} {slow / fast:6.2f} x   ({1e3 * fast:.1f} ms; {against}: {1e3 * slow:.1f} ms)", flush=True)
    return slow / fast


def bounded(value: float, ceiling: float, form: str = "{:.0%}") -> str:
    """A ratio as text; one above what is possible at all is a mistake of measuring, and is left out."""
    if value > ceiling:
        return f"not printed: above its ceiling of {form.format(ceiling)}, measure again on a quieter machine"
    return form.format(value)


def print_row(*cells: str | Sequence[float]) -> None:
    """A row of README's tables; numbers are how many times as fast something is."""
    shown = (cell if isinstance(cell, str) else ", ".join(f"{number:.2f}" for number in cell) for cell in cells)
    print(f"| {' | '.join(shown)} |", flush=True)
