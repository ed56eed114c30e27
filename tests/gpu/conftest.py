# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Compares computations on a GPU with the CPU. Without CUDA these tests are skipped; GPU_TESTS_ON=cpu compares the CPU
with itself, which checks the tests. `make gpu` supports both (docs/gpu.md).
"""

import json
import os

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> str:
    name = os.environ.get("GPU_TESTS_ON", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA GPU here (GPU_TESTS_ON=cpu runs this on the CPU)")
    return name


@pytest.fixture(autouse=True)
def exact_float32(device):
    """Matrix products and convolutions in full float32: TF32 has a mantissa of ten bits."""
    convolutions = torch.backends.cudnn.allow_tf32
    products = torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    yield
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.set_float32_matmul_precision(products)


@pytest.fixture
def on_device(recipe, device):
    """[`recipe`] on the device; `on="cpu"` for the reference run."""

    def arguments(on: str = device, **overrides) -> list[str]:
        return recipe(use_cpu=on == "cpu", **overrides)

    return arguments


def pytest_runtest_logreport(report):
    """Writes each result immediately, with the properties recorded by the test."""
    file = os.environ.get("GPU_RESULTS")
    if not file or not (report.when == "call" or report.outcome in ("failed", "skipped")):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr or "")[-1500:]
    found = {
        "test": report.nodeid.partition("tests/gpu/")[2] or report.nodeid,
        "outcome": report.outcome,
        "seconds": round(report.duration, 2),
        "recorded": dict(report.user_properties),
        "reason": reason,
    }
    with open(file, "a") as results:
        results.write(json.dumps(found) + "\n")
