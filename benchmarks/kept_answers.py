# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
How much the loss differs when the best categories of each region are kept alone, and what an image's answers weigh.

The sandbox's models on its validation scenes (24 categories); and, for want of a real teacher, 316 categories with
logits drawn so that a teacher's cosines spread as CLIP's do (standard deviation 0.025, τ 0.01) about the student's.
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


TEMPERATURE, THRESHOLD = 0.07, 0.3


def through_the_cache(logits: Tensor, is_thing: Tensor, threshold: float, top_k: int) -> tuple[dict[str, Tensor], int]:
    """What is read back of these regions, and bytes a region."""
    packed = compress(retrieve(logits, is_thing, threshold), is_thing, top_k)
    count = len(packed["regions"])
    back = {name: torch.from_numpy(packed[name].astype("float32")).reshape(count, -1) for name in ARRAYS[1:]}
    back["labels"], back["categories"] = back["labels"].squeeze(1).long(), back["categories"].long()
    return back, sum(array.nbytes for array in packed.values()) // max(count, 1)


def report(
    student: Tensor, text: Tensor, logits: Tensor, is_thing: Tensor, temperature: float, kept: list[int]
) -> None:
    """Prints the loss for each number of categories kept; the student's features are `(regions, dim)`."""
    retrieval = retrieve(logits, is_thing, THRESHOLD)
    online = align(student, text, retrieval, is_thing, temperature).loss.item()
    print(f"  {int(retrieval.kept.sum())} of {len(logits)} regions kept; loss online {online:.5f}")
    for top_k in kept:
        back, size = through_the_cache(logits, is_thing, THRESHOLD, top_k)
        loss = align(student[retrieval.kept], text, expand(back, is_thing), is_thing, temperature).loss.item()
        name = f"{top_k or 'all'} categories"
        difference = f"{loss - online:+.1e} ({(loss / online - 1) * 100:+.3f} %)"
        print(f"  {name:16} {loss:.5f}   {difference}   {size} bytes a region")


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
    report(*features["u"], logits, CATEGORIES.is_thing, TEMPERATURE, [4, 8, 12, 0])


def drawn() -> None:
    generator = torch.Generator().manual_seed(0)
    is_thing = CategorySet.load("coco_stuff_ade20k_316").is_thing
    text = torch.nn.functional.normalize(torch.randn(316, 512, generator=generator), dim=-1)
    labels = torch.randint(316, (4000,), generator=generator)
    student = 0.1 * text[labels] + 0.045 * torch.randn(4000, 512, generator=generator)
    shared = region_logits(student, text, 0.01)
    teacher = torch.randn(4000, 316, generator=generator) * 2.5
    teacher = 0.5 * shared + 0.87 * teacher
    print("Drawn logits, 316 categories")
    report(student, text, teacher, is_thing, 0.01, [8, 16, 32, 64, 0])


if __name__ == "__main__":
    print(machine())
    sandbox()
    drawn()
