# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Images per second that one core prepares for a step, with our dataset and collator and with a loader equivalent to the
reference's: the image and a crop of each grid cell as normalized floats, where the crops are then discarded. Its grids
have 18 cells on average, and its crops are stored in a tensor for 36.

    python -m benchmarks.loader [--images 16] [--repeats 5]
"""

import argparse
import io
import random
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from transformers.utils import logging

from benchmarks.pictures import LARGE_PHOTO, PHOTO, draw_jpeg
from benchmarks.timing import alternate, machine, print_row
from modeling_densevlm import CategoryEmbeddings, CategorySet, DenseVLMImageProcessor, DenseVLMModel
from modeling_densevlm.category_embeddings import encoder_fingerprint
from modeling_densevlm.image_processing_densevlm import load_image
from modeling_densevlm.processing_densevlm import load_processing
from training import cache_teacher
from training.data import RegionCollator, RegionDataset
from training.images.sources import Source, open_source
from training.teacher_cache import CachedTeacherDataset, TeacherCache


ROOT = Path(__file__).parent.parent
SAMPLE = ROOT.parent / "shared" / "data" / "coco_panoptic_sample" / "images"
BATCH = 8
REFERENCE_GRIDS = [(m, n) for m in range(2, 7) for n in range((m + 1) // 2 + 1, min(2 * m, 6) + 1)]
"""18 cells on average."""


def to_floats(image: Image.Image, side: int) -> torch.Tensor:
    """Resized to a longest side of `side`, RGB, float, normalized, padded: the reference's transforms, in order."""
    scale = side / max(image.size)
    resized = image.resize([max(round(length * scale), 1) for length in image.size], Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(resized.convert("RGB"))).permute(2, 0, 1).contiguous().float() / 255
    padded = torch.nn.functional.pad(pixels, (0, side - pixels.shape[2], 0, side - pixels.shape[1]))
    return padded.sub_(0.45).div_(0.27)


def read_with_crops(file: Path, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The image at 512 pixels and the cells of a grid at 224."""
    image = Image.open(file)
    pixels, crops = to_floats(image, 512), torch.zeros(36, 3, 224, 224)
    width, height = image.width / columns, image.height / rows
    for cell in range(rows * columns):
        x, y = cell % columns * width, cell // columns * height
        crops[cell] = to_floats(image.crop((round(x), round(y), round(x + width), round(y + height))), 224)
    return pixels, crops


def reference(files: Sequence[Path], rng: random.Random) -> None:
    for start in range(0, len(files), BATCH):
        samples = [read_with_crops(file, *rng.choice(REFERENCE_GRIDS)) for file in files[start : start + BATCH]]
        batch = [torch.stack(tensors) for tensors in zip(*samples)]
        del batch[1]


def ours(dataset: RegionDataset, visit: int = 0) -> None:
    collate = RegionCollator(dataset)
    for start in range(0, len(dataset), BATCH):
        batch = collate([dataset[visit, index] for index in range(start, min(start + BATCH, len(dataset)))])
        assert not batch["skipped"]


def decode(files: Sequence[Path]) -> None:
    for file in files:
        load_image(file)


def fill_cache(images: Path, folder: Path) -> TeacherCache:
    """
    Teacher predictions for all regions of all grids, of realistic size (32 categories each), from a tiny teacher.
    """
    teacher, categories = ROOT / "model_cards" / "densevlm-sandbox-p", CategorySet.load("coco_stuff_ade20k_316")
    model, (_, tokenizer) = DenseVLMModel.from_pretrained(teacher), load_processing(str(teacher))
    embeds = torch.nn.functional.normalize(torch.randn(len(categories.names), model.config.projection_dim), dim=-1)
    groups, synonyms, encoder = categories.is_thing, categories.synonyms, encoder_fingerprint(model, tokenizer)
    CategoryEmbeddings(embeds, list(categories.names), groups, synonyms, [], encoder).save(folder / "embeds")
    keys = {"model": teacher, "teacher": teacher, "teacher_embeddings": folder / "embeds", "images": images}
    keys |= {"threshold": 0.0, "teacher_cache": folder, "output_dir": folder, "use_cpu": True}
    return cache_teacher.main([part for key, value in keys.items() for part in (f"--{key}", str(value))])


def pack(files: Sequence[Path], tar: Path) -> Path:
    """Packs the files with annotations in between, as a shard of SA-1B."""
    with tarfile.open(tar, "w") as archive:
        for file in files:
            archive.add(file, file.name)
            info = tarfile.TarInfo(f"{file.stem}.json")
            info.size = 50_000
            archive.addfile(info, io.BytesIO(b" " * info.size))
    return tar


def report_images(title: str, files: Sequence[Path], work: Path, repeats: int) -> tuple[float, float]:
    """Prints all variants; returns the speedup over the reference, of ours online and with cached predictions."""
    student, teacher = DenseVLMImageProcessor(512), DenseVLMImageProcessor(518)
    folder = files[0].parent
    index = open_source(Source(str(folder)))
    shard = open_source(Source(str(pack(files, work / f"{folder.name}.tar"))))
    cache = fill_cache(folder, work / f"{folder.name}_cache")
    cached = CachedTeacherDataset(RegionDataset(index, student), cache)
    rng = random.Random(0)
    variants = {
        "decoding alone": lambda: decode(files),
        "reference: image and 18 crops on average": lambda: reference(files, rng),
        "ours, student and teacher": lambda: ours(RegionDataset(index, student, teacher)),
        "ours, from a tar": lambda: ours(RegionDataset(shard, student, teacher)),
        "ours, one size for both": lambda: ours(RegionDataset(index, student)),
        "ours, cached teacher predictions": lambda: ours(cached),
    }
    times = alternate(variants, repeats)
    size = sum(file.stat().st_size for file in files) / len(files)
    print(f"\n{title}, {size / 1024:.0f} KB each\n{'':50} images/s   against the reference   decoding alone")
    decoding, slow, *_ = times.values()
    for name, seconds in times.items():
        print(f"{name:50} {len(files) / seconds:8.1f} {slow / seconds:15.2f} x {decoding / seconds:18.2f} x")
    return slow / times["ours, student and teacher"], slow / times["ours, cached teacher predictions"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    print(f"One core. {machine()}")
    ratios = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        for name, photo in (("photos", PHOTO), ("large", LARGE_PHOTO)):
            (work / name).mkdir()
            for seed in range(options.images):
                (work / name / f"{seed:03d}.jpg").write_bytes(draw_jpeg(seed, *photo))
            title = f"{options.images} JPEGs of {photo[0]} x {photo[1]}"
            ratios.append(report_images(title, sorted((work / name).iterdir()), work, options.repeats))
        if SAMPLE.is_dir():
            ratios.append(report_images("Two photographs of COCO", sorted(SAMPLE.iterdir()), work, options.repeats))
    online, offline = zip(*ratios)
    workload = "loader, one core, 512 and 518 pixels: synthetic JPEGs of 640 × 480, of 2,250 × 1,500"
    workload += ", photographs of COCO" if len(ratios) == 3 else ""
    print_row(workload, "crops of the reference's grids, 18 on average, cut and discarded", online)
    print_row("– with cached teacher predictions, without pixels for the teacher", "the same", offline)


if __name__ == "__main__":
    main()
