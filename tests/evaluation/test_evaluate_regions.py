# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
import json
import shutil

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from evaluation import evaluate_regions as program
from evaluation.confusion import Confusion
from evaluation.datasets.panoptic import PanopticRegions
from evaluation.evaluate_regions import (
    evaluate_in_shards,
    evaluate_regions,
    main,
    map_side,
    region_metrics,
    top_categories,
)
from evaluation.scores import RegionScores
from evaluation.shards import warn_skipped
from modeling_densevlm import CategoryEmbeddings, CategorySet, DenseVLMModel, DenseVLMProcessor
from tests.conftest import command_line
from tests.evaluation.regions import scores_of


@pytest.fixture
def evaluated(student, scenes):
    model, processor = DenseVLMModel.from_pretrained(student).eval(), DenseVLMProcessor.from_pretrained(student)
    split = scenes / "test"
    regions = PanopticRegions(
        split / "panoptic.json", split / "images", split / "panoptic", processor.image_processor, map_side(model, 96)
    )
    embeddings = CategoryEmbeddings.compute(regions.categories, model, processor.tokenizer)
    return model, regions, embeddings


@torch.no_grad()
def test_scores_are_the_cosines_of_pooled_boxes_and_masks(evaluated):
    model, regions, embeddings = evaluated
    scores = evaluate_regions(model, regions, embeddings, batch_size=4, num_workers=0)
    sample = regions[7]
    rows = scores.image_ids == sample["image_id"]
    pixel_values = sample["pixel_values"][None]
    for kind in ("boxes", "masks"):
        pooled = model.get_region_features(pixel_values, **{kind: [sample[kind]]})
        expected = normalize(pooled, dim=-1) @ embeddings.embeds.T
        np.testing.assert_allclose(getattr(scores, kind)[rows], expected.numpy(), atol=1e-5)
    assert scores.labels[rows].tolist() == sample["labels"].tolist()
    assert scores.images == 10 and scores.skipped_images == []


def test_scores_do_not_depend_on_batch_size_and_workers(evaluated):
    one = evaluate_regions(*evaluated, batch_size=1, num_workers=0)
    many = evaluate_regions(*evaluated, batch_size=7, num_workers=2)
    np.testing.assert_allclose(one.masks, many.masks, atol=1e-5)
    assert (one.segment_ids == many.segment_ids).all()


def test_there_is_one_forward_pass_per_image(evaluated):
    model, regions, embeddings = evaluated
    batches = []
    model.vision_model.embeddings.register_forward_hook(lambda _, args, __: batches.append(len(args[0])))
    evaluate_regions(model, regions, embeddings, batch_size=4, num_workers=0)
    assert sum(batches) == 10


def test_embeddings_of_another_set_are_rejected(evaluated, tokenizer):
    model, regions, _ = evaluated
    other = CategoryEmbeddings.compute(CategorySet("two", ["kite", "sky"], [True, False]), model, tokenizer)
    with pytest.raises(ValueError, match="embeddings of another set"):
        evaluate_regions(model, regions, other)


def test_an_evaluation_without_any_readable_image_fails(evaluated, tmp_path):
    model, regions, embeddings = evaluated
    regions.images = tmp_path
    with pytest.raises(ValueError, match="None of the 10 images could be evaluated, e.g. "):
        evaluate_regions(model, regions, embeddings, num_workers=0)


CATEGORIES = CategorySet("four", ["kite", "bus", "sky", "road"], [True, True, False, False])


def test_metrics_by_hand():
    masks = [
        [0.9, 0.1, 0.0, 0.0],  # kite, correct
        [0.1, 0.2, 0.9, 0.0],  # kite, predicted as sky
        [0.1, 0.9, 0.0, 0.0],  # bus, correct
        [0.9, 0.0, 0.1, 0.0],  # sky, predicted as kite
        [0.0, 0.0, 0.9, 0.1],  # sky, correct
        [0.0, 0.0, 0.9, 0.1],  # road, predicted as sky
    ]
    metrics = region_metrics(
        scores_of(masks, [0, 0, 1, 2, 2, 3], skipped_regions=3, skipped_images=["x: broken"]), CATEGORIES
    )
    assert metrics["masks_thing_top1"] == pytest.approx((0.5 + 1) / 2)
    assert metrics["masks_stuff_top1"] == pytest.approx((0.5 + 0) / 2)
    assert metrics["foreground_bias"] == pytest.approx(1 / 3)
    assert metrics["background_bias"] == pytest.approx(1 / 3)
    assert metrics["masks_thing_top5"] == 1
    assert (metrics["thing_regions"], metrics["stuff_regions"]) == (3, 3)
    assert (metrics["images"], metrics["skipped_regions"], metrics["skipped_images"]) == (6, 3, 1)


def test_accuracies_at_home_and_away_are_reported_if_annotated():
    masks = [[0.9, 0, 0, 0], [0.9, 0.1, 0, 0], [0.9, 0.1, 0.95, 0], [0, 0, 0.9, 0]]
    at_home = np.array([1, 0, 0, 0])
    metrics = region_metrics(scores_of(masks, [0, 1, 0, 2], at_home=at_home), CATEGORIES)
    assert (metrics["masks_thing_home_top1"], metrics["masks_thing_away_top1"]) == (1.0, 0.0)
    shifted = region_metrics(scores_of(masks, [0, 1, 0, 2], at_home=at_home), CATEGORIES, thing_offset=-0.1)
    assert shifted["masks_thing_away_top1"] == 0.5  # the kite away from home is no longer predicted as sky
    assert "masks_thing_home_top1" not in region_metrics(scores_of(masks, [0, 1, 0, 2]), CATEGORIES)


def test_a_region_without_a_feature_is_counted_as_a_miss_and_excluded_from_the_bias():
    nothing = [np.nan] * 4
    metrics = region_metrics(scores_of([nothing, nothing, [0, 0, 0.9, 0.0]], [0, 2, 2]), CATEGORIES, thing_offset=0.1)
    assert (metrics["masks_thing_top1"], metrics["masks_thing_top5"], metrics["masks_stuff_top1"]) == (0, 0, 0.5)
    assert "background_bias" not in metrics and metrics["foreground_bias"] == 0
    assert metrics["empty_masks"] == 2


def test_a_mask_too_small_for_the_map_gives_no_feature(evaluated):
    model, regions, embeddings = evaluated
    sample = regions[0]
    sample["masks"][0] = False
    scores = evaluate_regions(model, _Samples(regions, [sample]), embeddings, num_workers=0)
    assert (
        np.isnan(scores.masks[0]).all() and not np.isnan(scores.boxes).any() and not np.isnan(scores.masks[1:]).any()
    )


class _Samples(torch.utils.data.Dataset):
    """A dataset of given samples."""

    def __init__(self, regions, samples):
        self.categories, self.samples = regions.categories, samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


def test_boxes_are_of_things_and_those_of_stuff_are_separate():
    correct, wrong = [[1.0, 0, 0, 0], [0, 0, 1.0, 0]], [[0, 1.0, 0, 0], [0, 0, 0, 1.0]]
    metrics = region_metrics(scores_of(wrong, [0, 2], boxes=[correct[0], wrong[1]]), CATEGORIES)
    assert (metrics["boxes_top1"], metrics["stuff_boxes_top1"], metrics["masks_thing_top1"]) == (1, 0, 0)


def test_an_offset_on_things_shifts_the_balance():
    masks = [[0.5, 0.0, 0.4, 0.0], [0.5, 0.0, 0.4, 0.0]]
    assert region_metrics(scores_of(masks, [0, 2]), CATEGORIES)["foreground_bias"] == 1
    shifted = region_metrics(scores_of(masks, [0, 2]), CATEGORIES, thing_offset=0.2)
    assert (shifted["foreground_bias"], shifted["background_bias"]) == (0, 1)


def test_metrics_of_an_absent_group_are_omitted():
    metrics = region_metrics(scores_of([[0.9, 0.1, 0.0, 0.0]], [0]), CATEGORIES)
    assert "masks_stuff_top1" not in metrics and "foreground_bias" not in metrics
    assert metrics["masks_thing_top1"] == 1


def test_a_set_without_flags_is_rejected():
    with pytest.raises(ValueError, match="thing / stuff metrics needs `is_thing`"):
        region_metrics(scores_of([[0.9, 0.1]], [0]), CategorySet("two", ["kite", "sky"]))


def test_the_best_categories_come_first_and_ties_in_order():
    assert top_categories(np.array([[0.1, 0.5, 0.5, 0.9]]), 3).tolist() == [[3, 1, 2]]


def assert_same(first, second):
    for name in ("image_ids", "segment_ids", "labels", "boxes", "masks"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    for name in ("images", "skipped_regions", "skipped_images", "provenance"):
        assert getattr(first, name) == getattr(second, name)


def test_shards_are_joined_and_removed(evaluated, tmp_path):
    file = tmp_path / "scores.safetensors"
    scores = evaluate_in_shards(*evaluated, file, {"model": "u"}, shard_size=4, num_workers=0)
    whole = evaluate_regions(*evaluated, batch_size=4, num_workers=0)
    np.testing.assert_allclose(scores.masks, whole.masks, atol=1e-5)
    assert scores.segment_ids.tolist() == whole.segment_ids.tolist() and scores.images == whole.images == 10
    assert [path.name for path in tmp_path.iterdir()] == ["scores.safetensors"]


def test_an_interrupted_evaluation_resumes_with_the_pending_shards(evaluated, tmp_path, monkeypatch):
    model, regions, _ = evaluated
    whole = evaluate_in_shards(*evaluated, tmp_path / "whole.safetensors", {}, shard_size=3, num_workers=0)
    images_of, stopped = type(regions).__getitem__, {"at": 7}

    def power_cut(self, index):
        if index == stopped["at"]:
            raise KeyboardInterrupt
        return images_of(self, index)

    monkeypatch.setattr(type(regions), "__getitem__", power_cut)
    with pytest.raises(KeyboardInterrupt):
        evaluate_in_shards(*evaluated, tmp_path / "cut.safetensors", {}, shard_size=3, num_workers=0)
    (shard, *_) = sorted((tmp_path / "cut.shards").iterdir())
    shard.write_bytes(shard.read_bytes()[:100])  # a damaged shard is computed again
    stopped["at"], batches = None, []
    model.vision_model.embeddings.register_forward_hook(lambda _, args, __: batches.append(len(args[0])))
    assert_same(evaluate_in_shards(*evaluated, tmp_path / "cut.safetensors", {}, shard_size=3, num_workers=0), whole)
    assert sum(batches) == 3 + 4  # the damaged shard and the pending ones


def test_shards_of_another_size_are_not_reused(evaluated, tmp_path, monkeypatch):
    """Interrupted after a shard of four images and resumed with shards of two: each image still counts once."""
    _, regions, _ = evaluated
    file, images_of = tmp_path / "scores.safetensors", type(regions).__getitem__

    def power_cut(self, index):
        if index == 4:
            raise KeyboardInterrupt
        return images_of(self, index)

    with monkeypatch.context() as patched:
        patched.setattr(type(regions), "__getitem__", power_cut)
        with pytest.raises(KeyboardInterrupt):
            evaluate_in_shards(*evaluated, file, {}, shard_size=4, num_workers=0)
    scores = evaluate_in_shards(*evaluated, file, {}, shard_size=2, num_workers=0)
    assert scores.images == len(np.unique(scores.image_ids)) == 10
    assert sorted(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(("first", "second"), [("float32", "bfloat16"), ("float32", None), (None, "float32")])
def test_scores_of_another_evaluation_are_not_mixed_in(evaluated, tmp_path, first, second):
    """A field that only one of the two has is a difference as well."""
    file = tmp_path / "scores.safetensors"
    evaluate_in_shards(*evaluated, file, {"dtype": first} if first else {}, num_workers=0)
    message = f"evaluation with another dtype: {first!r}, this one has {second!r}. Delete"
    with pytest.raises(ValueError, match=message):
        evaluate_in_shards(*evaluated, file, {"dtype": second} if second else {}, num_workers=0)


def test_the_path_of_the_model_and_the_commit_are_not_compared(evaluated, tmp_path):
    file = tmp_path / "scores.safetensors"
    evaluate_in_shards(*evaluated, file, {"model": "runs/u", "commit": "a"}, num_workers=0)
    scores = evaluate_in_shards(*evaluated, file, {"model": "./runs/u", "commit": "b"}, num_workers=0)
    assert scores.provenance == {"model": "runs/u", "commit": "a"}


def test_results_of_another_kind_are_not_overwritten(evaluated, tmp_path):
    file = tmp_path / "scores.safetensors"
    Confusion(counts=np.zeros((2, 2)), images=1, skipped_images=[]).save(file)
    with pytest.raises(ValueError, match="no scores of regions, but something else. Give another `--output`"):
        evaluate_in_shards(*evaluated, file, {}, num_workers=0)
    assert Confusion.load(file).images == 1


def test_a_failed_evaluation_leaves_no_result(evaluated, tmp_path):
    _, regions, _ = evaluated
    file, folder = tmp_path / "out" / "scores.safetensors", regions.images
    regions.images = tmp_path
    with pytest.raises(ValueError, match="None of the 10 images could be evaluated, e.g. "):
        evaluate_in_shards(*evaluated, file, {}, num_workers=0)
    regions.images = folder  # with the images it succeeds
    assert evaluate_in_shards(*evaluated, file, {}, num_workers=0).images == 10


def test_of_many_skipped_images_the_first_are_named_and_the_rest_counted(caplog):
    warn_skipped([f"{number}.jpg: broken" for number in range(25)])
    assert caplog.text.count("broken") == 10 and "Skipped: 15 more" in caplog.text


def test_skipped_images_are_reported_again_with_the_remedy(evaluated, tmp_path, caplog):
    _, regions, _ = evaluated
    regions.records[3]["image_file"] = "gone.jpg"
    file = tmp_path / "scores.safetensors"
    for _ in range(2):
        caplog.clear()
        assert evaluate_in_shards(*evaluated, file, {}, num_workers=0).images == 9
        assert "1 images were skipped" in caplog.text and f"delete {file}" in caplog.text


@pytest.fixture
def command(student, scenes, tmp_path):
    """Arguments of the program on the test split of the scenes; keyword arguments override the options."""
    split = scenes / "test"

    def arguments(output="out/m.json", **options):
        values = {"model": student} if "models" not in options else {}
        values |= {"annotations": split / "panoptic.json", "images": split / "images", "panoptic": split / "panoptic"}
        values |= {"templates": "short", "output": tmp_path / output, "num_workers": 0, "device": "cpu"} | options
        return command_line(values)

    return arguments


def test_two_and_four_processes_evaluate_every_image_once_as_one_process_does(command, tmp_path, run_module):
    """Ten images in shards of three, which divide unevenly."""
    found = {}
    for ranks in (1, 2, 4):
        run_module("evaluation.evaluate_regions", command(f"{ranks}.json", shard_size=3), ranks=ranks)
        (file,) = (tmp_path / str(ranks)).iterdir()
        found[ranks] = RegionScores.load(file), (tmp_path / f"{ranks}.json").read_text()
    assert len(set(found[1][0].image_ids)) == found[1][0].images == 10
    for ranks in (2, 4):
        assert_same(found[ranks][0], found[1][0])
        assert found[ranks][1] == found[1][1]


def test_models_and_sizes_are_compared_in_one_run(command, student, teacher, tmp_path, capsys):
    rows = main(command(models=[student, teacher], image_size=[60, 98]))
    # Strides of 12 and 14 pixels: the nearest multiples.
    assert [(row["model"], row["image_size"]) for row in rows] == [
        (str(student), 60), (str(student), 96), (str(teacher), 56), (str(teacher), 98)
    ]  # fmt: skip
    assert json.loads((tmp_path / "out" / "m.json").read_text()) == rows
    assert len({row["fingerprint"] for row in rows}) == 2 and all(len(row["commit"]) >= 7 for row in rows)
    assert len(list((tmp_path / "out" / "m").iterdir())) == 4  # the scores
    table = (tmp_path / "out" / "m.md").read_text()
    assert table in capsys.readouterr().out and table.count("\n") == 2 + 4 + 2
    assert "tabular" in (tmp_path / "out" / "m.tex").read_text()


def test_an_image_size_is_rounded_to_a_multiple_of_the_stride(command, student, caplog):
    cell = DenseVLMModel.from_pretrained(student).vision_model.stride
    assert main(command(image_size=4 * cell + 1))[0]["image_size"] == 4 * cell
    assert f"has a stride of {cell} pixels: {4 * cell + 1} pixels become {4 * cell}." in caplog.text


def test_image_sizes_that_are_rounded_to_the_same_side_are_evaluated_once(command, student, caplog):
    rows = main(command(image_size=[96, 100, 60, 96]))
    assert [row["image_size"] for row in rows] == [96, 60]
    assert caplog.text.count("96 pixels are evaluated once (--image_size 100)") == 1


def test_a_missing_model_is_reported_before_the_first_is_evaluated(command, student, tmp_path):
    with pytest.raises(SystemExit, match="nowhere"):
        main(command(models=[student, "nowhere"]))
    assert not (tmp_path / "out").exists()


def test_an_image_processor_that_is_not_supported_is_reported_before_the_first_model_is_evaluated(
    command, student, tmp_path
):
    other, image_processor = tmp_path / "other", DenseVLMProcessor.from_pretrained(student).image_processor
    shutil.copytree(student, other)
    (other / "processor_config.json").unlink()
    image_processor.do_pad = False
    image_processor.save_pretrained(other)
    with pytest.raises(SystemExit, match=r"other/preprocessor_config\.json: `do_pad` is false.*: set it to true\."):
        main(command(models=[student, other]))
    assert not (tmp_path / "out").exists()


def test_the_offset_is_reported_with_the_metrics(command):
    assert main(command(thing_offset=0.1))[0]["thing_offset"] == 0.1


def test_existing_results_are_not_computed_again(command, monkeypatch):
    first = main(command())

    def computed_again(*_, **__):
        raise AssertionError

    monkeypatch.setattr(program, "evaluate_regions", computed_again)
    assert main(command()) == first


@pytest.mark.parametrize("change", ["synonyms", "images"])
def test_other_texts_and_other_images_of_the_same_names_are_another_evaluation(command, scenes, tmp_path, change):
    content = json.loads((scenes / "categories.json").read_text())
    file, images = tmp_path / "set.json", tmp_path / "images"
    file.write_text(json.dumps(content))
    shutil.copytree(scenes / "test" / "images", images)
    main(command(categories=file, images=images))
    if change == "synonyms":
        content["categories"][0]["synonyms"] = ["bird"]
        file.write_text(json.dumps(content))
    else:
        first, second = sorted(images.iterdir())[:2]
        first.write_bytes(second.read_bytes())
    with pytest.raises(
        SystemExit, match=f"evaluation with another {'embeddings' if change == 'synonyms' else 'images'}"
    ):
        main(command(categories=file, images=images))


def test_an_output_other_than_json_is_rejected_before_anything_is_done(command, capsys):
    with pytest.raises(SystemExit):
        main(command(output="out/eval"))
    assert "must end in .json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": "nowhere"}, "nowhere is not a folder"),
        ({"annotations": "nowhere.json"}, "there is no file"),
        ({"model": "nowhere"}, "There is no folder nowhere"),
    ],
)
def test_missing_inputs_end_the_program_with_a_message(command, change, message):
    with pytest.raises(SystemExit, match=message):
        main(command(**change))


def test_the_command_line_writes_the_metrics(command, tmp_path, run_module):
    run_module("evaluation.evaluate_regions", command())
    metrics = json.loads((tmp_path / "out" / "m.json").read_text())
    for name in ("boxes", "stuff_boxes", "masks_thing", "masks_stuff"):
        assert 0 <= metrics[f"{name}_top1"] <= metrics[f"{name}_top5"] <= 1
    assert metrics["images"] == 10 and metrics["thing_regions"] + metrics["stuff_regions"] > 20
