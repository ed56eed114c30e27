# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Numbers that are added up between two log lines, over all processes."""

import resource
import time

import torch
from torch import Tensor


class RunLog:
    """Mixin of a [`Trainer`]: sums of what happens in its steps, of which [`~RunLog.summarize`] makes log entries."""

    sums: dict[str, Tensor]
    sums_since: float
    """The clock of the log starts with its first batch, waiting for it included."""

    def start_sums(self) -> None:
        self.sums, self.sums_since = {}, time.perf_counter()

    def add_to_log(self, **values: float | Tensor) -> None:
        """Adds to sums that the next log line shows, over all processes."""
        for key, value in values.items():
            value = torch.as_tensor(value, dtype=torch.float64 if self.args.device.type == "cpu" else torch.float32)
            self.sums[key] = self.sums.get(key, 0) + value.detach().to(self.args.device)

    def summarize(self, sums: dict[str, float], seconds: float) -> dict[str, float]:
        """What is logged of the sums since the last log."""
        raise NotImplementedError

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self.sums:
            keys = sorted(self.sums)
            of_ranks = self.accelerator.gather(torch.stack([self.sums[key] for key in keys])[None])
            totals, most = (dict(zip(keys, of.tolist())) for of in (of_ranks.sum(0), of_ranks.amax(0)))
            # One rank that waits for images keeps all of them waiting.
            totals["data_wait"] = most["data_wait"]
            logs.update(self.summarize(totals, time.perf_counter() - self.sums_since))
            self.sums = {}
        super().log(logs, start_time)


def peak_memory(device: torch.device) -> int:
    """The most bytes this process had, of GPU memory where there is a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


__all__ = ["RunLog", "peak_memory"]
