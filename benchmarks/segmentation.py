# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Segmentation with the vocabulary of LVIS (1,203 categories) at 1,024 pixels: seconds, memory, and the labels of the
plain computation, which upsamples the scores of all categories at once.
"""

import resource
import time

import torch
from torch.nn.functional import interpolate, normalize

from modeling_densevlm import CategoryEmbeddings, DenseVLMForSemanticSegmentation, DenseVLMImageProcessor
from modeling_densevlm.conversion.configs import convert_config, load_config


SIDE, CATEGORIES = 1024, 1203


def peak_gib() -> float:
    """Peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    torch.manual_seed(0)
    segmenter = DenseVLMForSemanticSegmentation(convert_config(load_config("ViT-B-16"), text=False)).eval()
    names = [f"category {number}" for number in range(CATEGORIES)]
    embeds = normalize(torch.randn(CATEGORIES, segmenter.config.projection_dim), dim=-1)
    segmenter.set_categories(CategoryEmbeddings(embeds, names, None, [[] for _ in names], ["{}"], ""))
    pixel_values = torch.randn(1, 3, SIDE, SIDE)
    with torch.inference_mode():
        segmenter.densevlm.get_dense_features(pixel_values)
        before = peak_gib()
        began = time.perf_counter()
        outputs = segmenter(pixel_values)
        forward = time.perf_counter() - began
        labels = DenseVLMImageProcessor(SIDE).post_process_semantic_segmentation(outputs, [(SIDE, SIDE)])[0]
        ours, ours_gib = time.perf_counter() - began, peak_gib() - before
        began = time.perf_counter()
        plain = interpolate(outputs.logits, (SIDE, SIDE), mode="bilinear", align_corners=False)[0].argmax(0)
        theirs, theirs_gib = forward + time.perf_counter() - began, peak_gib() - before
    print(f"ViT-B/16, {SIDE} pixels, {CATEGORIES} categories, {torch.get_num_threads()} threads")
    print(f"forward {forward:.1f} s, with labels {ours:.1f} s and {ours_gib:.2f} GiB above the dense pass")
    print(f"plain computation {theirs:.1f} s and {theirs_gib:.2f} GiB; equal labels: {(labels == plain).all().item()}")


if __name__ == "__main__":
    main()
