# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""What the threshold of denoising drops."""

import numpy as np
import pytest
import torch

from evaluation.denoising import CellPredictions, denoising_rows, predict_cells
from modeling_densevlm import CategoryEmbeddings, CategorySet, DenseVLMProcessor


def test_a_cell_is_dropped_if_its_probability_does_not_exceed_the_threshold():
    cells = CellPredictions(np.array([0.2, 0.3, 0.5, 0.9]), np.array([False, True, False, True]))
    assert denoising_rows(cells, [0.3, 0.6]) == [
        {"threshold": 0.3, "dropped": 0.5, "kept_accuracy": 0.5, "dropped_accuracy": 0.5},
        {"threshold": 0.6, "dropped": 0.75, "kept_accuracy": 1.0, "dropped_accuracy": 1 / 3},
    ]
    assert denoising_rows(cells, [0.0]) == [{"threshold": 0.0, "dropped": 0.0, "kept_accuracy": 0.5}]


@pytest.mark.parametrize("covering", [0, 1])
def test_a_cell_is_right_if_the_category_covers_most_of_its_pixels(model, student, picture, covering):
    """Of two categories with equal embeddings the first is predicted everywhere, with a probability of one half."""
    processor = DenseVLMProcessor.from_pretrained(student)
    categories = CategorySet(["boat", "water"], [True, False])
    embeddings = CategoryEmbeddings.compute(categories, model, processor.tokenizer, "short")
    embeddings.embeds = embeddings.embeds[:1].repeat(2, 1)
    images = [picture(90, 60), picture(60, 90)]
    labels = [np.full((image.height, image.width), covering) for image in images]
    for label in labels:  # a third of each cell, whatever its size
        label[::3] = 1 - covering
    cells = predict_cells(model, processor.image_processor, embeddings, images, labels, 0.1)
    assert 2 <= len(cells.right) <= 72 and (cells.right == (covering == 0)).all()
    assert torch.from_numpy(cells.probability).allclose(torch.tensor(0.5))
