# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
From a dense map to one vector per region.

RoIAlign with a 1 x 1 output (`aligned=True`, adaptive sampling) averages bilinear samples on a regular lattice inside
the box. Bilinear interpolation is separable and so is the lattice, hence the average is a *product* of one row of
weights over the map's rows and one over its columns:

    pooled = Σ_y Σ_x  height_weights[y] · width_weights[x] · map[:, y, x]

which is a matrix product: exact, differentiable, quick on any device, and without torchvision.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad


LARGEST_BOX = 8
"""Boxes may reach outside the map, but one that spans several maps is given in pixels by mistake."""

SAMPLES_PER_CELL = 4
"""
Sampling points that are looked at for each cell. A cell is reached from two cells' length, in which at most three lie:
n of them are more than (n - 1) / n cells apart. Before them comes one that may lie just on the edge.
"""


def grid_boxes(rows: int, columns: int) -> Tensor:
    """
    The cells of a regular grid over the whole map (Sec. 3.2 of the paper draws `rows` and `columns` at random).

    Returns:
        `Tensor` of shape `(rows * columns, 4)`, float32: xyxy as fractions of the map, row by row.
    """
    if rows < 1 or columns < 1:
        raise ValueError(f"A grid needs at least one row and one column, got {rows} x {columns}.")
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    x, y = x.flatten(), y.flatten()
    return torch.stack([x / columns, y / rows, (x + 1) / columns, (y + 1) / rows], dim=-1)


def axis_weights(start: Tensor, end: Tensor, cells: int) -> Tensor:
    """
    What each cell of one axis contributes to each box: RoIAlign's sampling points, spread over their two neighbours.

    Args:
        start, end (`Tensor` of shape `(boxes,)`):
            The boxes' borders on this axis, in cells of the map (0 is the outer border of the first cell).
        cells (`int`):
            Number of cells on this axis.

    Returns:
        `Tensor` of shape `(boxes, cells)`. Rows add up to 1 where a box lies inside the map, to 0 where it has no
        extent.
    """
    start, end = start - 0.5, end - 0.5  # aligned=True: the centre of cell i is at coordinate i
    extent = end - start
    count = extent.ceil().clamp(min=0)  # adaptive: one sample per cell of extent
    _check_extent((count <= LARGEST_BOX * cells).all(), count, cells)  # False for NaN, too
    count = count[:, None, None]  # (boxes, 1, 1)
    step = torch.where(count > 0, extent[:, None, None] / count.clamp(min=1), 1)
    start = start[:, None, None]
    cell = torch.arange(cells, device=start.device, dtype=start.dtype)[:, None]  # (cells, 1)
    # Of a box's samples, those that can reach a cell: from the last one that lies a cell or more before it.
    before = ((cell - 1 - (start + 0.5 * step)) / step).floor().clamp(min=0)
    index = before + torch.arange(SAMPLES_PER_CELL, device=start.device, dtype=start.dtype)  # (boxes, cells, samples)
    position = start + (index + 0.5) * step
    # Samples further than one cell outside count as zeros; nearer ones take the border's value.
    counted = (index < count) & (position >= -1) & (position <= cells)
    hat = (1 - (position.clamp(0, cells - 1) - cell).abs()).clamp(min=0)
    return (hat * counted).sum(-1) / count[..., 0].clamp(min=1)


def _check_extent(fits: Tensor, count: Tensor, cells: int) -> None:
    """Raises a `ValueError` for boxes in pixels or with NaN; where asking would stop a device or a graph, it fails."""
    message = "are fractions of the map, 0..1, not pixels."
    if fits.is_cuda or torch.compiler.is_compiling():
        torch._assert_async(fits, f"A box spans more than {LARGEST_BOX} times the map, or holds NaN: boxes {message}")
    elif not fits:
        raise ValueError(f"A box spans {count.max() / cells:.0f} times the map, or holds NaN: boxes {message}")


def box_weights(boxes: Tensor, height: int, width: int) -> Tensor:
    """
    Args:
        boxes (`Tensor` of shape `(boxes, 4)`): xyxy as fractions of the map.

    Returns:
        `Tensor` of shape `(boxes, height * width)`: the weight of each location of the map in each box.
    """
    boxes = boxes.to(torch.promote_types(boxes.dtype, torch.float32))
    x0, y0, x1, y1 = boxes.unbind(-1)
    rows, columns = axis_weights(y0 * height, y1 * height, height), axis_weights(x0 * width, x1 * width, width)
    return (rows[:, :, None] * columns[:, None, :]).flatten(1)


def _pool(feature_map: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Weighted sums over locations: map `(batch, dim, height, width)`, weights per image `(n_i, height * width)`."""
    if len(weights) != feature_map.shape[0]:
        raise ValueError(f"{feature_map.shape[0]} maps but regions for {len(weights)} images.")
    if not weights:
        return feature_map.sum(dim=(2, 3))
    with torch.autocast(feature_map.device.type, enabled=False):  # weights in bf16 would blur the borders
        tokens = feature_map.flatten(2).transpose(1, 2)
        tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        most = 0
        for w in weights:
            most = torch.sym_max(most, w.shape[0])
        padded = torch.stack([pad(w.to(tokens), (0, 0, 0, most - w.shape[0])) for w in weights])
        pooled = padded @ tokens  # (batch, most regions, dim)
    # A batch without regions gives no row, but keeps the graph: its gradients are zero and not none.
    return torch.cat([rows[: w.shape[0]] for rows, w in zip(pooled, weights)]).to(feature_map.dtype)


# Its shapes depend on the boxes: compiled, it would be compiled again for every grid.
@torch.compiler.disable
def pool_boxes(feature_map: Tensor, boxes: Sequence[Tensor]) -> Tensor:
    """
    RoIAlign to one vector per box: `torchvision.ops.roi_align(map, boxes * (width, height), output_size=1,
    sampling_ratio=-1, aligned=True)`.

    Args:
        feature_map (`Tensor` of shape `(batch, dim, height, width)`):
            Taken as given; nothing is normalised.
        boxes (sequence of `batch` tensors of shape `(n_i, 4)`):
            xyxy as fractions of the map, 0..1. Boxes may reach outside; a box without area gives the zero vector.

    Returns:
        `Tensor` of shape `(sum n_i, dim)`, in image order, in the map's dtype.

    Raises:
        `ValueError` for boxes of another shape, with NaN, or so large that they must be pixels.
    """
    boxes = [torch.as_tensor(box) for box in boxes]
    for box in boxes:
        if box.ndim != 2 or box.shape[1] != 4:
            raise ValueError(
                f"`boxes` is a list with one tensor (n, 4), xyxy, for each image; got one of shape {tuple(box.shape)}."
            )
    if not boxes:
        return _pool(feature_map, [])
    together = torch.cat([box.to(feature_map.device) for box in boxes])
    weights = box_weights(together, *feature_map.shape[-2:])
    return _pool(feature_map, weights.split([box.shape[0] for box in boxes]))


def pool_masks(feature_map: Tensor, masks: Sequence[Tensor]) -> Tensor:
    """
    Mean of the map under each mask, `Σ(map · mask) / (Σ mask + 1e-12)`.

    Args:
        feature_map (`Tensor` of shape `(batch, dim, height, width)`):
            Taken as given; nothing is normalised.
        masks (sequence of `batch` tensors of shape `(n_i, height, width)`):
            At the map's resolution, boolean or soft. An empty mask gives the zero vector.

    Returns:
        `Tensor` of shape `(sum n_i, dim)`, in image order, in the map's dtype.
    """
    masks = [torch.as_tensor(mask) for mask in masks]
    for mask in masks:
        if mask.ndim != 3 or (mask.shape[1:] != feature_map.shape[2:] and mask.shape[0]):
            raise ValueError(
                "`masks` is a list with one tensor (n, height, width) for each image, at the resolution of the map, "
                f"{tuple(feature_map.shape[2:])}; got one of shape {tuple(mask.shape)}: resize it first."
            )
    locations = feature_map.shape[2] * feature_map.shape[3]
    flat = [m.to(feature_map.device, torch.float32).reshape(m.shape[0], locations) for m in masks]
    return _pool(feature_map, [m / (m.sum(1, keepdim=True) + 1e-12) for m in flat])


__all__ = ["grid_boxes", "pool_boxes", "pool_masks"]
