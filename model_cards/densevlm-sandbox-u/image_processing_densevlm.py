"""From an image file to `pixel_values`: longest side to `size`, padded right and below to a square."""

from os import PathLike
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, ImageInput, make_flat_list_of_images


def load_image(file: str | PathLike | BinaryIO | Image.Image) -> Image.Image:
    """
    An image as its author saw it: fully decoded, EXIF rotation applied, in RGB (grayscale, palette, 16-bit, CMYK and
    transparent images are converted).

    Raises:
        `OSError` where the file is missing, truncated or no image, and Pillow's `DecompressionBombError` where it
        claims more pixels than Pillow admits.
    """
    return _as_seen(file if isinstance(file, Image.Image) else Image.open(file))


def load_reduced(file: str | PathLike | BinaryIO, side: int) -> tuple[Image.Image, tuple[int, int]]:
    """
    [`load_image`] for a use at `side` pixels: a JPEG whose longest side is four times as long or more is decoded at a
    half, a quarter or an eighth of its size, but never below twice `side`, so that the resized image hardly differs
    (by half a grey level on average) and costs half the time.

    Returns:
        The image, and the width and height it has in the file (as its author saw it), from which
        [`content_extent`] is exact.
    """
    image = Image.open(file)
    size = image.size
    factor = 2 * side / max(size)
    if image.format == "JPEG" and factor < 1:
        image.draft(None, (int(size[0] * factor) + 1, int(size[1] * factor) + 1))
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return _as_seen(image), size[::-1] if turned else size


def _as_seen(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits a pixel: keep the upper eight
        image = Image.fromarray((np.asarray(image, dtype=np.int64) >> 8).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


def content_extent(width: int, height: int) -> tuple[float, float]:
    """
    Which part of the padded square an image covers: `(width, height) / longest side`. The exact fraction, not a
    rounded number of pixels, so that it is the same place for every tower whatever its input size.
    """
    longest = max(width, height)
    return width / longest, height / longest


class DenseVLMImageProcessor(BaseImageProcessor):
    r"""
    Resizes the longest side to `size` (bicubic), pads right and below with black to a square, scales to 0..1 and
    normalises. Needs Pillow only.

    Args:
        size (`int` or `dict`, *optional*):
            Side of the square in pixels; as a dict `{"longest_edge": side}`. The `shortest_edge` or `height` of a
            CLIP or SigLIP image processor is read as the side. Defaults to the square of SigLIP 2's
            `max_num_patches` where that is given, else to 224.
        image_mean, image_std (`list[float]`, *optional*, defaults to CLIP's):
            Per channel, of images in 0..1.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        size: int | dict[str, int] | None = None,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        **kwargs: Any,
    ):
        if size is None:
            native = "max_num_patches" in kwargs
            size = round(kwargs["max_num_patches"] ** 0.5) * kwargs["patch_size"] if native else 224
        for key in _CLIP_KEYS:  # a CLIP image processor's way of cropping means nothing here
            kwargs.pop(key, None)
        super().__init__(**kwargs)
        self.size = {"longest_edge": _side(size)}
        self.image_mean = list(OPENAI_CLIP_MEAN if image_mean is None else image_mean)
        self.image_std = list(OPENAI_CLIP_STD if image_std is None else image_std)

    def preprocess(
        self, images: ImageInput, size: int | dict[str, int] | None = None, return_tensors: str = "pt", **_: Any
    ) -> BatchFeature:
        r"""
        Args:
            images (PIL image, path or address, array or tensor with values 0..255, or a list of them):
                The images.
            size (`int`, *optional*):
                Another side of the square than the processor's own. A multiple of the model's patch size.
            return_tensors (`str`, *optional*, defaults to `"pt"`):
                As everywhere in transformers.

        Returns:
            [`BatchFeature`] with `pixel_values` `(batch, 3, size, size)` and `content_extent` `(batch, 2)`: the
            width and height of the image's content as fractions of the square.
        """
        side = _side(self.size if size is None else size)
        images = [_as_pil(image) for image in make_flat_list_of_images(self.fetch_images(images))]
        return BatchFeature(
            {
                "pixel_values": [self._pixel_values(image, side) for image in images],
                "content_extent": [content_extent(*image.size) for image in images],
            },
            tensor_type=return_tensors,
        )

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        r"""
        Bytes to `pixel_values`, on the device they are on.

        Args:
            pixels (`torch.Tensor` of shape `(batch, 3, height, width)`): uint8, 0..255.

        Returns:
            `torch.Tensor` of the same shape, float32, in the memory format that it came in.
        """
        mean, std = (
            pixels.new_tensor(v, dtype=torch.float32)[:, None, None] for v in (self.image_mean, self.image_std)
        )
        return pixels.float().div_(255.0).sub_(mean).div_(std)

    def _pixel_values(self, image: Image.Image, side: int) -> np.ndarray:
        scale = side / max(image.size)
        width, height = (max(int(length * scale + 0.5), 1) for length in image.size)
        square = np.zeros((side, side, 3), dtype=np.uint8)
        square[:height, :width] = image.resize((width, height), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(square).permute(2, 0, 1)
        return self.normalize(pixels[None])[0].contiguous().numpy()


_CLIP_KEYS = (
    "crop_size",
    "do_center_crop",
    "do_convert_rgb",
    "do_normalize",
    "do_rescale",
    "do_resize",
    "rescale_factor",
    "resample",
    "default_to_square",
    "max_num_patches",
    "patch_size",
)


def _side(size: int | dict[str, int]) -> int:
    if isinstance(size, int):
        return size
    for key in ("longest_edge", "shortest_edge", "height"):
        if size.get(key) is not None:
            return int(size[key])
    raise ValueError(f"`size` is the longest side in pixels, as an int or {{'longest_edge': side}}; got {size}.")


def _as_pil(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return load_image(image)
    array = image.cpu().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[-1] not in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.dtype != np.uint8:
        raise ValueError(f"Arrays are images with values 0..255 of type uint8, got {array.dtype}.")
    return Image.fromarray(array.squeeze(-1) if array.ndim == 3 and array.shape[-1] == 1 else array).convert("RGB")


__all__ = ["DenseVLMImageProcessor", "content_extent", "load_image", "load_reduced"]
