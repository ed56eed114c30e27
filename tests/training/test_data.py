# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torch.testing import assert_close

from modeling_densevlm import DenseVLMImageProcessor
from modeling_densevlm.image_processing_densevlm import load_image, load_reduced
from modeling_densevlm.region_pooling import grid_boxes
from training.data import (
    RegionCollator,
    RegionDataset,
    content_grid,
    crop_boxes,
    grid_shape,
    resize_and_pad,
    sample_rng,
)
from training.images.sources import Source, open_source


def dataset_of(images, annotations=None, **options) -> RegionDataset:
    return RegionDataset(open_source(Source(images, annotations)), DenseVLMImageProcessor(32), **options)


def test_an_annotation_without_its_image_is_skipped_and_named(folder):
    records = [{"id": 1, "file_name": "gone.jpg"}, {"id": 2, "file_name": "a.png"}]
    (folder / "x.json").write_text(json.dumps({"images": records}))
    dataset = dataset_of(folder, annotations=folder / "x.json")
    batch = RegionCollator(dataset)([dataset[0, 0], dataset[0, 1]])
    assert len(batch["pixel_values"]) == 1
    assert len(batch["skipped"]) == 1 and "gone.jpg: FileNotFoundError" in batch["skipped"][0]


def test_a_grid_covers_the_content_and_not_the_padding():
    rng = sample_rng(0, 0, "x")
    for _ in range(50):
        boxes = content_grid(*grid_shape(rng), (1.0, 427 / 640))
        assert boxes[:, :2].min() == 0
        assert_close(boxes[:, 2:].max(0).values, torch.tensor([1.0, 427 / 640]))


def test_rows_and_columns_take_every_value_up_to_the_largest():
    rng = sample_rng(0, 0, "x")
    shapes = {grid_shape(rng, max_grid=3) for _ in range(200)}
    assert shapes == {(rows, columns) for rows in (1, 2, 3) for columns in (1, 2, 3)}


def test_a_grid_depends_only_on_seed_epoch_and_sample(folder):
    dataset = dataset_of(folder, seed=3)
    first = [dataset[0, i]["boxes"] for i in (0, 1, 2)]
    again = [dataset[0, i]["boxes"] for i in (2, 0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(first, [again[1], again[2], again[0]]))
    grids = {tuple(len(dataset[visit, i]["boxes"]) for i in (0, 1, 2)) for visit in range(8)}
    assert len(grids) > 1


def test_a_teacher_with_another_image_size_gets_its_own_pixels_of_the_same_image(folder):
    dataset = dataset_of(folder, teacher_image_processor=DenseVLMImageProcessor(56))
    batch = RegionCollator(dataset)([dataset[0, 0], dataset[0, 1]])
    assert batch["pixel_values"].shape == (2, 3, 32, 32)
    assert batch["teacher_pixel_values"].shape == (2, 3, 56, 56)
    assert len(batch["boxes"]) == 2


def damaged(folder, name, picture):
    file = folder / name
    if name == "truncated.jpg":
        picture(200, 200).save(file)
        file.write_bytes(file.read_bytes()[:2000])
    elif name == "tiny.png":
        picture(9, 300).save(file)
    elif name == "text.jpg":
        file.write_text("this is no image")
    elif name == "empty.png":
        file.write_bytes(b"")
    else:
        picture(20, 20).save(file)
        file.write_bytes(file.read_bytes()[:60] + b"\0" * 40)
    return file


@pytest.mark.parametrize("name", ["truncated.jpg", "tiny.png", "text.jpg", "empty.png", "broken.png"])
def test_a_damaged_image_is_skipped_and_named(folder, picture, name):
    file = damaged(folder, name, picture)
    dataset = dataset_of(folder)
    sample = dataset[0, list(dataset.index["file"]).index(str(file))]
    assert list(sample) == ["skipped"] and name in sample["skipped"]


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA"])
def test_images_of_other_modes_are_read(tmp_path, picture, mode):
    picture(30, 20, mode).save(tmp_path / ("x.jpg" if mode == "CMYK" else "x.png"))
    assert dataset_of(tmp_path)[0, 0]["pixel_values"].shape == (3, 32, 32)


def test_an_image_with_too_many_pixels_in_its_header_is_skipped(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "DecompressionBombError" in dataset_of(folder)[0, 0]["skipped"]


def test_a_batch_of_damaged_images_becomes_one_blank_without_boxes(folder):
    dataset = dataset_of(folder, teacher_image_processor=DenseVLMImageProcessor(56), crops=2)
    batch = RegionCollator(dataset)([{"skipped": "x: broken"}, {"skipped": "y: broken"}])
    assert batch["skipped"] == ["x: broken", "y: broken"]
    assert batch["pixel_values"].shape == (1, 3, 32, 32) and (batch["pixel_values"] == 0).all()
    assert batch["boxes"][0].shape == (0, 4) and batch["crop_pixel_values"].shape == (0, 3, 56, 56)


def test_crops_show_the_content_of_the_boxes(folder):
    image = Image.new("RGB", (80, 40))
    image.paste((255, 0, 0), (40, 0, 80, 20))
    boxes = grid_boxes(2, 2) * torch.tensor([1.0, 0.5, 1.0, 0.5])
    assert [crop.getpixel((5, 5))[0] for crop in crop_boxes(image, boxes)] == [0, 255, 0, 0]
    assert dataset_of(folder, crops=3, crop_size=24)[0, 0]["crop_pixel_values"].shape[1:] == (3, 24, 24)
    dataset = dataset_of(folder, crops=3)
    sample = dataset[0, 0]
    assert len(sample["crop_pixel_values"]) == len(sample["boxes"]) <= 3


@pytest.mark.parametrize("size", [(80, 40), (300, 200), (33, 90), (32, 32), (10, 500)])
def test_resize_and_pad_matches_the_image_processor(size):
    noise = torch.randint(256, (size[1], size[0], 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image = Image.fromarray(noise.numpy())
    processor = DenseVLMImageProcessor(32)
    pixels = resize_and_pad(image, 32)
    expected = processor(image)["pixel_values"]
    levels = (processor.normalize(pixels[None]) - expected) * torch.tensor(processor.image_std)[:, None, None] * 255
    assert levels.abs().max() < 2.5 and levels.abs().mean() < 0.1
    assert pixels.stride() == (1, 96, 3)  # channels_last, which convolutions prefer


def test_a_large_jpeg_is_decoded_at_a_lower_resolution_and_its_extent_is_exact(tmp_path, picture):
    file = tmp_path / "large.jpg"
    Image.effect_mandelbrot((1024, 683), (-2, -1, 1, 1), 60).convert("RGB").save(file, quality=90)
    reduced, size = load_reduced(file, 96)
    assert reduced.size == (256, 171) and size == (1024, 683)
    whole = load_image(file)
    assert load_reduced(file, 300)[0].size == whole.size  # half the size would be less than twice the side
    difference = resize_and_pad(reduced, 96).float() - resize_and_pad(whole, 96).float()
    assert difference.abs().mean() < 1


def test_a_rotated_large_jpeg_is_displayed_upright(tmp_path):
    image = Image.linear_gradient("L").resize((800, 400)).convert("RGB")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    reduced, size = load_reduced(tmp_path / "turned.jpg", 64)
    assert size == (400, 800) and reduced.size == (100, 200)
    dataset = dataset_of(tmp_path)
    assert dataset[0, 0]["boxes"][:, 2].max() == 0.5 and dataset[0, 0]["boxes"][:, 3].max() == 1


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_grid_of_a_rotated_tiff_covers_its_content(tmp_path, picture, orientation):
    """Pillow rotates TIFFs while decoding them: Pillow#7381."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    picture(80, 40).save(tmp_path / "turned.tif", exif=exif)
    sample = dataset_of(tmp_path)[0, 0]
    extent = [0.5, 1.0] if orientation > 4 else [1.0, 0.5]
    assert sample["boxes"][:, 2:].max(0).values.tolist() == extent
    covered = sample["pixel_values"].amax(0) > 0
    assert bool(covered[:, 16:].any()) == (orientation <= 4) and bool(covered[16:].any()) == (orientation > 4)


def test_an_image_whose_values_are_no_brightness_is_skipped_and_named(tmp_path):
    Image.fromarray(np.linspace(-1, 1, 900, dtype=np.float32).reshape(30, 30)).save(tmp_path / "depth.tif")
    skipped = dataset_of(tmp_path)[0, 0]["skipped"]
    assert "depth.tif: ValueError: float32 values from -1 to 1 are no brightness" in skipped
