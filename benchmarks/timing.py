"""Timing for comparisons in one run."""

import time
from collections.abc import Callable
from statistics import median


def seconds(function: Callable[[], object], repeats: int = 7) -> float:
    """Median wall time of a call, after one call that does not count."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return median(times)


def compare(title: str, ours: Callable[[], object], baseline: Callable[[], object], against: str) -> None:
    """Prints how many times faster `ours` is than `baseline`."""
    fast, slow = seconds(ours), seconds(baseline)
    print(f"{title:54} {slow / fast:6.1f} x   ({1e3 * fast:.1f} ms; {against}: {1e3 * slow:.1f} ms)")
