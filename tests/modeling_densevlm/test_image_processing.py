# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, features
from torch.testing import assert_close
from transformers import AutoImageProcessor, CLIPImageProcessor
from transformers.utils import is_torchvision_available

from modeling_densevlm import DenseVLMImageProcessor, DenseVLMImageProcessorTorchvision, DenseVLMProcessor
from modeling_densevlm.image_processing_densevlm import BACK_ENDS, content_extent, load_image, load_reduced


@pytest.fixture(params=BACK_ENDS)
def back_end(request):
    """The class of the image processor, with Pillow and with torchvision."""
    if request.param == "torchvision" and not is_torchvision_available():
        pytest.skip("torchvision is not installed")
    return BACK_ENDS[request.param]


def test_the_longest_side_becomes_the_size_and_the_rest_is_black(picture):
    processor = DenseVLMImageProcessor(64, image_mean=[0.0] * 3, image_std=[1.0] * 3)
    batch = processor([picture(100, 50), picture(30, 60)])
    assert batch["pixel_values"].shape == (2, 3, 64, 64)
    assert (batch["pixel_values"][0, :, 32:] == 0).all()
    assert (batch["pixel_values"][1, :, :, 32:] == 0).all()
    assert batch["pixel_values"].max() > 0.5


def test_padding_is_black_before_normalisation(picture):
    processor = DenseVLMImageProcessor(32, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    assert (processor(picture(32, 16))["pixel_values"][0, :, 16:] == -2).all()


def test_the_content_extent_is_the_exact_fraction_not_rounded_pixels(picture):
    assert content_extent(640, 427) == (1.0, 427 / 640)
    batch = DenseVLMImageProcessor(32)([picture(97, 61), picture(61, 97)])
    assert_close(
        batch["content_extent"], torch.tensor([[1, 61 / 97], [61 / 97, 1]], dtype=torch.float64), check_dtype=False
    )


def test_the_size_can_be_given_for_one_call(picture):
    processor = DenseVLMImageProcessor(32)
    assert processor(picture(20, 20), size=48)["pixel_values"].shape[-1] == 48
    assert processor(picture(20, 20))["pixel_values"].shape[-1] == 32


def test_a_path_gives_the_same_as_the_image(picture, tmp_path):
    picture(40, 20).save(tmp_path / "x.png")
    processor = DenseVLMImageProcessor(32)
    expected = processor(picture(40, 20))["pixel_values"]
    assert torch.equal(processor(str(tmp_path / "x.png"))["pixel_values"], expected)


def test_an_array_and_a_tensor_give_the_same_as_the_image(picture):
    image = picture(40, 20)
    array = np.asarray(image)
    expected = DenseVLMImageProcessor(32)(image)["pixel_values"]
    assert torch.equal(DenseVLMImageProcessor(32)(array)["pixel_values"], expected)
    assert torch.equal(
        DenseVLMImageProcessor(32)(torch.from_numpy(array.copy()).permute(2, 0, 1))["pixel_values"], expected
    )


def test_arrays_of_every_supported_type_and_layout_give_the_same_as_the_image(picture):
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


def test_the_error_for_other_objects_than_images_says_what_an_image_is(picture):
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
        ("gone.jpg", "'gone.jpg' is neither a file nor a URL"),
        (Image.new("RGB", (0, 4)), "0 x 4 pixels"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            processor(images)
        assert "\n" not in str(caught.value)


def test_a_size_is_a_whole_number_of_pixels(picture):
    for size in (0, -5, 64.0, float("nan"), "64", True, {"height": 32, "width": 64}, {"longest_edge": 0}, {}):
        with pytest.raises(ValueError, match="`size` is the longest side in pixels, a positive integer"):
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
def test_grey_values_are_scaled_by_their_range_and_not_by_their_type(tmp_path, kind, bits):
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


def test_floats_in_0_to_1_are_grey_values_and_unknown_ranges_are_refused():
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


def test_colours_of_sixteen_bits_are_read_unless_their_upper_eight_bits_are_empty():
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
def test_the_size_of_an_image_is_that_after_exif_rotation_in_every_format(form):
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


def test_every_option_is_obeyed_in_a_call_and_in_the_constructor_and_saved_with_the_folder(
    back_end, picture, tmp_path
):
    image = picture(40, 20)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
    mean, std = (torch.tensor(value)[:, None, None] for value in (back_end(32).image_mean, back_end(32).image_std))

    def content(options, size=(32, 16)):
        """What a call with the options gives without the padding, and a processor that is made and saved with them."""
        made = back_end(32, **options)
        made.save_pretrained(tmp_path)
        loaded = back_end.from_pretrained(tmp_path)
        assert loaded.to_dict() == made.to_dict() and options.items() <= loaded.to_dict().items()
        found = back_end(32)(image, **options)["pixel_values"]
        assert torch.equal(found, made(image)["pixel_values"]) and torch.equal(found, loaded(image)["pixel_values"])
        return found[0, :, : size[1], : size[0]]

    usual = content({})
    scaled = content({"do_normalize": False})
    assert scaled.min() >= 0 and scaled.max() <= 1
    assert_close(usual, (scaled - mean) / std)
    assert_close(content({"do_rescale": False, "do_normalize": False}), scaled * 255)
    assert_close(content({"rescale_factor": 1 / 127.5, "do_normalize": False}), scaled * 2)
    assert_close(content({"image_mean": [0, 0, 0]}), scaled / std)
    assert_close(content({"image_mean": 0.5, "image_std": 0.25} | {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}),
                 (scaled - 0.5) / 0.25)  # fmt: skip
    assert_close(back_end(32)(image, image_mean=0.5, image_std=0.25)["pixel_values"][0, :, :16], (scaled - 0.5) / 0.25)
    assert_close(content({"do_resize": False}, (40, 20)), (pixels / 255 - mean) / std)
    assert back_end(32)(image, do_resize=False)["pixel_values"].shape == (1, 3, 40, 40)
    nearest = content({"resample": 0, "do_normalize": False})
    assert set((nearest * 255).round().flatten().tolist()) <= set(pixels.flatten().tolist())
    assert back_end(32)(image, do_pad=False)["pixel_values"].shape == (1, 3, 16, 32)
    assert isinstance(back_end(32)(image, return_tensors="np")["pixel_values"], np.ndarray)
    assert isinstance(back_end(32)(image, return_tensors=None)["pixel_values"], list)
    grey = back_end(32, image_mean=[0.5], image_std=[0.5], do_convert_rgb=False)(image.convert("L"))["pixel_values"]
    assert grey.shape == (1, 1, 32, 32)


def test_both_back_ends_agree_up_to_two_grey_levels(back_end, picture):
    expected = DenseVLMImageProcessor(32)
    for size in ((97, 61), (20, 12), (300, 200), (10, 500)):
        found, theirs = (processor(picture(*size)) for processor in (back_end(32), expected))
        levels = (
            (found["pixel_values"] - theirs["pixel_values"]) * torch.tensor(expected.image_std)[:, None, None] * 255
        )
        assert levels.abs().max() < 2.5 and levels.abs().mean() < 0.1
        assert torch.equal(found["content_extent"], theirs["content_extent"])


def test_floats_keep_their_values_without_rescaling(back_end):
    values = np.random.default_rng(0).random((20, 40, 3), dtype=np.float32)
    plain = {"do_rescale": False, "do_normalize": False, "do_pad": False}
    exact = back_end(32)(values, do_resize=False, **plain)["pixel_values"][0]
    assert torch.equal(exact, torch.from_numpy(values).permute(2, 0, 1))
    small = back_end(32)(values, **plain)["pixel_values"][0]
    bytes_too = back_end(32)(np.rint(values * 255).astype(np.uint8), **plain)["pixel_values"][0] / 255
    assert (small - bytes_too).abs().mean() < 1 / 255 and values.min() <= small.min() <= small.max() <= values.max()
    ends = back_end(32)((values > 0.5).astype(np.float32), **plain)["pixel_values"]  # not rounded to black and white
    assert len(ends.unique()) > 100
    with pytest.raises(ValueError, match="not finite"):
        back_end(32)(np.where(values > 0.5, np.nan, values), do_rescale=False)


def test_the_error_for_an_unknown_option_names_the_most_similar(back_end, picture, tmp_path):
    back_end(32).save_pretrained(tmp_path)
    for options, message in (
        ({"sizee": 3}, "has no option `sizee`; is `size` meant?"),
        ({"do_normalise": False}, "is `do_normalize` meant?"),
    ):
        for call in (lambda **o: back_end(32)(picture(8, 8), **o), back_end,
                     lambda **o: back_end.from_pretrained(tmp_path, **o)):  # fmt: skip
            with pytest.raises(TypeError, match=message):
                call(**options)
    for options, message in (
        ({"do_center_crop": True}, "not cropped"),
        ({"interpolation": 3}, "there are do_convert_rgb, do_resize, size"),
    ):
        with pytest.raises(TypeError, match=message):
            back_end(32)(picture(8, 8), **options)
    with pytest.raises(TypeError, match="no option `device`: it is an option of the torchvision"):
        DenseVLMImageProcessor(32)(picture(8, 8), device="cpu")


def test_an_invalid_value_of_an_option_is_an_error_on_one_line(back_end, picture):
    for options, message in (
        ({"do_resize": "yes"}, "`do_resize` is True or False"),
        ({"image_mean": "abc"}, "`image_mean` is a number, or one for each channel"),
        ({"image_std": [0.5, 0, 0.5]}, "`image_std` is a number above 0"),
        ({"image_mean": [0.5, 0.5]}, "The image has 3 channels, but `image_mean` has 2"),
        ({"rescale_factor": 0}, "`rescale_factor` is a number above 0"),
        ({"resample": "bicubic"}, r"`resample` is one of Pillow's filters, 0 \(nearest\)"),
        ({"patch_size": 0}, "`patch_size` is the side of a cell"),
        ({"input_data_format": "last"}, '`input_data_format` is "channels_first" or'),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            back_end(32)(picture(8, 8), **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="cannot be batched: have them padded"):
        back_end(32)([picture(8, 8), picture(8, 4)], do_pad=False)
    alone = back_end(32)([picture(8, 8), picture(8, 4)], do_pad=False, return_tensors=None)
    assert [tuple(values.shape) for values in alone["pixel_values"]] == [(3, 32, 32), (3, 16, 32)]


def test_without_resizing_the_canvas_has_the_longest_side_of_the_batch(back_end, picture):
    batch = back_end(32)([picture(40, 20), picture(10, 30)], do_resize=False)
    assert batch["pixel_values"].shape == (2, 3, 40, 40)
    assert_close(batch["content_extent"], torch.tensor([[1, 0.5], [0.25, 0.75]]))
    whole = back_end(32)(picture(40, 20), do_pad=False)
    assert_close(whole["content_extent"], torch.tensor([[1.0, 1.0]]))


def test_auto_image_processor_uses_the_installed_or_requested_back_end(student):
    for options, name in (({}, "torchvision" if is_torchvision_available() else "pil"), ({"backend": "pil"}, "pil")):
        processor = AutoImageProcessor.from_pretrained(student, **options)
        assert type(processor) is BACK_ENDS[name] and processor.backend == name
        assert processor.size == {"longest_edge": 96}


def test_the_torchvision_back_end_has_a_device_option_and_the_pillow_one_does_not(picture, tmp_path, caplog):
    if not is_torchvision_available():
        pytest.skip("torchvision is not installed")
    processor = DenseVLMImageProcessorTorchvision(32, device="cpu")
    expected = DenseVLMImageProcessorTorchvision(32)(picture(40, 20))["pixel_values"]
    assert torch.equal(processor(picture(40, 20))["pixel_values"], expected)
    assert processor(picture(40, 20), device="meta")["pixel_values"].is_meta
    processor.save_pretrained(tmp_path)
    with caplog.at_level("WARNING"):
        assert DenseVLMImageProcessor.from_pretrained(tmp_path).size == {"longest_edge": 32}
    assert "unknown options, ignored: device" in caplog.text


def test_a_folder_saved_with_one_back_end_is_read_with_the_other(back_end, tmp_path):
    back_end(48, image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["image_processor_type"] == "DenseVLMImageProcessor"
    assert saved["auto_map"]["AutoImageProcessor"] == [
        "image_processing_densevlm.DenseVLMImageProcessor",
        "image_processing_densevlm.DenseVLMImageProcessorTorchvision",
    ]
    assert DenseVLMImageProcessor.from_pretrained(tmp_path).image_mean == [0.1, 0.2, 0.3]


WITHOUT_TORCHVISION = """
import sys
hidden, folder = sys.argv[1] == "hidden", sys.argv[2]
sys.modules["modeling_densevlm"] = None  # as if it were not installed
if hidden:
    sys.modules["torchvision"] = None
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor
image = Image.new("RGB", (120, 80), (200, 30, 60))
image_processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
assert image_processor.backend == ("pil" if hidden else "torchvision"), image_processor.backend
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
assert processor.image_processor.backend == "pil"
found = image_processor(image)["pixel_values"] - processor(images=image)["pixel_values"]
assert found.abs().max() < 1e-6
if hidden:
    try:
        AutoImageProcessor.from_pretrained(folder, trust_remote_code=True, backend="torchvision")
    except ImportError as error:
        assert "torchvision" in str(error)
    else:
        raise AssertionError("torchvision's back end without torchvision")
"""


@pytest.mark.parametrize("torchvision", ["hidden", "installed"])
def test_a_saved_folder_chooses_its_back_end_by_what_is_installed(student, torchvision, tmp_path):
    if torchvision == "installed" and not is_torchvision_available():
        pytest.skip("torchvision is not installed")
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WITHOUT_TORCHVISION, torchvision, str(student)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_files_of_older_versions_load_and_unknown_options_of_later_ones_are_named(tmp_path, caplog):
    before = {"image_processor_type": "DenseVLMImageProcessor", "image_mean": [0.1] * 3, "image_std": [0.2] * 3,
              "size": {"longest_edge": 48},
              "auto_map": {"AutoImageProcessor": "image_processing_densevlm.DenseVLMImageProcessor"}}  # fmt: skip
    file = Path(tmp_path / "preprocessor_config.json")
    file.write_text(json.dumps(before))
    processor = DenseVLMImageProcessor.from_pretrained(tmp_path)
    assert (processor.size, processor.image_mean, processor.resample) == ({"longest_edge": 48}, [0.1] * 3, 3)
    file.write_text(json.dumps(before | {"canvas": "content"}))
    with caplog.at_level("WARNING"):
        assert DenseVLMImageProcessor.from_pretrained(tmp_path).size == {"longest_edge": 48}
    assert "unknown options, ignored: canvas" in caplog.text


def test_cropping_and_filter_of_another_models_image_processor_are_ignored(tmp_path, picture):
    file = Path(tmp_path / "preprocessor_config.json")
    clip = {"crop_size": 64, "do_center_crop": True, "do_resize": True, "do_normalize": True, "resample": 2,
            "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"shortest_edge": 64}}  # fmt: skip
    for kind in ({"image_processor_type": "CLIPImageProcessor"}, {"feature_extractor_type": "CLIPFeatureExtractor"},
                 {"image_processor_type": "SiglipImageProcessor", "size": {"height": 64, "width": 64}},
                 {"image_processor_type": "Siglip2ImageProcessor", "max_num_patches": 256, "patch_size": 4,
                  "size": None}):  # fmt: skip
        file.write_text(json.dumps(clip | kind))
        processor = DenseVLMImageProcessor.from_pretrained(tmp_path)
        assert (processor.size, processor.image_mean, processor.resample) == ({"longest_edge": 64}, [0.5] * 3, 3)
        assert processor(picture(80, 40))["pixel_values"].shape == (1, 3, 64, 64)
    file.write_text(json.dumps(clip | {"image_processor_type": "CLIPImageProcessor", "do_normalize": False}))
    assert not DenseVLMImageProcessor.from_pretrained(tmp_path).do_normalize


def test_the_patch_size_is_that_of_the_model_in_the_folder(folder_of, tower, tmp_path, make_tower):
    processor = DenseVLMImageProcessor.from_pretrained(folder_of(tower, 0))
    assert processor.patch_size == make_tower(tower).vision_model.stride
    processor.save_pretrained(tmp_path)  # and without the model
    assert DenseVLMImageProcessor.from_pretrained(tmp_path).patch_size == processor.patch_size
    assert DenseVLMImageProcessor.from_pretrained(folder_of(tower, 0), patch_size=7).patch_size == 7
    assert DenseVLMImageProcessor(32).patch_size is None


def test_normalize_gives_the_same_as_the_whole_processor(back_end, picture):
    pixels = torch.from_numpy(np.array(picture(16, 16))).permute(2, 0, 1)[None]
    for options in ({}, {"do_normalize": False}, {"do_rescale": False}, {"image_mean": [0, 0, 0]}):
        processor = back_end(16, **options)
        assert torch.equal(processor.normalize(pixels), processor(picture(16, 16))["pixel_values"])
    assert_close(back_end(16).normalize(torch.full((1, 3, 2, 2), 0.5), 0.25, 0.5), torch.full((1, 3, 2, 2), 0.5))
