# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The program that names what is where in photos."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.predict import Predictor, boxes_of, find_photos, main, predict_maps, read_boxes
from modeling_densevlm import CategoryEmbeddings, CategorySet, DenseVLMForSemanticSegmentation, DenseVLMProcessor


WORDS = CategorySet(["kite", "boat", "sky"])


@pytest.fixture(autouse=True)
def matplotlib():
    pytest.importorskip("matplotlib")


@pytest.fixture
def photos(picture, tmp_path):
    """Two photos, one of them in a subfolder, and a damaged one."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    picture(90, 60).save(folder / "a.png")
    picture(40, 80).save(folder / "sub" / "b.jpg")
    (folder / "damaged.jpg").write_bytes(b"no image")
    return folder


def predict(student, output, *photos, **options):
    options = {"model": student, "output": output, "templates": "short", "device": "cpu"} | options
    words = [word for key, value in options.items() for word in (f"--{key}", *str(value).split("|"))]
    main([*map(str, photos), *words])
    return {line["photo"]: line for line in map(json.loads, (output / "predictions.jsonl").read_text().splitlines())}


def test_a_map_has_the_category_of_every_pixel(photos, student, tmp_path, capsys, caplog):
    found = predict(student, tmp_path / "out", photos, words="kite, boat,sky")
    assert list(found) == ["a.png", "sub/b.jpg"]
    assert "2 photos, 1 skipped" in capsys.readouterr().out
    assert "damaged.jpg" in caplog.text
    processor = DenseVLMProcessor.from_pretrained(student)
    segmenter = DenseVLMForSemanticSegmentation.from_pretrained(student).set_categories(WORDS, "short")
    for name, line in found.items():
        with Image.open(photos / name) as image, torch.no_grad():
            outputs, size = segmenter(**processor(images=image)), (image.height, image.width)
        expected = processor.post_process_semantic_segmentation(outputs, target_sizes=[size])[0].numpy()
        with Image.open(tmp_path / "out" / line["map"]) as png:
            assert (np.asarray(png) == expected).all()
        assert (line["width"], line["height"]) == size[::-1]
        shares = {WORDS.names[label]: round(float((expected == label).mean()), 4) for label in np.unique(expected)}
        assert line["shares"] == shares and list(shares.values()) != []
        assert (tmp_path / "out" / "pictures" / name).with_suffix(".png").stat().st_size > 5_000
    assert CategorySet.load(tmp_path / "out" / "categories.json").names == WORDS.names


@torch.no_grad()
def test_boxes_in_pixels_get_a_category_and_its_probability(photos, student, model, tmp_path):
    boxes = {"a.png": [[10, 10, 50, 40], [0, 0, 90, 60]], "b": [[5, 5, 35, 70]]}
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    found = predict(student, tmp_path / "out", photos, words="kite,boat,sky", boxes=tmp_path / "boxes.json")
    processor = DenseVLMProcessor.from_pretrained(student)
    text_embeds = CategoryEmbeddings.compute(WORDS, model, processor.tokenizer, "short").embeds
    for name, key in (("a.png", "a.png"), ("sub/b.jpg", "b")):
        inputs = processor(images=str(photos / name), boxes=[boxes[key]])
        region_embeds = model.get_region_features(inputs["pixel_values"], boxes=inputs["boxes"])
        cosines = torch.nn.functional.normalize(region_embeds, dim=-1) @ text_embeds.T
        scores, labels = (cosines * model.logit_scale.exp()).softmax(-1).max(-1)
        regions = found[name]["regions"]
        assert [region["box"] for region in regions] == boxes[key]
        assert [region["label"] for region in regions] == [WORDS.names[label] for label in labels]
        assert [region["score"] for region in regions] == pytest.approx(scores.tolist(), abs=1e-4)


def test_the_cells_of_a_grid_are_named_row_by_row(photos, student, tmp_path):
    found = predict(student, tmp_path / "out", photos / "a.png", words="kite,boat", grid="2|3")
    boxes = [region["box"] for region in found["a.png"]["regions"]]
    assert boxes[0] == [0, 0, 30, 30] and boxes[2] == [60, 0, 90, 30] and boxes[5] == [60, 30, 90, 60]


def test_boxes_are_read_by_photo_and_from_coco_results(tmp_path):
    results = [{"image_id": 139, "bbox": [10, 20, 30, 40]}, {"image_id": 139, "bbox": [0, 0, 5, 5]}]
    (tmp_path / "results.json").write_text(json.dumps(results))
    boxes = read_boxes(tmp_path / "results.json")
    assert boxes_of("val2017/000000000139.jpg", boxes).tolist() == [[10, 20, 40, 60], [0, 0, 5, 5]]
    assert boxes_of("other.jpg", boxes).shape == (0, 4)
    for content, message in (("[1]", "result 0 has no `image_id`"), ('{"a": [[1, 2]]}', "a box is four numbers"),
                             ("{", "is not valid JSON"), ("3", "expected .* or COCO results")):  # fmt: skip
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            read_boxes(tmp_path / "bad.json")


def test_photos_are_files_folders_and_patterns(photos):
    assert list(find_photos([str(photos / "*.png")])) == ["a.png"]
    assert list(find_photos([str(photos), str(photos / "a.png")])) == ["a.png", "damaged.jpg", "sub/b.jpg"]
    with pytest.raises(ValueError, match=r"c\.png: there is no such photo"):
        find_photos([str(photos / "c.png")])


def test_photos_of_the_same_name_are_refused_rather_than_overwritten(photos, picture):
    picture(20, 20).save(photos / "sub" / "a.png")
    with pytest.raises(ValueError, match=r"a\.png and .*sub/a\.png have the same name"):
        find_photos([str(photos / "a.png"), str(photos / "sub" / "a.png")])
    with pytest.raises(ValueError, match="have the same name"):
        find_photos([str(photos / "**" / "a.png")])
    picture(20, 20).save(photos / "a.jpg")
    with pytest.raises(ValueError, match=r"a\.jpg and .*a\.png have the same name"):
        find_photos([str(photos)])


def test_more_categories_than_a_byte_holds_give_maps_of_16_bits(photos, student, tmp_path):
    names = [f"boat {number}" for number in range(300)]
    embeds = torch.nn.functional.normalize(torch.randn(300, 24), dim=-1)
    predictor = Predictor(student).set_categories(WORDS, "short")
    embeddings = CategoryEmbeddings(embeds, names, None, [[] for _ in names], ["{}"], "")
    predictor.segmenter.set_categories(embeddings)
    predictor.categories, predictor.embeddings = CategorySet(names), embeddings
    with Image.open(photos / "a.png") as image:
        (line,) = predict_maps(predictor, {"a.png": image.convert("RGB")}, tmp_path / "out")
    with Image.open(tmp_path / "out" / line["map"]) as png:
        assert np.asarray(png).max() < 300 and png.mode.startswith("I")


def test_what_cannot_be_predicted_ends_the_program_with_one_line(photos, student, tmp_path):
    output = tmp_path / "out"
    with pytest.raises(SystemExit, match="None of the 1 photos could be read, e.g. .*damaged.jpg"):
        predict(student, output, photos / "damaged.jpg", words="kite")
    with pytest.raises(SystemExit, match="--thing_offset"):
        predict(student, output, photos / "a.png", words="kite", thing_offset=0.1)


@torch.no_grad()
def test_heat_maps_say_where_each_word_is_the_most_similar(photos, student, model, tmp_path):
    out = tmp_path / "out"
    words = ["--model", student, "--words", "kite,sky", "--heat_maps", "--templates", "short", "--output", out]
    main([str(word) for word in (photos, *words, "--device", "cpu")])
    line = next(
        one for one in map(json.loads, (out / "predictions.jsonl").read_text().splitlines()) if one["photo"] == "a.png"
    )
    processor = DenseVLMProcessor.from_pretrained(student)
    text_embeds = CategoryEmbeddings.compute(CategorySet(["kite", "sky"]), model, processor.tokenizer, "short").embeds
    dense = model.get_dense_features(processor(images=str(photos / "a.png"))["pixel_values"])[0]
    for word, cosines in zip(("kite", "sky"), torch.einsum("dhw,cd->chw", dense, text_embeds)):
        found = line["similarities"][word]
        assert -1 <= found["lowest"] <= found["highest"] <= cosines.max() + 1e-3  # interpolation adds no extremes
        assert 0 <= found["at"][0] < 90 and 0 <= found["at"][1] < 60
    assert (out / "pictures" / "a.png").stat().st_size > 5_000
    with pytest.raises(SystemExit, match="--thing_offset has no effect with --heat_maps"):
        main([str(word) for word in (photos, *words, "--thing_offset", "0.1")])


def test_another_offset_does_not_embed_the_words_again(student, monkeypatch):
    predictor = Predictor(student)
    embedded = []
    resolve = CategoryEmbeddings.resolve

    def counted(*given, **more):
        embedded.append(given)
        return resolve(*given, **more)

    monkeypatch.setattr(CategoryEmbeddings, "resolve", counted)
    flags = CategorySet(["kite", "sky"], [True, False])
    for categories, offset in ((flags, 0.0), (flags, 0.1), (WORDS, 0.0)):
        predictor.set_categories(categories, "short", offset)
    assert len(embedded) == 2 and predictor.segmenter.config.thing_offset == 0.0
    assert predictor.segmenter.config.categories["names"] == WORDS.names
