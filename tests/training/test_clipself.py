# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch.testing import assert_close

from training.clipself import clipself_loss


def test_the_golden_loss_of_the_reference_matches(golden):
    tensors = golden("loss_clipself_regionclip")
    student = tensors["clipself.student_roi"].requires_grad_()
    loss = clipself_loss(student, tensors["clipself.teacher_crop"])
    loss.backward()
    assert_close(loss, tensors["clipself.loss"].squeeze(), atol=1e-5, rtol=1e-5)
    expected = tensors["clipself.grad_student"]
    assert_close(student.grad, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


def test_the_loss_is_the_mean_of_one_minus_the_cosine():
    regions = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    crops = torch.tensor([[3.0, 0.0], [0.0, 5.0]])
    assert clipself_loss(regions, crops).item() == pytest.approx((0 + 1 - 2**-0.5) / 2)


def test_micro_batches_with_the_global_count_add_up_to_the_whole_batch():
    regions, crops = torch.randn(7, 5), torch.randn(7, 5)
    parts = [clipself_loss(regions[r], crops[r], torch.tensor(7.0)) for r in (slice(0, 2), slice(2, 7))]
    assert_close(sum(parts), clipself_loss(regions, crops))


def test_no_region_gives_zero_loss_and_zero_gradient():
    regions = torch.zeros(0, 5, requires_grad=True)
    loss = clipself_loss(regions, torch.zeros(0, 5))
    loss.backward()
    assert loss == 0
