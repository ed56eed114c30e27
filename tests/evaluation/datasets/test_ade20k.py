# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""ADE20K's panoptic annotations, built from small semantic and instance files by hand."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.ade20k import main
from evaluation.datasets.ade20k import CATEGORIES, THINGS, convert, panoptic_segments
from evaluation.datasets.panoptic import PanopticRegions
from modeling_densevlm import DenseVLMImageProcessor
from tests.conftest import command_line
from tests.evaluation.pngs import write_png


ADE20K = Path(__file__).parents[3] / "shared" / "data" / "ade20k_sample"
WALL, SKY, BED, CAR = (CATEGORIES.names.index(name) for name in ("wall", "sky", "bed", "car"))


@pytest.fixture
def annotated():
    """Wall above, sky below; two cars and a bed that is in no instance; an instance covers some of the wall."""
    semantic = np.zeros((20, 40), dtype=np.uint8)
    semantic[:10], semantic[10:, :30] = WALL + 1, SKY + 1
    semantic[12:16, 2:8], semantic[12:16, 12:20] = CAR + 1, BED + 1
    instances = np.zeros((20, 40, 3), dtype=np.uint8)
    car = list(THINGS).index(CAR) + 1
    instances[12:16, 2:8] = car, 1, 0
    instances[6:14, 20:30] = car, 2, 0
    return semantic, instances


def test_things_are_numbered_in_the_order_of_their_categories():
    assert [CATEGORIES.names[THINGS[number - 1]] for number in (1, 4, 9, 50, 100)] == [
        "bed",
        "person",
        "car",
        "bus",
        "flag",
    ]


def test_stuff_and_things_by_hand(annotated):
    ids, segments = panoptic_segments(*annotated)
    assert [(s["id"], s["category_id"], s["area"], s["bbox"]) for s in segments] == [
        (1, WALL, 400, [0, 0, 40, 10]),  # before the car is painted over it
        (2, SKY, 300 - 24 - 32, [0, 10, 30, 10]),
        (3, CAR, 24, [2, 12, 6, 4]),
        (4, CAR, 80, [20, 6, 10, 8]),
    ]
    assert (ids[6:14, 20:30] == 4).all() and (ids[12:16, 2:8] == 3).all()
    assert (ids[12:16, 12:20] == 0).all()  # the bed
    assert (ids == 1).sum() == 400 - 40 and (ids[10:, 30:] == 0).all()


def test_stuff_that_is_entirely_covered_is_no_segment(annotated):
    semantic, instances = annotated
    semantic[:10] = 0
    semantic[8:10, 20:30] = WALL + 1
    _, segments = panoptic_segments(semantic, instances)
    assert WALL not in [s["category_id"] for s in segments]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s, i: (s[:10], i), "semantic pixels, but"),
        (lambda s, i: (s, i[..., 0]), "semantic pixels, but"),
        (lambda s, i: (np.where(s == 0, 151, s), i), "a category 151, of 150"),
        (lambda s, i: (s, np.where(i == 9, 101, i)), "a category 101, of 100"),
        (
            lambda s, i: (s, np.where(np.indices(i.shape)[1] < 4, [3, 1, 0], i)),
            r"instance 1 has the categories \[3, 9\]",
        ),
        (lambda s, i: (s, i * [0, 1, 1]), r"instance 1 has the categories \[0\]"),
    ],
)
def test_inconsistent_files_are_rejected(annotated, spoil, message):
    with pytest.raises(ValueError, match=message):
        panoptic_segments(*spoil(*annotated))


@pytest.fixture
def folders(annotated, tmp_path):
    for folder, content in zip(("semantic", "instances"), annotated):
        (tmp_path / folder).mkdir()
        for name in ("ADE_val_00000001", "ADE_val_00000002"):
            Image.fromarray(content).save(tmp_path / folder / f"{name}.png")
    (tmp_path / "images").mkdir()
    for name in ("ADE_val_00000001", "ADE_val_00000002"):
        Image.new("RGB", (40, 20), (90, 100, 110)).save(tmp_path / "images" / f"{name}.jpg")
    return tmp_path


def arguments_of(folders):
    inputs = {name: folders / name for name in ("images", "semantic", "instances")}
    return command_line(inputs | {"output": folders / "panoptic"})


def test_the_output_is_read_as_regions(folders, capsys):
    main(arguments_of(folders))
    assert "2 images, 4 thing segments, 4 stuff segments" in capsys.readouterr().out
    regions = PanopticRegions(
        folders / "panoptic.json", folders / "images", folders / "panoptic", DenseVLMImageProcessor(32), 20
    )
    sample = regions[1]
    assert sample["labels"].tolist() == [WALL, SKY, CAR] and sample["skipped_regions"] == 1  # a car of 24 pixels
    assert sample["image_id"] == 1  # its position, as names are not numbers
    assert sample["boxes"][2].tolist() == pytest.approx([0.5, 0.15, 0.75, 0.35])
    assert [bool(flag) for flag in regions.is_stuff[sample["labels"]]] == [True, True, False]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("semantic/ADE_val_00000002.png", b"no png", "ADE_val_00000002.jpg: "),
        ("instances/ADE_val_00000001.png", None, "ADE_val_00000001.jpg: .*No such file"),
    ],
)
def test_an_image_that_cannot_be_converted_is_named(folders, name, content, message):
    (folders / name).write_bytes(content) if content else (folders / name).unlink()
    with pytest.raises(SystemExit, match=message):
        main(arguments_of(folders))


def test_images_of_another_size_and_folders_without_images_are_named(folders):
    Image.new("RGB", (41, 20)).save(folders / "images" / "ADE_val_00000001.jpg")
    with pytest.raises(SystemExit, match="ADE_val_00000001.jpg: 41 x 20 pixels, but 40 x 20 annotated"):
        main(arguments_of(folders))
    with pytest.raises(ValueError, match="holds no .jpg"):
        convert(folders / "semantic", folders / "semantic", folders / "instances", folders / "out")


def test_images_of_every_spelling_and_in_folders_are_converted(folders):
    """As various cameras and systems write them (detectron2#1319); dots in names are part of them."""
    first, second = "ADE_val_00000001", "ADE_val_00000002"
    (folders / "images" / f"{first}.jpg").rename(folders / "images" / f"{first}.JPG")
    for folder, suffix in (("images", "jpg"), ("semantic", "png"), ("instances", "png")):
        (folders / folder / "sub").mkdir()
        (folders / folder / f"{second}.{suffix}").rename(folders / folder / "sub" / f"v1.{second}.{suffix}")
        (folders / folder / f"._x.{suffix}").write_bytes(b"litter")
    main(arguments_of(folders))
    regions = PanopticRegions(
        folders / "panoptic.json", folders / "images", folders / "panoptic", DenseVLMImageProcessor(32), 20
    )
    assert [record["image_id"] for record in regions.records] == [first, f"sub/v1.{second}"]
    assert all("labels" in regions[index] for index in range(2))


def test_annotations_without_an_image_are_named_and_not_skipped(folders):
    (folders / "images" / "ADE_val_00000002.jpg").rename(folders / "images" / "ADE_val_00000002.heic")
    with pytest.raises(SystemExit, match=r"1 PNGs of .*semantic have no image in .*images, e\.g\. ADE_val_00000002"):
        main(arguments_of(folders))
    assert not (folders / "panoptic.json").exists()


def test_instances_of_16_bits_are_rejected_and_not_read_as_none(folders, annotated):
    write_png(folders / "instances" / "ADE_val_00000002.png", 16, annotated[1])
    with pytest.raises(SystemExit, match=r"ADE_val_00000002.jpg: 16 bits per channel"):
        main(arguments_of(folders))


def test_two_images_of_one_name_are_rejected(folders):
    Image.new("RGB", (40, 20)).save(folders / "images" / "ADE_val_00000002.jpeg")
    with pytest.raises(SystemExit, match=r"ADE_val_00000002.jpeg and .*ADE_val_00000002.jpg have the same name"):
        main(arguments_of(folders))


def test_the_size_of_an_image_is_that_after_exif_rotation(folders):
    """The file is rotated by EXIF, as cameras write it; the annotations are of the displayed image."""
    turned, exif = Image.new("RGB", (20, 40)), Image.Exif()
    exif[0x112] = 6
    turned.save(folders / "images" / "ADE_val_00000001.jpg", exif=exif)
    content = convert(*(folders / name for name in ("images", "semantic", "instances", "panoptic")))
    assert [content["images"][0][side] for side in ("width", "height")] == [40, 20]


def test_the_json_is_named_like_the_folder_with_dots(folders):
    for name in ("pan.train", "pan.val"):
        main([*arguments_of(folders)[:-1], str(folders / name)])
        assert (folders / f"{name}.json").is_file() and len(list((folders / name).iterdir())) == 2
    with pytest.raises(SystemExit):
        main([*arguments_of(folders)[:-1], str(folders / "pan.json")])


@pytest.mark.parametrize("taken", ["panoptic", "panoptic.json"])
def test_an_output_of_another_kind_is_rejected_before_anything_is_written(folders, taken):
    (folders / taken).mkdir() if taken.endswith("json") else (folders / taken).write_text("x")
    with pytest.raises(SystemExit, match=f"--output: the output is a .*, but .*{taken} is a"):
        main(arguments_of(folders))


@pytest.mark.skipif(not ADE20K.is_dir(), reason="the three images of ADE20K are not here")
def test_the_stuff_of_three_images_of_ade20k():
    """Without instance files, only their stuff remains."""
    found = []
    for file in sorted((ADE20K / "annotations").iterdir()):
        semantic = np.asarray(Image.open(file))
        _, segments = panoptic_segments(semantic, np.zeros((*semantic.shape, 3), dtype=np.uint8))
        found.append({CATEGORIES.names[s["category_id"]]: s["area"] for s in segments})
    assert found == [
        {"wall": 14538, "building": 123406, "sky": 134492, "tree": 8784, "road, route": 1755, "grass": 53099}
        | {"plant": 10009},
        {"wall": 8309, "building": 49211, "sky": 85997, "tree": 20293, "earth, ground": 341, "plant": 569},
        {"wall": 2901, "building": 9024, "sky": 27749, "tree": 2048, "road, route": 30083, "sidewalk, pavement": 22518}
        | {"escalator, moving staircase, moving stairway": 17664},
    ]
