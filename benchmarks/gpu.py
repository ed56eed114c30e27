# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Tests and benchmarks for a machine with one CUDA GPU, in six minutes and without network access: `tests/gpu`, and the
cost of training steps, forward passes and data loading.

    python -m benchmarks.gpu [--device cuda|cpu] [--output runs/gpu] [--wheels FOLDER] [--parts tests steps_eva ...]

Updates `gpu.json` and `gpu.txt` after each part. Parts run sequentially, each in a separate process with its own time
limit: one that fails or exceeds its limit does not affect the others, and its results up to then are preserved. With
`--device cpu` models are tiny, and the numbers only show that everything runs.

This file needs only Python; missing dependencies of the parts are installed from `--wheels` (docs/gpu.md).
"""

import argparse
import configparser
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


ROOT = Path(__file__).parent.parent
PARTS = {
    "rates": 40,
    "tests": 170,
    "steps_eva": 60,
    "steps_clip": 50,
    "waits": 40,
    "loader": 40,
    "sizes": 60,
    "compiled": 100,
}
"""Time limit of each part in seconds, the most informative parts first; `TOTAL` limits all of them together."""
TOTAL = 355
SLOWER = 2
"""Factor on the limits for a CPU with two cores, on which the parts are only tested."""
EXTRAS = ("test", "vision")
"""Extras of setup.cfg that the parts need beside the package's own requirements."""


def main() -> None:
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "gpu")
    parser.add_argument("--wheels", type=Path, help="folder of wheels for packages that are missing on the machine")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    slower = SLOWER if options.device == "cpu" else 1
    python, remarks = sys.executable, []
    if options.wheels:
        python, remarks = install(options.wheels)
    results = describe(python, options.device) | {"remarks": remarks, "parts": {}}
    for name in options.parts:
        left = began + TOTAL * slower - time.monotonic()
        limit = min(PARTS[name] * slower, left)
        if limit < 5:
            results["parts"][name] = {"status": "not started: no time left", "seconds": 0, "found": []}
        else:
            command = command_of(name, python, options.device)
            results["parts"][name] = run_part(command, limit, options.device)
        write_results(results, options.output)
        print(f"{name}: {results['parts'][name]['status']}, {results['parts'][name]['seconds']} s", flush=True)
    print(f"\n{as_text(results)}\nIn {options.output}: gpu.json, gpu.txt")
    if not all(part["status"] == "done" for part in results["parts"].values()):
        raise SystemExit(1)


def install(wheels: Path) -> tuple[str, list[str]]:
    """
    A Python with the machine's packages and, from a folder of wheels, the missing ones; and remarks on unavailable
    ones.
    """
    folder = ROOT / ".venv-gpu"
    python = folder / "bin" / "python"
    if not python.exists():
        venv = [sys.executable, "-m", "venv", "--system-site-packages", "--without-pip", str(folder)]
        subprocess.run(venv, check=True)
        # If this Python is in a virtual environment, its packages are not among the system's.
        packages = folder / "lib" / "python{}.{}".format(*sys.version_info) / "site-packages"
        paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        (packages / "machine.pth").write_text("\n".join(sorted(paths)) + "\n")
    remarks = []
    for requirement in requirements((ROOT / "setup.cfg").read_text()):
        # One at a time, so that an unavailable one does not block the others. Installed packages are not changed.
        pip = [str(python), "-m", "pip", "install", "--quiet", "--no-index", "--find-links", str(wheels), requirement]
        done = subprocess.run(pip, capture_output=True, text=True)
        if done.returncode:
            remarks.append(f"{requirement}: neither installed nor in {wheels} ({_last_line(done.stderr)})")
    return str(python), remarks


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def requirements(setup: str) -> list[str]:
    """The requirements of setup.cfg, including [`EXTRAS`]."""
    config = configparser.ConfigParser()
    config.read_string(setup)
    blocks = [config["options"]["install_requires"], *(config["options.extras_require"][name] for name in EXTRAS)]
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip()]


def describe(python: str, device: str) -> dict[str, Any]:
    """Description of the machine and the versions."""
    versions = (
        "import json, torch as t, transformers, accelerate, datasets, modeling_densevlm;"
        "card = t.cuda.get_device_name() if t.cuda.is_available() else None;"
        "print(json.dumps([t.__version__, t.version.cuda, card, transformers.__version__]))"
    )
    done = subprocess.run([python, "-c", versions], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        reason = _last_line(done.stderr)
        raise SystemExit(
            f"A package is missing for {python}: {reason}. `--wheels FOLDER` can provide it (docs/gpu.md)."
        )
    torch, cuda, card, transformers = json.loads(done.stdout.splitlines()[-1])
    if device == "cuda" and card is None:
        raise SystemExit(f"torch {torch} finds no CUDA GPU. `--device cpu` shows that the parts run.")
    query = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader", f"--id={_first_gpu()}"]
    fields = _output(query).split(", ") if device == "cuda" else []
    driver, memory = fields if len(fields) == 2 else (None, None)
    cpu = [line.partition(":")[2].strip() for line in _output(["lscpu"]).splitlines() if line.startswith("Model name")]
    return {
        "date": datetime.datetime.now().isoformat(timespec="minutes"),
        "device": device,
        "card": card if device == "cuda" else None,
        "driver": driver,
        "memory": memory,
        "cpu": f"{cpu[0] if cpu else platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "python": platform.python_version(),
        "torch": torch,
        "cuda": cuda,
        "transformers": transformers,
    }


def _output(command: Sequence[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def command_of(name: str, python: str, device: str) -> list[str]:
    if name == "tests":
        return [python, "-m", "pytest", "tests/gpu", "-q", "-p", "no:cacheprovider"]
    return [python, "-m", "benchmarks.gpu_parts", name, "--device", device]


def run_part(command: Sequence[str], limit: float, device: str) -> dict[str, Any]:
    """
    Runs a part for at most `limit` seconds. It appends its results as lines of JSON to the file given by
    `GPU_RESULTS`.
    """
    with tempfile.TemporaryDirectory() as folder:
        file, output = Path(folder) / "found.jsonl", Path(folder) / "output.txt"
        environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "GPU_TESTS_ON": device}
        environment |= {
            "GPU_RESULTS": str(file),
            "CUDA_VISIBLE_DEVICES": _first_gpu() if device == "cuda" else "",
        }
        began = time.monotonic()
        with open(output, "w") as stream:
            options = {"cwd": ROOT, "env": environment, "stdout": stream, "stderr": subprocess.STDOUT}
            process = subprocess.Popen(command, start_new_session=True, **options)
            try:
                status = "done" if process.wait(timeout=limit) == 0 else "failed"
            except subprocess.TimeoutExpired:
                status = f"stopped after its limit of {limit:.0f} s"
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        lines = file.read_text().splitlines() if file.exists() else []
        part = {"status": status, "seconds": round(time.monotonic() - began, 1), "found": parse(lines)}
        if status != "done":
            part["output"] = output.read_text(errors="replace")[-3000:]
    return part


def _first_gpu() -> str:
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]


def parse(lines: Sequence[str]) -> list[dict[str, Any]]:
    """Parses complete lines of JSON; a stopped part may have left an incomplete one."""
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def write_results(results: dict[str, Any], folder: Path) -> None:
    """Writes both files atomically, through staging files."""
    for name, content in (("gpu.json", json.dumps(results, indent=2)), ("gpu.txt", as_text(results))):
        staging = folder / f".{name}"
        staging.write_text(content + "\n")
        staging.replace(folder / name)


def as_text(results: dict[str, Any]) -> str:
    """The results as readable text."""
    lines = [f"{results['card'] or results['cpu']}, {results['date']}"]
    lines.append(", ".join(f"{k} {results[k]}" for k in ("driver", "torch", "cuda", "transformers", "python")))
    if results["device"] == "cpu":
        lines.append("On a CPU with tiny models: these numbers only show that everything runs.")
    lines += results["remarks"]
    for name, part in results["parts"].items():
        lines.append(f"\n{name}: {part['status']}, {part['seconds']} s")
        if name == "tests":
            lines += summarize_tests(part["found"])
        else:
            lines += table(part["found"])
        if "output" in part:
            lines += [f"  | {line}" for line in part["output"].splitlines()[-12:]]
    return "\n".join(lines)


def summarize_tests(found: Sequence[dict[str, Any]]) -> list[str]:
    """Counts of outcomes, recorded numbers, and reasons of failed and skipped tests."""
    count = {outcome: sum(test["outcome"] == outcome for test in found) for outcome in ("passed", "failed", "skipped")}
    lines = ["  " + ", ".join(f"{number} {outcome}" for outcome, number in count.items())]
    for test in found:
        recorded = "; ".join(f"{key} {value}" for key, value in test["recorded"].items())
        if test["outcome"] != "passed":
            recorded = f"{test['outcome'].upper()}: {_last_line(test['reason'])}"
        lines.append(f"  {test['test']}" + (f"   {recorded}" if recorded else ""))
    return lines


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Rows as aligned text; a new header where the columns change."""
    lines: list[str] = []
    groups: list[list[dict[str, Any]]] = []
    for row in rows:
        if groups and groups[-1][0].keys() == row.keys():
            groups[-1].append(row)
        else:
            groups.append([row])
    for group in groups:
        cells = [list(group[0]), *([_shown(value) for value in row.values()] for row in group)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
        lines += ["  " + "   ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells]
    return lines


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return "–" if value is None else str(value)


if __name__ == "__main__":
    main()
