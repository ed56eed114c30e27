# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
A training step of the real trainer against what the reference computes, what kept answers save, and how much of what
the machine can do is done.

    python -m benchmarks.step [--pair clip|eva] [--dtype float32|bfloat16] [--batch 2] [--rounds 3] [--steps 1]
    python -m benchmarks.step --quick       # one round, one step, one image

The reference is stood for by the same arithmetic, done with our parts: the attention of the last block is computed as
well and not used, and the teacher is shown the student's 512 pixels, of which a patch of 14 takes 504 (36 x 36
tokens; ours sees 518, 37 x 37). `fused` calls the fused attention, as the reference does where its requirements are
installed: that is the figure that counts. `naive` writes attention out; one round of it is enough.

Every side runs in turn in a process of its own, so that its peak of memory is its own, too; the medians count. A ratio
above what is possible at all is a mistake of measuring, and is not printed.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

import datasets
import torch
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerCallback
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from benchmarks.dense_features import discard_attention
from benchmarks.timing import bounded, clock, machine, print_row
from modeling_densevlm import (
    CategoryEmbeddings,
    CategorySet,
    DenseVLMConfig,
    DenseVLMImageProcessor,
    DenseVLMModel,
)
from modeling_densevlm.conversion.configs import convert_config, load_config
from training.alignment import Retrieval, region_logits, retrieve
from training.data import RegionCollator, content_grid
from training.images.sampling import EpochSampler
from training.models import freeze
from training.teacher_cache import all_boxes, compress
from training.trainer import DenseVLMArguments, DenseVLMTrainer


class Side(NamedTuple):
    """How a step is computed."""

    attention: str
    discards: bool
    """Whether the last block's attention is computed as well and dropped."""
    teacher_side: int | None
    """Pixels that the teacher sees; None where its answers are kept."""


PAIRS = {"clip": ("ViT-B-16", "ViT-L-14-336"), "eva": ("EVA02-CLIP-B-16", "EVA02-CLIP-L-14-336")}
SIDES = {
    "fused": Side("sdpa", True, 504),
    "naive": Side("written_out", True, 504),
    "ours": Side("sdpa", False, 518),
    "cached": Side("sdpa", False, None),
}
STUDENT_SIDE = 512
NAIVE_OVER_FUSED = 1.37
"""How many times as long a step of the reference itself takes with naive attention (float32, two threads, EVA pair): a
naive side that takes longer does not stand for it, and gives no ratio."""
EPOCHS = 6
TOP_K = 32
CATEGORIES = CategorySet.load("coco_stuff_ade20k_316")


def written_out(module, query, key, value, attention_mask, scaling, **_) -> tuple[torch.Tensor, None]:
    """Attention as two products and a softmax between them. Image by image, and in place where there is no gradient:
    the pages of a matrix that is made anew in each layer cost as much time as its softmax."""
    outputs = []
    for queries, keys, values in zip(query, key, value, strict=True):
        logits = (queries * scaling) @ keys.transpose(-1, -2)  # (heads, tokens, tokens)
        weights = logits.softmax(-1) if logits.requires_grad else torch.softmax(logits, -1, out=logits)
        outputs.append(weights @ values)
    return torch.stack(outputs).transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register("written_out", written_out)


def build(config: DenseVLMConfig, side: Side) -> DenseVLMModel:
    """A freshly drawn model in eval mode."""
    model = DenseVLMModel._from_config(config, attn_implementation=side.attention).eval()
    if side.discards:
        discard_attention(model.vision_model)
    return model


def vision_config(name: str) -> DenseVLMConfig:
    return convert_config(load_config(name), text=False)


def draw_embeddings(model: DenseVLMModel) -> CategoryEmbeddings:
    embeds = normalize(torch.randn(len(CATEGORIES.names), model.config.projection_dim), dim=-1)
    return CategoryEmbeddings(embeds, list(CATEGORIES.names), CATEGORIES.is_thing, CATEGORIES.synonyms, [], "")


class OneImage(torch.utils.data.Dataset):
    """The same image again and again, with 36 regions; with the teacher's answers or for the teacher to answer."""

    def __init__(self, side: int, teacher_side: int | None):
        shapes = [("pixel_values", side)] + ([("teacher_pixel_values", teacher_side)] if teacher_side else [])
        self.sample: dict[str, Any] = {
            name: torch.randint(256, (side, side, 3), dtype=torch.uint8).permute(2, 0, 1) for name, side in shapes
        }
        self.sample |= {"name": "image", "num_regions": 36, "boxes": content_grid(6, 6, (1.0, 0.75))}
        self.has_targets = teacher_side is None
        if self.has_targets:
            logits = torch.randn(36, len(CATEGORIES.names))
            log_probs, categories = logits.log_softmax(-1).topk(TOP_K)
            labels, rest = categories[:, 0], torch.zeros(36, 2)
            self.sample["cached_targets"] = {
                "labels": labels,
                "categories": categories,
                "log_probs": log_probs - log_probs[:, :1],
                "rest": rest,
            }

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        return self.sample


class TimedTrainer(DenseVLMTrainer):
    """The trainer with a clock: seconds of each step with the teacher, and with the student and the optimizer."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.teacher_seconds: list[float] = []
        self.student_seconds: list[float] = []
        self.resident = 0
        self.add_callback(_StopClock(self))

    def get_batch_samples(self, *args: Any):
        if len(self.student_seconds) == 1:  # the optimizer has its state now
            self.resident = resident_memory()
        return super().get_batch_samples(*args)

    def compute_targets(self, batch):
        began = time.perf_counter()
        targets = super().compute_targets(batch)
        self.asked = time.perf_counter()
        self.teacher_seconds.append(self.asked - began)
        return targets


class _StopClock(TrainerCallback):
    def __init__(self, trainer: TimedTrainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.student_seconds.append(time.perf_counter() - self.trainer.asked)


def make_trainer(
    trainer_class: type[DenseVLMTrainer],
    student: DenseVLMModel,
    teacher: DenseVLMModel | None,
    dataset: OneImage,
    steps: int,
    output_dir: str,
    **arguments: Any,
) -> DenseVLMTrainer:
    """The real trainer on one image; `arguments` are those of [`DenseVLMArguments`]."""
    freeze(student, None)
    args = DenseVLMArguments(
        output_dir=output_dir,
        max_steps=steps,
        threshold=0.0,
        max_grad_norm=0.0,
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        **arguments,
    )
    batch = args.per_device_train_batch_size
    return trainer_class(
        model=student,
        args=args,
        train_dataset=dataset,
        data_collator=RegionCollator(dataset),
        sampler=EpochSampler([datasets.Dataset.from_dict({"file": ["image"] * (batch * steps)})], batch),
        teacher=teacher,
        processing_class=DenseVLMImageProcessor(dataset.sample["pixel_values"].shape[-1]),
        teacher_processing_class=DenseVLMImageProcessor(dataset.sample["pixel_values"].shape[-1]),
        student_embeddings=draw_embeddings(student),
        teacher_embeddings=None if teacher is None else draw_embeddings(teacher),
    )


def measure(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Of one side: seconds of a step's parts after a first step, and the peak of memory above that between steps."""
    torch.manual_seed(0)
    side, dtype = SIDES[name], getattr(torch, options.dtype)
    student_name, teacher_name = PAIRS[options.pair]
    teacher = build(vision_config(teacher_name), side).to(dtype) if side.teacher_side else None
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(
            TimedTrainer,
            build(vision_config(student_name), side),
            teacher,
            OneImage(STUDENT_SIDE, side.teacher_side),
            options.steps + 1,
            folder,
            per_device_train_batch_size=options.batch,
            bf16=options.dtype == "bfloat16",
            use_cpu=True,
        )
        trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = {
        "teacher": median(trainer.teacher_seconds[1:]),
        "student": median(trainer.student_seconds[1:]),
        "memory": peak - trainer.resident,
    }
    if name == "ours":
        found |= measure_retrieval(trainer, options.batch) | {"rate": matrix_rate(dtype)}
    return found


def measure_retrieval(trainer: TimedTrainer, batch: int) -> dict[str, float]:
    """Seconds of a plain pass of the teacher, and of one that answers all regions of all grids, to be kept."""
    pixels = torch.stack([trainer.train_dataset.sample["teacher_pixel_values"]] * batch)
    pixel_values = trainer.teacher_image_processor.normalize(pixels)
    boxes = [all_boxes((1.0, 0.75), 6)] * batch

    def answer() -> None:
        embeds = trainer.teacher(pixel_values=pixel_values, boxes=boxes).region_embeds
        for part in embeds.split([len(b) for b in boxes]):
            logits = region_logits(part, trainer.teacher_text_embeds, trainer.args.temperature)
            found: Retrieval = retrieve(logits, trainer.is_thing, trainer.args.threshold)
            compress(found, torch.as_tensor(trainer.is_thing), TOP_K)

    with torch.inference_mode():
        return {"pass": clock(lambda: trainer.teacher(pixel_values=pixel_values)), "retrieval": clock(answer)}


def resident_memory() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def matrix_rate(dtype: torch.dtype, side: int = 4096, device: str = "cpu") -> float:
    """FLOP/s of a large matrix product."""
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))

    def multiply() -> None:
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()

    multiply()
    return 2 * side**3 / median(clock(multiply) for _ in range(5))


def count_flop(config: DenseVLMConfig, side: int, train: bool = False) -> int:
    """FLOP an image of the tower's matrix products, counted without computing them; nothing computed twice."""
    with torch.device("meta"):
        model = DenseVLMModel._from_config(config, attn_implementation="eager").eval()
        pixel_values = torch.zeros(1, 3, side, side)
    freeze(model, None)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(train):
        dense = model.get_dense_features(pixel_values)
        if train:
            dense.sum().backward()
    return counter.get_total_flops()


def run(side: str, options: argparse.Namespace) -> dict[str, float]:
    """[`measure`] in another process."""
    keys = {"pair": options.pair, "dtype": options.dtype, "batch": options.batch, "steps": options.steps, "side": side}
    arguments = [part for key, value in keys.items() for part in (f"--{key}", str(value))]
    command = [sys.executable, "-m", "benchmarks.step", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def kept_answers(ours: dict[str, float], cached: dict[str, float]) -> tuple[float, float]:
    """How many times as fast epochs with kept answers are as those online; and if an answer cost a plain pass."""
    online = EPOCHS * (ours["teacher"] + ours["student"])
    kept = ours["retrieval"] + EPOCHS * cached["student"]
    return online / kept, online / (ours["pass"] + EPOCHS * ours["student"])


def summarize(found: dict[str, dict[str, float]], flop: dict[str, float]) -> list[tuple[str, str, str]]:
    """Lines of a report: what, how much, and what it comes from."""
    fused, naive, ours, cached = (found[side] for side in SIDES)

    def step(side: dict[str, float]) -> float:
        return side["teacher"] + side["student"]

    def against(title: str, side: dict[str, float], part: Callable[[dict[str, float]], float]) -> tuple[str, str, str]:
        return title, f"{part(side) / part(ours):.2f} x", f"ours {part(ours):.1f} s; reference {part(side):.1f} s"

    lines = [against("step, against the reference with fused attention", fused, step)]
    for part in ("teacher", "student"):
        lines.append(against(f"- {part}", fused, lambda side, part=part: side[part]))
    title, _, remark = against("step, against the reference with naive attention", naive, step)
    ratio, ceiling = step(naive) / step(ours), NAIVE_OVER_FUSED * step(fused) / step(ours)
    lines.append((title, bounded(ratio, ceiling, "{:.2f} x"), remark))
    for title, side in (("peak memory of a step, of the fused reference's", ours), ("- with kept answers", cached)):
        remark = f"{side['memory'] / 2**30:.2f} GiB; fused {fused['memory'] / 2**30:.2f}, naive "
        remark += f"{naive['memory'] / 2**30:.2f} GiB"
        lines.append((title, f"{side['memory'] / fused['memory']:.2f} x", remark))
    gain, ceiling = kept_answers(ours, cached)
    remark = f"ceiling {ceiling:.2f} x; retrieval {ours['retrieval']:.1f} s, a plain pass {ours['pass']:.1f} s"
    lines.append((f"{EPOCHS} epochs with kept answers, against online", bounded(gain, ceiling, "{:.2f} x"), remark))
    for part in ("teacher", "student"):
        rate = flop[part] / ours[part]
        remark = f"{flop[part] / 1e12:.2f} TFLOP, {rate / 1e9:.0f} GFLOP/s; product {ours['rate'] / 1e9:.0f}"
        lines.append((f"FLOP/s of the {part}, of a 4096 x 4096 product's", bounded(rate / ours["rate"], 1), remark))
    return lines


README_COLUMNS = (
    ("step, against the reference with fused attention",),
    ("- teacher", "- student"),
    ("step, against the reference with naive attention",),
    ("peak memory of a step, of the fused reference's",),
    (f"{EPOCHS} epochs with kept answers, against online",),
    ("FLOP/s of the teacher, of a 4096 x 4096 product's", "FLOP/s of the student, of a 4096 x 4096 product's"),
)
"""Titles of [`summarize`] that stand in README's table."""


def report(options: argparse.Namespace) -> None:
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for number in range(options.rounds):
        for side in SIDES:
            if side != "naive" or number == 0:
                runs[side].append(run(side, options))
    found = {side: medians(of) for side, of in runs.items()}
    student, teacher = PAIRS[options.pair]
    flop = {
        "teacher": options.batch * count_flop(vision_config(teacher), SIDES["ours"].teacher_side),
        "student": options.batch * count_flop(vision_config(student), STUDENT_SIDE, train=True),
    }
    print(
        f"\n{student} at {STUDENT_SIDE} px learns from {teacher} at {SIDES['ours'].teacher_side} px, {options.dtype}, "
        f"{options.batch} images, {options.rounds} x {options.steps} steps"
    )
    lines = summarize(found, flop)
    for title, value, remark in lines:
        print(f"  {title:50} {value:>8}   ({remark})", flush=True)
    values = {title: value for title, value, _ in lines}
    print_row(options.pair, *(", ".join(values[title] for title in titles) for titles in README_COLUMNS))


def medians(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: median(one[key] for one in runs) for key in runs[0]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pair", choices=PAIRS)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.batch = options.rounds = options.steps = 1
    if options.side:
        print(json.dumps(measure(options.side, options)))
        return
    print(machine())
    for pair in [options.pair] if options.pair else PAIRS:
        report(argparse.Namespace(**{**vars(options), "pair": pair}))


if __name__ == "__main__":
    main()
