# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Pools a dense map to one vector per region.

RoIAlign with a 1 x 1 output (`aligned=True`, adaptive sampling) averages bilinear samples at the points of a regular
lattice in the box. Both the interpolation and the lattice are separable, so the average is a weighted sum over the map
whose weights are the product of one vector over rows and one over columns:

    pooled = Σ_y Σ_x  row_weights[y] · column_weights[x] · map[:, y, x]

For all boxes of an image this is one matrix product: exact, differentiable, fast on any device, without torchvision.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad


MAX_BOX_EXTENT = 8
"""In map sizes. Boxes may extend beyond the map, but a larger one must be in pixels by mistake."""

SAMPLES_PER_CELL = 4
"""
Sampling points evaluated per cell. Points less than one cell from its centre contribute. The n points of a box are
more than (n - 1) / n cells apart, so at most three are that near; the fourth is the point before them.
"""


def grid_boxes(rows: int, columns: int) -> Tensor:
    """
    Boxes of the cells of a regular grid over the whole map (Sec. 3.2 of the paper, with random `rows` and `columns`).

    Args:
        rows (`int`): number of rows, at least 1.
        columns (`int`): number of columns, at least 1.

    Returns:
        `torch.Tensor` of shape `(rows * columns, 4)`, float32: xyxy as fractions of the map, in row-major order.

    Raises:
        `ValueError` for a grid without rows or columns.
    """
    if rows < 1 or columns < 1:
        raise ValueError(f"A grid needs at least one row and one column, got {rows} x {columns}.")
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    x, y = x.flatten(), y.flatten()
    return torch.stack([x / columns, y / rows, (x + 1) / columns, (y + 1) / rows], dim=-1)


def axis_weights(start: Tensor, end: Tensor, cells: int) -> Tensor:
    """
    Weight of each cell of one axis in the average over each box: the linear interpolation weights of RoIAlign's
    sampling points, averaged over the points.

    Args:
        start (`torch.Tensor` of shape `(boxes,)`):
            Left or upper borders of the boxes, in cells (0 is the outer border of the first cell).
        end (`torch.Tensor` of shape `(boxes,)`): right or lower borders of the boxes, in cells.
        cells (`int`): number of cells on this axis.

    Returns:
        `torch.Tensor` of shape `(boxes, cells)`. Each row sums to 1 for a box inside the map, and to 0 for a box
        without extent.
    """
    start, end = start - 0.5, end - 0.5  # aligned=True: cell i is centred at coordinate i
    extent = end - start
    count = extent.ceil().clamp(min=0)  # adaptive sampling: one point per cell of extent
    _check_extent((count <= MAX_BOX_EXTENT * cells).all(), count, cells)  # False for NaN as well
    count = count[:, None, None]  # (boxes, 1, 1)
    step = torch.where(count > 0, extent[:, None, None] / count.clamp(min=1), 1)
    start = start[:, None, None]
    cell = torch.arange(cells, device=start.device, dtype=start.dtype)[:, None]  # (cells, 1)
    # Only the points that can contribute to a cell, from the last one that is a full cell or more before its centre.
    first = ((cell - 1 - (start + 0.5 * step)) / step).floor().clamp(min=0)
    index = first + torch.arange(SAMPLES_PER_CELL, device=start.device, dtype=start.dtype)  # (boxes, cells, points)
    position = start + (index + 0.5) * step
    # As in RoIAlign, points more than one cell outside the map are zero; nearer ones are clamped to the border.
    valid = (index < count) & (position >= -1) & (position <= cells)
    hat = (1 - (position.clamp(0, cells - 1) - cell).abs()).clamp(min=0)
    return (hat * valid).sum(-1) / count[..., 0].clamp(min=1)


def _check_extent(fits: Tensor, count: Tensor, cells: int) -> None:
    """Raises a `ValueError` for boxes in pixels or with NaN; asynchronously on CUDA and in compiled graphs."""
    message = "are fractions of the map, 0..1, not pixels."
    if fits.is_cuda or torch.compiler.is_compiling():
        torch._assert_async(
            fits, f"A box spans more than {MAX_BOX_EXTENT} times the map, or holds NaN: boxes {message}"
        )
    elif not fits:
        raise ValueError(f"A box spans {count.max() / cells:.0f} times the map, or holds NaN: boxes {message}")


def box_weights(boxes: Tensor, height: int, width: int) -> Tensor:
    """
    Weight of each map location in the average over each box.

    Args:
        boxes (`torch.Tensor` of shape `(boxes, 4)`): xyxy as fractions of the map.
        height (`int`): of the map, in cells.
        width (`int`): of the map, in cells.

    Returns:
        `torch.Tensor` of shape `(boxes, height * width)`, float32 or the dtype of the boxes if that is wider.
    """
    boxes = boxes.to(torch.promote_types(boxes.dtype, torch.float32))
    x0, y0, x1, y1 = boxes.unbind(-1)
    rows, columns = axis_weights(y0 * height, y1 * height, height), axis_weights(x0 * width, x1 * width, width)
    return (rows[:, :, None] * columns[:, None, :]).flatten(1)


def _pool(feature_map: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Weighted sums over the locations of `(batch, dim, height, width)`, with weights `(n_i, height * width)`."""
    if len(weights) != feature_map.shape[0]:
        raise ValueError(f"{feature_map.shape[0]} maps but regions for {len(weights)} images.")
    if not weights:
        return feature_map.sum(dim=(2, 3))
    with torch.autocast(feature_map.device.type, enabled=False):  # bfloat16 weights would be too coarse
        tokens = feature_map.flatten(2).transpose(1, 2)
        tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        max_regions: Any = 0  # symbolic while exporting
        for w in weights:
            max_regions = torch.sym_max(max_regions, w.shape[0])
        padded = torch.stack([pad(w.to(tokens), (0, 0, 0, max_regions - w.shape[0])) for w in weights])
        pooled = padded @ tokens  # (batch, max_regions, dim)
    # Without regions the result is empty but still attached to the graph: gradients are zero, not None.
    return torch.cat([rows[: w.shape[0]] for rows, w in zip(pooled, weights)]).to(feature_map.dtype)


# Shapes depend on the boxes, so that compilation would be repeated for every grid.
@torch.compiler.disable
def pool_boxes(feature_map: Tensor, boxes: Sequence[Tensor]) -> Tensor:
    """
    RoIAlign to one vector per box: `torchvision.ops.roi_align(map, boxes * (width, height), output_size=1,
    sampling_ratio=-1, aligned=True)`.

    Args:
        feature_map (`torch.Tensor` of shape `(batch, dim, height, width)`): not normalised by this function.
        boxes (sequence of `batch` tensors of shape `(n_i, 4)`):
            xyxy as fractions of the map, 0..1. Boxes may extend beyond the map; a box without area gives zeros.

    Returns:
        `torch.Tensor` of shape `(sum n_i, dim)`, in image order, in the dtype of the map.

    Raises:
        `ValueError` for boxes of another shape, with NaN, or so large that they must be in pixels.
    """
    boxes = [torch.as_tensor(box) for box in boxes]
    for box in boxes:
        if box.ndim != 2 or box.shape[1] != 4:
            raise ValueError(
                f"`boxes` is a list with one tensor (n, 4), xyxy, for each image; got one of shape {tuple(box.shape)}."
            )
    if not boxes:
        return _pool(feature_map, [])
    all_boxes = torch.cat([box.to(feature_map.device) for box in boxes])
    weights = box_weights(all_boxes, *feature_map.shape[-2:])
    return _pool(feature_map, weights.split([box.shape[0] for box in boxes]))


def pool_masks(feature_map: Tensor, masks: Sequence[Tensor]) -> Tensor:
    """
    Mean of the map over each mask, `Σ(map · mask) / (Σ mask + 1e-12)`.

    Args:
        feature_map (`torch.Tensor` of shape `(batch, dim, height, width)`): not normalised by this function.
        masks (sequence of `batch` tensors of shape `(n_i, height, width)`):
            At the resolution of the map, boolean or soft (0..1). An empty mask gives zeros.

    Returns:
        `torch.Tensor` of shape `(sum n_i, dim)`, in image order, in the dtype of the map.

    Raises:
        `ValueError` for masks of another shape or resolution.
    """
    masks = [torch.as_tensor(mask) for mask in masks]
    for mask in masks:
        if mask.ndim != 3 or (mask.shape[1:] != feature_map.shape[2:] and mask.shape[0]):
            raise ValueError(
                "`masks` is a list with one tensor (n, height, width) for each image, at the resolution of the map, "
                f"{tuple(feature_map.shape[2:])}; got one of shape {tuple(mask.shape)}: resize it first."
            )
    locations = feature_map.shape[2] * feature_map.shape[3]
    flat_masks = [m.to(feature_map.device, torch.float32).reshape(m.shape[0], locations) for m in masks]
    return _pool(feature_map, [m / (m.sum(1, keepdim=True) + 1e-12) for m in flat_masks])


__all__ = ["grid_boxes", "pool_boxes", "pool_masks"]
