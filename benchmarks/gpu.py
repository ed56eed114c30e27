# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Everything that a machine with one CUDA GPU can tell about this repository, in six minutes and without a network: the
tests of `tests/gpu`, and what a step, a pass and the loader take there.

    python -m benchmarks.gpu [--device cuda|cpu] [--output runs/gpu] [--wheels FOLDER] [--parts tests steps_eva ...]

Writes `gpu.json` and `gpu.txt` anew after each part. Parts run one after the other, each in a process of its own with
a time of its own: one that fails, or is still running when its time is over, costs the others nothing, and what it
had found until then is kept. On `--device cpu` models are tiny, and numbers say only that all of it can be run.

This file needs nothing but Python: what is missing of what it starts is taken from `--wheels` (docs/gpu.md).
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
"""Seconds that each may take at most, most telling ones first; all of them together have `TOTAL`."""
TOTAL = 355
SLOWER = 2
"""Times as long for a CPU of two cores, which shows that the parts can be run."""
EXTRAS = ("test", "vision")
"""What is wanted of setup.cfg's extras beside what the package needs."""


def main() -> None:
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "gpu")
    parser.add_argument("--wheels", type=Path, help="folder of wheels for what the machine's Python lacks")
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
            results["parts"][name] = {"status": "not begun: no time was left", "seconds": 0, "found": []}
        else:
            command = command_of(name, python, options.device)
            results["parts"][name] = run(command, limit, options.device)
        write(results, options.output)
        print(f"{name}: {results['parts'][name]['status']}, {results['parts'][name]['seconds']} s", flush=True)
    print(f"\n{as_text(results)}\nIn {options.output}: gpu.json, gpu.txt")
    if not all(part["status"] == "done" for part in results["parts"].values()):
        raise SystemExit(1)


def install(wheels: Path) -> tuple[str, list[str]]:
    """A Python with the machine's packages and, from a folder, those that are missing; and what is unavailable."""
    folder = ROOT / ".venv-gpu"
    python = folder / "bin" / "python"
    if not python.exists():
        venv = [sys.executable, "-m", "venv", "--system-site-packages", "--without-pip", str(folder)]
        subprocess.run(venv, check=True)
        # Where this Python is that of an environment itself, its packages are not the system's.
        packages = folder / "lib" / "python{}.{}".format(*sys.version_info) / "site-packages"
        paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        (packages / "machine.pth").write_text("\n".join(sorted(paths)) + "\n")
    remarks = []
    for requirement in requirements((ROOT / "setup.cfg").read_text()):
        # One by one, so that one that is in neither keeps none away. What the machine has is left as it is.
        pip = [str(python), "-m", "pip", "install", "--quiet", "--no-index", "--find-links", str(wheels), requirement]
        done = subprocess.run(pip, capture_output=True, text=True)
        if done.returncode:
            remarks.append(f"{requirement}: neither installed nor in {wheels} ({_last_line(done.stderr)})")
    return str(python), remarks


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def requirements(setup: str) -> list[str]:
    """What setup.cfg asks for, with [`EXTRAS`]."""
    config = configparser.ConfigParser()
    config.read_string(setup)
    blocks = [config["options"]["install_requires"], *(config["options.extras_require"][name] for name in EXTRAS)]
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip()]


def describe(python: str, device: str) -> dict[str, Any]:
    """Which machine it is, as its own programs say."""
    versions = (
        "import json, torch as t, transformers, accelerate, datasets, modeling_densevlm;"
        "card = t.cuda.get_device_name() if t.cuda.is_available() else None;"
        "print(json.dumps([t.__version__, t.version.cuda, card, transformers.__version__]))"
    )
    asked = subprocess.run([python, "-c", versions], cwd=ROOT, capture_output=True, text=True)
    if asked.returncode:
        reason = _last_line(asked.stderr)
        raise SystemExit(f"{python} lacks something: {reason}. It can come from `--wheels FOLDER` (docs/gpu.md).")
    torch, cuda, card, transformers = json.loads(asked.stdout.splitlines()[-1])
    if device == "cuda" and card is None:
        raise SystemExit(f"torch {torch} finds no CUDA GPU. `--device cpu` shows that the parts run.")
    query = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader", f"--id={_first_gpu()}"]
    told = _output(query).split(", ") if device == "cuda" else []
    driver, memory = told if len(told) == 2 else (None, None)
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


def run(command: Sequence[str], limit: float, device: str) -> dict[str, Any]:
    """
    Runs a part for so many seconds at most. It writes what it finds, a line of JSON each, into the file that
    `GPU_RESULTS` names.
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
                status = f"stopped: its {limit:.0f} s were over"
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
    """Those lines that are whole: a part that was stopped may have been writing one."""
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def write(results: dict[str, Any], folder: Path) -> None:
    """Both files, each written aside and renamed."""
    for name, content in (("gpu.json", json.dumps(results, indent=2)), ("gpu.txt", as_text(results))):
        aside = folder / f".{name}"
        aside.write_text(content + "\n")
        aside.replace(folder / name)


def as_text(results: dict[str, Any]) -> str:
    """The results for people to read."""
    lines = [f"{results['card'] or results['cpu']}, {results['date']}"]
    lines.append(", ".join(f"{k} {results[k]}" for k in ("driver", "torch", "cuda", "transformers", "python")))
    if results["device"] == "cpu":
        lines.append("On a CPU with tiny models: that it can be run is all that these numbers say.")
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
    """How many passed, and what the others say."""
    count = {outcome: sum(test["outcome"] == outcome for test in found) for outcome in ("passed", "failed", "skipped")}
    lines = ["  " + ", ".join(f"{number} {outcome}" for outcome, number in count.items())]
    for test in found:
        recorded = "; ".join(f"{key} {value}" for key, value in test["recorded"].items())
        if test["outcome"] != "passed":
            recorded = f"{test['outcome'].upper()}: {_last_line(test['reason'])}"
        lines.append(f"  {test['test']}" + (f"   {recorded}" if recorded else ""))
    return lines


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Rows as aligned text; a new head where the columns change."""
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
