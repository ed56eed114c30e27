# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Training on N ranks equals one rank with the same global batch, also with gradient accumulation."""

import json
import shutil

import pytest

from tests.distributed.launching import largest_difference, launch
from tests.shards import damage_shards, write_shards


# With plain SGD, equal parameters imply equal gradients.
SGD = {
    "optim": "sgd",
    "learning_rate": 0.05,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "max_grad_norm": 0.0,
    "global_batch_size": 8,
    "max_steps": 3,
}

# None of these changes the results.
DDP = {
    "ddp_backend": "gloo",
    "ddp_timeout": 300,
    "ddp_bucket_cap_mb": 1,
    "ddp_broadcast_buffers": False,
    "ddp_find_unused_parameters": True,
    "ddp_static_graph": False,
}


@pytest.fixture(
    scope="module",
    params=[{"method": "densevlm"}, {"method": "clipself", "crop_size": 72, "image_weight": 1.0}],
    ids=lambda options: options["method"],
)
def method(request):
    return request.param


def test_a_rank_without_readable_images_does_not_change_the_result(recipe, student, scenes, tmp_path, method):
    """Half of the images are damaged, with one image per rank: in many steps one rank has none."""
    from training.train import main

    images = tmp_path / "images"
    shutil.copytree(scenes / "train" / "images", images)
    for index in range(0, 24, 2):
        (images / f"{index:06d}.jpg").write_bytes(b"no image")
    options = SGD | method | {"images": images, "global_batch_size": 2, "learning_rate": 0.005}
    alone, together = tmp_path / "alone", tmp_path / "together"
    main(recipe(output_dir=alone, per_device_train_batch_size=2, **options))
    launch(recipe(output_dir=together, per_device_train_batch_size=1, **options), ranks=2)
    assert largest_difference(student, alone) > 1e-3
    assert largest_difference(alone, together) < 1e-6
    logs = [json.loads((folder / "trainer_state.json").read_text())["log_history"] for folder in (alone, together)]
    skipped = [[entry["skipped_images"] for entry in log if "loss" in entry] for log in logs]
    assert skipped[0] == skipped[1] and 1 in skipped[0]


@pytest.mark.parametrize(("student", "teacher"), [("clip_resnet", "eva02_clip"), ("eva02_clip", "siglip")])
def test_two_ranks_equal_one_with_other_towers(recipe, folder_of, tmp_path, student, teacher):
    """Batch statistics of the ResNet are frozen: the distribution of a batch over ranks must not matter."""
    from training.train import main

    options = SGD | {"model": folder_of(student, 0), "teacher": folder_of(teacher, 1), "threshold": 0.1}
    alone, together = tmp_path / "alone", tmp_path / "together"
    main(recipe(output_dir=alone, per_device_train_batch_size=8, **options))
    launch(recipe(output_dir=together, per_device_train_batch_size=2, **options), ranks=2)
    assert largest_difference(folder_of(student, 0), alone) > 1e-3
    assert largest_difference(alone, together) < 1e-6


@pytest.mark.parametrize(("ranks", "per_device"), [(1, 2), (2, 4), (2, 2), (4, 2)])
def test_ranks_and_accumulation_give_the_parameters_of_one_large_batch(
    recipe, student, tmp_path, method, ranks, per_device
):
    from training.train import main

    options = SGD | method
    alone, together = tmp_path / "alone", tmp_path / "together"
    main(recipe(output_dir=alone, per_device_train_batch_size=8, **options))
    output = launch(recipe(output_dir=together, per_device_train_batch_size=per_device, **options | DDP), ranks)
    assert f"{ranks} process{'es' * (ranks > 1)}, 8 images per step" in output
    assert largest_difference(student, alone) > 1e-3
    assert largest_difference(alone, together) < 1e-6
    # The log is of the global batch, too.
    logs = [json.loads((folder / "trainer_state.json").read_text())["log_history"] for folder in (alone, together)]
    for one, other in zip(*logs):
        for key in {"loss", "regions", "regions_kept", "thing_share"} & one.keys():
            assert other[key] == pytest.approx(one[key], rel=1e-4), key


def test_a_mix_of_damaged_shards_and_a_folder_is_the_same_on_one_two_and_four_ranks(recipe, student, scenes, tmp_path):
    """With workers, over several epochs: each step has the same images on any number of ranks."""
    from training.train import main

    list(damage_shards(tmp_path / "sa1b", write_shards(tmp_path / "sa1b", [5, 3, 9])))
    sources = [
        {"images": str(tmp_path / "sa1b" / "*.tar"), "weight": 1},
        {"images": str(scenes / "train" / "images"), "weight": 2},
    ]
    options = SGD | {"sources": json.dumps(sources), "max_steps": 8, "learning_rate": 0.005}
    runs = {ranks: tmp_path / f"on{ranks}" for ranks in (1, 2, 4)}

    def arguments(**more):
        given = recipe(**options, **more)
        at = given.index("--images")
        return given[:at] + given[at + 2 :]

    main(arguments(output_dir=runs[1], per_device_train_batch_size=8))
    launch(arguments(output_dir=runs[2], per_device_train_batch_size=2, dataloader_num_workers=2), ranks=2)
    launch(arguments(output_dir=runs[4], per_device_train_batch_size=2, dataloader_num_workers=1), ranks=4)
    assert largest_difference(student, runs[1]) > 1e-3
    assert largest_difference(runs[1], runs[2]) < 1e-6 and largest_difference(runs[1], runs[4]) < 1e-6
    logs = [json.loads((folder / "trainer_state.json").read_text())["log_history"] for folder in runs.values()]
    skipped = [[entry["skipped_images"] for entry in log if "loss" in entry] for log in logs]
    assert skipped[0] == skipped[1] == skipped[2] and sum(skipped[0]) > 0
