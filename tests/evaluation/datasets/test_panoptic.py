# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.datasets.panoptic import PanopticRegions, collate_regions, pixel_boxes, segment_masks
from modeling_densevlm import CategorySet, DenseVLMImageProcessor
from tests.evaluation.pngs import write_png
from training.sandbox.scenes import make_scene


@pytest.fixture
def split(scenes, tmp_path):
    shutil.copytree(scenes / "test", tmp_path / "test")
    return tmp_path / "test"


def regions_of(split, categories=None, side=8):
    return PanopticRegions(
        split / "panoptic.json", split / "images", split / "panoptic", DenseVLMImageProcessor(96), side, categories
    )


def edit(split, change):
    content = json.loads((split / "panoptic.json").read_text())
    change(content)
    (split / "panoptic.json").write_text(json.dumps(content))


def test_a_scene_comes_back_as_the_regions_it_was_written_with(split):
    regions = regions_of(split)
    scene, sample = make_scene(0, "test", 3), regions[3]
    assert [regions.categories.names[label] for label in sample["labels"]] == scene.names
    assert sample["segment_ids"].tolist() == list(range(1, len(scene.names) + 1))
    assert sample["masks"].shape == (len(scene.names), 8, 8) and sample["masks"].flatten(1).any(1).all()


def test_the_files_own_categories_are_the_default(split):
    categories = regions_of(split).categories
    assert len(categories) == 28 and sum(categories.is_thing) == 16


def test_categories_without_ids_are_found_by_name(split):
    own = regions_of(split)
    reversed_set = CategorySet("reversed", own.categories.names[::-1], own.categories.is_thing[::-1])
    assert regions_of(split, reversed_set)[0]["labels"].tolist() == [27 - label for label in own[0]["labels"].tolist()]


def test_boxes_are_xyxy_and_those_of_stuff_end_one_pixel_earlier():
    boxes = pixel_boxes([[10, 20, 30, 40], [10, 20, 30, 40]], torch.tensor([False, True]))
    assert boxes.tolist() == [[10, 20, 40, 60], [10, 20, 39, 59]]


def test_masks_lie_in_the_content_at_the_top_left():
    ids = np.zeros((40, 80), dtype=np.int64)
    ids[:, 40:] = 5
    mask = segment_masks(torch.tensor([5]), ids, 8)[0]
    assert not mask[4:].any()  # the padding below
    assert mask[:4, 4:].all() and not mask[:4, :3].any()


def test_regions_too_small_or_too_large_are_counted_and_skipped(split):
    edit(split, lambda c: c["annotations"][0]["segments_info"][0].update(bbox=[0, 0, 7, 9]))
    edit(split, lambda c: c["annotations"][1]["segments_info"][0].update(bbox=[0, 0, 1100, 1100]))
    regions, whole = regions_of(split), json.loads((split / "panoptic.json").read_text())["annotations"]
    for index in (0, 1):
        sample = regions[index]
        assert sample["skipped_regions"] == 1
        assert len(sample["labels"]) == len(whole[index]["segments_info"]) - 1


def test_a_segment_without_a_pixel_is_counted_and_skipped(split):
    whole = len(regions_of(split)[0]["labels"])
    hidden = {"id": 77, "category_id": 1, "bbox": [0, 0, 30, 30]}
    edit(split, lambda c: c["annotations"][0]["segments_info"].append(hidden))
    sample = regions_of(split)[0]
    assert (len(sample["labels"]), sample["skipped_regions"]) == (whole, 1)
    assert 77 not in sample["segment_ids"]


def test_an_image_with_an_id_of_no_segment_is_skipped_and_named(split):
    edit(split, lambda c: c["annotations"][2]["segments_info"].pop())
    content = json.loads((split / "panoptic.json").read_text())["annotations"]
    lost = len(content[2]["segments_info"]) + 1
    regions = regions_of(split)
    assert f"ids [{lost}], of no segment" in regions[2]["skipped"] and "000002" in regions[2]["skipped"]
    assert "skipped" not in regions[1]


def test_pixels_of_id_0_belong_to_no_segment_and_are_not_an_error(split):
    file = split / "panoptic" / "000002.png"
    ids = np.array(Image.open(file))
    ids[:5] = 0
    Image.fromarray(ids).save(file)
    assert "skipped" not in regions_of(split)[2]


def test_at_home_is_read_if_annotated(split):
    edit(split, lambda c: [s.pop("at_home") for s in c["annotations"][3]["segments_info"]])
    edit(split, lambda c: [s.update(at_home=None) for s in c["annotations"][5]["segments_info"]])
    content, regions = json.loads((split / "panoptic.json").read_text())["annotations"], regions_of(split)
    assert set(regions[3]["at_home"].tolist()) == set(regions[5]["at_home"].tolist()) == {-1}
    assert regions[4]["at_home"].tolist() == [int(s["at_home"]) for s in content[4]["segments_info"]]


def spoil_image(split):
    (split / "images" / "000002.jpg").unlink()


def truncate_image(split):
    file = split / "images" / "000002.jpg"
    file.write_bytes(file.read_bytes()[:500])


def spoil_png(split):
    (split / "panoptic" / "000002.png").write_bytes(b"no image")


def resize_png(split):
    Image.new("RGB", (50, 40)).save(split / "panoptic" / "000002.png")


def forget_image(split):
    edit(split, lambda c: c["images"].pop(2))


@pytest.mark.parametrize("spoil", [spoil_image, truncate_image, spoil_png, resize_png, forget_image])
def test_an_image_that_cannot_be_evaluated_is_skipped_and_named(split, spoil):
    spoil(split)
    regions = regions_of(split)
    batch = collate_regions([regions[i] for i in range(4)])
    assert len(batch["pixel_values"]) == 3
    assert len(batch["skipped"]) == 1 and "2" in batch["skipped"][0]


def test_a_category_that_the_set_does_not_have_is_named(split):
    edit(split, lambda c: c["annotations"][0]["segments_info"][0].update(category_id=99))
    with pytest.raises(
        ValueError, match=r"category 99 \(not listed\), which the set panoptic does not have \(the first in image 0\)"
    ):
        regions_of(split)


def test_ids_of_other_categories_in_the_set_are_rejected(split):
    with pytest.raises(
        ValueError, match=r"calls category \d+ '\w+', the set coco_panoptic_133 '.+': these are not the same"
    ):
        regions_of(split, CategorySet.load("coco_panoptic_133"))


@pytest.mark.parametrize("field", ["id", "category_id", "bbox"])
def test_a_segment_without_a_field_is_rejected_by_image_and_field(split, field):
    edit(split, lambda c: c["annotations"][4]["segments_info"][0].pop(field))
    with pytest.raises(ValueError, match=f"image 4: a segment without `{field}`"):
        regions_of(split)


@pytest.mark.parametrize(
    ("rows", "field"), [("images", "file_name"), ("annotations", "image_id"), ("categories", "name")]
)
def test_a_row_without_a_field_is_rejected_by_position_and_field(split, rows, field):
    edit(split, lambda c: c[rows][2].pop(field))
    with pytest.raises(ValueError, match=f"`{rows}`, place 2 without `{field}`"):
        regions_of(split)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "no list `images`"),
        ('{"images": [], "annotations": [{"bbox": []}], "categories": []}', "without `segments_info`: not panoptic"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "annotates no image"),
    ],
)
def test_an_annotation_file_of_another_format_is_rejected(split, content, message):
    (split / "panoptic.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        regions_of(split)


@pytest.mark.parametrize("name", ["images", "panoptic", "panoptic.json"])
def test_missing_files_and_folders_are_named(split, name):
    path = split / name
    path.unlink() if path.is_file() else shutil.rmtree(path)
    with pytest.raises(FileNotFoundError, match=name):
        regions_of(split)


def twice(rows, **changed):
    """An edit that appends a copy of a row."""
    return lambda c: c[rows].append(c[rows][0] | changed)


SEGMENTS = "segments_info"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (twice("images"), "`images`: the `id` 0 occurs 2 times"),
        (twice("images", id=77), "`images`: the `file_name` '000000.jpg' occurs 2 times"),
        (twice("images", id=77, file_name="./000000.jpg"), "`images`: the `file_name` '000000.jpg' occurs 2 times"),
        (twice("annotations"), "`annotations`: the `image_id` 0 occurs 2 times"),
        (twice("annotations", image_id=77), "`annotations`: the `file_name` '000000.png' occurs 2 times"),
        (twice("categories", name="another"), r"`categories`: the `id` \d+ occurs 2 times"),
        (twice("categories", id=77), "`categories`: the `name` '.+' occurs 2 times"),
        (
            lambda c: c["annotations"][4][SEGMENTS].append(c["annotations"][4][SEGMENTS][0]),
            r"image 4: the segment `id` \d+ occurs 2 times",
        ),
    ],
)
def test_duplicates_are_rejected_by_id(split, change, message):
    """As in concatenated datasets (cocoapi#462, sahi#98), where the last would win or count twice."""
    edit(split, change)
    with pytest.raises(ValueError, match=rf"panoptic\.json, {message}"):
        regions_of(split)


@pytest.mark.parametrize("row", [None, [], "segment"])
def test_a_row_that_is_not_an_object_is_named(split, row):
    for rows in ("images", "annotations", "categories"):
        edit(split, lambda c, rows=rows: c[rows].insert(1, row))
        with pytest.raises(
            ValueError, match=f"`{rows}`, place 1: expected an object, got {re.escape(json.dumps(row))}"
        ):
            regions_of(split)
        edit(split, lambda c, rows=rows: c[rows].pop(1))
    edit(split, lambda c: c["annotations"][4][SEGMENTS].insert(1, row))
    with pytest.raises(ValueError, match="image 4, segment 1: expected an object"):
        regions_of(split)


ODD_VALUES = {
    "images": {"id": [None, True, 1.5, [1], {}, "", 2**70], "file_name": [None, 3, "", ["a.jpg"]]},
    "annotations": {"image_id": [None, True, 1.5, [1]], "file_name": [None, 3], SEGMENTS: [None, {}, "all"]},
    "categories": {"id": [None, "1", 1.5, True], "name": [None, 3, " "], "isthing": [None, 2, "1", [1]]},
    SEGMENTS: {
        "id": [None, "1", 1.5, -1, 256**3, True],
        "category_id": [None, "1", 1.5, [1]],
        "bbox": [
            *(None, [], {"x": 1}, [1, 2, 3], ["1", "2", "3", "4"], [True] * 4, [0, 0, None, 9], [0, 0, -9, -9]),
            *([0, 0, size, 9] for size in (float("nan"), float("inf"), 1e300)),
        ],
        "iscrowd": [2, "0", [0]],
        "at_home": [2, "yes", 0.5],
    },
}


@pytest.mark.parametrize(("rows", "field"), [(rows, field) for rows, fields in ODD_VALUES.items() for field in fields])
def test_a_value_of_a_wrong_type_is_named_by_file_position_and_field(split, rows, field):
    """Before a worker reads it (cocoapi#355, coco-annotator#109): null, strings, incomplete boxes."""
    whole = (split / "panoptic.json").read_text()
    for value in ODD_VALUES[rows][field]:
        content = json.loads(whole)
        row = content["annotations"][4][SEGMENTS][0] if rows == SEGMENTS else content[rows][4]
        row[field] = value
        (split / "panoptic.json").write_text(json.dumps(content))
        place = "image 4" if rows == SEGMENTS or field == SEGMENTS else f"`{rows}`, place 4"
        with pytest.raises(ValueError, match=f"panoptic.json, {place}.*`{field}` is .*") as raised:
            regions_of(split)
        assert "\n" not in str(raised.value)


def test_image_ids_are_all_numbers_or_all_strings(split):
    edit(split, lambda c: c["annotations"][2].update(image_id="2"))
    with pytest.raises(ValueError, match='`annotations`, place 2: `image_id` is "2", other ids of images are numbers'):
        regions_of(split)

    def as_texts(content):
        for row in content["images"]:
            row["id"] = f"image {row['id']}"
        for row in content["annotations"]:
            row["image_id"] = f"image {row['image_id']}"

    edit(split, as_texts)
    assert regions_of(split)[3]["image_id"] == 3 and "labels" in regions_of(split)[3]


def test_integers_may_be_stored_as_floats(split):
    def as_floats(content):
        for row in [*content["images"], *content["categories"]]:
            row["id"] = float(row["id"])
        for row in content["annotations"]:
            row["image_id"] = float(row["image_id"])
            for segment in row[SEGMENTS]:
                segment.update(id=float(segment["id"]), category_id=float(segment["category_id"]))

    before = regions_of(split)[3]
    edit(split, as_floats)
    after = regions_of(split)[3]
    assert after["image_id"] == before["image_id"] == 3
    assert all(after[name].tolist() == before[name].tolist() for name in ("labels", "segment_ids", "boxes"))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_accepted(split, encoding):
    text = (split / "panoptic.json").read_text()
    (split / "panoptic.json").write_text(text, encoding=encoding)
    assert len(regions_of(split)) == 10


def test_a_truncated_file_is_reported_as_such(split):
    text = (split / "panoptic.json").read_text()
    (split / "panoptic.json").write_text(text[:-10])
    with pytest.raises(ValueError, match=r"panoptic\.json is not valid JSON: .*truncated"):
        regions_of(split)


def test_images_without_annotation_are_counted_and_named(split, caplog):
    edit(split, lambda c: c["annotations"].pop(7))
    assert len(regions_of(split)) == 9
    assert "1 images have no annotation and are left out, e.g. 7." in caplog.text


def test_flags_of_some_of_the_categories_are_rejected(split):
    edit(split, lambda c: c["categories"][2].pop("isthing"))
    with pytest.raises(ValueError, match=r"`categories`, place 2 \('.+'\) without `isthing`, which others have"):
        regions_of(split)


def test_a_name_in_two_groups_of_a_set_is_resolved_by_the_flag(split):
    own = regions_of(split)
    name = own.categories.names[own[0]["labels"][0]]
    groups = [own.is_stuff[own[0]["labels"][0]].item(), not own.is_stuff[own[0]["labels"][0]].item()]
    both = CategorySet("both", [*own.categories.names, name], [*own.categories.is_thing, groups[0]])
    assert regions_of(split, both)[0]["labels"][0] == own[0]["labels"][0]
    edit(split, lambda c: [row.pop("isthing") for row in c["categories"]])
    with pytest.raises(ValueError, match=f"{name}.* is in several groups of the set both"):
        regions_of(split, both)


def test_segments_are_read_from_every_png_that_has_their_colours(split):
    file = split / "panoptic" / "000002.png"
    before, png = regions_of(split)[2], Image.open(file).convert("RGB")
    for change in (png.quantize(256), png.convert("RGBA")):
        change.save(file)
        assert regions_of(split)[2]["segment_ids"].tolist() == before["segment_ids"].tolist()
    write_png(file, 16, np.array(png))  # Pillow would read 0 everywhere
    assert "000002" in regions_of(split)[2]["skipped"] and "16 bits per channel" in regions_of(split)[2]["skipped"]
    Image.fromarray(np.array(png)[..., 0].astype(np.uint16)).save(file)
    assert "000002" in regions_of(split)[2]["skipped"] and "the mode I" in regions_of(split)[2]["skipped"]


def test_two_images_of_coco_have_the_regions_that_their_annotations_list(coco_sample, monkeypatch):
    regions = PanopticRegions(
        coco_sample / "panoptic.json",
        coco_sample / "images",
        coco_sample / "panoptic",
        DenseVLMImageProcessor(512),
        32,
        CategorySet.load("coco_panoptic_133"),
    )
    expected = [
        ["person"] * 14 + ["sports ball", "tree-merged", "sky-other-merged", "grass-merged"],
        ["person"] * 14
        + ["truck"] * 2
        + ["horse"] * 12
        + ["gravel", "tree-merged", "sky-other-merged", "grass-merged"],
    ]
    for index, names in enumerate(expected):
        sample = regions[index]
        assert [regions.categories.names[label] for label in sample["labels"]] == names
        assert sample["skipped_regions"] == 0 and len(sample["boxes"]) == len(sample["masks"]) == len(names)
    sample = regions[0]
    assert sample["image_id"] == 142238 and sample["segment_ids"][:2].tolist() == [3937500, 4260062]
    # A person is [282, 207, 48, 149] in 640 x 427; sky [440, 0, 200, 103] ends one pixel early.
    assert sample["boxes"][0].tolist() == pytest.approx([282 / 640, 207 / 640, 330 / 640, 356 / 640])
    assert sample["boxes"][16].tolist() == pytest.approx([440 / 640, 0, 639 / 640, 102 / 640])
    # Were the smallest area 600 pixels, these would be left out: 9 x 44, 13 x 39, 16 x 17; 11 x 21 and 16 x 37.
    monkeypatch.setattr("evaluation.datasets.panoptic.SMALLEST_AREA", 600)
    assert [regions[index]["skipped_regions"] for index in (0, 1)] == [3, 2]
    left = set(sample["segment_ids"].tolist()) - set(regions[0]["segment_ids"].tolist())
    assert left == {3997935, 5314498, 16757838}
