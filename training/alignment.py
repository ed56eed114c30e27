# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
The loss of DenseVLM as pure functions of tensors: retrieval (Eq. 1-2), denoising, decoupled KL (Eq. 3-5).

Everything is computed in float32, also under autocast.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from modeling_densevlm.category_embeddings import region_cosines


THING, STUFF = 0, 1
"""The paper's two groups: things (countable objects) and stuff (amorphous background regions). More are possible."""

Contrast = Sequence[Sequence[bool]]

DECOUPLED: Contrast = ((True, False), (True, True))
"""The paper's choice: thing regions are contrasted against things only, stuff regions against things and stuff."""

CONTRASTS: dict[str, Contrast] = {
    "decoupled": DECOUPLED,
    "all": ((True, True), (True, True)),
    "own_group": ((True, False), (False, True)),
    "thing_against_all": ((True, True), (False, True)),
}
"""The rows of Table 3 of the paper."""


@dataclass
class Retrieval:
    """
    The teacher's prediction for each region.

    Args:
        logits (`Tensor` of shape `(regions, categories)`): cosine similarities / temperature.
        kept (`Tensor` of shape `(regions,)`): bool, whether the region passes denoising.
        group (`Tensor` of shape `(regions,)`): the group of the retrieved category.
    """

    logits: Tensor
    kept: Tensor
    group: Tensor

    def counts(self, groups: int) -> Tensor:
        """The number of kept regions per group, float32 `(groups,)`; summed over ranks and accumulation steps."""
        members = self.group[:, None] == torch.arange(groups, device=self.group.device)
        return (members & self.kept[:, None]).sum(0).float()


@dataclass
class AlignmentOutput:
    """
    The loss and the numbers that are logged with it.

    Args:
        loss (`Tensor`): scalar; 0 with zero gradients if no region is kept.
        num_regions (`int`): the number of regions on this process.
        num_kept (`Tensor`): scalar, the number of regions that pass denoising.
        num_things (`Tensor`): scalar, the number of kept regions whose retrieved category is a thing.
    """

    loss: Tensor
    num_regions: int
    num_kept: Tensor
    num_things: Tensor


def as_groups(is_thing: Tensor | Sequence[bool] | Sequence[int]) -> Tensor:
    """Converts bools (`True` = thing) or integer groups to integer groups, `(categories,)`: thing = 0, stuff = 1."""
    flags = torch.as_tensor(is_thing)
    return torch.where(flags, THING, STUFF) if flags.dtype == torch.bool else flags.long()


def region_logits(region_embeds: Tensor, text_embeds: Tensor, temperature: float) -> Tensor:
    """Cosine similarities of regions and categories / temperature, `(regions, categories)`; Eq. 1."""
    return region_cosines(region_embeds, text_embeds) / temperature


def retrieve(logits: Tensor, is_thing: Tensor | Sequence, threshold: float) -> Retrieval:
    """
    Retrieves the most probable category of each region (Eq. 2) and denoises: a region is kept if that probability
    exceeds `threshold`.
    """
    groups = as_groups(is_thing).to(logits.device)
    probability, label = logits.softmax(dim=-1).max(dim=-1)
    return Retrieval(logits, probability > threshold, groups[label])


def contrast_mask(region_groups: Tensor, is_thing: Tensor | Sequence, contrast: Contrast) -> Tensor:
    """
    The categories that each region is contrasted against, bool `(regions, categories)`: the row of the contrast matrix
    for the region's group, expanded from groups to categories.
    """
    groups = as_groups(is_thing).to(region_groups.device)
    matrix = torch.as_tensor(contrast, dtype=torch.bool, device=region_groups.device)
    return matrix[region_groups][:, groups]


def masked_kl(teacher_logits: Tensor, student_logits: Tensor, mask: Tensor) -> Tensor:
    """KL(teacher ‖ student) per region, `(regions,)`, of softmaxes over the categories in the mask only; Eq. 3-4."""
    teacher = log_softmax(teacher_logits.masked_fill(~mask, -torch.inf), dim=-1)
    student = log_softmax(student_logits.masked_fill(~mask, -torch.inf), dim=-1)
    # Outside the mask both are -inf, and -inf - -inf is NaN: zeros keep it out of values and gradients.
    difference = teacher.masked_fill(~mask, 0.0) - student.masked_fill(~mask, 0.0)
    return (teacher.exp() * difference).sum(-1)


def reduce_regions(kl: Tensor, retrieval: Retrieval, counts: Tensor, reduction: str) -> Tensor:
    """
    Reduces the KL of the kept regions to the loss, Eq. 5.

    Args:
        kl (`Tensor` of shape `(regions,)`): KL divergence per region.
        retrieval ([`Retrieval`]): of the same regions.
        counts (`Tensor` of shape `(groups,)`): the number of kept regions per group in the global batch.
        reduction (`str`): `"group_mean"`, the sum over groups of the mean over each group's regions;
            `"region_mean"`, the mean over all regions.
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
    """[`decoupled_alignment_loss`] for regions whose [`Retrieval`] is already computed."""
    check_contrast(contrast, is_thing)
    with torch.autocast(student_region_embeds.device.type, enabled=False):
        counts = retrieval.counts(len(contrast)) if counts is None else counts.to(retrieval.logits)
        logits = region_logits(student_region_embeds, student_text_embeds, temperature)
        mask = contrast_mask(retrieval.group, is_thing, contrast)
        # A teacher in half precision may overflow; logits of dropped regions must not reach the gradients.
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
            Pooled region features of the student (U-VLM in the paper). Normalised here.
        teacher_region_embeds (`Tensor` of shape `(regions, teacher_dim)`):
            Pooled features of the same regions by the teacher (P-VLM). Normalised here; they receive no gradient.
        student_text_embeds (`Tensor` of shape `(categories, student_dim)`):
            Category embeddings in the student's space, used as given.
        teacher_text_embeds (`Tensor` of shape `(categories, teacher_dim)`):
            Category embeddings in the teacher's space, used as given.
        is_thing (`Tensor` of shape `(categories,)`):
            Bools, or integer groups with 0 = thing and 1 = stuff.
        temperature (`float`, *optional*, defaults to 0.01):
            τ, of both softmaxes.
        threshold (`float`, *optional*, defaults to 0.3):
            Denoising: a region is kept if the teacher's highest probability exceeds it.
        contrast (`(groups, groups)` of bool, *optional*):
            Rows: the group of the region. Columns: the group of the categories. Defaults to [`DECOUPLED`]: things are
            contrasted against things, stuff against both.
        reduction (`str`, *optional*, defaults to `"group_mean"`):
            `"group_mean"` or `"region_mean"`.
        counts (`Tensor` of shape `(groups,)`, *optional*):
            Loss normalizers: the number of kept regions per group in the global batch, over ranks and accumulation
            steps. Defaults to those of this call.

    Returns:
        [`AlignmentOutput`]; its numbers are those of this process.

    Raises:
        `ValueError` for an unknown `reduction`, or a `contrast` that does not fit the groups of `is_thing`.
    """
    with torch.no_grad():
        logits = region_logits(teacher_region_embeds.detach(), teacher_text_embeds, temperature)
        retrieval = retrieve(logits, is_thing, threshold)
    return align(
        student_region_embeds, student_text_embeds, retrieval, is_thing, temperature, contrast, reduction, counts
    )


def check_contrast(contrast: Contrast, is_thing: Tensor | Sequence) -> None:
    """Raises a `ValueError` if the matrix is not square, has no row for a group, or a row without any category."""
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
