# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Region pooling against torchvision's RoIAlign, forward and backward."""

import torch

from benchmarks.timing import compare, print_row
from modeling_densevlm.region_pooling import grid_boxes, pool_boxes


def main() -> None:
    from torchvision.ops import roi_align

    torch.manual_seed(0)
    feature_map = torch.randn(8, 512, 32, 32, requires_grad=True)
    scale = torch.tensor([32.0] * 4)

    def ours(boxes):
        pool_boxes(feature_map, boxes).square().sum().backward()

    def theirs(boxes):
        roi_align(feature_map, [b * scale for b in boxes], 1, 1.0, -1, True).square().sum().backward()

    print(f"8 maps of 512 x 32 x 32, {torch.get_num_threads()} threads")
    ratios = []
    for rows in (1, 3, 6):
        boxes = [grid_boxes(rows, rows)] * 8
        title = f"pooling of a {rows} x {rows} grid, forward + backward"
        ratios.append(compare(title, lambda b=boxes: ours(b), lambda b=boxes: theirs(b), "torchvision"))
    workload = "pooling of a 1 × 1, 3 × 3, 6 × 6 grid over 8 maps of 512 × 32 × 32, forward and backward"
    print_row(workload, "torchvision's RoIAlign", ratios)


if __name__ == "__main__":
    main()
