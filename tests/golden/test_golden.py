"""Our numbers against those recorded from the reference implementation, in float32."""

import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize
from torch.testing import assert_close

from evaluation.evaluate_regions import top_categories
from evaluation.panoptic import PanopticRegions
from evaluation.region_accuracy.accuracy import region_accuracy
from modeling_densevlm import CategorySet, DenseVLMImageProcessor
from modeling_densevlm.convert_open_clip import convert_checkpoint
from modeling_densevlm.image_processing_densevlm import content_extent
from modeling_densevlm.region_pooling import grid_boxes
from training.alignment import decoupled_alignment_loss


CLOSE = {"atol": 1e-5, "rtol": 1e-5}
TOWERS = ("vit_b16_tiny", "vit_b16_tiny_quickgelu")
TAGS = ("s64", "s96", "s100", "ns64x96")


@pytest.fixture(params=TOWERS)
def tower(request, golden):
    tensors = golden(request.param)
    return convert_checkpoint(tensors.weights, tensors.config), tensors


@pytest.mark.parametrize("tag", TAGS)
@torch.no_grad()
def test_vit_features_match(tower, tag):
    model, tensors = tower
    image = tensors[f"in.{tag}.image"]
    boxes, masks = ([tensors[f"in.{tag}.{kind}.{i}"] for i in (0, 1)] for kind in ("boxes", "masks"))
    from_boxes = model.get_region_features(image, boxes=boxes)
    from_masks = model.get_region_features(image, masks=masks)
    pooled = model.get_image_features(image).pooler_output
    found = {
        "dense": model.get_dense_features(image),
        "boxes_v2": from_boxes,
        "boxes_v2_normed": normalize(from_boxes, dim=-1),
        "masks": from_masks,
        "masks_normed": normalize(from_masks, dim=-1),
        "image": pooled,
        "image_normed": normalize(pooled, dim=-1),
        "rois_and_image.0": normalize(from_boxes, dim=-1),
        "rois_and_image.1": normalize(pooled, dim=-1),
    }
    for name, tensor in found.items():
        assert_close(tensor, tensors[f"out.{tag}.{name}"], **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


@torch.no_grad()
def test_vit_text_features_match(tower):
    model, tensors = tower
    pooled = model.get_text_features(tensors["in.text.tokens"]).pooler_output
    assert_close(pooled, tensors["out.text"], **CLOSE)
    assert_close(normalize(pooled, dim=-1), tensors["out.text_normed"], **CLOSE)


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
