# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Re-scoring the boxes of a detector."""

import json

import pytest
import torch
from torch.testing import assert_close
from transformers import Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor

from evaluation.rescore import main, rescore
from modeling_densevlm import CategoryEmbeddings, CategorySet, DenseVLMProcessor


NAMES = ["kite", "boat", "sky"]


@pytest.fixture
def processor(student):
    return DenseVLMProcessor.from_pretrained(student)


@pytest.fixture
def embeddings(model, processor):
    return CategoryEmbeddings.compute(CategorySet(NAMES), model, processor.tokenizer, "short")


@torch.no_grad()
def probabilities(model, processor, embeddings, image, boxes):
    """By the processor and the model, as a user would compute them."""
    inputs = processor(images=image, boxes=[boxes])
    region_embeds = model.get_region_features(inputs["pixel_values"], boxes=inputs["boxes"])
    cosines = torch.nn.functional.normalize(region_embeds, dim=-1) @ embeddings.embeds.T
    return (cosines * model.logit_scale.exp()).softmax(-1)


def test_the_new_score_is_the_geometric_mean_with_the_probability_of_the_category(
    model, processor, embeddings, picture
):
    image, boxes = picture(90, 60), [[10, 10, 50, 40], [0, 0, 90, 60]]
    expected = probabilities(model, processor, embeddings, image, boxes)
    detection = {"boxes": torch.tensor(boxes), "scores": torch.tensor([0.8, 0.4]), "labels": torch.tensor([2, 0])}
    arguments = ([detection], [image], model, processor.image_processor, embeddings)
    (found,) = rescore(*arguments)
    assert_close(found["scores"], (torch.tensor([0.8, 0.4]) * expected[[0, 1], [2, 0]]).sqrt())
    assert found["text_labels"] == ["sky", "kite"]
    (found,) = rescore(*arguments, weight=0.0)
    assert_close(found["scores"], torch.tensor([0.8, 0.4]))
    (found,) = rescore(*arguments, relabel=True)
    assert torch.equal(found["labels"], expected.argmax(-1))
    assert_close(found["scores"], (torch.tensor([0.8, 0.4]) * expected.amax(-1)).sqrt())


@torch.no_grad()
def test_the_boxes_of_an_owlv2_are_rescored_by_their_text_labels(model, processor, embeddings, picture):
    pytest.importorskip("torchvision", reason="transformers' image processor of OWLv2 needs it, or scipy")
    tower = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Owlv2Config(
        vision_config=tower | {"image_size": 48, "patch_size": 16},
        text_config=tower | {"vocab_size": 50, "max_position_embeddings": 8},
        projection_dim=32,
    )
    torch.manual_seed(0)
    detector = Owlv2ForObjectDetection(config).eval()
    images = [picture(90, 60), picture(40, 80)]
    pixel_values = Owlv2ImageProcessor(size={"height": 48, "width": 48})(images, return_tensors="pt")["pixel_values"]
    tokens = torch.tensor([[1, 5, 49], [1, 6, 49], [1, 7, 49]]).repeat(len(images), 1)
    outputs = detector(input_ids=tokens, pixel_values=pixel_values)
    sizes = [(image.height, image.width) for image in images]
    detections = Owlv2ImageProcessor().post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes)
    for detection in detections:
        detection["text_labels"] = [NAMES[label] for label in detection["labels"].tolist()]
    rescored = rescore(detections, images, model, processor.image_processor, embeddings)
    for new, old in zip(rescored, detections):
        assert len(new["scores"]) == len(old["scores"]) == 9 and torch.equal(new["labels"], old["labels"])
        seen = ~new["probabilities"].isnan()
        assert seen.any() and (new["scores"][seen] > 0).all()
        assert_close(new["scores"][seen], (old["scores"] * new["probabilities"]).sqrt()[seen])


def test_boxes_beyond_the_image_are_clipped_and_those_smaller_than_a_pixel_keep_their_scores(
    model, processor, embeddings, picture
):
    image = picture(90, 60)
    expected = probabilities(model, processor, embeddings, image, [[50, 0, 90, 60]])[0, 1]
    boxes = [[50, -30, 200, 100], [10, 10, 10.5, 30], [95, 10, 120, 30]]
    detection = {"boxes": boxes, "scores": [0.5, 0.6, 0.7], "labels": [1, 1, 2]}
    (found,) = rescore([detection], [image], model, processor.image_processor, embeddings)
    assert_close(found["scores"], torch.tensor([(0.5 * float(expected)) ** 0.5, 0.6, 0.7]))
    assert found["probabilities"].isnan().tolist() == [False, True, True]


def test_an_image_without_boxes_stays_without(model, processor, embeddings, picture):
    detection = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.long)}
    (found,) = rescore([detection], [picture(30, 30)], model, processor.image_processor, embeddings)
    assert found["scores"].shape == (0,) and found["text_labels"] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_labels": ["tree"]}, "image 0: 'tree' is not in the vocabulary .*add it, or give `relabel=True`"),
        ({"labels": [3]}, "`labels` from 3 to 3, of 3 categories"),
        ({"labels": None}, "without `labels` or `text_labels` need `relabel=True`"),
    ],
)
def test_a_category_outside_the_vocabulary_is_named(model, processor, embeddings, picture, change, message):
    detection = {"boxes": [[0, 0, 20, 20]], "scores": [0.5], "labels": [0]} | change
    with pytest.raises(ValueError, match=message):
        rescore([detection], [picture(30, 30)], model, processor.image_processor, embeddings)


@pytest.fixture
def coco(picture, tmp_path):
    """Two images, three categories with ids 3, 7 and 9, three results, one of them on a damaged image."""
    (tmp_path / "images").mkdir()
    picture(90, 60).save(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "b.jpg").write_bytes(b"no image")
    annotations = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.jpg"}],
        "categories": [{"id": number, "name": name} for number, name in zip((3, 7, 9), NAMES)],
    }
    results = [
        {"image_id": 2, "category_id": 3, "bbox": [0, 0, 10, 10], "score": 0.9},
        {"image_id": 1, "category_id": 9, "bbox": [10, 10, 40, 30], "score": 0.8},
        {"image_id": 1, "category_id": 7, "bbox": [5, 5, 0.5, 30], "score": 0.7},
    ]
    for name, content in (("instances", annotations), ("results", results)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def arguments(folder, student, **options):
    given = {"model": student, "annotations": folder / "instances.json", "images": folder / "images"}
    given |= {"output": folder / "new" / "rescored.json", "templates": "short"} | options
    return [str(folder / "results.json"), *(str(word) for key, value in given.items() for word in (f"--{key}", value))]


def test_results_of_coco_are_rescored_in_their_order_and_nothing_is_lost(
    coco, student, model, processor, embeddings, caplog
):
    main(arguments(coco, student))
    old = json.loads((coco / "results.json").read_text())
    new = json.loads((coco / "new" / "rescored.json").read_text())
    image = (coco / "images" / "a.png").as_posix()
    expected = probabilities(model, processor, embeddings, image, [[10, 10, 50, 40]])[0, 2]
    assert new[1]["score"] == pytest.approx((0.8 * float(expected)) ** 0.5, rel=1e-4)
    assert new[0] == old[0] and new[2] == old[2]
    assert [row["category_id"] for row in new] == [3, 9, 7] and new[1]["bbox"] == old[1]["bbox"]
    assert "b.jpg" in caplog.text and "1 boxes are smaller than a pixel and keep their scores" in caplog.text


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("image_id", 5, "result 1: the image 5 is not in the annotations"),
        ("category_id", 5, "result 1: the category 5 is not in the categories"),
        ("score", None, "result 1 has no `score`; expected COCO's results format"),
    ],
)
def test_a_result_that_does_not_fit_the_annotations_is_named(coco, student, field, value, message):
    results = json.loads((coco / "results.json").read_text())
    if value is None:
        del results[1][field]
    else:
        results[1][field] = value
    (coco / "results.json").write_text(json.dumps(results))
    with pytest.raises(SystemExit, match=message):
        main(arguments(coco, student))
