"""
A training step of the real trainer against one of the same models that computes its attention naively, what kept
answers save, and how much of what the machine can do is done.

    python -m benchmarks.step [--pair clip|eva] [--dtype float32|bfloat16] [--batch 2] [--rounds 3] [--steps 1]
    python -m benchmarks.step --quick       # one round, one step, one image

Every side runs in turn in a process of its own, so that its peak of memory is its own, too; the medians count.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import datasets
import torch
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerCallback

from benchmarks.dense_features import discard_attention, without_class_token
from benchmarks.timing import clock, machine
from modeling_densevlm import CategoryEmbeddings, CategorySet, DenseVLMImageProcessor, DenseVLMModel
from modeling_densevlm.checkpoint_configs import convert_config, load_config
from training.alignment import Retrieval, region_logits, retrieve
from training.arguments import MethodArguments
from training.data import RegionCollator
from training.regions import content_grid
from training.retrieval_cache import all_boxes, compress
from training.sampling import EpochSampler
from training.train import freeze
from training.trainer import DenseVLMTrainer


PAIRS = {"clip": ("ViT-B-16", "ViT-L-14-336"), "eva": ("EVA02-CLIP-B-16", "EVA02-CLIP-L-14-336")}
SIDES = ("naive", "ours", "cached")
STUDENT_SIDE, TEACHER_SIDE = 512, 518
EPOCHS = 6
TOP_K = 32
CATEGORIES = CategorySet.load("coco_stuff_ade20k_316")


def build(name: str, naive: bool = False) -> DenseVLMModel:
    """A freshly drawn model; naive: attention as a matrix in memory, and in the last block, where no one reads it."""
    config = convert_config(load_config(name), text=False)
    model = DenseVLMModel._from_config(config, attn_implementation="eager" if naive else "sdpa").eval()
    if naive:
        last = model.vision_model.blocks[-1]
        if name.startswith("EVA02"):
            without_class_token(last)
        discard_attention(last)
    return model


def draw_embeddings(model: DenseVLMModel) -> CategoryEmbeddings:
    embeds = normalize(torch.randn(len(CATEGORIES.names), model.config.projection_dim), dim=-1)
    return CategoryEmbeddings(embeds, list(CATEGORIES.names), CATEGORIES.is_thing, CATEGORIES.synonyms, [], "")


class OneImage(torch.utils.data.Dataset):
    """The same image again and again, with 36 regions; with the teacher's answers or for the teacher to answer."""

    def __init__(self, cached: bool):
        shapes = [("pixel_values", STUDENT_SIDE)] + ([] if cached else [("teacher_pixel_values", TEACHER_SIDE)])
        self.sample: dict[str, Any] = {
            name: torch.randint(256, (side, side, 3), dtype=torch.uint8).permute(2, 0, 1) for name, side in shapes
        }
        self.sample |= {"name": "image", "num_regions": 36, "boxes": content_grid(6, 6, (1.0, 0.75))}
        if cached:
            logits = torch.randn(36, len(CATEGORIES.names))
            log_probs, categories = logits.log_softmax(-1).topk(TOP_K)
            labels, rest = categories[:, 0], torch.zeros(36, 2)
            self.sample["retrieved"] = {
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

    def ask_teacher(self, batch):
        began = time.perf_counter()
        answer = super().ask_teacher(batch)
        self.asked = time.perf_counter()
        self.teacher_seconds.append(self.asked - began)
        return answer


class _StopClock(TrainerCallback):
    def __init__(self, trainer: TimedTrainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.student_seconds.append(time.perf_counter() - self.trainer.asked)


def make_trainer(side: str, options: argparse.Namespace, output_dir: str) -> TimedTrainer:
    torch.manual_seed(0)
    steps = options.steps + 1
    student_name, teacher_name = PAIRS[options.pair]
    student = build(student_name, side == "naive")
    freeze(student, None)
    teacher = None if side == "cached" else build(teacher_name, side == "naive")
    dataset = OneImage(cached=teacher is None)
    args = MethodArguments(
        output_dir=output_dir,
        per_device_train_batch_size=options.batch,
        max_steps=steps,
        threshold=0.0,
        max_grad_norm=0.0,
        bf16=options.dtype == "bfloat16",
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
    )
    return TimedTrainer(
        model=student,
        args=args,
        train_dataset=dataset,
        data_collator=RegionCollator(dataset),
        sampler=EpochSampler(
            [datasets.Dataset.from_dict({"file": ["image"] * (options.batch * steps)})], options.batch
        ),
        teacher=None if teacher is None else teacher.to(getattr(torch, options.dtype)),
        image_processor=DenseVLMImageProcessor(STUDENT_SIDE),
        student_embeddings=draw_embeddings(student),
        teacher_embeddings=None if teacher is None else draw_embeddings(teacher),
        contrast=args.contrast_matrix,
    )


def measure(side: str, options: argparse.Namespace) -> dict[str, float]:
    """Of one side: seconds of a step's parts after a first step, and the peak of memory above that between steps."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(side, options, folder)
        trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = {
        "teacher": median(trainer.teacher_seconds[1:]),
        "student": median(trainer.student_seconds[1:]),
        "memory": peak - trainer.resident,
    }
    if side == "ours":
        found |= measure_retrieval(trainer, options.batch) | {"rate": matrix_rate(getattr(torch, options.dtype))}
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


def matrix_rate(dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product on these threads."""
    left, right = (torch.randn(4096, 4096).to(dtype) for _ in range(2))
    return 2 * 4096**3 / median(clock(lambda: left @ right) for _ in range(5))


def count_flop(pair: str, batch: int) -> dict[str, int]:
    """FLOP of the towers' matrix products, counted without computing them; nothing that is computed twice."""
    student, teacher = PAIRS[pair]

    def count(name: str, side: int, use: Callable[[DenseVLMModel, torch.Tensor], object]) -> int:
        with torch.device("meta"):
            config = convert_config(load_config(name), text=False)
            model = DenseVLMModel._from_config(config, attn_implementation="eager").eval()
            pixel_values = torch.zeros(batch, 3, side, side)
        freeze(model, None)
        with FlopCounterMode(display=False) as counter:
            use(model, pixel_values)
        return counter.get_total_flops()

    return {
        "teacher": count(teacher, TEACHER_SIDE, lambda model, x: model.get_dense_features(x)),
        "student": count(student, STUDENT_SIDE, lambda model, x: model.get_dense_features(x).sum().backward()),
    }


def run(side: str, options: argparse.Namespace) -> dict[str, float]:
    """[`measure`] in another process."""
    keys = {"pair": options.pair, "dtype": options.dtype, "batch": options.batch, "steps": options.steps, "side": side}
    command = [
        sys.executable,
        "-m",
        "benchmarks.step",
        *(part for k, v in keys.items() for part in (f"--{k}", str(v))),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def report(options: argparse.Namespace) -> None:
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(options.rounds):
        for side in SIDES:
            runs[side].append(run(side, options))
    naive, ours, cached = ({key: median(one[key] for one in runs[side]) for key in runs[side][0]} for side in SIDES)
    flop = count_flop(options.pair, options.batch)
    student, teacher = PAIRS[options.pair]
    print(
        f"\n{student} at {STUDENT_SIDE} px learns from {teacher} at {TEACHER_SIDE} px, {options.dtype}, "
        f"{options.batch} images, {options.rounds} x {options.steps} steps"
    )
    slow, fast = (side["teacher"] + side["student"] for side in (naive, ours))

    def line(title: str, value: str, remark: str) -> None:
        print(f"  {title:50} {value:>8}   ({remark})", flush=True)

    line("step, against naive attention", f"{slow / fast:.2f} x", f"{fast:.2f} s; naive: {slow:.2f} s")
    for part in ("teacher", "student"):
        remark = f"{ours[part]:.2f} s; naive: {naive[part]:.2f} s"
        line(f"- {part}", f"{naive[part] / ours[part]:.2f} x", remark)
    for title, side in (("peak memory of a step", ours), ("- with kept answers", cached)):
        remark = f"{side['memory'] / 2**30:.2f} GiB; naive: {naive['memory'] / 2**30:.2f} GiB"
        line(title, f"{side['memory'] / naive['memory']:.2f} x", remark)
    kept = ours["retrieval"] + EPOCHS * cached["student"]
    ceiling = EPOCHS * fast / (ours["pass"] + EPOCHS * ours["student"])
    remark = f"ceiling {ceiling:.2f} x; retrieval {ours['retrieval']:.2f} s, a plain pass {ours['pass']:.2f} s"
    line("six epochs with kept answers, against online", f"{EPOCHS * fast / kept:.2f} x", remark)
    for part in ("teacher", "student"):
        remark = f"{flop[part] / 1e12:.2f} TFLOP, {flop[part] / ours[part] / 1e9:.0f} GFLOP/s"
        remark += f"; product of 4096 x 4096: {ours['rate'] / 1e9:.0f}"
        line(f"FLOP/s of the {part}", f"{100 * flop[part] / ours[part] / ours['rate']:.0f} %", remark)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pair", choices=PAIRS)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
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
    for dtype in [options.dtype] if options.dtype else ["float32", "bfloat16"]:
        for pair in [options.pair] if options.pair else PAIRS:
            report(argparse.Namespace(**{**vars(options), "pair": pair, "dtype": dtype}))


if __name__ == "__main__":
    main()
