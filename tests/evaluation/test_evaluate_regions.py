import json

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from evaluation.evaluate_regions import RegionScores, evaluate_regions, map_side, region_metrics, top_categories
from evaluation.panoptic import PanopticRegions
from modeling_densevlm import CategoryEmbeddings, CategorySet, DenseVLMModel, DenseVLMProcessor


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


def test_the_batch_size_and_the_workers_change_nothing(evaluated):
    one = evaluate_regions(*evaluated, batch_size=1, num_workers=0)
    many = evaluate_regions(*evaluated, batch_size=7, num_workers=2)
    np.testing.assert_allclose(one.masks, many.masks, atol=1e-5)
    assert (one.segment_ids == many.segment_ids).all()


def test_there_is_one_forward_pass_an_image(evaluated):
    model, regions, embeddings = evaluated
    seen = []
    model.vision_model.embeddings.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    evaluate_regions(model, regions, embeddings, batch_size=4, num_workers=0)
    assert sum(seen) == 10


def test_embeddings_of_another_set_are_refused(evaluated, tokenizer):
    model, regions, _ = evaluated
    other = CategoryEmbeddings.compute(CategorySet("two", ["kite", "sky"], [True, False]), model, tokenizer)
    with pytest.raises(ValueError, match="embeddings of another set"):
        evaluate_regions(model, regions, other)


def test_when_no_image_can_be_read_it_says_so(evaluated, tmp_path):
    model, regions, embeddings = evaluated
    regions.images = tmp_path
    with pytest.raises(ValueError, match="None of the 10 images could be evaluated, e.g. "):
        evaluate_regions(model, regions, embeddings, num_workers=0)


CATEGORIES = CategorySet("four", ["kite", "bus", "sky", "road"], [True, True, False, False])


def scores_of(masks, labels, boxes=None):
    masks = np.array(masks, dtype=np.float32)
    numbers = np.arange(len(labels))
    boxes = masks if boxes is None else np.array(boxes, dtype=np.float32)
    return RegionScores(numbers, numbers, np.array(labels), boxes, masks, len(labels), 3, ["x: broken"])


def test_metrics_by_hand():
    masks = [
        [0.9, 0.1, 0.0, 0.0],  # kite, right
        [0.1, 0.2, 0.9, 0.0],  # kite, called sky
        [0.1, 0.9, 0.0, 0.0],  # bus, right
        [0.9, 0.0, 0.1, 0.0],  # sky, called kite
        [0.0, 0.0, 0.9, 0.1],  # sky, right
        [0.0, 0.0, 0.9, 0.1],  # road, called sky
    ]
    metrics = region_metrics(scores_of(masks, [0, 0, 1, 2, 2, 3]), CATEGORIES)
    assert metrics["masks_thing_top1"] == pytest.approx((0.5 + 1) / 2)
    assert metrics["masks_stuff_top1"] == pytest.approx((0.5 + 0) / 2)
    assert metrics["foreground_bias"] == pytest.approx(1 / 3)
    assert metrics["background_bias"] == pytest.approx(1 / 3)
    assert metrics["masks_thing_top5"] == 1
    assert (metrics["thing_regions"], metrics["stuff_regions"]) == (3, 3)
    assert (metrics["images"], metrics["skipped_regions"], metrics["skipped_images"]) == (6, 3, 1)


def test_a_region_without_a_feature_is_a_miss_in_no_error_share_and_counted():
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
    """Given samples in the place of those of an annotation file."""

    def __init__(self, regions, samples):
        self.categories, self.samples = regions.categories, samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


def test_boxes_are_those_of_things_and_stuff_stands_beside_them():
    right, wrong = [[1.0, 0, 0, 0], [0, 0, 1.0, 0]], [[0, 1.0, 0, 0], [0, 0, 0, 1.0]]
    metrics = region_metrics(scores_of(wrong, [0, 2], boxes=[right[0], wrong[1]]), CATEGORIES)
    assert (metrics["boxes_top1"], metrics["stuff_boxes_top1"], metrics["masks_thing_top1"]) == (1, 0, 0)


def test_an_offset_on_things_moves_the_balance():
    masks = [[0.5, 0.0, 0.4, 0.0], [0.5, 0.0, 0.4, 0.0]]
    assert region_metrics(scores_of(masks, [0, 2]), CATEGORIES)["foreground_bias"] == 1
    shifted = region_metrics(scores_of(masks, [0, 2]), CATEGORIES, thing_offset=0.2)
    assert (shifted["foreground_bias"], shifted["background_bias"]) == (0, 1)


def test_a_group_without_regions_is_left_out():
    metrics = region_metrics(scores_of([[0.9, 0.1, 0.0, 0.0]], [0]), CATEGORIES)
    assert "masks_stuff_top1" not in metrics and "foreground_bias" not in metrics
    assert metrics["masks_thing_top1"] == 1


def test_a_set_without_flags_is_refused():
    with pytest.raises(ValueError, match="thing / stuff metrics needs `is_thing`"):
        region_metrics(scores_of([[0.9, 0.1]], [0]), CategorySet("two", ["kite", "sky"]))


def test_the_best_categories_come_first_and_ties_in_order():
    assert top_categories(np.array([[0.1, 0.5, 0.5, 0.9]]), 3).tolist() == [[3, 1, 2]]


def test_the_command_line_writes_the_metrics(student, scenes, tmp_path, run_module):
    split = scenes / "test"
    arguments = ["--model", student, "--annotations", split / "panoptic.json", "--images", split / "images"]
    arguments += ["--panoptic", split / "panoptic", "--templates", "short", "--output", tmp_path / "out" / "m.json"]
    run_module("evaluation.evaluate_regions", arguments)
    metrics = json.loads((tmp_path / "out" / "m.json").read_text())
    for name in ("boxes", "stuff_boxes", "masks_thing", "masks_stuff"):
        assert 0 <= metrics[f"{name}_top1"] <= metrics[f"{name}_top5"] <= 1
    assert metrics["images"] == 10 and metrics["thing_regions"] + metrics["stuff_regions"] > 20
