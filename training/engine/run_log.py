# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Sums between two log entries, over all processes."""

import resource
import time

import torch
from torch import Tensor
from transformers import Trainer


class RunLog(Trainer):
    """A [`Trainer`] with sums over steps, from which [`~RunLog.summarize`] makes log entries."""

    sums: dict[str, Tensor]
    sums_since: float
    """When the current sums were started: before the first batch, so that waiting for it counts."""

    def start_sums(self) -> None:
        """Resets the sums and the clock."""
        self.sums, self.sums_since = {}, time.perf_counter()

    def add_to_log(self, **values: float | Tensor) -> None:
        """Adds values to the sums of the next log entry."""
        for key, value in values.items():
            value = torch.as_tensor(value, dtype=torch.float64 if self.args.device.type == "cpu" else torch.float32)
            self.sums[key] = self.sums.get(key, 0) + value.detach().to(self.args.device)

    def summarize(self, sums: dict[str, float], seconds: float) -> dict[str, float]:
        """The log entry from the sums over all processes since the last one, and the seconds since then."""
        raise NotImplementedError

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self.sums:
            keys = sorted(self.sums)
            of_ranks = self.accelerator.gather(torch.stack([self.sums[key] for key in keys])[None])
            totals, most = (dict(zip(keys, of.tolist())) for of in (of_ranks.sum(0), of_ranks.amax(0)))
            # All ranks wait for the slowest one.
            totals["data_wait"] = most["data_wait"]
            logs.update(self.summarize(totals, time.perf_counter() - self.sums_since))
            self.sums = {}
        super().log(logs, start_time)


def peak_memory(device: torch.device) -> int:
    """Peak memory of this process in bytes; of GPU memory for a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


__all__ = ["RunLog", "peak_memory"]
