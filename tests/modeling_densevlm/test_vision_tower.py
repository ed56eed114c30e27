# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch.testing import assert_close

from modeling_densevlm.vision_tower import resize_positions


def plane(rows):
    """Positions of one channel, behind a class token's."""
    return torch.tensor([[100.0], *([value] for row in rows for value in row)])


def test_positions_of_the_native_grid_are_unchanged():
    positions = plane([[1.0, 2.0], [3.0, 4.0]])
    assert resize_positions(positions, (2, 2), prefix=1) is positions


def test_the_position_of_a_single_cell_is_in_the_middle_of_the_plane():
    # The borders of the grids coincide, not the centres of their corner cells: that would give 1, the upper left one.
    assert_close(resize_positions(plane([[1.0, 2.0], [3.0, 4.0]]), (1, 1), prefix=1), torch.tensor([[100.0], [2.5]]))


def test_rows_and_columns_keep_their_order_on_another_aspect():
    resized = resize_positions(plane([[0.0, 1.0], [10.0, 11.0]]), (2, 4), prefix=1)
    assert resized.shape == (9, 1) and resized[0] == 100
    upper, lower = resized[1:].view(2, 4)
    assert_close(lower - upper, torch.full((4,), 10.0))
    assert (upper.diff() > 0).all() and upper[0] < 0.3 and upper[3] > 0.7


def test_positions_are_resized_to_a_smaller_grid_without_smoothing():
    # Bicubic samples at the centres of the new cells, half-way between two old ones: (-3, 19, 19, -3) / 32 of four.
    row = torch.tensor([0.0, 0.0, 32.0, 0.0])
    resized = resize_positions(row.repeat(4)[:, None], (4, 2), prefix=0).view(4, 2)
    assert_close(resized, torch.tensor([[-3.0, 19.0]] * 4))


def test_half_precision_is_resized_in_float32():
    positions = torch.randn(17, 8).bfloat16()
    found = resize_positions(positions, (3, 5), prefix=1)
    assert found.dtype == torch.bfloat16
    assert_close(found, resize_positions(positions.float(), (3, 5), prefix=1).bfloat16())


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_position_embeddings_of_prefix_tokens_are_kept(prefix):
    positions = torch.randn(prefix + 16, 3)
    assert torch.equal(resize_positions(positions, (2, 7), prefix)[:prefix], positions[:prefix])
