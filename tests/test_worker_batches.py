# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Worker processes that cannot share their batches: no program hangs."""

import resource

import pytest
import torch
from PIL import Image

from evaluation import evaluate_regions, evaluate_segmentation
from modeling_densevlm.worker_batches import SharedMemoryFull, to_shared_memory
from tests.test_pairs import evaluation_arguments
from training import cache_teacher, train


@pytest.fixture
def small_shared_memory():
    """Limits each tensor shared by a worker to a few KiB, as if /dev/shm were too small."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


class Tensors(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {"pixels": torch.full((100, 100), float(index)), "boxes": [torch.zeros(index, 4)]}


def test_batches_arrive_unchanged(tmp_path):
    loader = torch.utils.data.DataLoader(Tensors(), batch_size=2, num_workers=1, collate_fn=to_shared_memory)
    first, second = loader
    assert [int(sample["pixels"][0, 0]) for sample in first + second] == [0, 1, 2, 3]
    assert second[1]["boxes"][0].shape == (3, 4)


@pytest.mark.usefixtures("small_shared_memory")
def test_a_batch_that_cannot_be_shared_ends_the_loop_with_the_remedies():
    loader = torch.utils.data.DataLoader(Tensors(), batch_size=2, num_workers=1, collate_fn=to_shared_memory)
    with pytest.raises(SharedMemoryFull, match=r"^/dev/shm is too small .*`--ipc=host`"):
        list(loader)


@pytest.mark.usefixtures("small_shared_memory")
@pytest.mark.parametrize("program", [train.main, cache_teacher.main], ids=["train", "retrieve"])
def test_programs_of_training_end_with_that_message(recipe, tmp_path, program):
    options = {"teacher_cache": tmp_path / "retrieval"} if program is cache_teacher.main else {}
    with pytest.raises(SystemExit, match="/dev/shm is too small"):
        program(recipe(dataloader_num_workers=1, **options))


@pytest.mark.usefixtures("small_shared_memory")
@pytest.mark.parametrize(
    "program", [evaluate_regions.main, evaluate_segmentation.main], ids=["regions", "segmentation"]
)
def test_programs_of_evaluation_end_with_that_message(student, scenes, tmp_path, program):
    arguments = evaluation_arguments(student, scenes, tmp_path / "metrics.json")
    arguments[arguments.index("--num_workers") + 1] = "1"
    if program is evaluate_segmentation.main:
        maps = tmp_path / "maps"
        maps.mkdir()
        for image in (scenes / "test" / "images").iterdir():
            Image.new("L", Image.open(image).size, 255).save(maps / f"{image.stem}.png")
        at = arguments.index("--panoptic")
        del arguments[at : at + 2]
        arguments[arguments.index("--annotations") + 1] = str(maps)
    with pytest.raises(SystemExit, match="/dev/shm is too small"):
        program(arguments)
