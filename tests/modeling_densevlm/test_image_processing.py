import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, features
from torch.testing import assert_close
from transformers import CLIPImageProcessor

from modeling_densevlm import DenseVLMImageProcessor, DenseVLMProcessor
from modeling_densevlm.image_processing_densevlm import content_extent, load_image, load_reduced


def test_the_longest_side_becomes_the_size_and_the_rest_is_black(picture):
    processor = DenseVLMImageProcessor(64, image_mean=[0.0] * 3, image_std=[1.0] * 3)
    batch = processor([picture(100, 50), picture(30, 60)])
    assert batch["pixel_values"].shape == (2, 3, 64, 64)
    assert (batch["pixel_values"][0, :, 32:] == 0).all()
    assert (batch["pixel_values"][1, :, :, 32:] == 0).all()
    assert batch["pixel_values"].max() > 0.5


def test_black_is_padded_before_normalising(picture):
    processor = DenseVLMImageProcessor(32, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    assert (processor(picture(32, 16))["pixel_values"][0, :, 16:] == -2).all()


def test_the_content_extent_is_the_exact_fraction_not_rounded_pixels(picture):
    assert content_extent(640, 427) == (1.0, 427 / 640)
    batch = DenseVLMImageProcessor(32)([picture(97, 61), picture(61, 97)])
    assert_close(
        batch["content_extent"], torch.tensor([[1, 61 / 97], [61 / 97, 1]], dtype=torch.float64), check_dtype=False
    )


def test_another_size_can_be_asked_for_once(picture):
    processor = DenseVLMImageProcessor(32)
    assert processor(picture(20, 20), size=48)["pixel_values"].shape[-1] == 48
    assert processor(picture(20, 20))["pixel_values"].shape[-1] == 32


def test_a_path_gives_what_the_image_gives(picture, tmp_path):
    picture(40, 20).save(tmp_path / "x.png")
    processor = DenseVLMImageProcessor(32)
    expected = processor(picture(40, 20))["pixel_values"]
    assert torch.equal(processor(str(tmp_path / "x.png"))["pixel_values"], expected)


def test_an_array_and_a_tensor_give_what_the_image_gives(picture):
    image = picture(40, 20)
    array = np.asarray(image)
    expected = DenseVLMImageProcessor(32)(image)["pixel_values"]
    assert torch.equal(DenseVLMImageProcessor(32)(array)["pixel_values"], expected)
    assert torch.equal(
        DenseVLMImageProcessor(32)(torch.from_numpy(array.copy()).permute(2, 0, 1))["pixel_values"], expected
    )


def test_arrays_whose_values_and_channels_are_plain_give_what_the_image_gives(picture):
    processor, pixels = DenseVLMImageProcessor(32), np.asarray(picture(40, 20))
    expected = processor(pixels)["pixel_values"]
    others = {
        "floats 0..1": pixels / 255.0,
        "floats 0..255": pixels.astype(np.float32),
        "64-bit integers": pixels.astype(np.int64),
        "bfloat16": torch.from_numpy(pixels / 255.0).bfloat16(),
        "RGBA": np.dstack([pixels, pixels[..., :1]]),
        "RGBA, channels first": np.dstack([pixels, pixels[..., :1]]).transpose(2, 0, 1),
        "a batch": pixels[None],
    }
    for name, array in others.items():
        assert (processor(array)["pixel_values"] - expected).abs().max() < (0.05 if name == "bfloat16" else 1e-6), name
    grey = pixels[..., 0]
    expected = processor(Image.fromarray(grey))["pixel_values"]
    for array in (grey, grey[None], grey[..., None], grey.astype(np.uint16) * 257):
        assert torch.equal(processor(array)["pixel_values"], expected)
    wide = pixels[:3]  # three rows, or three channels
    with pytest.raises(ValueError, match="`input_data_format`"):
        processor(wide)
    assert processor(wide, input_data_format="channels_last")["content_extent"][0, 1] == np.float32(3 / 40)


def test_what_is_no_image_is_refused_in_one_line_that_says_what_is(picture):
    processor, pixels = DenseVLMImageProcessor(32), np.asarray(picture(40, 20))
    for images, message in (
        ((pixels / 255.0 - 0.5) / 0.2, "values from .* are no brightness"),
        (np.full((20, 40), np.nan), "no brightness"),
        (np.arange(800).reshape(20, 40) % 5, "no brightness"),  # labels
        (np.zeros((20, 40, 5), np.uint8), r"with 1, 3 or 4 channels; got \(20, 40, 5\)"),
        (pixels[:0], "got"),
        (7, "got int"),
        (None, "got NoneType"),
        ([], "empty list"),
        ("gone.jpg", "'gone.jpg' is no file, no address"),
        (Image.new("RGB", (0, 4)), "0 x 4 pixels"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            processor(images)
        assert "\n" not in str(caught.value)


def test_a_size_is_a_whole_number_of_pixels(picture):
    for size in (0, -5, 64.0, float("nan"), "64", True, {"height": 32, "width": 64}, {"longest_edge": 0}, {}):
        with pytest.raises(ValueError, match="`size` is the longest side in pixels, a whole number from 1 on"):
            DenseVLMImageProcessor(size)
        with pytest.raises(ValueError, match="`size` is the longest side"):
            DenseVLMImageProcessor(32)(picture(20, 20), size=size)


def test_save_and_load_keep_everything(tmp_path, picture, tokenizer):
    processor = DenseVLMProcessor(DenseVLMImageProcessor(48, image_mean=[0.1, 0.2, 0.3]), tokenizer)
    processor.save_pretrained(tmp_path)
    loaded = DenseVLMProcessor.from_pretrained(tmp_path)
    image = picture(50, 40)
    assert torch.equal(loaded(images=image)["pixel_values"], processor(images=image)["pixel_values"])
    assert loaded.tokenizer("a kite").input_ids == tokenizer("a kite").input_ids


def test_the_processor_of_a_clip_folder_keeps_its_mean_std_and_size(clip_folder, picture):
    clip = CLIPImageProcessor.from_pretrained(clip_folder)
    ours = DenseVLMProcessor.from_pretrained(clip_folder).image_processor
    assert ours.size == {"longest_edge": 96}
    assert ours.image_mean == list(clip.image_mean) and ours.image_std == list(clip.image_std)
    # On a square image both processors do the same but for the resampling's rounding.
    image = picture(96, 96)
    assert_close(ours(image)["pixel_values"], clip(image, return_tensors="pt")["pixel_values"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "1", "LA"])
def test_images_of_every_mode_become_rgb(tmp_path, picture, mode):
    file = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    picture(20, 12, mode).save(file)
    image = load_image(file)
    assert image.mode == "RGB" and image.size == (20, 12)


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "LAB", "RGBX", "RGBa", "La", "PA"])
def test_images_of_rarer_modes_become_rgb(picture, mode):
    ways = {"RGBa": ["RGBA"], "La": ["LA"], "PA": ["P"]}
    image = picture(20, 12)
    for step in [*ways.get(mode, ()), mode]:
        if step == "LAB":
            profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
            image = ImageCms.profileToProfile(image, *profiles, outputMode="LAB")
        else:
            image = image.convert(step)
    seen = np.asarray(load_image(image), dtype=int)
    assert seen.shape == (12, 20, 3) and abs(seen - np.asarray(picture(20, 12), dtype=int)).mean() < 70


def test_sixteen_bit_images_keep_their_brightness(tmp_path):
    Image.fromarray(np.full((12, 20), 0x8000, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert np.asarray(load_image(tmp_path / "deep.png")).mean() == 128


RAMP = np.tile(np.linspace(0, 1, 120), (12, 1))


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["uint16 png", "uint16 tif", ">u2 tif", "int32 tif", "float32 tif", "int32 pillow"])
def test_grey_values_are_scaled_by_what_they_are_and_not_by_the_type_that_holds_them(tmp_path, kind, bits):
    dtype, form = kind.split()
    image = Image.fromarray((RAMP * (2**bits - 1)).astype(dtype))
    if form != "pillow":
        image.save(tmp_path / f"deep.{form}")
    grey = np.asarray(load_image(image if form == "pillow" else tmp_path / f"deep.{form}"))[..., 0]
    assert abs(grey - RAMP * 255).max() <= 1
    if form != "pillow":  # a path that is given to the processor is read no other way
        processor = DenseVLMImageProcessor(120, image_mean=[0.0] * 3, image_std=[1.0] * 3)
        seen = processor(str(tmp_path / f"deep.{form}"))["pixel_values"][0, 0, :12]
        assert abs(seen.numpy() - RAMP).max() < 2 / 255


def test_floats_of_0_to_1_are_grey_values_and_what_has_no_known_range_is_refused():
    assert abs(np.asarray(load_image(Image.fromarray(RAMP.astype(np.float32))))[..., 0] - RAMP * 255).max() <= 1
    for values in (RAMP * 2 - 1, RAMP * 3.7, RAMP * 1e-3, RAMP * 1e6, np.where(RAMP > 0.5, np.nan, RAMP)):
        with pytest.raises(ValueError, match="float32 values from .* are no brightness of a known range"):
            load_image(Image.fromarray(values.astype(np.float32)))
    for values in (RAMP * 1e5, RAMP * 5, RAMP * 4000 - 1000):
        with pytest.raises(ValueError, match="int32 values from .* are no brightness"):
            load_image(Image.fromarray(values.astype(np.int32)))


def colour_png(pixels: np.ndarray) -> io.BytesIO:
    """A PNG of 16 bits a channel, which Pillow reads and does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width, _ = pixels.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + parts)


def test_colours_of_sixteen_bits_are_read_and_refused_where_the_upper_eight_hold_nothing():
    pixels = np.repeat(RAMP[..., None] * 65535, 3, axis=-1)
    assert abs(np.asarray(load_image(colour_png(pixels)))[..., 0] - RAMP * 255).max() <= 1
    for bits in (8, 12):
        with pytest.raises(ValueError, match="colours of 16 bits, none of which is above a sixteenth"):
            load_image(colour_png(pixels / 2 ** (16 - bits)))


def test_exif_rotation_is_applied(tmp_path, picture):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    picture(20, 12).save(tmp_path / "turned.jpg", exif=exif)
    assert load_image(tmp_path / "turned.jpg").size == (12, 20)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "MPO", "AVIF"])
def test_the_size_of_an_image_is_that_after_turning_in_every_format(form):
    if form == "AVIF" and not features.check("avif"):
        pytest.skip("Pillow was built without AVIF")
    upright = Image.fromarray((np.mgrid[:60, :120][1] * 2).astype(np.uint8)).convert("RGB")
    for orientation in range(1, 9):
        exif, file = Image.Exif(), io.BytesIO()
        exif[0x0112] = orientation
        upright.save(file, form, exif=exif)
        for side in (512, 8):  # of a JPEG, 8 pixels need an eighth
            file.seek(0)
            image, size = load_reduced(file, side)
            assert size == ((60, 120) if orientation > 4 else (120, 60)), (orientation, side)
            assert (image.width < image.height) == (orientation > 4)
        file.seek(0)
        assert load_image(file).size == size


def test_a_truncated_file_is_an_error(tmp_path, picture):
    picture(200, 120).save(tmp_path / "whole.jpg")
    content = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(OSError, match="truncated"):
        load_image(tmp_path / "half.jpg")
