# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
The benchmarks of [`benchmarks.gpu`], one per process:

    python -m benchmarks.gpu_parts steps_eva [--device cuda|cpu]

Models are randomly initialized. A student B/16 at 512 pixels is trained with a teacher L/14 at 518 pixels, 48 images
per step, bfloat16, with the real trainer. All steps use the same batch, so that none waits for data loading, which
`loader` measures separately.
"""

import argparse
import collections
import gc
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

from benchmarks.step import PAIRS, OneImage, Variant, build, count_flop, make_trainer, matrix_rate, vision_config
from modeling_densevlm import DenseVLMConfig
from training.trainer import DenseVLMTrainer


class Scale(NamedTuple):
    """Sizes of the benchmarks."""

    batch: int
    side: int
    sides: tuple[int, ...]
    """Image sizes of the memory benchmark: those of the paper's Table 10."""
    product: int
    warm: int
    steps: int
    images: int


SCALES = {
    "cuda": Scale(48, 512, (224, 320, 512, 640, 768, 896, 1024), 8192, 3, 8, 512),
    "cpu": Scale(2, 64, (32, 64, 96), 512, 1, 1, 8),
}
WAITS = ("aten::item", "aten::_local_scalar_dense", "cudaStreamSynchronize", "cudaDeviceSynchronize")
"""Operations and calls that make the host wait for the GPU."""


def emit(**found: Any) -> None:
    """Prints a result and appends it to the results file."""
    line = json.dumps(found)
    print(line, flush=True)
    if file := os.environ.get("GPU_RESULTS"):
        with open(file, "a") as results:
            results.write(line + "\n")


def teacher_side(side: int, patch: int = 14) -> int:
    """The image side rounded up to a multiple of the teacher's patch size."""
    return -(-side // patch) * patch


def config_of(name: str, device: str) -> DenseVLMConfig:
    """Configuration of the model of this name; a tiny one of its kind for the CPU."""
    config = vision_config(name)
    if device == "cpu":
        tiny = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3}
        for key, value in tiny.items():
            setattr(config.vision_config, key, value)
    return config


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_gib(device: str) -> float | None:
    return torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None


def share_of_rate(flop: float, seconds: float, rate: float) -> float | None:
    """Share of a large product's rate; None above 1, which is a measurement error."""
    share = flop / seconds / rate
    return share if share <= 1 else None


@contextmanager
def out_of_memory(**row: Any) -> Iterator[None]:
    """Reports running out of memory as a result; frees cached memory first."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        yield
    except torch.OutOfMemoryError:
        emit(**row, remark="out of memory")


def rate_of(device: str) -> float:
    """FLOP/s of a large product in bfloat16."""
    return matrix_rate(torch.bfloat16, SCALES[device].product, device)


def rates(device: str) -> None:
    """The large product as the baseline of all rates, and dense inference."""
    scale, rate = SCALES[device], rate_of(device)
    emit(product=f"{scale.product} x {scale.product}, bfloat16", TFLOP_per_s=rate / 1e12)
    sides = (scale.side, teacher_side(scale.side))
    for name, side in (model for pair in PAIRS.values() for model in zip(pair, sides)):
        with out_of_memory(model=name):
            config = config_of(name, device)
            with torch.device(device):
                model = build(config, Variant("sdpa", False, None)).to(torch.bfloat16)
                images = torch.randn(scale.batch, 3, side, side, dtype=torch.bfloat16)
            seconds = time_of(lambda m=model, x=images: m.get_dense_features(x), device)
            flop = count_flop(config, side) * scale.batch
            emit(
                model=name,
                side=side,
                images=scale.batch,
                images_per_s=scale.batch / seconds,
                of_product=share_of_rate(flop, seconds, rate),
                peak_GiB=peak_gib(device),
            )
            del model, images


@torch.inference_mode()
def time_of(function: Callable[[], object], device: str) -> float:
    """Mean seconds per call."""
    scale = SCALES[device]
    for _ in range(scale.warm):
        function()
    synchronize(device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    for _ in range(scale.steps):
        function()
    synchronize(device)
    return (time.perf_counter() - began) / scale.steps


class StepTimer(TrainerCallback):
    """
    Times the steps after warm-up, without synchronizing in between. With `inside`, the steps run in that context.
    """

    def __init__(self, device: str, warm: int, inside: Any = None):
        self.device, self.warm, self.inside = device, warm, inside
        self.seconds = 0.0

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.warm:
            synchronize(self.device)
            if self.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            if self.inside is not None:
                self.inside.__enter__()
            self.began = time.perf_counter()
        elif state.global_step == state.max_steps:
            synchronize(self.device)
            self.seconds = time.perf_counter() - self.began
            if self.inside is not None:
                self.inside.__exit__(None, None, None)


class RepeatFirstBatch:
    """A collator that always returns the first batch."""

    def __init__(self, collate: Callable[[Any], dict[str, Any]]):
        self.collate, self.batch = collate, None

    def __call__(self, samples: Any) -> dict[str, Any]:
        self.batch = self.batch or self.collate(samples)
        return dict(self.batch)


def train(
    pair: str, device: str, attention: str = "sdpa", cached: bool = False, side: int | None = None,
    steps: int | None = None, inside: Any = None, **arguments: Any,
) -> float:  # fmt: skip
    """Seconds per step of the trainer in bfloat16."""
    scale = SCALES[device]
    side, steps = side or scale.side, steps or scale.steps
    variant = Variant(attention, False, None if cached else teacher_side(side))
    torch.manual_seed(0)
    with torch.device(device):
        student, teacher = (None if cached and role else build(config_of(name, device), variant)
                            for role, name in enumerate(PAIRS[pair]))  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(
            DenseVLMTrainer,
            student,
            None if teacher is None else teacher.to(torch.bfloat16),
            OneImage(side, variant.teacher_side),
            scale.warm + steps,
            folder,
            per_device_train_batch_size=scale.batch,
            bf16=True,
            use_cpu=device == "cpu",
            **arguments,
        )
        trainer.data_collator = RepeatFirstBatch(trainer.data_collator)
        timer = StepTimer(device, scale.warm, inside)
        trainer.add_callback(timer)
        trainer.train()
    return timer.seconds / steps


def flop_per_step(pair: str, device: str, cached: bool = False) -> int:
    """FLOP of all images of a step."""
    student, teacher = (config_of(name, device) for name in PAIRS[pair])
    side = SCALES[device].side
    teacher_flop = 0 if cached else count_flop(teacher, teacher_side(side))
    return SCALES[device].batch * (teacher_flop + count_flop(student, side, train=True))


def steps(pair: str, device: str) -> None:
    """Steps online, with cached teacher predictions, and with eager attention."""
    rate = rate_of(device)
    variants = {
        "online": {},
        "cached predictions": {"cached": True},
        "online, eager attention": {"attention": "eager"},
    }
    for name, options in variants.items():
        with out_of_memory(pair=pair, step=name):
            emit_step(pair, name, device, rate, train(pair, device, **options), options.get("cached", False))


def emit_step(pair: str, name: str, device: str, rate: float, seconds: float, cached: bool = False) -> None:
    emit(
        pair=pair,
        step=name,
        images=SCALES[device].batch,
        seconds=seconds,
        images_per_s=SCALES[device].batch / seconds,
        of_product=share_of_rate(flop_per_step(pair, device, cached), seconds, rate),
        peak_GiB=peak_gib(device),
    )


def compiled(device: str) -> None:
    """Student and teacher compiled: by inductor, which takes a minute; by aot_eager on a CPU."""
    options = {} if device == "cuda" else {"torch_compile_backend": "aot_eager"}
    rate = rate_of(device)
    for name, cached in (("cached predictions, compiled", True), ("online, compiled", False)):
        began = time.perf_counter()
        with out_of_memory(pair="eva", step=name):
            seconds = train("eva", device, cached=cached, torch_compile=True, **options)
            emit_step("eva", name, device, rate, seconds, cached)
            emit(step=name, seconds_with_compiling=time.perf_counter() - began)


def sizes(device: str) -> None:
    """Memory and time of a step over image size: the paper's Table 10."""
    scale = SCALES[device]
    for side in scale.sides:
        with out_of_memory(pair="eva", side=side):
            seconds = train("eva", device, side=side, steps=2 if device == "cuda" else 1)
            row = {"pair": "eva", "side": side, "teacher_side": teacher_side(side), "images": scale.batch}
            emit(**row, images_per_s=scale.batch / seconds, peak_GiB=peak_gib(device))


def waits(device: str) -> None:
    """Host waits for the GPU within one step: counts of the profiler, and the lines of code."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    profiler = profile(activities=activities)
    train("eva", device, steps=1, inside=profiler)
    counts = {event.key: event.count for event in profiler.key_averages()}
    for name in WAITS:
        emit(within_a_step=name, times=counts.get(name, 0))
    if device == "cuda":
        lines = SynchronizingLines()
        train("eva", device, steps=1, inside=lines)
        for place, count in lines.places.most_common(20):
            emit(synchronizing_line=place, times=count)


class SynchronizingLines:
    """Counts the lines of code where the host waits for the GPU, from the warnings of torch."""

    def __init__(self):
        self.places: collections.Counter[str] = collections.Counter()

    def __enter__(self):
        self.caught = warnings.catch_warnings(record=True)
        self.list = self.caught.__enter__()
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        return self

    def __exit__(self, *error):
        torch.cuda.set_sync_debug_mode("default")
        for warning in self.list:
            if "synchroniz" in str(warning.message):
                self.places[f"{Path(warning.filename).name}:{warning.lineno}"] += 1
        return self.caught.__exit__(*error)


def loader(device: str) -> None:
    """Images per second of the data loader on all cores, with separate teacher images and with one size for both."""
    from benchmarks.pictures import PHOTO, draw_jpeg
    from modeling_densevlm import DenseVLMImageProcessor
    from training.data import RegionCollator, RegionDataset
    from training.images.sources import Source, open_source

    scale, workers = SCALES[device], len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        jpegs = [draw_jpeg(seed, *PHOTO) for seed in range(min(scale.images, 32))]
        for number in range(scale.images):
            (Path(name) / f"{number:05d}.jpg").write_bytes(jpegs[number % len(jpegs)])
        index = open_source(Source(name))
        student = DenseVLMImageProcessor(scale.side)
        teacher = DenseVLMImageProcessor(teacher_side(scale.side))
        for title, other in (("student and teacher", teacher), ("one size for both", None)):
            dataset = RegionDataset(index, student, other)
            keys = [(visit, number) for visit in range(24) for number in range(scale.images)]
            batches = torch.utils.data.DataLoader(
                dataset,
                batch_size=scale.batch,
                sampler=keys,
                num_workers=workers,
                collate_fn=RegionCollator(dataset),
                pin_memory=device == "cuda",
            )
            images, began = 0, 0.0
            for number, batch in enumerate(batches):
                if number < 2 * workers:  # the first batches were prefetched
                    began = time.perf_counter()
                    continue
                images += len(batch["pixel_values"])
                if time.perf_counter() - began > 6:
                    break
            rate = images / (time.perf_counter() - began)
            emit(loader=title, workers=workers, images_per_s=rate, images_per_s_and_worker=rate / workers)


RUN = {
    "rates": rates,
    "steps_eva": lambda device: steps("eva", device),
    "steps_clip": lambda device: steps("clip", device),
    "waits": waits,
    "loader": loader,
    "sizes": sizes,
    "compiled": compiled,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=RUN)
    parser.add_argument("--device", default="cuda", choices=SCALES)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("There is no CUDA GPU here, or this torch cannot use it. `--device cpu` shows that the parts run.")
    RUN[options.part](options.device)


if __name__ == "__main__":
    main()
