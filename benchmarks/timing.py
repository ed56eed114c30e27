# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Timing of alternatives within one process."""

import datetime
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch


def machine() -> str:
    """Machine, versions and date of a measurement."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, {datetime.date.today()}"


def clock(function: Callable[[], object]) -> float:
    """Wall time of a call in seconds."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def alternate(
    alternatives: dict[str, Callable[[], object]],
    repeats: int = 7,
    summary: Callable[[list[float]], float] = median,
) -> dict[str, float]:
    """
    Wall time of each alternative: the median (or `min`) over alternating calls, so that changes in machine speed
    affect all of them alike, after one warm-up call.
    """
    for function in alternatives.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in alternatives}
    for _ in range(repeats):
        for name, function in alternatives.items():
            times[name].append(clock(function))
    return {name: summary(values) for name, values in times.items()}


def compare(
    title: str, ours: Callable[[], object], baseline: Callable[[], object], against: str, repeats: int = 7
) -> float:
    """Prints and returns the speedup of `ours` over `baseline`."""
    times = alternate({"ours": ours, "baseline": baseline}, repeats)
    fast, slow = times["ours"], times["baseline"]
    print(f"{title:54} {slow / fast:6.2f} x   ({1e3 * fast:.1f} ms; {against}: {1e3 * slow:.1f} ms)", flush=True)
    return slow / fast


def bounded(value: float, ceiling: float, form: str = "{:.0%}") -> str:
    """A ratio as text; a ratio above its theoretical maximum is a measurement error and omitted."""
    if value > ceiling:
        return f"not printed: above its ceiling of {form.format(ceiling)}, measure again on a quieter machine"
    return form.format(value)


def print_row(*cells: str | Sequence[float]) -> None:
    """Prints a row of README's tables; numbers are speedups."""
    shown = (cell if isinstance(cell, str) else ", ".join(f"{number:.2f}" for number in cell) for cell in cells)
    print(f"| {' | '.join(shown)} |", flush=True)
