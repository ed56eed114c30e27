# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
The mathematics of DenseVLM as pure functions of tensors: retrieval (Eq. 1-2), denoising, decoupled KL (Eq. 3-5).

Everything is computed in float32, whatever the autocast around it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from modeling_densevlm.category_embeddings import region_cosines


THING, STUFF = 0, 1
"""The groups of the paper: countable objects, amorphous background regions. `is_thing` may name further ones."""

Contrast = Sequence[Sequence[bool]]

DECOUPLED: Contrast = ((True, False), (True, True))
"""The paper's choice: a thing contrasts against things, a piece of stuff against things and stuff."""

CONTRASTS: dict[str, Contrast] = {
    "decoupled": DECOUPLED,
    "all": ((True, True), (True, True)),
    "own_group": ((True, False), (False, True)),
    "thing_against_all": ((True, True), (False, True)),
}
"""The rows of the paper's Table 3 by name."""


@dataclass
class Retrieval:
    """
    What the teacher predicts for each region.

    Args:
        logits (`Tensor` of shape `(regions, categories)`): cosines / temperature.
        kept (`Tensor` of shape `(regions,)`): whether the teacher is sure enough of the region.
        group (`Tensor` of shape `(regions,)`): the group of its best category.
    """

    logits: Tensor
    kept: Tensor
    group: Tensor

    def counts(self, groups: int) -> Tensor:
        """Kept regions of each group, float32 `(groups,)`: what ranks and accumulation steps add up."""
        members = self.group[:, None] == torch.arange(groups, device=self.group.device)
        return (members & self.kept[:, None]).sum(0).float()


@dataclass
class AlignmentOutput:
    """
    Args:
        loss (`Tensor`): scalar; 0 with zero gradients where no region was kept.
        num_regions (`int`): regions of this process.
        num_kept (`Tensor`): scalar, how many of them the teacher was sure of.
        num_things (`Tensor`): scalar, how many of those were things.
    """

    loss: Tensor
    num_regions: int
    num_kept: Tensor
    num_things: Tensor


def as_groups(is_thing: Tensor | Sequence[bool] | Sequence[int]) -> Tensor:
    """Bools (`True` = thing) or integer groups to integer groups, `(categories,)`: thing = 0, stuff = 1."""
    flags = torch.as_tensor(is_thing)
    return torch.where(flags, THING, STUFF) if flags.dtype == torch.bool else flags.long()


def region_logits(region_embeds: Tensor, text_embeds: Tensor, temperature: float) -> Tensor:
    """Cosines of regions and categories over the temperature, `(regions, categories)`; Eq. 1."""
    return region_cosines(region_embeds, text_embeds) / temperature


def retrieve(logits: Tensor, is_thing: Tensor | Sequence, threshold: float) -> Retrieval:
    """
    The teacher's best category of each region (Eq. 2) and denoising: a region stays when the probability of its best
    category is above `threshold`.
    """
    groups = as_groups(is_thing).to(logits.device)
    probability, label = logits.softmax(dim=-1).max(dim=-1)
    return Retrieval(logits, probability > threshold, groups[label])


def contrast_mask(region_groups: Tensor, is_thing: Tensor | Sequence, contrast: Contrast) -> Tensor:
    """
    Which categories each region contrasts against, bool `(regions, categories)`: the row of the contrast matrix for
    the region's group, spread over the categories by theirs.
    """
    groups = as_groups(is_thing).to(region_groups.device)
    matrix = torch.as_tensor(contrast, dtype=torch.bool, device=region_groups.device)
    return matrix[region_groups][:, groups]


def masked_kl(teacher_logits: Tensor, student_logits: Tensor, mask: Tensor) -> Tensor:
    """
    KL(teacher ‖ student) of each region over its own categories, `(regions,)`; Eq. 3-4. Softmax over the categories
    of the mask alone: the others have no part in either distribution.
    """
    teacher = log_softmax(teacher_logits.masked_fill(~mask, -torch.inf), dim=-1)
    student = log_softmax(student_logits.masked_fill(~mask, -torch.inf), dim=-1)
    # Outside the mask both are -inf; 0 · (0 - 0) keeps the NaN of -inf - -inf out of values and gradients.
    difference = teacher.masked_fill(~mask, 0.0) - student.masked_fill(~mask, 0.0)
    return (teacher.exp() * difference).sum(-1)


def reduce_regions(kl: Tensor, retrieval: Retrieval, counts: Tensor, reduction: str) -> Tensor:
    """
    The loss of the batch, Eq. 5, from each region's KL.

    Args:
        counts (`Tensor` of shape `(groups,)`): kept regions of each group in the whole global batch.
        reduction (`str`): `"group_mean"`, each group's mean over its regions, added; `"region_mean"`, the mean over
            all regions.
    """
    if reduction == "group_mean":
        weight = 1 / counts.clamp(min=1)[retrieval.group]
    elif reduction == "region_mean":
        weight = 1 / counts.sum().clamp(min=1)
    else:
        raise ValueError(f'`reduction` is "group_mean" or "region_mean", got {reduction!r}.')
    return torch.where(retrieval.kept, kl * weight, 0.0).sum()


def align(
    student_region_embeds: Tensor,
    student_text_embeds: Tensor,
    retrieval: Retrieval,
    is_thing: Tensor | Sequence,
    temperature: float = 0.01,
    contrast: Contrast = DECOUPLED,
    reduction: str = "group_mean",
    counts: Tensor | None = None,
) -> AlignmentOutput:
    """[`decoupled_alignment_loss`] of regions whose targets are already computed."""
    check_contrast(contrast, is_thing)
    with torch.autocast(student_region_embeds.device.type, enabled=False):
        counts = retrieval.counts(len(contrast)) if counts is None else counts.to(retrieval.logits)
        logits = region_logits(student_region_embeds, student_text_embeds, temperature)
        mask = contrast_mask(retrieval.group, is_thing, contrast)
        # What a dropped region holds (a teacher in half precision may overflow) must not reach the gradients.
        teacher_logits = retrieval.logits.masked_fill(~retrieval.kept[:, None], 0.0)
        kl = masked_kl(teacher_logits, logits, mask)
        loss = reduce_regions(kl, retrieval, counts, reduction)
    things = (retrieval.kept & (retrieval.group == THING)).sum()
    return AlignmentOutput(loss, len(logits), retrieval.kept.sum(), things)


def decoupled_alignment_loss(
    student_region_embeds: Tensor,
    teacher_region_embeds: Tensor,
    student_text_embeds: Tensor,
    teacher_text_embeds: Tensor,
    is_thing: Tensor | Sequence,
    temperature: float = 0.01,
    threshold: float = 0.3,
    contrast: Contrast = DECOUPLED,
    reduction: str = "group_mean",
    counts: Tensor | None = None,
) -> AlignmentOutput:
    r"""
    The loss of DenseVLM, Eq. 1-5 of the paper.

    Args:
        student_region_embeds (`Tensor` of shape `(regions, student_dim)`):
            Pooled features of U-VLM, normalised here.
        teacher_region_embeds (`Tensor` of shape `(regions, teacher_dim)`):
            Of the same regions by P-VLM; no gradient flows into them.
        student_text_embeds (`Tensor` of shape `(categories, student_dim)`), teacher_text_embeds (`(categories,
            teacher_dim)`):
            Category embeddings in each model's own space, used as given.
        is_thing (`Tensor` of shape `(categories,)`):
            Bools, or integer groups with 0 = thing and 1 = stuff.
        temperature (`float`, *optional*, defaults to 0.01): τ.
        threshold (`float`, *optional*, defaults to 0.3):
            Regions whose best teacher probability is not above it are dropped.
        contrast (`(groups, groups)` of bool, *optional*):
            Rows: the region's group. Columns: the categories' group. Defaults to thing → thing, stuff → both.
        reduction (`str`, *optional*, defaults to `"group_mean"`):
            `"group_mean"` or `"region_mean"`.
        counts (`Tensor` of shape `(groups,)`, *optional*):
            Kept regions of each group in the whole global batch, over ranks and accumulation steps. Defaults to
            those of this call.

    Returns:
        [`AlignmentOutput`]; its numbers are this process's own.
    """
    with torch.no_grad():
        logits = region_logits(teacher_region_embeds.detach(), teacher_text_embeds, temperature)
        retrieval = retrieve(logits, is_thing, threshold)
    return align(
        student_region_embeds, student_text_embeds, retrieval, is_thing, temperature, contrast, reduction, counts
    )


def check_contrast(contrast: Contrast, is_thing: Tensor | Sequence) -> None:
    """Raises a `ValueError` for a matrix that is not square, misses a group or leaves a group nothing to contrast."""
    groups = as_groups(is_thing)
    size = len(contrast)
    if any(len(row) != size for row in contrast):
        raise ValueError(f"`contrast` is a square matrix over groups, got {contrast}.")
    if len(groups) and int(groups.max()) >= size:
        raise ValueError(f"A category is of group {int(groups.max())}, but `contrast` has {size} groups.")
    present = set(groups.tolist())
    for group in present:
        if not any(contrast[group][other] for other in present):
            raise ValueError(f"`contrast` leaves regions of group {group} no category to contrast against.")


__all__ = ["CONTRASTS", "DECOUPLED", "AlignmentOutput", "Retrieval", "align", "as_groups", "decoupled_alignment_loss"]
