# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
The change of the loss when only the best categories of each region are cached, and the size of cached predictions.

Measured with the sandbox models on the validation scenes (28 categories); and, as no real teacher is available, with
316 categories and random logits whose cosines have the standard deviation of CLIP's (0.025, τ 0.01) around the
student's.
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.timing import machine
from modeling_densevlm import CategoryEmbeddings, CategorySet, DenseVLMModel, DenseVLMProcessor
from modeling_densevlm.image_processing_densevlm import content_extent, load_image
from training.alignment import align, region_logits, retrieve
from training.sandbox.scenes import CATEGORIES, write_scenes
from training.teacher_cache import ARRAYS, all_boxes, compress, expand


TEMPERATURE, THRESHOLD = 0.08, 0.3


def compress_and_expand(
    logits: Tensor, is_thing: Tensor, threshold: float, top_k: int
) -> tuple[dict[str, Tensor], int]:
    """The predictions of these regions as read from the cache, and bytes per region."""
    compressed = compress(retrieve(logits, is_thing, threshold), is_thing, top_k)
    count = len(compressed["regions"])
    restored = {name: torch.from_numpy(compressed[name].astype("float32")).reshape(count, -1) for name in ARRAYS[1:]}
    restored["labels"], restored["categories"] = restored["labels"].squeeze(1).long(), restored["categories"].long()
    return restored, sum(array.nbytes for array in compressed.values()) // max(count, 1)


def report_loss(
    student: Tensor, text: Tensor, logits: Tensor, is_thing: Tensor, temperature: float, top_ks: list[int]
) -> None:
    """Prints the loss for each number of cached categories; the student's features are `(regions, dim)`."""
    retrieval = retrieve(logits, is_thing, THRESHOLD)
    online = align(student, text, retrieval, is_thing, temperature).loss.item()
    print(f"  {int(retrieval.kept.sum())} of {len(logits)} regions kept; loss online {online:.5f}")
    for top_k in top_ks:
        restored, size = compress_and_expand(logits, is_thing, THRESHOLD, top_k)
        loss = align(student[retrieval.kept], text, expand(restored, is_thing), is_thing, temperature).loss.item()
        name = f"{top_k or 'all'} categories"
        difference = f"{loss - online:+.1e} ({(loss / online - 1) * 100:+.3f} %)"
        print(f"  {name:16} {loss:.5f}   {difference}   {size} bytes per region")


@torch.inference_mode()
def sandbox() -> None:
    features = {}
    with tempfile.TemporaryDirectory() as folder:
        write_scenes(Path(folder), 0, "val", 48)
        images = [load_image(file) for file in sorted((Path(folder) / "val" / "images").iterdir())]
    for role in ("u", "p"):
        source = f"model_cards/densevlm-sandbox-{role}"
        model = DenseVLMModel.from_pretrained(source, dtype=torch.float32).eval()
        processor = DenseVLMProcessor.from_pretrained(source)
        text = CategoryEmbeddings.compute(CATEGORIES, model, processor.tokenizer, "short").embeds
        boxes = [all_boxes(content_extent(*image.size), 6) for image in images]
        embeds = model(pixel_values=processor(images=images)["pixel_values"], boxes=boxes).region_embeds
        features[role] = (embeds, text)
    logits = region_logits(*features["p"], TEMPERATURE)
    print(f"Sandbox, {len(images)} scenes, all grids, {len(CATEGORIES.names)} categories")
    report_loss(*features["u"], logits, CATEGORIES.is_thing, TEMPERATURE, [4, 8, 12, 0])


def random_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    is_thing = CategorySet.load("coco_stuff_ade20k_316").is_thing
    text = torch.nn.functional.normalize(torch.randn(316, 512, generator=generator), dim=-1)
    labels = torch.randint(316, (4000,), generator=generator)
    student = 0.1 * text[labels] + 0.045 * torch.randn(4000, 512, generator=generator)
    shared = region_logits(student, text, 0.01)
    teacher = torch.randn(4000, 316, generator=generator) * 2.5
    teacher = 0.5 * shared + 0.87 * teacher
    print("Random logits, 316 categories")
    report_loss(student, text, teacher, is_thing, 0.01, [8, 16, 32, 64, 0])


if __name__ == "__main__":
    print(machine())
    sandbox()
    random_logits()
