# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Image processor: resizes the longest side to `size` and pads at the right and bottom to a square."""

import base64
import difflib
import math
import os
from collections.abc import Iterable, Sequence
from io import BytesIO
from os import PathLike
from typing import Any, BinaryIO, TypedDict
from urllib.request import Request, urlopen

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, ChannelDimension, ImageInput, SizeDict
from transformers.utils import TensorType, is_torchvision_available, logging

from .canvas import (
    boxes_on_canvas,
    canvas_size,
    content_extent,
    label_pixels,
    masks_on_canvas,
    pad_image,
    scaled,
    upsample,
)
from .configuration_densevlm import HUB_KEYS, DenseVLMConfig, read_config


logger = logging.get_logger(__name__)

WHITE = (1, 255, 1023, 4095, 16383, 65535)
"""White levels: of float images (the first), and of 8, 10, 12, 14 and 16 bits."""

DEFAULT_PATCH_SIZE = 16
"""That of a ViT-B/16."""

MIN_GREY_LEVELS = 16
"""Of 256. An image that would use fewer has values of another range, or no content."""


def load_image(file: str | PathLike | BinaryIO | Image.Image) -> Image.Image:
    """
    Loads an image in RGB, fully decoded and with its EXIF orientation applied. Grayscale, palette, CMYK, Lab and
    transparent images are converted (alpha is dropped); of several frames the first is loaded. Grey values of more
    than 8 bits, and floats, are rescaled by [`to_eight_bits`].

    Args:
        file (path, file object or `Image.Image`): the image.

    Returns:
        `Image.Image` in mode RGB.

    Raises:
        `OSError` for files that are missing, truncated or not images, `ValueError` for values of an unknown range, and
        Pillow's `DecompressionBombError` for images above its limit of pixels.
    """
    return _to_upright_rgb(file if isinstance(file, Image.Image) else Image.open(file))


def load_reduced(file: str | PathLike | BinaryIO, side: int) -> tuple[Image.Image, tuple[int, int]]:
    """
    [`load_image`] for images that will be resized to `side` pixels. A JPEG whose longest side is at least four times
    `side` is decoded at 1/2, 1/4 or 1/8 of its size, but not below twice `side`. This takes half the time and changes
    the resized image by half a grey level on average.

    Args:
        file (path or file object): the image.
        side (`int`): longest side after the later resize, in pixels.

    Returns:
        `tuple[Image.Image, tuple[int, int]]`: the image, and its full width and height in pixels after EXIF rotation,
        for an exact [`content_extent`].
    """
    image = Image.open(file)
    full_size = image.size
    factor = 2 * side / max(full_size)
    if image.format == "JPEG" and factor < 1:
        image.draft(None, (int(full_size[0] * factor) + 1, int(full_size[1] * factor) + 1))
    reduced = image.size != full_size
    upright = _to_upright_rgb(image)
    if not reduced:  # the size after rotation, whether Pillow rotates while decoding (TIFF, AVIF) or we do
        return upright, upright.size
    transposed = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return upright, full_size[::-1] if transposed else full_size


def _to_upright_rgb(image: Image.Image) -> Image.Image:
    # Pillow keeps only the upper 8 bits of 16-bit colours, which are zero in images that use fewer bits.
    deep = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(to_eight_bits(np.asarray(image))).convert("RGB")
    if image.mode == "La":  # Pillow has no direct conversion
        image = image.convert("LA")
    rgb = image.convert("RGB")
    if deep and max(maximum for _, maximum in rgb.getextrema()) < MIN_GREY_LEVELS:
        raise ValueError("colours of 16 bits, none of which is above a sixteenth of them: save it with 8 bits")
    return rgb


def to_eight_bits(values: np.ndarray) -> np.ndarray:
    """
    Converts brightness values to uint8. The range follows from the values, not from their dtype: white is the smallest
    of 1 (floats only), 255, 1023, 4095, 16383 and 65535 that no value exceeds.

    Args:
        values (`np.ndarray`): of any shape, bool, integer or float.

    Returns:
        `np.ndarray` of the same shape, uint8.

    Raises:
        `ValueError` for values outside all ranges (negative, above 65535, not finite), and for images, unless black,
        that would use fewer than 16 of 256 grey levels.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    if values.dtype.kind not in "uif":
        raise ValueError(f"values of type {values.dtype} are no brightness")
    low, high = float(values.min()), float(values.max())
    whites = WHITE if values.dtype.kind == "f" else WHITE[1:]
    half = 0.5 / 255  # half a grey level, a tolerance for floats
    white = next((white for white in whites if high <= white * (1 + half)), None)
    if white is None or not low >= -half * white or 0 < high * 255 < white * (MIN_GREY_LEVELS - 1):
        raise ValueError(
            f"{values.dtype} values from {low:g} to {high:g} are no brightness of a known range (0 to "
            f"{', '.join(map(str, whites))})"
        )
    return np.rint(values * (255 / white)).clip(0, 255).astype(np.uint8)


class DenseVLMImageProcessorKwargs(TypedDict, total=False):
    """Options of [`DenseVLMImageProcessor`], for its constructor, `from_pretrained` and calls; documented there."""

    do_convert_rgb: bool | None
    do_resize: bool | None
    size: int | dict[str, int] | None
    resample: int | None
    do_pad: bool | None
    do_rescale: bool | None
    rescale_factor: float | None
    do_normalize: bool | None
    image_mean: float | list[float] | None
    image_std: float | list[float] | None
    patch_size: int | None
    input_data_format: str | ChannelDimension | None
    return_tensors: str | TensorType | None


class DenseVLMImageProcessorTorchvisionKwargs(DenseVLMImageProcessorKwargs, total=False):
    """Options of [`DenseVLMImageProcessorTorchvision`]."""

    device: str | torch.device | None


class DenseVLMImageProcessingMixin(BaseImageProcessor):
    """Base of both back ends, which differ in how they resize: options, order of the steps, canvas."""

    model_input_names = ["pixel_values"]
    valid_kwargs = DenseVLMImageProcessorKwargs  # type: ignore[assignment]

    do_convert_rgb = True
    do_resize = True
    size = {"longest_edge": 224}
    resample = Image.Resampling.BICUBIC
    do_pad = True
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    resize: Any  # of the back end
    patch_size = None
    input_data_format = None
    return_tensors = "pt"

    def __init__(
        self,
        size: int | dict[str, int] | None = None,
        image_mean: float | list[float] | None = None,
        image_std: float | list[float] | None = None,
        **kwargs: Any,
    ):
        options = {"size": size, "image_mean": image_mean, "image_std": image_std, **kwargs}
        options = {name: value for name, value in options.items() if value is not None}
        reject_unknown_options(options.keys() - _FILE_KEYS, self.valid_kwargs.__annotations__, type(self).__name__)
        super().__init__(**options)

    @classmethod
    def get_image_processor_dict(
        cls, pretrained_model_name_or_path, **kwargs
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        patch_size = _patch_size(pretrained_model_name_or_path, **kwargs)
        options, kwargs = super().get_image_processor_dict(pretrained_model_name_or_path, **kwargs)
        if options.get("image_processor_type", "").startswith("Tipsv2"):  # pixels 0..1, resized bilinearly
            unchanged = {"do_normalize": True, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
            options = {**options, **unchanged, "resample": Image.Resampling.BICUBIC}
        return options if patch_size is None else {**options, "patch_size": patch_size}, kwargs

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any):
        known = cls.valid_kwargs.__annotations__
        for name in kwargs:  # others are loading options, such as `trust_remote_code`
            if name not in known and difflib.get_close_matches(name, known, n=1, cutoff=0.8):
                reject_unknown_options([name], known, cls.__name__)
        return super().from_dict(_own_options(image_processor_dict, known), **kwargs)

    def to_dict(self) -> dict[str, Any]:
        # The same class name for both back ends; `AutoImageProcessor` chooses one by what is installed.
        options = {**super().to_dict(), "image_processor_type": DenseVLMImageProcessor.__name__}
        if "AutoImageProcessor" in options.get("auto_map", {}):
            module = __name__.split(".")[-1]
            options["auto_map"]["AutoImageProcessor"] = [f"{module}.{one.__name__}" for one in BACK_ENDS.values()]
        if options.get("return_tensors") == "pt":  # the default
            del options["return_tensors"]
        return options

    def fetch_images(self, images: ImageInput) -> Any:
        """Loads paths, URLs and base64 strings by [`load_image`]; images are returned unchanged."""
        if isinstance(images, list | tuple):
            return [self.fetch_images(image) for image in images]
        return _fetch(images) if isinstance(images, str | PathLike) else images

    def preprocess(
        self,
        images: ImageInput,
        boxes: Sequence[Any] | None = None,
        masks: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        r"""
        Prepares images, and optionally regions, for the model.

        Args:
            images (PIL image, path or URL, array or tensor, or a list of them):
                The images. Arrays have shape `(height, width)`, `(height, width, channels)` or `(channels, height,
                width)` with 1 (grey), 3 (RGB) or 4 channels (RGBA; alpha is dropped), and hold integers 0..255, floats
                0..1 or another range of [`to_eight_bits`]. A leading dimension makes a batch.
            boxes (list of one array of shape `(n_i, 4)` per image, *optional*):
                Regions, xyxy in pixels of the image after EXIF rotation.
            masks (list of one array of shape `(n_i, height, width)` per image, *optional*):
                Regions, bool or 0 and 1, at the resolution of the image.
            kwargs: options of the constructor, for this call only.

        Returns:
            [`BatchFeature`] with `pixel_values` `(batch, 3, size, size)`; `content_extent` `(batch, 2)`, width and
            height of the image content as fractions of the canvas; and the given regions in the form that the model
            expects: `boxes` as fractions of the dense map, which covers the canvas, `masks` at its resolution.

        Raises:
            `TypeError` for unknown options; `ValueError` for invalid images, regions and values of options.
        """
        known = self.valid_kwargs.__annotations__
        reject_unknown_options(kwargs, known, type(self).__name__)
        given = {name: value for name, value in kwargs.items() if value is not None or name == "return_tensors"}
        options = self._standardize_kwargs(**{name: getattr(self, name, None) for name in known} | given)
        return self._preprocess_image_like_inputs(images, boxes, masks, **options)

    def _standardize_kwargs(self, **options: Any) -> dict[str, Any]:
        """Validates the options and brings each to a canonical form."""
        options["size"] = {"longest_edge": _side(options["size"])}
        for name in ("do_convert_rgb", "do_resize", "do_pad", "do_rescale", "do_normalize"):
            if not isinstance(options[name], bool):
                raise ValueError(f"`{name}` is True or False, got {options[name]!r}.")
        for name in ("image_mean", "image_std"):
            options[name] = _per_channel(name, options[name])
        if not _is_number(options["rescale_factor"]) or options["rescale_factor"] <= 0:
            raise ValueError(f"`rescale_factor` is a number above 0, got {options['rescale_factor']!r}.")
        if options["resample"] not in list(Image.Resampling) or isinstance(options["resample"], bool):
            filters = ", ".join(f"{int(value)} ({value.name.lower()})" for value in sorted(Image.Resampling))
            raise ValueError(f"`resample` is one of Pillow's filters, {filters}, got {options['resample']!r}.")
        options["resample"] = Image.Resampling(options["resample"])
        if options["input_data_format"] not in (None, *ChannelDimension, *(form.value for form in ChannelDimension)):
            raise ValueError(
                f'`input_data_format` is "channels_first" or "channels_last", got {options["input_data_format"]!r}.'
            )
        patch = options["patch_size"]
        if patch is not None and (type(patch) is not int or patch < 1):
            raise ValueError(f"`patch_size` is the side of a cell of the dense map in pixels, got {patch!r}.")
        return options

    def _prepare_images_structure(self, images: ImageInput, expected_ndims: int = 3) -> list[Any]:
        images = _flat(self.fetch_images(images))
        if not images:
            raise ValueError("`images` is an empty list.")
        return images

    def _preprocess_image_like_inputs(  # type: ignore[override]
        self,
        images: ImageInput,
        boxes: Sequence[Any] | None,
        masks: Sequence[Any] | None,
        return_tensors: str | TensorType | None = None,
        **options: Any,
    ) -> BatchFeature:
        if boxes is not None and masks is not None:
            raise ValueError("Give either `boxes` or `masks`; pooling both takes two calls.")
        prepared = self._prepare_image_like_inputs(images, **options)
        sizes = [(image.shape[-1], image.shape[-2]) for image in prepared]
        canvases = _canvases(sizes, options["do_resize"], options["do_pad"])
        pixel_values = [self._pixel_values(image, canvas, **options) for image, canvas in zip(prepared, canvases)]
        shapes = {tuple(values.shape) for values in pixel_values}
        if return_tensors is not None and len(shapes) > 1:
            raise ValueError(
                f"Images of the shapes {', '.join(map(str, sorted(shapes)))} cannot be batched: have them padded "
                "(`do_pad=True`, `do_convert_rgb=True`), or process them one by one."
            )
        features = BatchFeature(
            {
                "pixel_values": [self._returned(values, return_tensors) for values in pixel_values],
                "content_extent": [(w / wide, h / high) for (w, h), (wide, high) in zip(sizes, canvases)],
            },
            tensor_type=return_tensors,
        )
        regions = {}
        if boxes is not None:
            regions["boxes"] = boxes_on_canvas(boxes, sizes, canvases)
        if masks is not None:
            cell = options["patch_size"] or DEFAULT_PATCH_SIZE
            map_sizes = [(values.shape[-2] // cell, values.shape[-1] // cell) for values in pixel_values]
            regions["masks"] = masks_on_canvas(masks, sizes, canvases, map_sizes)
        for name, values in regions.items():
            features[name] = [value.numpy() for value in values] if return_tensors == "np" else values
        return features

    def process_image(  # type: ignore[override]
        self,
        image: Any,
        do_convert_rgb: bool = True,
        do_rescale: bool = True,
        input_data_format: str | ChannelDimension | None = None,
        **_: Any,
    ) -> np.ndarray:
        """
        Converts an image to an array after EXIF rotation.

        Args:
            image (PIL image, array or tensor): the image.
            do_convert_rgb (`bool`, *optional*, defaults to `True`): whether to convert to three channels.
            do_rescale (`bool`, *optional*, defaults to `True`): whether values will be rescaled, as bytes.
            input_data_format (`str`, *optional*): `"channels_first"` or `"channels_last"`, for ambiguous shapes.

        Returns:
            `np.ndarray` of shape `(channels, height, width)`: uint8, or float32 with unchanged values if they are not
            bytes and `do_rescale` is `False`.
        """
        pixels = _to_array(image, do_convert_rgb, input_data_format)
        if do_rescale:
            pixels = to_eight_bits(pixels)
        elif pixels.dtype != np.uint8:
            pixels = pixels.astype(np.float32)
            if not np.isfinite(pixels).all():
                raise ValueError("An image holds values that are not finite.")
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if do_convert_rgb:
            pixels = np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels[..., :3]
        return np.moveaxis(pixels, -1, 0)

    def _pixel_values(
        self,
        image: Any,
        canvas: tuple[int, int],
        do_resize: bool,
        size: dict[str, int],
        resample: int,
        do_pad: bool,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: list[float],
        image_std: list[float],
        **_: Any,
    ) -> torch.Tensor:
        """The `pixel_values` `(channels, height, width)` of an image returned by `process_image`."""
        channels, height, width = image.shape
        for name, values in (("image_mean", image_mean), ("image_std", image_std)):
            if do_normalize and len(values) not in (1, channels):
                raise ValueError(f"The image has {channels} channels, but `{name}` has {len(values)}: {values}.")
        scale = size["longest_edge"] / max(height, width) if do_resize else 1.0
        if do_resize:
            resized = SizeDict(height=scaled(height, scale), width=scaled(width, scale))
            image = self.resize(image, resized, resample=resample)
        pixels = image if isinstance(image, torch.Tensor) else torch.from_numpy(np.array(image, order="C"))
        if do_pad:  # before normalisation: the padding is black
            side = size["longest_edge"] if do_resize else canvas[0]
            pixels = pad_image(pixels, side, side)
        mean, std = (image_mean, image_std) if do_normalize else (None, None)
        return to_pixel_values(pixels[None], rescale_factor if do_rescale else None, mean, std)[0].contiguous()

    def _returned(self, values: torch.Tensor, return_tensors: str | TensorType | None) -> Any:
        """The `pixel_values` of an image in the type that the back end returns for `return_tensors`."""
        raise NotImplementedError

    def normalize(  # type: ignore[override]
        self,
        image: torch.Tensor,
        mean: float | Iterable[float] | None = None,
        std: float | Iterable[float] | None = None,
        **_: Any,
    ) -> torch.Tensor:
        r"""
        Rescales and normalises images on their own device.

        Args:
            image (`torch.Tensor` of shape `(batch, channels, height, width)`):
                uint8, 0..255, which is rescaled, or float, which is not.
            mean (`list[float]`, *optional*): mean per channel; defaults to that of the processor.
            std (`list[float]`, *optional*): standard deviation per channel; defaults to that of the processor.

        Returns:
            `torch.Tensor` of the same shape and memory format, float32.
        """
        own = (self.image_mean, self.image_std) if self.do_normalize else (None, None)
        rescale = self.do_rescale and not image.is_floating_point()
        return to_pixel_values(
            image,
            self.rescale_factor if rescale else None,
            own[0] if mean is None else mean,
            own[1] if std is None else std,
        )

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Sequence[tuple[int, int]] | torch.Tensor | None = None,
        return_segmentation_scores: bool = False,
        content_extent: Sequence[tuple[float, float]] | torch.Tensor | None = None,
    ) -> list[torch.Tensor] | list[SemanticSegmentationPostProcessorOutput]:
        r"""
        Predicts the category of every pixel: upsampling of the scores of the dense map (bilinear, unless the outputs
        name another way), cropping of the padding, and the argmax. Categories are upsampled in chunks, so that memory
        does not grow with their number.

        Args:
            outputs ([`DenseVLMOutput`], or an output with `logits`):
                Output of a model called with images and texts (one per category), or with `logits` of shape `(batch,
                categories, height, width)`. Those of a [`DenseVLMForSemanticSegmentation`] have `logits`, and tell
                its background category.
            target_sizes (list of `tuple[int, int]`, *optional*):
                Height and width of each image. By default labels are at the resolution of the map, and include the
                padding unless `content_extent` is given.
            return_segmentation_scores (`bool`, *optional*, defaults to `False`):
                Whether to also return the scores of all categories, which needs much memory for large images.
            content_extent (`torch.Tensor` of shape `(batch, 2)`, *optional*):
                Output of the processor. Required if images were not padded to a square (the default).

        Returns:
            `list[torch.Tensor]`: one int64 tensor of shape `(height, width)` per image; or a list of
            [`SemanticSegmentationPostProcessorOutput`] with `segmentation` and `segmentation_scores` of shape
            `(categories, height, width)`.

        Raises:
            `ValueError` for outputs without scores, and for arguments of another batch size.
        """
        logits: Any = getattr(outputs, "logits", None)
        dense: Any
        texts: Any
        dense, texts = getattr(outputs, "dense_embeds", None), getattr(outputs, "text_embeds", None)
        if logits is None and (dense is None or texts is None):
            raise ValueError(
                "The outputs have neither `logits` nor `dense_embeds` and `text_embeds`: call the model with images "
                "and texts, model(**processor(images=…, text=[…]))."
            )
        batch = len(dense if logits is None else logits)
        for name, given in (("target_sizes", target_sizes), ("content_extent", content_extent)):
            if given is not None and len(given) != batch:
                raise ValueError(f"The outputs are for {batch} images, but `{name}` has {len(given)} entries.")
        # The logits of the segmenter are divided by its temperature.
        background: dict[str, Any] = {"background": getattr(outputs, "background", None), "temperature": 1.0}
        background["threshold"] = getattr(outputs, "background_threshold", None) or 0.0
        upsampling = getattr(outputs, "upsampling", None) or "bilinear"
        results: list[Any] = []
        content: tuple[float, float] | None
        for index in range(batch):
            if logits is None:
                unit = torch.nn.functional.normalize(texts.float(), dim=-1).to(dense.device)
                scores = torch.einsum("dhw,cd->chw", dense[index].float(), unit)
            else:
                scores = logits[index].float()
            content = None
            if content_extent is not None:
                content = float(content_extent[index][0]), float(content_extent[index][1])
            if target_sizes is not None:
                size = int(target_sizes[index][0]), int(target_sizes[index][1])
            else:  # the map, or its part inside the image
                width, height = content or (1.0, 1.0)
                size = scaled(scores.shape[1], height), scaled(scores.shape[2], width)
                scores, content = scores[:, : size[0], : size[1]], (1.0, 1.0)
            if return_segmentation_scores:
                upsampled = upsample(scores, size, canvas_size(size, content), upsampling)
                labels = label_pixels(scores, size, content=content, upsampling=upsampling, **background)
                result = {"segmentation": labels, "segmentation_scores": upsampled}
                results.append(SemanticSegmentationPostProcessorOutput(result))
            else:
                results.append(label_pixels(scores, size, content=content, upsampling=upsampling, **background))
        return results


class DenseVLMImageProcessor(DenseVLMImageProcessingMixin, PilBackend):
    r"""
    Image processor that resizes the longest side to `size`, pads with black at the right and bottom to a square,
    rescales to 0..1 and normalises. It requires Pillow only; [`DenseVLMImageProcessorTorchvision`] uses torchvision.

    Args:
        size (`int` or `dict`, *optional*, defaults to 224):
            Longest side in pixels, a multiple of the model's patch size, or a dict `{"longest_edge": side}`. The
            `shortest_edge` or `height` in the file of a CLIP or SigLIP image processor is also accepted.
        image_mean, image_std (`float` or `list[float]`, *optional*, defaults to CLIP's):
            Mean and standard deviation per channel, for values in 0..1.
        do_convert_rgb (`bool`, *optional*, defaults to `True`): whether to convert images to RGB.
        do_resize (`bool`, *optional*, defaults to `True`): whether to resize images.
        resample (`int`, *optional*, defaults to 3, bicubic): resampling filter of Pillow.
        do_pad (`bool`, *optional*, defaults to `True`):
            Whether to pad images to a square: of side `size`, or of the longest side in the batch if
            `do_resize=False`.
        do_rescale (`bool`, *optional*, defaults to `True`):
            Whether to multiply values by `rescale_factor`. If `False`, float arrays (0..1) keep their values.
        rescale_factor (`float`, *optional*, defaults to 1/255): scale of values in 0..255.
        do_normalize (`bool`, *optional*, defaults to `True`): whether to subtract the mean and divide by the std.
        patch_size (`int`, *optional*):
            Side in pixels of a cell of the dense map, which gives the resolution of returned `masks`. Read from the
            model's `config.json` if the folder has one; otherwise 16.
        input_data_format (`str`, *optional*):
            `"channels_first"` or `"channels_last"`, for arrays of ambiguous shape.
        return_tensors (`str`, *optional*, defaults to `"pt"`): `"pt"`, `"np"` or `None`, as in transformers.
    """

    def resize(self, image: np.ndarray, size: SizeDict, resample: Any = None, **_: Any) -> np.ndarray:
        if image.dtype == np.uint8 and image.shape[0] == 3:
            return super().resize(image, size, resample=resample)
        # Channel by channel: transformers would round floats to bytes, and Pillow would take channels for colours.
        low, high = image.min(), image.max()
        side: Any = (size.width, size.height)
        resized = [Image.fromarray(channel).resize(side, resample) for channel in image]
        return np.stack([np.asarray(channel) for channel in resized]).clip(low, high)

    def _returned(self, values: torch.Tensor, return_tensors: str | TensorType | None) -> np.ndarray:
        return values.numpy()


class DenseVLMImageProcessorTorchvision(DenseVLMImageProcessingMixin, TorchvisionBackend):
    r"""
    [`DenseVLMImageProcessor`] with torchvision, optionally on a `device`. It is faster; pixels differ from Pillow's by
    at most two grey levels. Reported results use Pillow.

    Args:
        device (`str` or `torch.device`, *optional*): device on which images are processed and returned.
        kwargs: as for [`DenseVLMImageProcessor`].
    """

    valid_kwargs = DenseVLMImageProcessorTorchvisionKwargs  # type: ignore[assignment]
    device = None

    def __init__(self, *args: Any, **kwargs: Any):
        if not is_torchvision_available():
            raise ImportError(
                f"{type(self).__name__} requires torchvision; DenseVLMImageProcessor requires Pillow only."
            )
        super().__init__(*args, **kwargs)

    def process_image(self, image: Any, device: str | torch.device | None = None, **options: Any) -> torch.Tensor:
        pixels = torch.from_numpy(np.array(super().process_image(image, **options), order="C"))
        return pixels if device is None else pixels.to(device)

    def resize(self, image: torch.Tensor, size: SizeDict, resample: int | None = None, **_: Any) -> torch.Tensor:
        resized = super().resize(image, size, resample=resample)
        return resized.clamp(image.min(), image.max()) if image.is_floating_point() else resized

    def _returned(self, values: torch.Tensor, return_tensors: str | TensorType | None) -> Any:
        return values.cpu().numpy() if return_tensors == "np" else values


BACK_ENDS = {"pil": DenseVLMImageProcessor, "torchvision": DenseVLMImageProcessorTorchvision}
"""Image processor classes by the name of their back end in transformers."""


def to_pixel_values(
    pixels: torch.Tensor,
    rescale_factor: float | None = None,
    mean: float | Iterable[float] | None = None,
    std: float | Iterable[float] | None = None,
) -> torch.Tensor:
    """Rescales and normalises `(batch, channels, height, width)`, each if its arguments are given; float32."""
    values = pixels.to(torch.float32, copy=True)
    if rescale_factor is not None:
        values.div_(1 / rescale_factor)  # 1 / (1/255) is exactly 255
    for given, apply in ((mean, values.sub_), (std, values.div_)):
        if given is not None:
            apply(torch.as_tensor(given, dtype=torch.float32, device=values.device).reshape(-1, 1, 1))
    return values


def reject_unknown_options(given: Iterable[str], known: Iterable[str], owner: str) -> None:
    """Raises a `TypeError` for the first unknown option, naming the most similar known one."""
    known = list(known)
    for name in sorted(set(given) - set(known)):
        if name in _UNSUPPORTED_OPTIONS:
            raise TypeError(f"{owner} has no option `{name}`: {_UNSUPPORTED_OPTIONS[name]}.")
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"is `{near[0]}` meant?" if near else f"there are {', '.join(known)}."
        raise TypeError(f"{owner} has no option `{name}`; {hint}")


def model_config(source: str | PathLike, **kwargs: Any) -> DenseVLMConfig | None:
    """The configuration of the model in the same folder; `None` if it is missing or not supported."""
    config = _config_dict(source, **kwargs)
    try:
        return DenseVLMConfig.from_dict(DenseVLMConfig.translate(config)) if config.get("model_type") else None
    except (ValueError, KeyError):  # an unsupported model or tower
        return None


def _config_dict(source: str | PathLike, **kwargs: Any) -> dict[str, Any]:
    return read_config(source, **{name: kwargs[name] for name in HUB_KEYS if name in kwargs})


def _patch_size(source: str | PathLike, **kwargs: Any) -> int | None:
    """Side in pixels of a cell of the map of the model in the same folder; `None` if it is not known."""
    config = model_config(source, **kwargs)
    if config is not None:
        return getattr(config.vision_config, "patch_size", 32)  # towers without patches are CNNs of stride 32
    vision_config = _config_dict(source, **kwargs).get("vision_config")  # of a tower that is not registered
    return vision_config.get("patch_size") if isinstance(vision_config, dict) else None


_FILE_KEYS = {"auto_map", "feature_extractor_type", "image_processor_type", "processor_class"}
"""Keys in files of image processors that are not options."""


_INHERITED_OPTIONS = ("size", "image_mean", "image_std", "do_rescale", "rescale_factor", "do_normalize", "patch_size")
"""Options read from another model's image processor. Its cropping and resampling filter are ignored."""

_CROPPING = "images are padded to a square, not cropped"
_UNSUPPORTED_OPTIONS = {
    "crop_size": _CROPPING,
    "do_center_crop": _CROPPING,
    "default_to_square": _CROPPING,
    "pad_size": "images are padded to a square of `size`",
    "device": "it is an option of the torchvision back end (`DenseVLMImageProcessorTorchvision`)",
    "max_num_patches": "give `size`, the longest side in pixels",
}


def _own_options(options: dict[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """The options in the file of an image processor, of this class or of a CLIP or SigLIP."""
    given = {name: value for name, value in options.items() if value is not None}
    if str(given.get("image_processor_type")).startswith(DenseVLMImageProcessor.__name__):
        unknown = sorted(given.keys() - set(known) - _FILE_KEYS)
        if unknown:
            logger.warning(f"The file of the image processor has unknown options, ignored: {', '.join(unknown)}.")
        return {name: value for name, value in given.items() if name not in unknown}
    if "size" not in given and "max_num_patches" in given:  # SigLIP 2
        given["size"] = round(given["max_num_patches"] ** 0.5) * given["patch_size"]
    return {name: given[name] for name in _INHERITED_OPTIONS if name in given}


def _canvases(sizes: list[tuple[int, int]], do_resize: bool, do_pad: bool) -> list[tuple[int, int]]:
    """Width and height of the canvas of each image, in pixels of the image."""
    if not do_pad:
        return sizes
    longest = [max(size) for size in sizes]
    return [(side, side) for side in (longest if do_resize else [max(longest)] * len(sizes))]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _per_channel(name: str, given: Any) -> list[float]:
    """Mean or standard deviation as a list; a single number is repeated for three channels."""
    values = [given] * 3 if _is_number(given) else list(given) if isinstance(given, Iterable) else []
    values = [value.item() if hasattr(value, "item") else value for value in values]
    if not values or not all(map(_is_number, values)) or (name == "image_std" and min(values) <= 0):
        above = " above 0" if name == "image_std" else ""
        raise ValueError(f"`{name}` is a number{above}, or one for each channel, got {given!r}.")
    return values


def _side(size: Any) -> int:
    """The longest side in pixels, from a number or a `size` dict of an image processor."""
    side: Any = size
    if hasattr(size, "get"):
        side = next((size.get(key) for key in ("longest_edge", "shortest_edge", "height") if size.get(key)), None)
        if size.get("height") != size.get("width") and size.get("width") is not None:
            side = None
    if isinstance(side, bool) or not isinstance(side, int | np.integer) or side < 1:
        raise ValueError(
            f"`size` is the longest side in pixels, a positive integer, or {{'longest_edge': side}}; got {size}."
        )
    return int(side)


def _fetch(source: str | PathLike) -> Image.Image:
    """Loads an image from a path, a URL or a base64 string."""
    if os.path.exists(source) or isinstance(source, PathLike):
        return load_image(source)
    if source.startswith(("http://", "https://")):
        with urlopen(Request(source, headers={"User-Agent": "densevlm"})) as response:
            return load_image(BytesIO(response.read()))
    text = source.split(",", 1)[1] if source.startswith("data:image/") and "," in source else source
    try:
        return load_image(BytesIO(base64.b64decode("".join(text.split()), validate=True)))
    except (ValueError, OSError) as error:
        raise ValueError(f"{source[:100]!r} is neither a file nor a URL (http) nor a base64 image.") from error


def _flat(images: Any) -> list[Any]:
    """Flattens nested lists and batched arrays to a list of images."""
    if isinstance(images, list | tuple):
        return [image for part in images for image in _flat(part)]
    return list(images) if getattr(images, "ndim", 0) == 4 else [images]


def _to_array(image: Any, to_rgb: bool, input_data_format: str | ChannelDimension | None) -> np.ndarray:
    """An image as `(height, width)` or `(height, width, channels)`, with unchanged values."""
    if isinstance(image, Image.Image):
        image = load_image(image) if to_rgb else ImageOps.exif_transpose(image)
        if min(image.size) < 1:
            raise ValueError(f"An image of {image.width} x {image.height} pixels is empty.")
        return np.asarray(image)
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = image.float() if image.dtype == torch.bfloat16 else image  # NumPy has no bfloat16
    elif not hasattr(image, "__array__"):
        raise ValueError(f"An image is a PIL image, a path, an array or a tensor, got {type(image).__name__}.")
    return _channels_last(np.asarray(image), input_data_format)


def _channels_last(array: np.ndarray, input_data_format: str | ChannelDimension | None) -> np.ndarray:
    """An array as `(height, width)` if grey, otherwise `(height, width, channels)` with 3 or 4 channels."""
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


__all__ = [
    "DenseVLMImageProcessor",
    "DenseVLMImageProcessorTorchvision",
    "content_extent",
    "load_image",
    "load_reduced",
    "to_eight_bits",
]
