# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Measures a training step against the reference's computation, the savings of cached teacher predictions, and the
utilization of the machine.

    python -m benchmarks.step [--pair clip|eva] [--dtype float32|bfloat16] [--batch 2] [--rounds 3] [--steps 1]
    python -m benchmarks.step --quick       # one round, one step, one image

The reference is represented by the same arithmetic, implemented with our components: the attention of the last block
is also computed and discarded, and the teacher gets the student's 512 pixels, of which a patch size of 14 uses 504 (36
x 36 tokens; ours uses 518, 37 x 37). `fused` uses fused attention, as the reference does with its requirements
installed; it is the relevant baseline. `naive` uses attention without a fused kernel; a single round of it suffices.

The variants run alternately, each in a separate process, so that the peak memory is separate as well; medians are
reported. A ratio above the theoretical maximum is a measurement error and is not printed.
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


class Variant(NamedTuple):
    """How a step is computed."""

    attention: str
    discards: bool
    """Whether the last block's attention is computed and discarded."""
    teacher_side: int | None
    """Side of the teacher's images in pixels; None with cached predictions."""


PAIRS = {"clip": ("ViT-B-16", "ViT-L-14-336"), "eva": ("EVA02-CLIP-B-16", "EVA02-CLIP-L-14-336")}
VARIANTS = {
    "fused": Variant("sdpa", True, 504),
    "naive": Variant("naive", True, 504),
    "ours": Variant("sdpa", False, 518),
    "cached": Variant("sdpa", False, None),
}
STUDENT_SIDE = 512
NAIVE_OVER_FUSED = 1.37
"""Time of a step of the reference with naive attention over fused attention (float32, two threads, EVA pair): a slower
naive variant does not represent the reference, and gives no ratio."""
EPOCHS = 6
TOP_K = 32
CATEGORIES = CategorySet.load("coco_stuff_ade20k_316")


def naive_attention(module, query, key, value, attention_mask, scaling, **_) -> tuple[torch.Tensor, None]:
    """
    Attention as two products with a softmax in between. Per image, and in place where there is no gradient: allocating
    a new matrix in each layer would take as long as its softmax.
    """
    outputs = []
    for queries, keys, values in zip(query, key, value, strict=True):
        logits = (queries * scaling) @ keys.transpose(-1, -2)  # (heads, tokens, tokens)
        weights = logits.softmax(-1) if logits.requires_grad else torch.softmax(logits, -1, out=logits)
        outputs.append(weights @ values)
    return torch.stack(outputs).transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register("naive", naive_attention)


def build(config: DenseVLMConfig, variant: Variant) -> DenseVLMModel:
    """A randomly initialized model in eval mode."""
    model = DenseVLMModel._from_config(config, attn_implementation=variant.attention).eval()
    if variant.discards:
        discard_attention(model.vision_model)
    return model


def vision_config(name: str) -> DenseVLMConfig:
    return convert_config(load_config(name), text=False)


def random_embeddings(model: DenseVLMModel) -> CategoryEmbeddings:
    embeds = normalize(torch.randn(len(CATEGORIES.names), model.config.projection_dim), dim=-1)
    return CategoryEmbeddings(embeds, list(CATEGORIES.names), CATEGORIES.is_thing, CATEGORIES.synonyms, [], "")


class OneImage(torch.utils.data.Dataset):
    """A single repeated image with 36 regions, with cached teacher predictions or with pixels for the teacher."""

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
    """The trainer with timers: seconds per step for the teacher, and for the student and the optimizer."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.teacher_seconds: list[float] = []
        self.student_seconds: list[float] = []
        self.resident = 0
        self.add_callback(_StopClock(self))

    def get_batch_samples(self, *args: Any):
        if len(self.student_seconds) == 1:  # the optimizer state is allocated now
            self.resident = resident_memory()
        return super().get_batch_samples(*args)

    def compute_targets(self, batch):
        began = time.perf_counter()
        targets = super().compute_targets(batch)
        self.targets_done = time.perf_counter()
        self.teacher_seconds.append(self.targets_done - began)
        return targets


class _StopClock(TrainerCallback):
    def __init__(self, trainer: TimedTrainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.student_seconds.append(time.perf_counter() - self.trainer.targets_done)


def make_trainer(
    trainer_class: type[DenseVLMTrainer],
    student: DenseVLMModel,
    teacher: DenseVLMModel | None,
    dataset: OneImage,
    steps: int,
    output_dir: str,
    **arguments: Any,
) -> DenseVLMTrainer:
    """The trainer on one image; `arguments` are passed to [`DenseVLMArguments`]."""
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
        student_embeddings=random_embeddings(student),
        teacher_embeddings=None if teacher is None else random_embeddings(teacher),
    )


def measure_variant(name: str, options: argparse.Namespace) -> dict[str, float]:
    """
    Measures one variant: seconds of the parts of a step after a first one, and peak memory above that between steps.
    """
    torch.manual_seed(0)
    variant, dtype = VARIANTS[name], getattr(torch, options.dtype)
    student_name, teacher_name = PAIRS[options.pair]
    teacher = build(vision_config(teacher_name), variant).to(dtype) if variant.teacher_side else None
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(
            TimedTrainer,
            build(vision_config(student_name), variant),
            teacher,
            OneImage(STUDENT_SIDE, variant.teacher_side),
            options.steps + 1,
            folder,
            per_device_train_batch_size=options.batch,
            bf16=options.dtype == "bfloat16",
            use_cpu=True,
        )
        trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    measured = {
        "teacher": median(trainer.teacher_seconds[1:]),
        "student": median(trainer.student_seconds[1:]),
        "memory": peak - trainer.resident,
    }
    if name == "ours":
        measured |= measure_retrieval(trainer, options.batch) | {"rate": matrix_rate(dtype)}
    return measured


def measure_retrieval(trainer: TimedTrainer, batch: int) -> dict[str, float]:
    """
    Seconds of a plain forward pass of the teacher, and of computing the cached predictions of all regions of all
    grids.
    """
    pixels = torch.stack([trainer.train_dataset.sample["teacher_pixel_values"]] * batch)
    pixel_values = trainer.teacher_image_processor.normalize(pixels)
    boxes = [all_boxes((1.0, 0.75), 6)] * batch

    def predict() -> None:
        embeds = trainer.teacher(pixel_values=pixel_values, boxes=boxes).region_embeds
        for image_embeds in embeds.split([len(b) for b in boxes]):
            logits = region_logits(image_embeds, trainer.teacher_text_embeds, trainer.args.temperature)
            retrieval: Retrieval = retrieve(logits, trainer.is_thing, trainer.args.threshold)
            compress(retrieval, torch.as_tensor(trainer.is_thing), TOP_K)

    with torch.inference_mode():
        return {"pass": clock(lambda: trainer.teacher(pixel_values=pixel_values)), "retrieval": clock(predict)}


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
    """FLOP per image of the tower's matrix products, counted on meta tensors, without recomputation."""
    with torch.device("meta"):
        model = DenseVLMModel._from_config(config, attn_implementation="eager").eval()
        pixel_values = torch.zeros(1, 3, side, side)
    freeze(model, None)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(train):
        dense = model.get_dense_features(pixel_values)
        if train:
            dense.sum().backward()
    return counter.get_total_flops()


def run_variant(variant: str, options: argparse.Namespace) -> dict[str, float]:
    """[`measure_variant`] in a separate process."""
    values = {
        "pair": options.pair,
        "dtype": options.dtype,
        "batch": options.batch,
        "steps": options.steps,
        "variant": variant,
    }
    arguments = [word for key, value in values.items() for word in (f"--{key}", str(value))]
    command = [sys.executable, "-m", "benchmarks.step", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def cache_speedup(ours: dict[str, float], cached: dict[str, float]) -> tuple[float, float]:
    """
    Speedup of training with cached predictions over online training, and its bound if caching cost a plain forward
    pass.
    """
    online = EPOCHS * (ours["teacher"] + ours["student"])
    offline = ours["retrieval"] + EPOCHS * cached["student"]
    return online / offline, online / (ours["pass"] + EPOCHS * ours["student"])


def summarize(measured: dict[str, dict[str, float]], flop: dict[str, float]) -> list[tuple[str, str, str]]:
    """Lines of a report: title, value and remark."""
    fused, naive, ours, cached = (measured[name] for name in VARIANTS)

    def step(variant: dict[str, float]) -> float:
        return variant["teacher"] + variant["student"]

    def against(title: str, baseline: dict[str, float], part: Callable[[dict[str, float]], float]) -> tuple[str, ...]:
        return (
            title,
            f"{part(baseline) / part(ours):.2f} x",
            f"ours {part(ours):.1f} s; reference {part(baseline):.1f} s",
        )

    lines = [against("step, against the reference with fused attention", fused, step)]
    for part in ("teacher", "student"):
        lines.append(against(f"- {part}", fused, lambda variant, part=part: variant[part]))
    title, _, remark = against("step, against the reference with naive attention", naive, step)
    ratio, ceiling = step(naive) / step(ours), NAIVE_OVER_FUSED * step(fused) / step(ours)
    lines.append((title, bounded(ratio, ceiling, "{:.2f} x"), remark))
    for title, variant in (
        ("peak memory of a step, of the fused reference's", ours),
        ("- cached predictions", cached),
    ):
        remark = f"{variant['memory'] / 2**30:.2f} GiB; fused {fused['memory'] / 2**30:.2f}, naive "
        remark += f"{naive['memory'] / 2**30:.2f} GiB"
        lines.append((title, f"{variant['memory'] / fused['memory']:.2f} x", remark))
    speedup, ceiling = cache_speedup(ours, cached)
    remark = f"ceiling {ceiling:.2f} x; retrieval {ours['retrieval']:.1f} s, a plain pass {ours['pass']:.1f} s"
    lines.append(
        (
            f"{EPOCHS} epochs with cached teacher predictions, against online",
            bounded(speedup, ceiling, "{:.2f} x"),
            remark,
        )
    )
    for part in ("teacher", "student"):
        rate = flop[part] / ours[part]
        remark = f"{flop[part] / 1e12:.2f} TFLOP, {rate / 1e9:.0f} GFLOP/s; product {ours['rate'] / 1e9:.0f}"
        lines.append((f"FLOP/s of the {part}, of a 4096 x 4096 product's", bounded(rate / ours["rate"], 1), remark))
    return lines


TABLE_COLUMNS = (
    ("step, against the reference with fused attention",),
    ("- teacher", "- student"),
    ("step, against the reference with naive attention",),
    ("peak memory of a step, of the fused reference's",),
    (f"{EPOCHS} epochs with cached teacher predictions, against online",),
    ("FLOP/s of the teacher, of a 4096 x 4096 product's", "FLOP/s of the student, of a 4096 x 4096 product's"),
)
"""Titles of [`summarize`] in the row that is printed for a pair."""


def report_pair(options: argparse.Namespace) -> None:
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for number in range(options.rounds):
        for name in VARIANTS:
            if name != "naive" or number == 0:
                runs[name].append(run_variant(name, options))
    measured = {name: medians(of_variant) for name, of_variant in runs.items()}
    student, teacher = PAIRS[options.pair]
    flop = {
        "teacher": options.batch * count_flop(vision_config(teacher), VARIANTS["ours"].teacher_side),
        "student": options.batch * count_flop(vision_config(student), STUDENT_SIDE, train=True),
    }
    print(
        f"\n{student} at {STUDENT_SIDE} px with teacher {teacher} at {VARIANTS['ours'].teacher_side} px, "
        f"{options.dtype}, {options.batch} images, {options.rounds} x {options.steps} steps"
    )
    lines = summarize(measured, flop)
    for title, value, remark in lines:
        print(f"  {title:50} {value:>8}   ({remark})", flush=True)
    values = {title: value for title, value, _ in lines}
    print_row(options.pair, *(", ".join(values[title] for title in titles) for titles in TABLE_COLUMNS))


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
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.batch = options.rounds = options.steps = 1
    if options.variant:
        print(json.dumps(measure_variant(options.variant, options)))
        return
    print(machine())
    for pair in [options.pair] if options.pair else PAIRS:
        report_pair(argparse.Namespace(**{**vars(options), "pair": pair}))


if __name__ == "__main__":
    main()
