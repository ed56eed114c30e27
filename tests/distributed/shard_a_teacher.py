# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""On each of two ranks: compares the outputs and the size of a sharded teacher with those of a whole one."""

import copy
import sys

import torch
from torch.distributed.tensor import DTensor

from modeling_densevlm import DenseVLMModel
from training.engine.sharding import shard_teacher
from training.engine.signals import close_process_group


def compare_with_whole(folder: str) -> None:
    whole = DenseVLMModel.from_pretrained(folder).eval().requires_grad_(False)
    sharded = copy.deepcopy(whole)
    shard_teacher(sharded, torch.device("cpu"), torch.distributed.get_world_size())
    images, boxes = torch.randn(2, 3, 96, 96), [torch.tensor([[0.1, 0.2, 0.7, 0.9]]), torch.zeros(0, 4)]
    for _ in range(2):  # the first pass initializes FSDP
        with torch.inference_mode():
            assert torch.equal(sharded(images, boxes).region_embeds, whole(images, boxes).region_embeds)
            assert torch.equal(*(model.get_image_features(images).pooler_output for model in (sharded, whole)))
    held = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in sharded.parameters())
    share = held / sum(parameter.numel() for parameter in whole.parameters())
    assert abs(share - 1 / torch.distributed.get_world_size()) < 0.01, (folder, share)


torch.distributed.init_process_group("gloo")
for folder in sys.argv[1:]:
    compare_with_whole(folder)
# A rank that closes its connections while the other still uses them would abort it.
torch.distributed.barrier()
close_process_group()
