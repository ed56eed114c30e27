"""From an image file to `pixel_values`: longest side to `size`, padded right and below to a square."""

import base64
import os
from io import BytesIO
from os import PathLike
from typing import Any, BinaryIO
from urllib.request import Request, urlopen

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, ChannelDimension, ImageInput


WHITE = (1, 255, 1023, 4095, 16383, 65535)
"""What white is in images of floats (the first) and of 8, 10, 12, 14 and 16 bits."""

FEWEST_GREYS = 16
"""Of 256: an image that would keep fewer was written in another range, or shows nothing."""


def load_image(file: str | PathLike | BinaryIO | Image.Image) -> Image.Image:
    """
    An image as its author saw it: fully decoded, EXIF rotation applied, in RGB. Grayscale, palette, CMYK, Lab and
    transparent images are converted (transparency is left out); of several frames the first is taken. Grey values of
    more than 8 bits, and floats, are scaled by what they are: see [`to_eight_bits`].

    Raises:
        `OSError` where the file is missing, truncated or no image, `ValueError` where its values are no brightness,
        and Pillow's `DecompressionBombError` where it claims more pixels than Pillow admits.
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
    whole = image.size
    factor = 2 * side / max(whole)
    if image.format == "JPEG" and factor < 1:
        image.draft(None, (int(whole[0] * factor) + 1, int(whole[1] * factor) + 1))
    reduced = image.size != whole
    seen = _as_seen(image)
    if not reduced:  # the size after turning, whether Pillow turned it while decoding (TIFF, AVIF) or we did
        return seen, seen.size
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return seen, whole[::-1] if turned else whole


def _as_seen(image: Image.Image) -> Image.Image:
    # Pillow keeps the upper eight bits of colours of sixteen: nothing, where fewer bits are in use.
    deep = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(to_eight_bits(np.asarray(image))).convert("RGB")
    if image.mode == "La":  # Pillow knows no direct way
        image = image.convert("LA")
    seen = image.convert("RGB")
    if deep and max(most for _, most in seen.getextrema()) < FEWEST_GREYS:
        raise ValueError("colours of 16 bits, none of which is above a sixteenth of them: save it with 8 bits")
    return seen


def to_eight_bits(values: np.ndarray) -> np.ndarray:
    """
    Brightness as uint8, by what the values are and not by the type that holds them: white is the least of 1 (for
    floats), 255, 1023, 4095, 16383 and 65535 that none exceeds.

    Raises:
        `ValueError` for values that none of these fits: below 0, above 65535, not finite, or so small that an image
        other than a black one would keep fewer than 16 of 256 grey levels.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    if values.dtype.kind not in "uif":
        raise ValueError(f"values of type {values.dtype} are no brightness")
    least, most = float(values.min()), float(values.max())
    whites = WHITE if values.dtype.kind == "f" else WHITE[1:]
    half = 0.5 / 255  # of a grey level: floats are not exact
    white = next((white for white in whites if most <= white * (1 + half)), None)
    if white is None or not least >= -half * white or 0 < most * 255 < white * (FEWEST_GREYS - 1):
        raise ValueError(
            f"{values.dtype} values from {least:g} to {most:g} are no brightness of a known range (0 to "
            f"{', '.join(map(str, whites))})"
        )
    return np.rint(values * (255 / white)).clip(0, 255).astype(np.uint8)


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

    def fetch_images(self, images: ImageInput) -> Any:
        """Reads paths, addresses and base64 texts as [`load_image`] does; images stay as they are."""
        if isinstance(images, list | tuple):
            return [self.fetch_images(image) for image in images]
        return _fetch(images) if isinstance(images, str | PathLike) else images

    def preprocess(
        self,
        images: ImageInput,
        size: int | dict[str, int] | None = None,
        return_tensors: str = "pt",
        input_data_format: str | ChannelDimension | None = None,
        **_: Any,
    ) -> BatchFeature:
        r"""
        Args:
            images (PIL image, path or address, array or tensor, or a list of them):
                The images. Arrays are `(height, width)`, `(height, width, channels)` or `(channels, height, width)`
                with 1 (grey), 3 (RGB) or 4 channels (RGBA, whose transparency is left out), of whole numbers 0..255
                or floats 0..1, or one of the further ranges of [`to_eight_bits`]; with a dimension in front, several.
            size (`int`, *optional*):
                Another side of the square than the processor's own. A multiple of the model's patch size.
            return_tensors (`str`, *optional*, defaults to `"pt"`):
                As everywhere in transformers.
            input_data_format (`str`, *optional*):
                `"channels_first"` or `"channels_last"`, for arrays whose shape leaves it open.

        Returns:
            [`BatchFeature`] with `pixel_values` `(batch, 3, size, size)` and `content_extent` `(batch, 2)`: the
            width and height of the image's content as fractions of the square.
        """
        side = _side(self.size if size is None else size)
        images = [_as_pil(image, input_data_format) for image in _flat(self.fetch_images(images))]
        if not images:
            raise ValueError("`images` is an empty list.")
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
    """The longest side in pixels, of a number or of one of the dicts that image processors keep."""
    side = size
    if hasattr(size, "get"):
        side = next((size.get(key) for key in ("longest_edge", "shortest_edge", "height") if size.get(key)), None)
        if size.get("height") != size.get("width") and size.get("width") is not None:
            side = None
    if isinstance(side, bool) or not isinstance(side, int | np.integer) or side < 1:
        raise ValueError(
            f"`size` is the longest side in pixels, a whole number from 1 on, or {{'longest_edge': side}}; got {size}."
        )
    return int(side)


def _fetch(source: str | PathLike) -> Image.Image:
    """An image by its path, its address, or as base64."""
    if os.path.exists(source) or isinstance(source, PathLike):
        return load_image(source)
    if source.startswith(("http://", "https://")):
        with urlopen(Request(source, headers={"User-Agent": "densevlm"})) as answer:
            return load_image(BytesIO(answer.read()))
    text = source.split(",", 1)[1] if source.startswith("data:image/") and "," in source else source
    try:
        return load_image(BytesIO(base64.b64decode("".join(text.split()), validate=True)))
    except (ValueError, OSError) as error:
        raise ValueError(f"{source[:100]!r} is no file, no address (http) and no image in base64.") from error


def _flat(images: Any) -> list[Any]:
    """Images of lists and of arrays with a dimension in front, one by one."""
    if isinstance(images, list | tuple):
        return [image for part in images for image in _flat(part)]
    return list(images) if getattr(images, "ndim", 0) == 4 else [images]


def _as_pil(image: Any, input_data_format: str | ChannelDimension | None) -> Image.Image:
    if isinstance(image, Image.Image):
        image = load_image(image)
        if min(image.size) < 1:
            raise ValueError(f"An image of {image.width} x {image.height} pixels shows nothing.")
        return image
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = image.float() if image.dtype == torch.bfloat16 else image  # of which numpy knows nothing
    elif not hasattr(image, "__array__"):
        raise ValueError(f"An image is a PIL image, a path, an array or a tensor, got {type(image).__name__}.")
    array = _channels_last(np.asarray(image), input_data_format)
    return Image.fromarray(to_eight_bits(array)).convert("RGB")


def _channels_last(array: np.ndarray, input_data_format: str | ChannelDimension | None) -> np.ndarray:
    """Grey `(height, width)`, or `(height, width, 3 or 4)`."""
    shape, channels = array.shape, (1, 3, 4)
    if array.ndim == 3 and array.size:
        first, last = shape[0] in channels, shape[-1] in channels
        if input_data_format is not None:
            first &= ChannelDimension(input_data_format) == ChannelDimension.FIRST
            last &= ChannelDimension(input_data_format) == ChannelDimension.LAST
        if first != last:
            array = array.transpose(1, 2, 0) if first else array
            return array[..., 0] if array.shape[-1] == 1 else np.ascontiguousarray(array)
        if first:
            raise ValueError(
                f"An array of shape {shape} may have its channels first or last: give `input_data_format`, "
                '"channels_first" or "channels_last".'
            )
    elif array.ndim == 2 and array.size:
        return array
    raise ValueError(
        "An array is an image as (height, width), (height, width, channels) or (channels, height, width), with 1, 3 "
        f"or 4 channels; got {shape}."
    )


__all__ = ["DenseVLMImageProcessor", "content_extent", "load_image", "load_reduced", "to_eight_bits"]
