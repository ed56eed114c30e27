# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from modeling_densevlm.region_pooling import grid_boxes, pool_boxes, pool_masks


def test_a_grid_goes_row_by_row_over_the_whole_map():
    assert grid_boxes(2, 2).tolist() == [[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]]
    assert grid_boxes(3, 5).shape == (15, 4)
    assert grid_boxes(1, 1).dtype == torch.float32


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_a_grid_without_cells_is_refused(shape):
    with pytest.raises(ValueError, match="at least one row"):
        grid_boxes(*shape)


def test_a_box_of_one_cell_gives_that_cell():
    feature_map = torch.arange(12.0).reshape(1, 1, 3, 4)
    pooled = pool_boxes(feature_map, [grid_boxes(3, 4)])
    assert_close(pooled.flatten(), torch.arange(12.0))


def test_a_box_between_two_cells_gives_their_mean():
    feature_map = torch.tensor([[[[2.0, 4.0]]]])
    # One sample, at the middle of the box, half a cell right of the first cell's centre.
    assert_close(pool_boxes(feature_map, [torch.tensor([[0.25, 0.0, 0.75, 1.0]])]), torch.tensor([[3.0]]))


EDGE_BOXES = torch.tensor(
    [
        [0.0, 0.0, 1.0, 1.0],
        [0.5, 0.5, 0.5, 0.5],
        [0.1, 0.1, 0.12, 0.11],
        [-5.0, -5.0, -4.0, -4.0],
        [0.0, 0.0, 3.0, 3.0],
        [-0.4, 0.2, 0.3, 1.7],
        [0.99, 0.99, 1.0, 1.0],
    ]
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_boxes_are_pooled_as_by_torchvision_forward_and_backward(dtype):
    torchvision = pytest.importorskip("torchvision")
    generator = torch.Generator().manual_seed(0)
    feature_map = torch.randn(2, 8, 7, 9, generator=generator, dtype=dtype, requires_grad=True)
    corners = torch.rand(100, 2, 2, generator=generator).sort(dim=1).values * 1.6 - 0.3
    boxes = [corners.flatten(1).to(dtype), EDGE_BOXES.to(dtype)]
    scale = torch.tensor([9, 7, 9, 7], dtype=dtype)
    expected = torchvision.ops.roi_align(feature_map, [b * scale for b in boxes], 1, 1.0, -1, aligned=True).flatten(1)
    found = pool_boxes(feature_map, boxes)
    tolerance = 2e-6 if dtype == torch.float32 else 1e-13
    assert_close(found, expected, atol=tolerance, rtol=0)
    weights = torch.randn(found.shape, generator=generator, dtype=dtype)
    gradients = [torch.autograd.grad((out * weights).sum(), feature_map)[0] for out in (found, expected)]
    assert_close(*gradients, atol=20 * tolerance, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (2, 3), (32, 5)])
def test_boxes_of_any_extent_are_pooled_as_by_torchvision(size):
    torchvision = pytest.importorskip("torchvision")
    generator = torch.Generator().manual_seed(0)
    height, width = size
    feature_map = torch.randn(1, 4, height, width, generator=generator, dtype=torch.float64)
    corners = torch.rand(2000, 2, 2, generator=generator, dtype=torch.float64).sort(dim=1).values
    spread = torch.tensor([0.2, 1.0, 2.0, 8.0]).double().repeat(500)[:, None]  # up to `MAX_BOX_EXTENT` maps
    boxes = corners.flatten(1) * spread - 0.4 * spread
    boxes[::7] = (boxes[::7] * 8).round() / 8  # sampling points on the borders and the centres of cells
    scale = torch.tensor([width, height, width, height], dtype=torch.float64)
    expected = torchvision.ops.roi_align(feature_map, [boxes * scale], 1, 1.0, -1, aligned=True).flatten(1)
    assert_close(pool_boxes(feature_map, [boxes]), expected, atol=1e-12, rtol=0)


class Pooling(torch.nn.Module):
    def forward(self, feature_map, boxes, masks):
        return pool_boxes(feature_map, boxes), pool_masks(feature_map, masks)


def test_a_compiled_graph_is_valid_for_other_numbers_of_regions():
    generator = torch.Generator().manual_seed(0)

    def arguments(height, width, counts):
        boxes = [torch.rand(n, 2, 2, generator=generator).sort(dim=1).values.flatten(1) for n in counts]
        masks = [torch.rand(n, height, width, generator=generator) for n in counts]
        return torch.randn(2, 3, height, width, generator=generator), boxes, masks

    dim = {name: torch.export.Dim(name, min=2, max=64) for name in ("height", "width")}
    counts = [torch.export.Dim(f"n{image}", min=0, max=99) for image in range(2)]
    plane = {1: dim["height"], 2: dim["width"]}
    shapes = {2: dim["height"], 3: dim["width"]}, [{0: n} for n in counts], [{0: n, **plane} for n in counts]
    graph = torch.export.export(Pooling(), arguments(4, 5, (3, 2)), dynamic_shapes=shapes).module()
    for given in (arguments(4, 5, (3, 2)), arguments(7, 3, (1, 36)), arguments(5, 5, (0, 4)), arguments(3, 3, (0, 0))):
        for found, expected in zip(graph(*given), Pooling()(*given)):
            assert_close(found, expected)


def test_inverted_and_empty_boxes_give_zeros():
    boxes = torch.tensor([[0.9, 0.9, 0.1, 0.1], [0.2, 0.9, 0.8, 0.1], [0.5, 0.5, 0.5, 0.5]])
    assert (pool_boxes(torch.ones(1, 3, 4, 4), [boxes]) == 0).all()


def test_regions_come_in_image_order_whatever_their_numbers():
    feature_map = torch.stack([torch.full((2, 4, 4), float(i)) for i in range(3)])
    full = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    assert pool_boxes(feature_map, [full, full[:0], full.repeat(2, 1)])[:, 0].tolist() == [0, 2, 2]


def test_without_any_region_the_result_is_empty_and_differentiable():
    feature_map = torch.randn(2, 3, 4, 4, requires_grad=True)
    pooled = pool_boxes(feature_map, [torch.zeros(0, 4)] * 2)
    assert pooled.shape == (0, 3)
    pooled.sum().backward()
    assert (feature_map.grad == 0).all()


def test_a_list_of_another_length_than_the_batch_is_refused():
    with pytest.raises(ValueError, match="2 maps but regions for 1 images"):
        pool_boxes(torch.ones(2, 3, 4, 4), [torch.zeros(1, 4)])


def test_masks_are_weighted_means_and_empty_ones_give_zero():
    feature_map = torch.arange(4.0).reshape(1, 1, 2, 2)
    masks = torch.tensor([[[1, 0], [0, 1]], [[0, 0], [0, 0]], [[0.0, 0.5], [0.0, 1.5]]])
    assert_close(pool_masks(feature_map, [masks]).flatten(), torch.tensor([1.5, 0.0, 2.5]))


def test_boolean_masks_are_accepted():
    feature_map = torch.arange(4.0).reshape(1, 1, 2, 2)
    assert pool_masks(feature_map, [torch.ones(1, 2, 2, dtype=torch.bool)]).item() == pytest.approx(1.5)


def test_masks_at_another_resolution_are_refused():
    with pytest.raises(ValueError, match=r"resolution of the map, \(4, 4\); got one of shape \(1, 8, 8\)"):
        pool_masks(torch.ones(1, 3, 4, 4), [torch.ones(1, 8, 8)])


def test_a_half_precision_map_is_pooled_with_exact_weights():
    feature_map = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    boxes = [torch.tensor([[0.03, 0.11, 0.47, 0.93]])]
    half = pool_boxes(feature_map.bfloat16(), boxes)
    assert half.dtype == torch.bfloat16
    assert_close(half.float(), pool_boxes(feature_map.bfloat16().float(), boxes), atol=1e-2, rtol=8e-3)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (torch.tensor([[0.0, 0, 512, 512]]), "fractions of the map, 0..1, not pixels"),
        (torch.tensor([[0.0, 0, float("nan"), 1]]), "holds NaN"),
        (torch.zeros(4, 5), r"one tensor \(n, 4\), xyxy, for each image; got one of shape \(4, 5\)"),
        (torch.zeros(4), r"one tensor \(n, 4\)"),
    ],
)
def test_boxes_in_pixels_with_nan_or_of_another_shape_are_refused(boxes, message):
    with pytest.raises(ValueError, match=message):
        pool_boxes(torch.ones(1, 3, 4, 4), [boxes])


def test_lists_and_arrays_are_accepted_like_tensors():
    feature_map = torch.randn(1, 3, 4, 4)
    boxes = [[0.0, 0.0, 0.5, 1.0]]
    expected = pool_boxes(feature_map, [torch.tensor(boxes)])
    assert torch.equal(pool_boxes(feature_map, [boxes]), expected)
    assert torch.equal(pool_boxes(feature_map, [np.array(boxes, dtype=np.float32)]), expected)
    mask = np.ones((1, 4, 4), dtype=bool)
    assert torch.equal(pool_masks(feature_map, [mask]), pool_masks(feature_map, [torch.ones(1, 4, 4)]))
