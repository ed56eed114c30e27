import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from transformers import CLIPImageProcessor

from modeling_densevlm import DenseVLMImageProcessor, DenseVLMProcessor
from modeling_densevlm.image_processing_densevlm import content_extent, load_image


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
    with pytest.raises(ValueError, match="uint8"):
        DenseVLMImageProcessor(32)(array / 255.0)


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


def test_sixteen_bit_images_keep_their_brightness(tmp_path):
    Image.fromarray(np.full((12, 20), 0x8000, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert np.asarray(load_image(tmp_path / "deep.png")).mean() == 128


def test_exif_rotation_is_applied(tmp_path, picture):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    picture(20, 12).save(tmp_path / "turned.jpg", exif=exif)
    assert load_image(tmp_path / "turned.jpg").size == (12, 20)


def test_a_truncated_file_is_an_error(tmp_path, picture):
    picture(200, 120).save(tmp_path / "whole.jpg")
    content = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(OSError, match="truncated"):
        load_image(tmp_path / "half.jpg")
