# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close

from training.alignment import CONTRASTS, DECOUPLED, align, contrast_mask, decoupled_alignment_loss, retrieve


IS_THING = torch.tensor([True, True, False, False])
EYE = torch.eye(4)


def one_hot_loss(student, teacher, **options):
    """Categories are the unit vectors of a four-dimensional space, so that cosines are the features themselves."""
    options = {"temperature": 1.0, "threshold": 0.0} | options
    return decoupled_alignment_loss(student, teacher, EYE, EYE, IS_THING, **options)


def test_the_loss_matches_a_calculation_by_hand():
    teacher = normalize(torch.tensor([[2.0, 1, 1, 0], [0.0, 1, 2, 1]]), dim=-1)
    student = normalize(torch.tensor([[1.0, 1, 0, 2], [1.0, 0, 0, 1]]), dim=-1)

    def kl(p_logits, q_logits):
        p, q = ([math.exp(v) for v in logits] for logits in (p_logits, q_logits))
        p, q = ([v / sum(values) for v in values] for values in (p, q))
        return sum(a * math.log(a / b) for a, b in zip(p, q))

    thing = kl(teacher[0, :2].tolist(), student[0, :2].tolist())
    stuff = kl(teacher[1].tolist(), student[1].tolist())
    output = one_hot_loss(student, teacher)
    assert output.loss.item() == pytest.approx(thing + stuff, rel=1e-5)
    assert (output.num_regions, int(output.num_kept), int(output.num_things)) == (2, 2, 1)


def test_stuff_categories_do_not_contribute_to_the_loss_of_a_thing():
    teacher = torch.tensor([[3.0, 1.0, 0.0, 0.0]])
    student = torch.tensor([[0.6, 0.5, 0.4, 0.3]])
    text = EYE.clone().requires_grad_()
    output = decoupled_alignment_loss(student, teacher, text, EYE, IS_THING, temperature=1.0, threshold=0.0)
    output.loss.backward()
    assert (text.grad[2:] == 0).all() and (text.grad[:2] != 0).any()


@pytest.mark.parametrize(
    ("name", "thing_row", "stuff_row"),
    [
        ("decoupled", [1, 1, 0, 0], [1, 1, 1, 1]),
        ("all", [1, 1, 1, 1], [1, 1, 1, 1]),
        ("own_group", [1, 1, 0, 0], [0, 0, 1, 1]),
        ("thing_against_all", [1, 1, 1, 1], [0, 0, 1, 1]),
    ],
)
def test_every_row_of_table_3_is_a_contrast_matrix(name, thing_row, stuff_row):
    mask = contrast_mask(torch.tensor([0, 1]), IS_THING, CONTRASTS[name])
    assert mask.int().tolist() == [thing_row, stuff_row]


def test_finer_groups_are_the_same_code():
    contrast = ((True, False, False), (True, True, False), (False, True, True))
    mask = contrast_mask(torch.tensor([2, 0]), torch.tensor([0, 1, 1, 2]), contrast)
    assert mask.tolist() == [[False, True, True, True], [True, False, False, False]]


def test_a_region_is_kept_only_above_the_threshold():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25]]))
    assert retrieve(logits, IS_THING, 0.25).kept.tolist() == [True, False]


def test_the_group_of_a_region_is_that_of_its_retrieved_category():
    logits = torch.tensor([[0.0, 1, 0, 0], [0.0, 0, 0, 1]])
    assert retrieve(logits, IS_THING, 0.0).group.tolist() == [0, 1]


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    return (
        draw(30, 8),
        draw(30, 12),
        normalize(draw(10, 8), dim=-1),
        normalize(draw(10, 12), dim=-1),
        torch.arange(10) < 6,
    )


def test_group_mean_adds_the_means_and_region_mean_is_one_mean(features):
    student, teacher, student_text, teacher_text, is_thing = features
    options = {"temperature": 0.2, "threshold": 0.2}
    whole = decoupled_alignment_loss(*features, **options)
    groups = retrieve(normalize(teacher, dim=-1) @ teacher_text.T / 0.2, is_thing, 0.2)
    means = []
    for group in (0, 1):
        rows = (groups.group == group) & groups.kept
        part = decoupled_alignment_loss(student[rows], teacher[rows], student_text, teacher_text, is_thing, **options)
        means.append((part.loss, int(rows.sum())))
    assert_close(whole.loss, means[0][0] + means[1][0])
    mean = decoupled_alignment_loss(*features, **options, reduction="region_mean").loss
    assert_close(mean, sum(loss * count for loss, count in means) / sum(count for _, count in means))


@pytest.mark.parametrize("reduction", ["group_mean", "region_mean"])
def test_micro_batches_with_global_counts_add_up_to_the_whole_batch(features, reduction):
    student, teacher, student_text, teacher_text, is_thing = features
    options = {"temperature": 0.2, "threshold": 0.2, "reduction": reduction}
    counts = retrieve(normalize(teacher, dim=-1) @ teacher_text.T / 0.2, is_thing, 0.2).counts(2)
    parts = [
        decoupled_alignment_loss(
            student[r], teacher[r], student_text, teacher_text, is_thing, counts=counts, **options
        )
        for r in (slice(0, 4), slice(4, 30))
    ]
    assert_close(parts[0].loss + parts[1].loss, decoupled_alignment_loss(*features, **options).loss)


@pytest.mark.parametrize("regions", [0, 5])
def test_no_kept_region_gives_zero_loss_and_zero_gradient(regions):
    student = torch.randn(regions, 4, requires_grad=True)
    output = one_hot_loss(student, torch.randn(regions, 4), threshold=1.0)
    output.loss.backward()
    assert output.loss == 0 and (student.grad == 0).all()


def test_a_group_without_regions_adds_nothing():
    teacher = torch.tensor([[3.0, 0.0, 0.0, 0.0]])
    output = one_hot_loss(teacher, teacher)
    assert output.loss == 0 and int(output.num_things) == 1


def test_the_loss_ignores_autocast(features):
    plain = decoupled_alignment_loss(*features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = decoupled_alignment_loss(*features)
    assert cast.loss.dtype == torch.float32
    assert torch.equal(cast.loss, plain.loss)


def test_zero_vectors_give_finite_gradients(features):
    student, *rest = features
    student = torch.zeros_like(student).requires_grad_()
    decoupled_alignment_loss(student, *rest, threshold=0.0).loss.backward()
    assert student.grad.isfinite().all()


def test_no_gradient_flows_into_the_teacher(features):
    student, teacher, *rest = features
    student.requires_grad_(), teacher.requires_grad_()
    decoupled_alignment_loss(student, teacher, *rest).loss.backward()
    assert teacher.grad is None


@pytest.mark.parametrize(
    ("contrast", "message"),
    [
        (((True, False),), "square"),
        (((True,),), "group 1, but `contrast` has 1"),
        (((False, False), (True, True)), "leaves regions of group 0 no category"),
    ],
)
def test_an_impossible_contrast_is_refused(features, contrast, message):
    with pytest.raises(ValueError, match=message):
        decoupled_alignment_loss(*features, contrast=contrast)


def test_an_unknown_reduction_is_refused(features):
    with pytest.raises(ValueError, match="`reduction` is"):
        decoupled_alignment_loss(*features, reduction="sum")


def test_is_thing_may_be_a_list(features):
    *embeds, is_thing = features
    assert decoupled_alignment_loss(*embeds, is_thing.tolist()).loss == decoupled_alignment_loss(*features).loss


def test_align_with_a_retrieval_gives_the_whole_loss(features):
    student, teacher, student_text, teacher_text, is_thing = features
    retrieval = retrieve(normalize(teacher, dim=-1) @ teacher_text.T / 0.01, is_thing, 0.3)
    found = align(student, student_text, retrieval, is_thing, 0.01, DECOUPLED).loss
    assert_close(found, decoupled_alignment_loss(*features).loss)


def test_nan_of_the_teacher_in_a_dropped_region_does_not_reach_the_gradients(features):
    student, teacher, *rest = features
    teacher[3] = torch.nan
    student.requires_grad_()
    output = decoupled_alignment_loss(student, teacher, *rest)
    output.loss.backward()
    assert output.loss.isfinite() and student.grad.isfinite().all()
    assert (student.grad[3] == 0).all()
