# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Cached teacher predictions: the same loss as with the teacher, and refused if they do not fit the run."""

import json
import resource
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from training.alignment import align, retrieve
from training.cache_teacher import main as run_cache_teacher
from training.teacher_cache import TeacherCache, all_boxes, compress, expand, grid_starts
from training.train import main as run_train


IS_THING = torch.tensor([True, False, True, True, False, True, False, False])


def losses_of(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def logits_of(regions: int, categories: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(regions, categories, generator=torch.Generator().manual_seed(seed)) * 3


def read_back(packed, top_k, categories, groups=2):
    """The arrays of one image as returned by [`TeacherCache.look_up`]."""
    count = len(packed["regions"])
    tensors = {name: torch.from_numpy(packed[name].astype("float32")).reshape(count, -1) for name in packed}
    return {
        "labels": tensors["labels"].squeeze(1).long(),
        "categories": tensors["categories"].long(),
        "log_probs": tensors["log_probs"],
        "rest": tensors["rest"],
    }


def test_the_regions_of_all_grids_are_numbered_consecutively():
    starts = grid_starts(2)
    assert starts == {(1, 1): 0, (1, 2): 1, (2, 1): 3, (2, 2): 5}
    boxes = all_boxes((1.0, 0.5), 2)
    assert boxes.shape == (9, 4)
    assert boxes[3].tolist() == [0.0, 0.0, 1.0, 0.25] and boxes[8].tolist() == [0.5, 0.25, 1.0, 0.5]
    assert len(all_boxes((1.0, 1.0), 6)) == 441


def test_all_categories_give_the_distribution_in_half_precision():
    retrieval = retrieve(logits_of(50, 8), IS_THING, threshold=0.4)
    back = expand(read_back(compress(retrieval, IS_THING, top_k=0), 0, 8), IS_THING)
    kept = retrieval.kept
    assert 0 < kept.sum() < 50
    torch.testing.assert_close(back.logits.softmax(-1), retrieval.logits[kept].softmax(-1), atol=2e-4, rtol=2e-3)
    assert torch.equal(back.group, retrieval.group[kept]) and back.kept.all()


@pytest.mark.parametrize("top_k", [1, 3, 6])
def test_the_top_k_are_exact_and_the_rest_is_spread_within_its_group(top_k):
    retrieval = retrieve(logits_of(20, 8), IS_THING, threshold=0.0)
    back = expand(read_back(compress(retrieval, IS_THING, top_k), top_k, 8), IS_THING).logits.softmax(-1)
    before = retrieval.logits.softmax(-1)
    for region in range(20):
        best = before[region].topk(top_k).indices
        torch.testing.assert_close(back[region, best], before[region, best], atol=1e-3, rtol=2e-3)
        for group in (IS_THING, ~IS_THING):
            others = [c for c in range(8) if c not in best.tolist() and group[c]]
            if others:
                expected = before[region, others].sum() / len(others)
                torch.testing.assert_close(back[region, others], expected.expand(len(others)), atol=1e-3, rtol=5e-3)


def test_a_top_k_of_all_categories_stores_all():
    retrieval = retrieve(logits_of(5, 8), IS_THING, threshold=0.0)
    assert compress(retrieval, IS_THING, top_k=8)["categories"].size == 0


def test_a_top_k_above_the_number_of_categories_stores_all_also_for_images_without_kept_regions(recipe, tmp_path):
    options = {"threshold": 0.5, "teacher_cache": tmp_path / "retrieval", "teacher_cache_top_k": 32}
    cache = run_cache_teacher(recipe(**options))
    kept = [len(row["regions"][0]) for row in cache.rows.iter(batch_size=1)]
    assert 0 in kept and max(kept) > 0
    trained = run_train(recipe(**options, output_dir=tmp_path / "cached"))
    online = run_train(recipe(threshold=0.5, output_dir=tmp_path / "online"))
    assert losses_of(trained) == pytest.approx(losses_of(online), rel=1e-4)


def test_the_loss_with_all_categories_is_that_of_the_teacher():
    generator = torch.Generator().manual_seed(1)
    student, text = torch.randn(400, 16, generator=generator), torch.randn(8, 16, generator=generator)
    text = torch.nn.functional.normalize(text, dim=-1)
    retrieval = retrieve(logits_of(400, 8), IS_THING, threshold=0.4)
    online = align(student, text, retrieval, IS_THING, temperature=0.1)
    back = expand(read_back(compress(retrieval, IS_THING, top_k=0), 0, 8), IS_THING)
    cached = align(student[retrieval.kept], text, back, IS_THING, temperature=0.1)
    assert cached.loss.item() == pytest.approx(online.loss.item(), abs=1e-4)
    assert cached.num_kept == online.num_kept and cached.num_things == online.num_things


@pytest.fixture
def cached(recipe, tmp_path):
    """A teacher cache of the scenes with all categories of each region."""
    folder = tmp_path / "retrieval"
    run_cache_teacher(recipe(teacher_cache=folder, teacher_cache_top_k=0))
    return folder


def test_training_with_the_cache_equals_training_with_the_teacher(recipe, cached, tmp_path, student):
    options = {"optim": "sgd", "learning_rate": 0.05, "warmup_steps": 0, "lr_scheduler_type": "constant"}
    online = run_train(recipe(output_dir=tmp_path / "online", **options))
    offline = run_train(recipe(output_dir=tmp_path / "offline", teacher_cache=cached, **options))
    assert offline.teacher is None
    assert losses_of(offline) == pytest.approx(losses_of(online), abs=1e-4)
    for key in ("regions", "regions_kept", "thing_share"):
        values = [[e[key] for e in t.state.log_history if "loss" in e] for t in (online, offline)]
        assert values[0] == values[1], key
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("online", "offline"))
    before = load_file(student / "model.safetensors")
    moved = max((first[name] - before[name]).abs().max() for name in first)
    apart = max((first[name] - second[name]).abs().max() for name in first)
    assert moved > 1e-3 and apart < 0.01 * moved


def test_training_with_the_cache_needs_no_teacher(recipe, cached, tmp_path):
    arguments = recipe(output_dir=tmp_path / "offline", teacher_cache=cached)
    at = arguments.index("--teacher")
    trainer = run_train(arguments[:at] + arguments[at + 2 :])
    assert trainer.teacher is None and losses_of(trainer)[0] > 0


def test_the_top_k_categories_give_nearly_the_same_loss(recipe, tmp_path):
    online = run_train(recipe(output_dir=tmp_path / "online", max_steps=1))
    run_cache_teacher(recipe(teacher_cache=tmp_path / "top", teacher_cache_top_k=12))
    offline = run_train(recipe(output_dir=tmp_path / "offline", teacher_cache=tmp_path / "top", max_steps=1))
    assert losses_of(offline) == pytest.approx(losses_of(online), rel=0.05)
    assert losses_of(offline) != losses_of(online)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 0.2}, "another `threshold`: 0.15, the run has 0.2"),
        ({"temperature": 0.02}, "another `temperature`"),
        ({"templates": "vild"}, "another `templates`: short, the run has vild"),
        ({"max_grid": 5}, "another `max_grid`: 6, the run has 5"),
        ({"teacher_image_size": 126}, "another `teacher_image_size`: 112, the run has 126"),
    ],
)
def test_a_cache_with_other_settings_is_refused(recipe, cached, tmp_path, change, message):
    with pytest.raises(SystemExit, match=message):
        run_train(recipe(output_dir=tmp_path / "run", teacher_cache=cached, **change))


def test_a_cache_of_another_teacher_is_refused(recipe, cached, tmp_path, teacher):
    other = tmp_path / "other"
    shutil.copytree(teacher, other)
    weights = load_file(other / "model.safetensors")
    weights["visual_projection.weight"] += 1e-3
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(SystemExit, match="another `teacher`"):
        run_train(recipe(teacher_cache=cached, teacher=other))


def test_a_cache_of_other_categories_is_refused(recipe, cached, tmp_path, scenes):
    content = json.loads((scenes / "categories.json").read_text())
    content["categories"][0]["is_thing"] = not content["categories"][0]["is_thing"]
    (tmp_path / "flags.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="another `groups`"):
        run_train(recipe(teacher_cache=cached, categories=tmp_path / "flags.json"))
    first, second = content["categories"][:2]
    first["name"], second["name"] = second["name"], first["name"]
    (tmp_path / "names.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="another `categories`"):
        run_train(recipe(teacher_cache=cached, categories=tmp_path / "names.json"))


def test_a_cache_of_other_images_is_refused_and_one_of_more_images_used(recipe, cached, scenes, tmp_path):
    for number, file in enumerate(sorted((scenes / "test" / "images").iterdir())):
        (tmp_path / "renamed").mkdir(exist_ok=True)
        shutil.copy(file, tmp_path / "renamed" / f"another-{number}.jpg")
    with pytest.raises(SystemExit, match="is of other images: it has 24, the run 10"):
        run_train(recipe(teacher_cache=cached, images=tmp_path / "renamed"))
    with pytest.raises(SystemExit, match=r"000000\.jpg is not the image that the teacher saw"):  # of the same name
        run_train(recipe(teacher_cache=cached, images=scenes / "test" / "images"))
    run_train(recipe(teacher_cache=cached, max_samples=16, max_steps=1))


def test_an_incomplete_cache_is_refused_and_its_computation_resumed(recipe, cached, monkeypatch):
    (file,) = cached.glob("*.arrow")
    first, written = file.read_bytes(), file.stat().st_mtime_ns
    run_cache_teacher(recipe(teacher_cache=cached, teacher_cache_top_k=0))
    assert file.stat().st_mtime_ns == written  # nothing is computed twice
    file.unlink()
    with pytest.raises(SystemExit, match="is missing 1 of 1 files"):
        run_train(recipe(teacher_cache=cached))
    run_cache_teacher(recipe(teacher_cache=cached, teacher_cache_top_k=0))
    assert file.read_bytes() == first
    with pytest.raises(SystemExit, match="another `top_k`: 0, the run has 4"):
        run_cache_teacher(recipe(teacher_cache=cached, teacher_cache_top_k=4))


def test_a_folder_without_a_cache_is_refused(recipe, tmp_path):
    with pytest.raises(SystemExit, match="holds no retrieval.json"):
        run_train(recipe(teacher_cache=tmp_path / "nowhere"))
    with pytest.raises(SystemExit, match="`--teacher_cache` is missing"):
        run_cache_teacher(recipe())


def test_a_changed_byte_is_detected(cached, scenes):
    (file,) = cached.glob("*.arrow")
    content = bytearray(file.read_bytes())
    cache = TeacherCache(cached)
    number = next(n for n in range(24) if len(cache.rows[n]["regions"][0]))
    at = content.index(cache.rows[number]["log_probs"][0].values.to_numpy().tobytes())
    content[at + 5] ^= 1
    file.write_bytes(content)
    cache = TeacherCache(cached)
    with pytest.raises(ValueError, match=r"retrieval-000000\.arrow is damaged\. Delete it"):
        cache.look_up(number, (scenes / "train" / "images" / f"{number:06d}.jpg").read_bytes(), 1, 1)
    file.write_bytes(content[:100])
    with pytest.raises(ValueError, match=r"retrieval-000000\.arrow is damaged\. Delete it"):
        TeacherCache(cached)
    (cached / "retrieval.json").write_text("{")
    with pytest.raises(ValueError, match=r"retrieval\.json is damaged"):
        TeacherCache(cached)


def test_an_image_that_was_unreadable_for_the_teacher_is_skipped_and_named_in_training(recipe, scenes, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(scenes / "train" / "images", images)
    whole = (images / "000003.jpg").read_bytes()
    (images / "000003.jpg").write_bytes(whole[:700])
    options = {"images": images, "teacher_cache": tmp_path / "retrieval"}
    run_cache_teacher(recipe(**options))
    (images / "000003.jpg").write_bytes(whole)
    trainer = run_train(recipe(**options))
    assert [m for m in trainer.skipped if "000003.jpg" in m and "when the cache was filled" in m]


def test_a_full_disk_while_caching_is_one_line_and_the_same_command_resumes(recipe, tmp_path):
    """Simulated by a limit on the size of files."""
    arguments = recipe(teacher_cache=tmp_path / "retrieval")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(
            SystemExit, match=r"`--teacher_cache`: .*retrieval-000000\.arrow cannot be written: .*Make room"
        ):
            run_cache_teacher(arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [file.name for file in (tmp_path / "retrieval").iterdir()] == ["retrieval.json"]
    assert len(run_cache_teacher(arguments).rows) == 24


def test_a_cache_is_refused_by_methods_that_do_not_use_one(recipe, tmp_path, capsys):
    for method in ("clipself", "feature_distillation"):
        with pytest.raises(SystemExit):
            run_cache_teacher(recipe(method=method, teacher_cache=tmp_path / "retrieval"))
        assert f"the method {method} does not use `teacher_cache`" in capsys.readouterr().err
        with pytest.raises(SystemExit, match=f"`method`: {method} does not use cached teacher predictions"):
            run_cache_teacher(recipe(method=method))


def test_a_folder_that_cannot_be_created_is_refused_before_a_model_is_loaded(recipe, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="`--teacher_cache`: the folder .* cannot be created"):
        run_cache_teacher(recipe(teacher_cache=tmp_path / "file" / "retrieval", teacher="nowhere"))
