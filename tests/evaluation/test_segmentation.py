# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Training-free semantic segmentation: pixel labels, layouts of the PNGs, and metrics."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_transforms import rgb_to_id

from evaluation.confusion import Confusion, count_pairs, segmentation_metrics
from evaluation.datasets.semantic_maps import LAYOUTS, SemanticMaps, ValueLayout, collate_pixels
from evaluation.evaluate_segmentation import main
from modeling_densevlm import CategorySet, DenseVLMImageProcessor
from modeling_densevlm.canvas import label_pixels
from tests.conftest import command_line
from tests.evaluation.pngs import write_png


ADE20K = Path(__file__).parents[3] / "shared" / "data" / "ade20k_sample"


def test_metrics_by_hand_with_absent_categories():
    """Of four categories the third is absent and predicted once, the fourth is neither present nor predicted."""
    counts = np.array([[3, 1, 0, 0], [1, 4, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    metrics = segmentation_metrics(counts)
    assert metrics["miou"] == pytest.approx((3 / 5 + 4 / 7) / 2)
    assert metrics["miou_present_or_predicted"] == pytest.approx((3 / 5 + 4 / 7 + 0) / 3)
    assert metrics["mean_accuracy"] == pytest.approx((3 / 4 + 4 / 6) / 2)
    assert metrics["pixel_accuracy"] == pytest.approx(7 / 10)
    assert (metrics["categories_present"], metrics["categories_present_or_predicted"]) == (2, 3)
    with pytest.raises(ValueError, match="No pixel is annotated"):
        segmentation_metrics(np.zeros((2, 2), dtype=np.int64))


def test_pixels_are_counted_by_label_and_prediction_without_ignored_ones():
    labels, predictions = np.array([[0, 1], [1, -1]]), np.array([[0, 0], [1, 1]])
    assert count_pairs(labels, predictions, 3).tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]


def test_every_pixel_gets_the_best_category_of_the_interpolated_map():
    cosines = torch.randn(40, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = label_pixels(cosines, (20, 32))
    large = torch.nn.functional.interpolate(cosines[None], size=(32, 32), mode="bilinear", align_corners=False)
    assert torch.equal(labels, large[0].argmax(0)[:20])


def test_the_background_is_where_no_other_category_is_confident():
    cosines = torch.zeros(3, 1, 2)
    cosines[0] = 9.0  # its own cosine is not used
    cosines[1, 0, 0], cosines[2, 0, 0] = 0.05, 0.0  # 0.993 against 0.007
    cosines[1, 0, 1], cosines[2, 0, 1] = 0.001, 0.0  # 0.525 against 0.475
    square = cosines.repeat_interleave(2, dim=1)
    assert label_pixels(square, (2, 2), background=0, threshold=0.9).tolist() == [[1, 0], [1, 0]]
    assert label_pixels(square, (2, 2), background=0, threshold=0.5).tolist() == [[1, 1], [1, 1]]


@pytest.fixture
def folders(tmp_path):
    """Two annotated images; categories with ids 3 and 7."""
    for name, size in (("a", (40, 30)), ("sub/b", (20, 50))):
        for folder, suffix in (("images", "jpg"), ("labels", "png")):
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            values = np.full(size[::-1], 3, dtype=np.uint8)
            values[:, :10], values[:5] = 7, 255
            image = Image.fromarray(values) if suffix == "png" else Image.new("RGB", size, (90, 120, 30))
            image.save(tmp_path / folder / f"{name}.{suffix}")
    return tmp_path


CATEGORIES = CategorySet("two", ["kite", "sky"], [True, False], [3, 7])


def pngs_of(folders, **options):
    return SemanticMaps(folders / "images", folders / "labels", CATEGORIES, DenseVLMImageProcessor(32), **options)


def test_values_become_category_indices(folders):
    dataset = pngs_of(folders)
    assert len(dataset) == 2
    labels = dataset[0]["labels"]
    assert labels.shape == (30, 40)
    assert (labels[:5] == -1).all() and (labels[5:, :10] == 1).all() and (labels[5:, 10:] == 0).all()


def test_layouts_move_the_values(folders):
    file = folders / "labels" / "a.png"
    for layout, values in (("ade20k", (4, 8, 0)), ("coco_stuff", (2, 6, 255)), (ValueLayout(2, (9,)), (1, 5, 9))):
        Image.fromarray(np.array([values] * 30, dtype=np.uint8).repeat(14, 1)[:, :40]).save(file)
        assert set(pngs_of(folders, layout=layout)[0]["labels"].flat) == {0, 1, -1}


def test_a_value_of_no_category_is_named_with_the_file_and_the_remedy(folders):
    refused = pngs_of(folders, layout="ade20k")[0]["refused"]
    assert re.search(r"a\.png: values \[3, 7\] are of no category of two .* another `--layout`", refused)


def no_image(folders):
    (folders / "images" / "a.jpg").unlink()


def broken_image(folders):
    (folders / "images" / "a.jpg").write_bytes(b"no image")


def broken_png(folders):
    (folders / "labels" / "a.png").write_bytes(b"no png")


def other_size(folders):
    Image.new("L", (40, 31), 3).save(folders / "labels" / "a.png")


def in_colour(folders):
    Image.new("RGB", (40, 30)).save(folders / "labels" / "a.png")


@pytest.mark.parametrize("spoil", [no_image, broken_image, broken_png, other_size, in_colour])
def test_an_image_that_cannot_be_evaluated_is_skipped_and_named(folders, spoil):
    spoil(folders)
    dataset = pngs_of(folders)
    batch = collate_pixels([dataset[0], dataset[1]])
    (message,) = batch["skipped"]
    assert "a.png" in message and len(batch["labels"]) == 1


def test_missing_folders_and_files_are_named(folders, tmp_path):
    with pytest.raises(FileNotFoundError, match="`annotations`: .* is not a folder"):
        SemanticMaps(folders / "images", folders / "gone", CATEGORIES, DenseVLMImageProcessor(32))
    with pytest.raises(ValueError, match="holds no PNG"):
        SemanticMaps(folders / "images", folders / "images", CATEGORIES, DenseVLMImageProcessor(32))


MANY = CategorySet("many", [f"category {number}" for number in range(300)])


def values_of(folders, values, categories=MANY, **options):
    """The labels of an image whose PNG has these values, one column each."""
    file = folders / "labels" / "a.png"
    Image.fromarray(np.repeat(np.array(values)[None], 30, 0).repeat(40 // len(values), 1)).save(file)
    dataset = SemanticMaps(folders / "images", folders / "labels", categories, DenseVLMImageProcessor(32), **options)
    sample = dataset[0]
    return sample.get("refused") or sample["labels"][0, :: 40 // len(values)].tolist()


def test_more_than_255_categories_are_evaluated_and_65535_is_ignored(folders, caplog):
    """255 is a category of such sets (the full ADE20K has 847): mmsegmentation#2493."""
    assert values_of(folders, np.array([0, 254, 255, 256, 65535], np.uint16)) == [0, 254, 255, 256, -1]
    assert "The value 255 is the category 'category 255' of many, and counts as that" in caplog.text
    assert "values [300] are of no category of many" in values_of(folders, np.array([0, 300], np.uint16))
    sparse = CategorySet("sparse", ["kite", "sky"], ids=[3, 300])  # 255 is neither a category nor the last value
    assert "values [255] are of no category of sparse" in values_of(folders, np.array([3, 255], np.uint16), sparse)


def test_few_categories_in_16_bits_ignore_255_as_in_8(folders):
    for depth in (np.uint8, np.uint16):
        assert values_of(folders, np.array([3, 7, 255, 3], depth), CATEGORIES) == [0, 1, -1, 0]
    assert values_of(folders, np.array([3, 65535], np.uint16), CATEGORIES) == [0, -1]


def test_the_ignored_values_can_be_given(folders, caplog):
    values = np.array([0, 9, 255, 256], np.uint16)
    ten = CategorySet("ten", MANY.names[:10])
    assert values_of(folders, values, ignored=[9, 255]) == [0, -1, -1, 256]
    assert "category 9' of many, and is ignored by this layout" in caplog.text
    assert "values [255, 256] are of no category" in values_of(folders, values, ten, ignored=[])


def test_a_category_that_no_png_can_represent_is_rejected(folders):
    for options, ids in (({}, [3, 70000]), ({"layout": "coco_stuff"}, [0, 7])):
        with pytest.raises(ValueError, match=f"'{'sky' if ids[1] > 7 else 'kite'}' of two would be the value"):
            values_of(folders, np.array([3], np.uint8), CategorySet("two", ["kite", "sky"], ids=ids), **options)


def test_values_are_read_for_every_bit_depth_and_mode(folders):
    values = np.zeros((30, 40), np.uint8)
    values[:, 20:] = 1
    file, ten = folders / "labels" / "a.png", CategorySet("ten", MANY.names[:10])

    def labels():
        return SemanticMaps(folders / "images", folders / "labels", ten, DenseVLMImageProcessor(32), ignored=[])[0][
            "labels"
        ]

    for bits in (1, 2, 4):
        values[:, 30:] = 2**bits - 1 if bits < 4 else 9
        write_png(file, bits, values)
        assert (labels() == values).all(), bits
    palette = Image.fromarray(values)
    palette.putpalette([9, 8, 7] * 10)
    palette.save(file)
    assert (labels() == values).all()
    Image.merge("LA", [Image.fromarray(values), Image.new("L", (40, 30), 255)]).save(file)
    assert (labels() == values).all()
    write_png(file, 16, np.stack([values, np.full_like(values, 255)], axis=2))  # Pillow would read 0 everywhere
    assert "16 bits per channel (LA;16B)" in pngs_of(folders)[0]["skipped"]
    file.unlink()
    for depth in (np.uint8, np.uint16, np.int32):
        Image.fromarray(values.astype(depth)).save(file.with_suffix(".tif"))
        assert (labels() == values).all(), depth
    for odd in (-1, 70000):  # what 32 bits can hold and no category is
        Image.fromarray(np.full((30, 40), odd, np.int32)).save(file.with_suffix(".tif"))
        assert f"values [{odd}] are of no category" in pngs_of(folders)[0]["refused"]
        assert (pngs_of(folders, ignored=[odd])[0]["labels"] == -1).all()
    Image.fromarray(values.astype(np.float32)).save(file.with_suffix(".tif"))
    assert "a.tif" in pngs_of(folders)[0]["skipped"] and "mode F" in pngs_of(folders)[0]["skipped"]


def test_two_annotations_of_one_name_are_rejected(folders):
    shutil.copy(folders / "labels" / "a.png", folders / "labels" / "a.PNG")
    with pytest.raises(ValueError, match=r"`annotations`: .*a\.(PNG|png) and .*a\.(png|PNG) have the same name"):
        pngs_of(folders)


def test_images_are_found_by_every_suffix_with_dots_in_their_names_and_behind_links(folders):
    kinds = {"b.v1.JPG": "JPEG", "b.v2.jfif": "JPEG", "c.BMP": "BMP", "d.tif": "TIFF", "e.ppm": "PPM"}
    for folder in ("store", "more"):
        (folders / folder).mkdir()
    for name, kind in kinds.items():
        Image.new("RGB", (40, 30)).save(folders / "store" / name, kind)
        shutil.copy(folders / "labels" / "a.png", folders / "more" / f"{Path(name).stem}.png")
    (folders / "images" / "sub" / "linked").symlink_to(folders / "store")
    (folders / "labels" / "sub" / "linked").symlink_to(folders / "more")
    dataset = pngs_of(folders)
    assert len(dataset) == 2 + len(kinds) and all("labels" in dataset[index] for index in range(len(dataset)))


def test_system_files_are_skipped_and_counted(folders, caplog):
    for folder, suffix in (("images", "jpg"), ("labels", "png")):
        (folders / folder / f"._a.{suffix}").write_bytes(b"\0\5")
        (folders / folder / f"folder.{suffix}").mkdir()
        (folders / folder / "notes.txt").write_text("x")
        for litter in (".ipynb_checkpoints", "@eaDir", "__MACOSX"):
            (folders / folder / litter).mkdir()
            shutil.copy(folders / folder / f"a.{suffix}", folders / folder / litter)
    dataset = pngs_of(folders)
    assert len(dataset) == len(dataset.image_of) == 2
    for folder, suffix in (("images", "jpg"), ("labels", "png")):
        message = (
            f"{folders / folder}: passed over 4 hidden or of a system (e.g. ._a.{suffix}), 1 .txt (e.g. notes.txt)."
        )
        assert message in caplog.text


def test_cyclic_links_end_and_broken_links_are_reported(folders, caplog):
    (folders / "labels" / "sub" / "back").symlink_to(folders / "labels")
    (folders / "labels" / "gone.png").symlink_to(folders / "nowhere.png")
    dataset = pngs_of(folders)
    assert len(dataset) == 3 and "1 links to a folder above (e.g. sub/back)" in caplog.text
    Image.new("RGB", (40, 30)).save(folders / "images" / "gone.jpg")
    assert "gone.png" in pngs_of(folders)[1]["skipped"]


@pytest.fixture
def command(student, scenes, tmp_path):
    """The scenes' test split as images and PNGs of indices; keyword arguments override the options."""
    split = scenes / "test"
    content = json.loads((split / "panoptic.json").read_text())
    (tmp_path / "labels").mkdir()
    for record in content["annotations"]:
        ids = rgb_to_id(np.array(Image.open(split / "panoptic" / record["file_name"]).convert("RGB")))
        values = np.full(ids.shape, 255, dtype=np.uint8)
        for segment_info in record["segments_info"]:
            values[ids == segment_info["id"]] = segment_info["category_id"]
        Image.fromarray(values).save(tmp_path / "labels" / record["file_name"])

    def arguments(output="m.json", **options):
        values = {"model": student} if "models" not in options else {}
        values |= {"images": split / "images", "annotations": tmp_path / "labels"}
        values |= {"categories": scenes / "categories.json", "templates": "short", "output": tmp_path / output}
        values |= {"num_workers": 0, "device": "cpu"} | options
        return command_line(values)

    return arguments


def test_two_processes_count_every_pixel_once_as_one_process_does(command, tmp_path, run_module):
    found = []
    for ranks in (1, 2):
        run_module("evaluation.evaluate_segmentation", command(f"{ranks}.json", shard_size=3), ranks=ranks)
        (file,) = (tmp_path / str(ranks)).iterdir()
        found.append((Confusion.load(file), (tmp_path / f"{ranks}.json").read_text()))
    assert found[0][0].counts.tolist() == found[1][0].counts.tolist() and found[0][1] == found[1][1]
    pixels = sum((np.array(Image.open(file)) < 255).sum() for file in (tmp_path / "labels").iterdir())
    assert found[0][0].counts.sum() == pixels and found[0][0].images == 10


def test_models_and_sizes_are_compared(command, student, teacher, tmp_path):
    rows = main(command(models=[student, teacher], image_size=[64, 96], window=64, stride=32))
    assert len(rows) == 4 and all(0 <= row["miou_present_or_predicted"] <= row["miou"] <= 1 for row in rows)
    assert "mIoU" in (tmp_path / "m.md").read_text()


def test_values_of_no_category_end_the_program_with_a_message_and_no_traceback(command, scenes, tmp_path):
    whole = CategorySet.load(scenes / "categories.json")
    CategorySet("two", whole.names[:2], whole.is_thing[:2], whole.ids[:2]).save(tmp_path / "two.json")
    with pytest.raises(SystemExit, match="are of no category of two") as ended:
        main(command(categories=tmp_path / "two.json", num_workers=1))
    assert "Traceback" not in str(ended.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 24}, "--stride needs --window"),
        ({"window": 200}, "at most the image's 96 pixels"),
        ({"window": 48, "stride": 0}, "--stride at most the window"),
    ],
)
def test_invalid_window_options_are_rejected(command, options, message):
    with pytest.raises(SystemExit, match=message):
        main(command(**options))


def test_images_without_a_png_are_skipped_with_a_warning(command, tmp_path, caplog):
    (tmp_path / "labels" / "000003.png").unlink()
    assert main(command())[0]["images"] == 9
    assert "1 images have no PNG and are left out, e.g. 000003." in caplog.text


def test_results_with_and_without_background_are_not_mixed(command):
    main(command(background="sky", background_threshold=1.1))
    with pytest.raises(SystemExit, match="evaluation with another background"):
        main(command())


def test_two_images_of_one_name_are_rejected_and_annotations_are_not_images(scenes, tmp_path):
    categories = CategorySet.load(scenes / "categories.json")
    for name in ("a.png", "b.png"):
        Image.new("L", (8, 8)).save(tmp_path / name)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    dataset = SemanticMaps(tmp_path, tmp_path, categories, DenseVLMImageProcessor(96))
    assert dataset.image_of == {"a": tmp_path / "a.jpg"}
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpeg")
    with pytest.raises(ValueError, match=r"a.jpeg and .*a.jpg have the same name"):
        SemanticMaps(tmp_path, tmp_path, categories, DenseVLMImageProcessor(96))


def test_the_background_of_the_command_line_is_a_category(command):
    with pytest.raises(SystemExit, match="has no category 'background'"):
        main(command(background="background"))
    row = main(command(background="sky", background_threshold=1.1))[0]
    assert row["categories_present"] > 1 and row["pixel_accuracy"] < 0.5  # everything is predicted as sky


def test_ignored_values_of_the_command_line_make_another_evaluation(command, tmp_path):
    def strike_out(value):
        for file in (tmp_path / "labels").iterdir():
            values = np.array(Image.open(file))
            values[:9] = value
            Image.fromarray(values).save(file)

    strike_out(255)
    row = main(command())[0]
    with pytest.raises(SystemExit, match="evaluation with another ignored"):
        main(command(ignored=[255]))
    strike_out(254)
    with pytest.raises(SystemExit, match=r"values \[254\] are of no category .*`--ignored`"):
        main(command("other.json"))
    assert main(command("given.json", ignored=[254]))[0]["miou"] == row["miou"]


def test_an_evaluation_without_any_readable_image_fails(command, tmp_path):
    shutil.copytree(tmp_path / "labels", tmp_path / "images")
    for file in (tmp_path / "images").iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(SystemExit, match="None of the 10 images could be evaluated"):
        main(command(images=tmp_path / "images"))


@pytest.mark.skipif(not ADE20K.is_dir(), reason="the three images of ADE20K are not here")
def test_three_images_of_ade20k_have_the_stuff_and_things_that_they_show():
    categories = CategorySet.load("ade20k_panoptic_150")
    dataset = SemanticMaps(
        ADE20K / "images", ADE20K / "annotations", categories, DenseVLMImageProcessor(64), LAYOUTS["ade20k"]
    )
    pixels = [
        {"wall": 14538, "building": 123406, "sky": 134492, "tree": 8784, "road, route": 1755, "grass": 53099}
        | {"plant": 10009, None: 3613},
        {
            "wall": 8309,
            "building": 49211,
            "sky": 85997,
            "tree": 20293,
            "earth, ground": 341,
            "plant": 569,
            None: 17280,
        },
        {"wall": 2901, "building": 9024, "sky": 27749, "tree": 2048, "road, route": 30083, "sidewalk, pavement": 22518}
        | {"car": 2330, "signboard, sign": 153, "bus": 1681, "street lamp": 202, "van": 1616, None: 2031}
        | {"escalator, moving staircase, moving stairway": 17664},
    ]
    for index, expected in enumerate(pixels):
        labels, counts = np.unique(dataset[index]["labels"], return_counts=True)
        names = [None if label < 0 else categories.names[label] for label in labels]
        assert dict(zip(names, counts.tolist())) == expected


@pytest.mark.skipif(not ADE20K.is_dir(), reason="the three images of ADE20K are not here")
def test_a_map_of_the_annotation_itself_has_the_miou_that_its_resolution_allows():
    """The share of each category in each cell of a fine map, in place of cosines: nearly all pixels come back."""
    categories = CategorySet.load("ade20k_panoptic_150")
    dataset = SemanticMaps(
        ADE20K / "images", ADE20K / "annotations", categories, DenseVLMImageProcessor(64), LAYOUTS["ade20k"]
    )
    counts = 0
    for index in range(3):
        labels = torch.from_numpy(dataset[index]["labels"])
        side = max(labels.shape)
        square = torch.full((side, side), -1)
        square[: labels.shape[0], : labels.shape[1]] = labels
        one_hot = torch.nn.functional.one_hot(square.clamp(min=0), 150).permute(2, 0, 1).float() * (square >= 0)
        cosines = torch.nn.functional.adaptive_avg_pool2d(one_hot, 128)
        counts = counts + count_pairs(labels.numpy(), label_pixels(cosines, tuple(labels.shape)).numpy(), 150)
    metrics = segmentation_metrics(counts)
    assert metrics["categories_present"] == 15
    assert 0.8 < metrics["miou"] < 1 and 0.95 < metrics["pixel_accuracy"] < 1
