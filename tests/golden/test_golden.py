# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Our numbers against those recorded from the reference implementation, in float32."""

import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize
from torch.testing import assert_close

from evaluation.datasets.panoptic import PanopticRegions
from evaluation.evaluate_regions import top_categories
from evaluation.region_accuracy.accuracy import region_accuracy
from modeling_densevlm import CategorySet, DenseVLMImageProcessor
from modeling_densevlm.convert_open_clip import convert_checkpoint, export_checkpoint
from modeling_densevlm.image_processing_densevlm import content_extent
from modeling_densevlm.region_pooling import grid_boxes
from training.alignment import decoupled_alignment_loss


CLOSE = {"atol": 1e-5, "rtol": 1e-5}
TAGS = {
    "vit_b16_tiny": ("s64", "s96", "s100", "ns64x96"),
    "vit_b16_tiny_quickgelu": ("s64", "s96", "s100", "ns64x96"),
    "eva02_b16_tiny": ("s64", "s96"),  # the reference fails on other aspects
    "rn_tiny": ("s64", "s96", "ns64x96"),
    "convnext_tiny_linear": ("s64", "s96", "ns64x96"),
}
"""The recorded sizes of each tower."""


def load_tower(golden, name):
    if name == "convnext_tiny_linear":
        pytest.importorskip("timm", reason="ConvNeXt is built by timm (extra `vision`)")
    tensors = golden(name)
    return convert_checkpoint(tensors.weights, tensors.config), tensors


@pytest.mark.parametrize(("name", "tag"), [(name, tag) for name, tags in TAGS.items() for tag in tags])
@torch.no_grad()
def test_features_match(golden, name, tag):
    model, tensors = load_tower(golden, name)
    image = tensors[f"in.{tag}.image"]
    boxes, masks = ([tensors[f"in.{tag}.{kind}.{i}"] for i in (0, 1)] for kind in ("boxes", "masks"))
    from_boxes = model.get_region_features(image, boxes=boxes)
    from_masks = model.get_region_features(image, masks=masks)
    pooled = model.get_image_features(image).pooler_output
    found = {
        "dense": model.get_dense_features(image),
        "boxes_v2": from_boxes,
        "boxes_v2_normed": normalize(from_boxes, dim=-1),
        "boxes_v2_private": from_boxes,
        "masks": from_masks,
        "masks_normed": normalize(from_masks, dim=-1),
        "image": pooled,
        "image_normed": normalize(pooled, dim=-1),
        "rois_and_image.0": normalize(from_boxes, dim=-1),
        "rois_and_image.1": normalize(pooled, dim=-1),
    }
    recorded = {kind: tensors[f"out.{tag}.{kind}"] for kind in found if f"out.{tag}.{kind}" in tensors.keys}
    assert {"dense", "masks"} <= set(recorded)
    for kind, expected in recorded.items():
        if name == "convnext_tiny_linear":
            if kind == "dense":
                expected = normalize(expected, dim=1)  # there, it is the pooling that normalises the map
            elif kind == "rois_and_image.0":
                continue  # there, the whole head on a cut-out of the map: no dense feature is pooled
        assert_close(found[kind], expected, **CLOSE, msg=lambda text, kind=kind: f"{kind}: {text}")


@pytest.mark.parametrize("name", TAGS)
@torch.no_grad()
def test_text_features_match(golden, name):
    model, tensors = load_tower(golden, name)
    pooled = model.get_text_features(tensors["in.text.tokens"]).pooler_output
    assert_close(pooled, tensors["out.text"], **CLOSE)
    assert_close(normalize(pooled, dim=-1), tensors["out.text_normed"], **CLOSE)


@torch.no_grad()
def test_eva_on_another_aspect_matches_our_extension(golden):
    model, tensors = load_tower(golden, "eva02_b16_tiny")
    image = tensors["in.ns64x96.image"]
    assert_close(model.get_dense_features(image), tensors["unofficial_ext.ns64x96.dense"], **CLOSE)
    assert_close(model.get_image_features(image).pooler_output, tensors["unofficial_ext.ns64x96.image"], **CLOSE)
    # 4 x 9 patches are as many as 6 x 6, whose rotary table the reference takes for them.
    wrong = tensors["out.bugns64x144.dense"]
    assert not torch.allclose(model.get_dense_features(tensors["in.bugns64x144.image"]), wrong, atol=1e-3)


@pytest.mark.parametrize("name", ["vit_b16_tiny", "eva02_b16_tiny", "rn_tiny"])
@torch.no_grad()
def test_intermediate_maps_match(golden, name):
    model, tensors = load_tower(golden, name)
    hidden = (
        {"block0": "block0", "block1": "block1"} if name != "rn_tiny" else {"stage2": "layer3", "stage3": "layer4"}
    )
    model.out_features = [*hidden, "dense"]
    maps = model(tensors["in.s96.image"]).feature_maps
    for feature_map, key in zip(maps, hidden.values()):
        expected = tensors[f"out.s96.dense_hidden.{key}"]
        if name == "vit_b16_tiny":
            expected = expected.transpose(0, 1)  # recorded as (tokens, batch, dim)
        if name != "rn_tiny":
            expected = expected[:, 1:].transpose(1, 2).unflatten(2, (6, 6))
        assert_close(feature_map, expected, **CLOSE)
    assert_close(maps[-1], tensors["out.s96.dense"], **CLOSE)


@pytest.mark.parametrize("name", TAGS)
def test_the_way_back_has_the_reference_key_names_and_its_numbers_bit_for_bit(golden, name):
    model, tensors = load_tower(golden, name)
    exported, config = export_checkpoint(model)
    assert exported.keys() == tensors.weights.keys()
    for key, expected in tensors.weights.items():
        if ".rope." in key or key.startswith("visual.rope"):
            assert_close(exported[key], expected, atol=1e-6, rtol=0)
        else:
            assert torch.equal(exported[key], expected) and exported[key].dtype == expected.dtype, key
    again = convert_checkpoint(exported, config)
    assert all(torch.equal(again.state_dict()[key], tensor) for key, tensor in model.state_dict().items())
    assert again.config.to_diff_dict() == model.config.to_diff_dict()


LOSS_CASES = (
    "mixed",
    "mixed_with_203",
    "unbalanced",
    "all_thing",
    "all_stuff",
    "only_203",
    "part_filtered",
)


def losses(tensors, case, **options):
    student = tensors[f"{case}.uvlm_roi"].requires_grad_()
    output = decoupled_alignment_loss(
        student,
        tensors[f"{case}.pvlm_roi"],
        tensors["uvlm_embeddings"],
        tensors["pvlm_embeddings"],
        is_thing=torch.arange(316) < 204,
        **options,
    )
    output.loss.backward()
    return output, student.grad


def assert_gradients(found, expected):
    assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("case", LOSS_CASES)
def test_group_mean_loss_and_its_gradient_match(golden, case):
    tensors = golden("loss_densevlm_small")
    output, gradient = losses(tensors, case)
    assert_close(output.loss, tensors[f"{case}.loss_fixed204"][0], **CLOSE)
    assert_gradients(gradient, tensors[f"{case}.grad_uvlm_fixed204"])
    assert int(output.num_kept) == int(tensors[f"{case}.valid"].sum())


@pytest.mark.parametrize("case", LOSS_CASES)
def test_region_mean_loss_and_its_gradient_match(golden, case):
    tensors = golden("loss_densevlm_small")
    output, gradient = losses(tensors, case, reduction="region_mean")
    assert_close(output.loss, tensors[f"{case}.loss_region_mean_thing204"][0], **CLOSE)
    assert_gradients(gradient, tensors[f"{case}.grad_uvlm_region_mean_thing204"])
    own_group, _ = losses(tensors, case, reduction="region_mean", contrast=((True, False), (False, True)))
    assert_close(own_group.loss, tensors[f"{case}.loss_region_mean_thing204_stuffonly"][0], **CLOSE)


@pytest.mark.parametrize("reduction", ["group_mean", "region_mean"])
def test_nothing_above_the_threshold_gives_zero_where_the_reference_gives_nan(golden, reduction):
    output, gradient = losses(golden("loss_densevlm_small"), "none_above", reduction=reduction)
    assert output.loss == 0
    assert int(output.num_kept) == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("image", ["land", "port", "small"])
def test_image_transform_matches(golden, image):
    tensors = golden("preproc")
    picture = Image.fromarray(tensors[f"{image}.image_u8"].numpy())
    found = DenseVLMImageProcessor(96)(picture)["pixel_values"][0]
    assert_close(found, tensors[f"{image}.det96"], **CLOSE)


def as_set(boxes):
    return sorted(tuple(round(value, 5) for value in box) for box in boxes.tolist())


@pytest.mark.parametrize(("index", "size", "rows", "columns"), [(0, (640, 427), 5, 5), (1, (640, 360), 3, 4)])
def test_grid_boxes_match_and_span_the_exact_content(golden, index, size, rows, columns):
    recorded = golden("preproc")[f"grid.{index}.boxes"]
    recorded = recorded[recorded[:, 4] > 0, :4]
    width, height = content_extent(*size)
    assert as_set(grid_boxes(rows, columns) * torch.tensor([width, height, width, height])) == as_set(recorded)


def test_grid_template_matches(golden):
    # The recorded grid counts columns first: 4 columns, 3 rows.
    assert_close(grid_boxes(3, 4), golden("preproc")["grid.template_3x4"], **CLOSE)


@pytest.mark.parametrize("index", [0, 1])
def test_evaluation_boxes_and_masks_match(golden, coco_sample, index):
    tensors = golden("preproc")
    regions = PanopticRegions(
        coco_sample / "panoptic.json",
        coco_sample / "images",
        coco_sample / "panoptic",
        DenseVLMImageProcessor(512),
        map_side=32,
        categories=CategorySet.load("coco_panoptic_133"),
    )
    sample, recorded = regions[index], tensors[f"eval.{index}.boxes"]
    valid = recorded[:, 5] > 0
    assert_close(sample["boxes"], recorded[valid, :4], **CLOSE)
    assert sample["labels"].tolist() == recorded[valid, 4].long().tolist()
    assert torch.equal(sample["masks"], tensors[f"eval.{index}.gt_masks_tv0151_official"][valid])


@pytest.mark.parametrize("case", ["coco", "ade", "small"])
def test_class_mean_accuracy_matches(golden, case):
    tensors = golden("macc")
    found = region_accuracy(
        top_categories(tensors[f"{case}.logits"].numpy()),
        tensors[f"{case}.labels"].numpy(),
        tensors[f"{case}.is_thing"].numpy() > 0,
    )
    for group in ("thing", "stuff"):
        for top in (1, 5):
            assert found[f"{group}_top{top}"] == pytest.approx(
                tensors[f"{case}.{group}.macc{top}_exact"].item(), abs=1e-9
            )
