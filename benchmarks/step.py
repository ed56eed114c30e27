"""
A training step against one of the same models that computes its attention naively; and what kept answers save.

    python -m benchmarks.step [--pair clip|eva] [--dtype float32|bfloat16] [--batch 2] [--repeats 3]

Both sides run in turn, each in a process of its own, so that the peak of memory is its own, too.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode

from modeling_densevlm import CategorySet, DenseVLMModel
from modeling_densevlm.checkpoint_configs import convert_config, load_config
from modeling_densevlm.region_pooling import grid_boxes
from training.alignment import align, region_logits, retrieve
from training.train import freeze


PAIRS = {"clip": ("ViT-B-16", "ViT-L-14-336"), "eva": ("EVA02-CLIP-B-16", "EVA02-CLIP-L-14-336")}
EPOCHS = 6


def build(name: str, attention: str) -> DenseVLMModel:
    config = convert_config(load_config(name), text=False)
    return DenseVLMModel._from_config(config, attn_implementation=attention).eval()


class Step:
    """The parts of a step, as the trainer does them: 36 regions an image, 171 categories of COCO-Stuff."""

    def __init__(self, pair: str, attention: str, dtype: torch.dtype, batch: int, with_teacher: bool):
        torch.manual_seed(0)
        student, teacher = PAIRS[pair]
        self.dtype = dtype
        self.student = build(student, attention)
        freeze(self.student, None)
        self.optimizer = torch.optim.AdamW([p for p in self.student.parameters() if p.requires_grad], fused=True)
        self.teacher = build(teacher, attention).to(dtype).requires_grad_(False) if with_teacher else None
        self.pixel_values = torch.randn(batch, 3, 512, 512)
        self.teacher_pixel_values = torch.randn(batch, 3, 518, 518)
        self.boxes = [grid_boxes(6, 6)] * batch
        self.is_thing = CategorySet.load("coco_stuff_ade20k_316").is_thing
        self.text = normalize(torch.randn(len(self.is_thing), self.student.config.projection_dim), dim=-1)
        width = convert_config(load_config(teacher), text=False).projection_dim
        self.teacher_text = normalize(torch.randn(len(self.is_thing), width), dim=-1)
        self.answer = retrieve(torch.randn(36 * batch, len(self.is_thing)), self.is_thing, threshold=0.0)

    def ask_teacher(self, inference: bool = True) -> None:
        with torch.inference_mode(inference), torch.no_grad():
            embeds = self.teacher(
                pixel_values=self.teacher_pixel_values.to(self.dtype), boxes=self.boxes
            ).region_embeds
            retrieve(region_logits(embeds, self.teacher_text, 0.01), self.is_thing, 0.3)

    def train_student(self) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            embeds = self.student(pixel_values=self.pixel_values, boxes=self.boxes).region_embeds
        align(embeds, self.text, self.answer, self.is_thing).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def timed(function: Callable[[], object], repeats: int) -> float:
    function()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return median(times)


def measure(side: str, pair: str, dtype: str, batch: int, repeats: int) -> dict[str, float]:
    """Seconds of the parts, FLOP of the towers and peak memory above that of the models, of one side."""
    step = Step(pair, "eager" if side == "naive" else "sdpa", getattr(torch, dtype), batch, side != "cached")
    result: dict[str, float] = {"before": _resident()}
    if step.teacher is not None:
        result["teacher"] = timed(lambda: step.ask_teacher(inference=side != "naive"), repeats)
    result["student"] = timed(step.train_student, repeats)
    result["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - result["before"]
    if side == "ours":
        with FlopCounterMode(display=False) as counter:
            step.ask_teacher()
        result["teacher_flop"] = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            step.train_student()
        result["student_flop"] = counter.get_total_flops()
    return result


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def matrix_rate(dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product on these threads."""
    left, right = (torch.randn(4096, 4096).to(dtype) for _ in range(2))
    return 2 * 4096**3 / timed(lambda: left @ right, 3)


def run(side: str, options: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.step", "--side", side, "--pair", options.pair]
    command += ["--dtype", options.dtype, "--batch", str(options.batch), "--repeats", str(options.repeats)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def report(options: argparse.Namespace) -> None:
    student, teacher = PAIRS[options.pair]
    rate = matrix_rate(getattr(torch, options.dtype))
    naive, ours, cached = (run(side, options) for side in ("naive", "ours", "cached"))
    naive_step, step = naive["teacher"] + naive["student"], ours["teacher"] + ours["student"]
    print(
        f"{student} at 512 px learns from {teacher} at 518 px, {options.dtype}, batch {options.batch}, "
        f"{torch.get_num_threads()} threads"
    )
    print(f"  step against naive attention           {naive_step / step:5.2f} x   ({naive_step:.2f} s, {step:.2f} s)")
    print(f"    teacher                              {naive['teacher'] / ours['teacher']:5.2f} x")
    print(f"    student                              {naive['student'] / ours['student']:5.2f} x")
    print(f"  peak memory above the models           {ours['peak'] / naive['peak']:5.2f} x   ({_gib(ours, naive)})")
    print(f"  the same without a teacher             {cached['peak'] / naive['peak']:5.2f} x")
    epochs = EPOCHS * step / (ours["teacher"] + EPOCHS * cached["student"])
    ceiling = EPOCHS * step / (ours["teacher"] + EPOCHS * ours["student"])
    print(f"  six epochs with kept answers           {epochs:5.2f} x   (ceiling {ceiling:.2f} x)")
    print(f"  matrix product of 4096 x 4096          {rate / 1e9:5.0f} GFLOP/s")
    for part in ("teacher", "student"):
        achieved = ours[f"{part}_flop"] / ours[part]
        print(
            f"    {part}: of that rate                 {100 * achieved / rate:5.0f} %   ({achieved / 1e9:.0f} GFLOP/s)"
        )


def _gib(ours: dict[str, float], naive: dict[str, float]) -> str:
    return f"{ours['peak'] / 2**30:.2f} GiB; naive {naive['peak'] / 2**30:.2f} GiB"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pair", choices=PAIRS)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", choices=("naive", "ours", "cached"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options.side, options.pair, options.dtype, options.batch, options.repeats)))
        return
    for dtype in [options.dtype] if options.dtype else ["float32", "bfloat16"]:
        for pair in [options.pair] if options.pair else PAIRS:
            report(argparse.Namespace(**{**vars(options), "pair": pair, "dtype": dtype}))


if __name__ == "__main__":
    main()
