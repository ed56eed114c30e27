# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cosine_similarity, normalize
from torch.testing import assert_close

from modeling_densevlm import DenseVLMImageProcessor, DenseVLMModel, DenseVLMProcessor
from modeling_densevlm.canvas import label_pixels
from modeling_densevlm.modeling_densevlm import DenseVLMOutput


TEXTS = ["a kite", "this is a photo of a boat"]


@pytest.fixture
def processor(student):
    return DenseVLMProcessor.from_pretrained(student)


def disk(size, box):
    """A mask `(height, width)` of the ellipse in a box."""
    x0, y0, x1, y1 = box
    y, x = np.mgrid[: size[1], : size[0]] + 0.5
    return ((x - (x0 + x1) / 2) / (x1 - x0)) ** 2 + ((y - (y0 + y1) / 2) / (y1 - y0)) ** 2 <= 0.25


@torch.no_grad()
def test_images_texts_and_regions_run_through_every_tower(folder_of, tower, picture):
    folder = folder_of(tower, 0)
    processor, model = DenseVLMProcessor.from_pretrained(folder), DenseVLMModel.from_pretrained(folder).eval()
    images = [picture(120, 80), picture(50, 100)]
    boxes = [[[10, 20, 60, 70], [0, 0, 120, 80]], [[5, 10, 45, 90]]]
    inputs = processor(images=images, text=TEXTS, boxes=boxes, return_tensors="pt")
    output = model(**inputs)
    assert output.region_embeds.shape[0] == 3 and output.logits_per_image.shape == (2, 2)
    assert_close(inputs["boxes"][0], torch.tensor([[10, 20, 60, 70], [0, 0, 120, 80]]) / 120)
    assert_close(inputs["boxes"][1], torch.tensor([[5, 10, 45, 90]]) / 100)
    masks = [[disk(image.size, box) for box in of_image] for image, of_image in zip(images, boxes)]
    inputs = processor(images=images, text=TEXTS, masks=masks, return_tensors="pt")
    assert model(**inputs).region_embeds.shape == output.region_embeds.shape
    found = processor.post_process_region_classification(output, boxes=boxes, text_labels=TEXTS)
    assert [len(one["scores"]) for one in found] == [2, 1]
    cosines = cosine_similarity(output.region_embeds[:, None], output.text_embeds[None], dim=-1)
    scores, labels = (cosines * model.logit_scale.exp()).softmax(-1).max(-1)
    assert_close(torch.cat([one["scores"] for one in found]), scores, atol=1e-4, rtol=1e-4)
    assert torch.equal(torch.cat([one["labels"] for one in found]), labels)
    assert found[1]["text_labels"] == [TEXTS[labels[2]]]
    sharp = processor.post_process_region_classification(output, boxes=boxes, temperature=0.01)
    assert_close(torch.cat([one["scores"] for one in sharp]), (cosines / 0.01).softmax(-1).amax(-1))
    sizes = [(80, 120), (100, 50)]
    maps = processor.post_process_semantic_segmentation(output, target_sizes=sizes)
    assert [tuple(labels.shape) for labels in maps] == sizes and maps[0].dtype == torch.int64


def test_regions_are_in_pixels_of_the_image_after_exif_rotation(processor, picture, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees: 40 wide, 80 high
    picture(80, 40).save(tmp_path / "turned.jpg", exif=exif)
    box = [4, 8, 36, 72]
    for image in (tmp_path / "turned.jpg", str(tmp_path / "turned.jpg"), Image.open(tmp_path / "turned.jpg")):
        inputs = processor(images=image, boxes=[[box]])
        assert_close(inputs["boxes"][0], torch.tensor([box]) / 80)
        masks = processor(images=image, masks=[disk((40, 80), box)[None]])["masks"][0]
        assert masks.shape == (1, 8, 8) and masks[0, 3, 1] and not masks[:, :, 4:].any()
        with pytest.raises(
            ValueError, match="its masks are 40 x 80 .* after EXIF turning is 80 x 40. They are transp"
        ):
            processor(images=image, masks=[disk((80, 40), box)[None]])


def test_boxes_may_be_lists_arrays_or_tensors_and_an_image_may_have_none(processor, picture):
    image, box = picture(90, 60), [[9, 6, 45, 30]]
    expected = torch.tensor(box) / 90
    for boxes in ([box], np.array([box]), torch.tensor([box]), [np.array(box)], [torch.tensor(box)],
                  [[torch.tensor(box[0])]], (tuple(map(tuple, box)),)):  # fmt: skip
        assert_close(processor(images=image, boxes=boxes)["boxes"], [expected])
    inputs = processor(images=[image, image], boxes=[[], box], return_tensors="pt")
    assert [tuple(of_image.shape) for of_image in inputs["boxes"]] == [(0, 4), (1, 4)]
    inputs = processor(images=[image, image], masks=[np.zeros((0, 60, 90)), disk((90, 60), box[0])[None].astype(int)])
    assert [tuple(of_image.shape) for of_image in inputs["masks"]] == [(0, 8, 8), (1, 8, 8)]
    assert inputs["masks"][1].dtype == torch.bool
    assert isinstance(processor(images=image, boxes=[box], return_tensors="np")["boxes"][0], np.ndarray)
    # Less than a pixel over the border, as detectors round: cut.
    edge = processor(images=image, boxes=[[[-0.4, 0, 90.6, 60]]])["boxes"][0]
    assert_close(edge, torch.tensor([[0, 0, 1, 60 / 90]]))


def test_regions_are_relative_to_the_canvas_whatever_its_shape(processor, picture):
    image, box = picture(90, 60), [[9, 6, 45, 30]]
    whole = processor(images=image, boxes=[box], do_pad=False)["boxes"][0]
    assert_close(whole, torch.tensor([[0.1, 0.1, 0.5, 0.5]]))
    masks = processor(images=image, masks=[np.ones((1, 60, 90))], do_pad=False, size=96)["masks"][0]
    assert masks.shape == (1, 5, 8) and masks.all()
    both = processor(images=[image, picture(120, 120)], boxes=[box, [[0, 0, 120, 120]]], do_resize=False)["boxes"]
    assert_close(both[0], torch.tensor(box) / 120)


def test_the_error_for_an_invalid_box_names_image_box_and_remedy(processor, picture):
    images, good = [picture(90, 60), picture(60, 90)], [[9, 6, 45, 30]]
    for wrong, message in (
        ([[45, 30, 9, 6]], r"image 1, box 1 \[45, 30, 9, 6\]: it is reversed.* swap its corners"),
        ([[40, 50, 15, 30]], "image 1, box 1 .* if it is x, y, width, height, add x to the width"),
        ([[10, 10, 80, 50]], r"image 1, box 1 .* reaches outside the image of 60 x 90 pixels .* Clip it"),
        ([[-5, 10, 20, 50]], "reaches outside"),
        ([[10, 10, 10.5, 40]], "smaller than a pixel. Leave it out"),
        ([[10, 10, 10, 40]], "smaller than a pixel"),
        ([[10, 10, float("nan"), 40]], "not finite"),
        ([[10, 10, float("inf"), 40]], "not finite"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            processor(images=images, boxes=[good, [[0, 0, 30, 30], *wrong]])
        assert "\n" not in str(caught.value)
    for boxes, message in (
        (
            [good, [[0.1, 0.1, 0.5, 0.9]]],
            "image 1, box 0 .*: these look like fractions.* multiply x by 60 and y by 90",
        ),
        ([good], "2 images, but `boxes` for 1. There is one entry for each image, an empty one where there is none"),
        (good * 2, r"image 0: `boxes\[0\]` has the shape \(4,\). There is one list of boxes for each image"),
        ([good, [[1, 2, 3]]], r"image 1: `boxes\[1\]` has the shape \(1, 3\)"),
        ([good, [[1, 2, 3, 4], [5, 6]]], r"image 1: `boxes\[1\]` is no list of boxes"),
        ([good, "boxes"], r"image 1: `boxes\[1\]` is no list of boxes"),
        (7, "`boxes` has one entry for each image, .*; got int"),
        ({"boxes": good}, "got dict"),
    ):
        with pytest.raises(ValueError, match=message):
            processor(images=images, boxes=boxes)
    # A picture of four pixels may have a box of one.
    assert processor(images=picture(2, 2), boxes=[[[0, 0, 1, 1]]])["boxes"][0].tolist() == [[0, 0, 0.5, 0.5]]
    with pytest.raises(ValueError, match=r"Regions \(`boxes`, `masks`\) need `images`"):
        processor(text=TEXTS, boxes=[good])
    with pytest.raises(ValueError, match="either `boxes` or `masks`"):
        processor(images=images, boxes=[good, []], masks=[[], []])


def test_the_error_for_an_invalid_mask_names_image_mask_and_remedy(processor, picture):
    images, good = [picture(90, 60), picture(60, 90)], disk((60, 90), (5, 5, 50, 80))
    for wrong, message in (
        (good * 255, "image 1, mask 1: values from 0 to 255. A mask is bool, or 0 and 1: give `mask > 0`"),
        (good * 0.7, "image 1, mask 1: values from 0 to 0.7"),
        (np.where(good, np.nan, 0), "image 1, mask 1"),
        (good * 0, "image 1, mask 1: it is empty. Leave it out"),
    ):
        with pytest.raises(ValueError, match=message):
            processor(images=images, masks=[[], np.stack([good, wrong])])
    speck = np.zeros((90, 60), dtype=bool)
    speck[0, 0] = True
    for masks, message in (
        (
            [[], good],
            r"image 1: `masks\[1\]` has the shape \(90, 60\).*also for a single mask: masks=\[mask\[None\]\]",
        ),
        ([[], good[None, :45]], r"image 1: its masks are 45 x 60 \(height x width\).* is 90 x 60. Give masks at the"),
        ([[], speck[None]], "image 1, mask 0: it covers no cell of the 8 x 8 map. Give its box, or a larger `size`"),
        ([good[None]], "2 images, but `masks` for 1"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            processor(images=images, masks=masks)
        assert "\n" not in str(caught.value)


def test_masks_are_resized_to_the_map_as_in_evaluation(processor, picture):
    from evaluation.datasets.panoptic import segment_masks

    ids = np.random.default_rng(0).integers(0, 3, (6, 9)).repeat(10, 0).repeat(10, 1)
    masks = np.stack([ids == number for number in range(3)])
    found = processor(images=picture(90, 60), masks=[masks])["masks"][0]
    assert torch.equal(found, segment_masks(torch.arange(3), ids, 8))


def test_texts_are_padded_as_the_text_tower_requires(folder_of, tower, tokenizer, tmp_path, picture):
    processor = DenseVLMProcessor.from_pretrained(folder_of(tower, 0))
    model = DenseVLMModel.from_pretrained(folder_of(tower, 0))
    longest = model.config.text_config.max_position_embeddings
    expected = longest if tower.startswith("siglip") else max(len(tokenizer(text).input_ids) for text in TEXTS)
    inputs = processor(text=TEXTS, return_tensors="pt")
    assert inputs["input_ids"].shape == (2, expected)
    assert model(**inputs).text_embeds.shape[0] == 2
    # As a call says it, and saved without the model.
    assert processor(text=TEXTS, padding="max_length", max_length=12, return_tensors="pt")["input_ids"].shape == (
        2,
        12,
    )
    assert len(processor(text=TEXTS, padding=False)["input_ids"][0]) < len(processor(text=TEXTS)["input_ids"][1])
    processor.save_pretrained(tmp_path)
    alone = DenseVLMProcessor.from_pretrained(tmp_path)
    assert torch.equal(alone(text=TEXTS, return_tensors="pt")["input_ids"], inputs["input_ids"])
    assert processor(text=TEXTS[0])["input_ids"].ndim == 2
    assert isinstance(processor(text=TEXTS[0], return_tensors=None)["input_ids"][0], int)


def test_a_text_that_is_too_long_is_refused_or_truncated_on_request(processor):
    texts = ["a kite", "a kite " * 40]
    with pytest.raises(
        ValueError, match="Text 1 has 8[0-9] tokens, but the text tower supports 32. Shorten it, or give `trunc"
    ):
        processor(text=texts)
    assert processor(text=texts, truncation=True, return_tensors="pt")["input_ids"].shape == (2, 32)


def test_a_processor_built_in_python_pads_by_the_class_of_its_tokenizer(tokenizer):
    class SiglipTokenizer(type(tokenizer)):
        pass

    siglip = SiglipTokenizer(tokenizer_object=tokenizer.backend_tokenizer, pad_token="<pad>", model_max_length=20)
    for made, length in ((tokenizer, None), (siglip, 20)):
        found = DenseVLMProcessor(DenseVLMImageProcessor(32), made)(text=TEXTS, return_tensors="pt")["input_ids"]
        assert found.shape[1] == (length or max(len(tokenizer(text).input_ids) for text in TEXTS))
    for options in ({"text_padding": "left"}, {"text_length": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            DenseVLMProcessor(DenseVLMImageProcessor(32), tokenizer, **options)


def test_options_reach_image_processor_or_tokenizer_and_unknown_ones_are_refused(processor, picture):
    image = picture(20, 20)
    assert processor(images=image, do_normalize=False)["pixel_values"].min() >= 0
    assert processor(images=image, images_kwargs={"size": 48})["pixel_values"].shape[-1] == 48
    assert (
        processor(text=TEXTS, text_kwargs={"padding": "max_length"}, return_tensors="pt")["input_ids"].shape[1] == 32
    )
    for options, message in (
        ({"sizee": 3}, "DenseVLMProcessor has no option `sizee`; is `size` meant?"),
        ({"paddin": True}, "is `padding` meant?"),
        ({"box": []}, "no option `box`"),
        ({"text_kwargs": {"truncate": True}}, "in `text_kwargs` has no option `truncate`; is `truncation` meant?"),
    ):
        with pytest.raises(TypeError, match=message):
            processor(images=image, text=TEXTS, **options)
    with pytest.raises(ValueError, match="Give `images`, `text` or both"):
        processor()


def test_a_folder_loads_with_the_requested_back_end_and_padding(student, picture):
    pytest.importorskip("torchvision")
    processor = DenseVLMProcessor.from_pretrained(student, backend="torchvision", text_padding="max_length")
    assert processor.image_processor.backend == "torchvision"
    inputs = processor(images=picture(90, 60), text=TEXTS, boxes=[[[9, 6, 45, 30]]], return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 96, 96) and inputs["input_ids"].shape == (2, 32)
    with pytest.raises(ValueError, match="`backend` is one of pil, torchvision, got 'opencv'"):
        DenseVLMProcessor.from_pretrained(student, backend="opencv")


def test_a_folder_of_an_older_version_loads(student, tmp_path, picture, processor):
    processor.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "processor_config.json").read_text())
    image_processor = {key: content["image_processor"][key] for key in ("image_mean", "image_std", "size")}
    image_processor |= {
        "image_processor_type": "DenseVLMImageProcessor",
        "auto_map": {"AutoImageProcessor": "image_processing_densevlm.DenseVLMImageProcessor"},
    }
    before = {"image_processor": image_processor, "processor_class": "DenseVLMProcessor"}
    (tmp_path / "processor_config.json").write_text(json.dumps(before))
    loaded = DenseVLMProcessor.from_pretrained(tmp_path)
    image = picture(50, 40)
    assert torch.equal(loaded(images=image)["pixel_values"], processor(images=image)["pixel_values"])
    assert torch.equal(
        loaded(text=TEXTS, return_tensors="pt")["input_ids"], processor(text=TEXTS, return_tensors="pt")["input_ids"]
    )


def segmented(batch=2, categories=40, side=6, dim=8):
    generator = torch.Generator().manual_seed(0)
    dense = normalize(torch.randn(batch, dim, side, side, generator=generator), dim=1)
    return DenseVLMOutput(dense_embeds=dense, text_embeds=torch.randn(categories, dim, generator=generator) * 3)


def test_pixels_get_the_nearest_category_without_the_padding(processor):
    output, sizes = segmented(), [(20, 32), (32, 24)]
    found = processor.post_process_semantic_segmentation(output, target_sizes=sizes)
    cosines = torch.einsum("bdhw,cd->bchw", output.dense_embeds, normalize(output.text_embeds, dim=-1))
    for labels, scores, size in zip(found, cosines, sizes):
        assert torch.equal(labels, label_pixels(scores, size))
    # The same of logits, of tensors of sizes, and with the scores.
    logits = DenseVLMOutput(dense_embeds=output.dense_embeds)
    logits.logits = cosines
    again = processor.image_processor.post_process_semantic_segmentation(logits, target_sizes=torch.tensor(sizes))
    assert all(map(torch.equal, again, found))
    whole = processor.post_process_semantic_segmentation(output, sizes, return_segmentation_scores=True)
    for result, labels, size in zip(whole, found, sizes):
        assert result.segmentation_scores.shape == (40, *size) and torch.equal(result.segmentation, labels)
        assert torch.equal(result.segmentation_scores.argmax(0), labels)
    # Without sizes: the map, or the part of it that is image.
    assert [tuple(labels.shape) for labels in processor.post_process_semantic_segmentation(output)] == [(6, 6)] * 2
    extent = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
    cut = processor.post_process_semantic_segmentation(output, content_extent=extent)
    assert [tuple(labels.shape) for labels in cut] == [(3, 6), (6, 3)]
    assert torch.equal(cut[0], cosines[0, :, :3].argmax(0))
    # An image that was not padded covers its canvas.
    unpadded = processor.post_process_semantic_segmentation(output, sizes, content_extent=torch.ones(2, 2))
    stretched = torch.nn.functional.interpolate(cosines[:1], size=(20, 32), mode="bilinear")[0].argmax(0)
    assert torch.equal(unpadded[0], stretched)


def test_memory_of_the_labels_does_not_grow_with_the_number_of_categories(processor, monkeypatch):
    from modeling_densevlm import canvas

    held, interpolate = [], canvas.interpolate

    def counting(values, **options):
        held.append(values.shape[1] * options["size"][0] * options["size"][1])
        return interpolate(values, **options)

    monkeypatch.setattr(canvas, "interpolate", counting)
    monkeypatch.setattr(canvas, "MAX_CHUNK_ELEMENTS", 4 * 64 * 64)
    few, many = (segmented(1, categories) for categories in (40, 200))
    for output in (few, many):
        processor.post_process_semantic_segmentation(output, target_sizes=[(64, 48)])
    assert max(held) == 4 * 64 * 64 and len(held) == 10 + 50


def test_the_error_for_outputs_that_cannot_be_post_processed_gives_the_remedy(processor):
    output = segmented()
    for call, message in (
        (lambda: processor.post_process_semantic_segmentation(output, target_sizes=[(3, 3)]),
         "for 2 images, but `target_sizes` has 1"),
        (lambda: processor.post_process_semantic_segmentation(DenseVLMOutput(dense_embeds=output.dense_embeds)),
         r"neither `logits` nor .* model\(\*\*processor"),
        (lambda: processor.post_process_region_classification(output), "lack `region_embeds`"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            call()
    output.region_embeds, output.logits_per_region = torch.randn(3, 8), torch.randn(3, 40)
    for options, message in (
        ({}, "For several images, give `boxes` or `masks`"),
        ({"boxes": [[0], [0]]}, "for 3 regions, but 2 are given"),
        ({"boxes": [[0, 1], [0]], "text_labels": ["a"]}, "for 40 texts, but `text_labels` has 1"),
        ({"boxes": [[0, 1], [0]], "temperature": 0}, "`temperature` is above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            processor.post_process_region_classification(output, **options)
    assert processor.post_process_region_classification(output, masks=[[0, 1], [0]])[0]["text_labels"] is None
