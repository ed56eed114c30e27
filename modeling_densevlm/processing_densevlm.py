# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Processor: prepares images, texts and regions for the model, and post-processes its outputs."""

import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_utils import ImageInput
from transformers.processing_utils import ProcessorMixin, TextKwargs
from transformers.tokenization_utils_base import BatchEncoding
from transformers.utils import logging

from .image_processing_densevlm import (
    BACK_ENDS,
    BatchFeature,
    DenseVLMImageProcessor,
    DenseVLMImageProcessorTorchvision,
    model_config,
    reject_unknown_options,
)


logger = logging.get_logger(__name__)

UNLIMITED = 10**6
"""Tokenizers without a maximum length have a larger `model_max_length`."""

SQUARE_CANVAS = {"do_resize": True, "do_pad": True, "resample": Image.Resampling.BICUBIC}
"""The only values that training and evaluation support."""

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
"""Files of the options of an image processor, saved with a tokenizer and without."""


class DenseVLMProcessor(ProcessorMixin):
    r"""
    Combines a [`DenseVLMImageProcessor`] and the tokenizer of the text tower.

    Args:
        image_processor (`DenseVLMImageProcessor`): the image processor.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): the tokenizer.
        text_padding (`str`, *optional*):
            Default padding of texts: `"longest"` (CLIP) or `"max_length"` (SigLIP). Read from the model's
            `config.json` if the folder has one; otherwise it follows from the class of the tokenizer.
        text_length (`int`, *optional*):
            Maximum number of tokens of the text tower, read likewise; otherwise that of the tokenizer.
    """

    image_processor_class = "AutoImageProcessor"
    tokenizer_class = "AutoTokenizer"

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        text_padding: str | None = None,
        text_length: int | None = None,
        **kwargs: Any,
    ):
        if text_padding not in (None, "longest", "max_length"):
            raise ValueError(f'`text_padding` is "longest" or "max_length", got {text_padding!r}.')
        if text_length is not None and (type(text_length) is not int or text_length < 1):
            raise ValueError(f"`text_length` is a number of tokens, got {text_length!r}.")
        super().__init__(image_processor, tokenizer, **kwargs)
        self.text_padding = text_padding
        self.text_length = text_length

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike, **kwargs: Any) -> "DenseVLMProcessor":
        """
        As [`ProcessorMixin.from_pretrained`]; also loads from the folder of a CLIP, with its mean, std and size.

        Args:
            pretrained_model_name_or_path (`str` or path): folder or name on the Hub.
            kwargs: options of the processor and of loading; `backend` is `"pil"` (the default) or `"torchvision"`.

        Returns:
            [`DenseVLMProcessor`]

        Raises:
            `ValueError` for a folder without a tokenizer.
        """
        given = {name: kwargs.pop(name) for name in ("text_padding", "text_length") if name in kwargs}
        image_processor, tokenizer = load_processing(pretrained_model_name_or_path, **kwargs)
        if tokenizer is None:
            raise ValueError(
                f"{pretrained_model_name_or_path} has no tokenizer. For images only, use `DenseVLMImageProcessor`."
            )
        saved, _ = cls.get_processor_dict(pretrained_model_name_or_path, **kwargs)
        config = model_config(pretrained_model_name_or_path, **kwargs)
        text = None if config is None else config.text_config
        padding, length = ({**saved, **given}.get(name) for name in ("text_padding", "text_length"))
        if text is not None:
            padding = padding or ("max_length" if text.model_type.startswith("siglip") else "longest")
            length = length or text.max_position_embeddings
        return cls(image_processor, tokenizer, text_padding=padding, text_length=length)

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in super().to_dict().items() if value is not None}

    def __call__(  # type: ignore[override]
        self,
        images: ImageInput | None = None,
        text: str | list[str] | None = None,
        boxes: Sequence[Any] | None = None,
        masks: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        r"""
        Prepares images, texts and regions for [`DenseVLMModel.forward`].

        Args:
            images (PIL image, path or URL, array or tensor, or a list of them, *optional*):
                As in [`DenseVLMImageProcessor.preprocess`].
            text (`str` or `list[str]`, *optional*): texts, padded as the text tower requires.
            boxes (list of one array of shape `(n_i, 4)` per image, *optional*):
                Regions, xyxy in pixels of the image after EXIF rotation.
            masks (list of one array of shape `(n_i, height, width)` per image, *optional*):
                Regions, bool or 0 and 1, at the resolution of the image.
            kwargs: options of the image processor and the tokenizer, also in `images_kwargs` and `text_kwargs`;
                `return_tensors` defaults to `"pt"` if texts are padded.

        Returns:
            [`BatchFeature`] with `pixel_values`, `content_extent`, and `boxes` or `masks` for images; `input_ids` and
            `attention_mask` for texts.

        Raises:
            `TypeError` for unknown options; `ValueError` for invalid inputs, and for texts longer than the text tower
            supports.
        """
        if images is None and text is None:
            raise ValueError("Give `images`, `text` or both.")
        if images is None and (boxes is not None or masks is not None):
            raise ValueError("Regions (`boxes`, `masks`) need `images`.")
        images_kwargs, text_kwargs = self._split_kwargs(kwargs)
        features = BatchFeature({})
        if text is not None:
            features.update(self._tokenize(text, **text_kwargs))
        if images is not None:
            features.update(self.image_processor(images, boxes=boxes, masks=masks, **images_kwargs))
        return features

    def _split_kwargs(self, kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The options of the image processor and of the tokenizer; raises a `TypeError` for unknown ones."""
        known = {
            "images_kwargs": set(self.image_processor.valid_kwargs.__annotations__),
            "text_kwargs": set(TextKwargs.__annotations__),
        }
        split = {name: dict(kwargs.get(name) or {}) for name in known}
        for name, given in split.items():
            reject_unknown_options(given, known[name], f"{type(self).__name__} in `{name}`")
        flat = {**kwargs.get("common_kwargs", {}), **kwargs}
        flat = {name: value for name, value in flat.items() if name not in (*known, "common_kwargs")}
        reject_unknown_options(flat, set.union(*known.values()), type(self).__name__)
        for name, value in flat.items():
            for part in known:
                if name in known[part]:
                    split[part].setdefault(name, value)
        return split["images_kwargs"], split["text_kwargs"]

    def _tokenize(self, text: str | list[str], **kwargs: Any) -> BatchEncoding:
        is_siglip = type(self.tokenizer).__name__.startswith("Siglip")
        padding = kwargs.pop("padding", None)
        if padding is None:
            padding = self.text_padding or ("max_length" if is_siglip else "longest")
        # As the image processor gives its part; texts of different lengths make no tensor.
        return_tensors = kwargs.pop("return_tensors", "pt" if padding else None)
        length = kwargs.pop("max_length", None) or self.text_length
        if length is None and self.tokenizer.model_max_length < UNLIMITED:
            length = self.tokenizer.model_max_length
        if padding == "max_length" and length is None:
            raise ValueError('`padding` is "max_length", but the length is not known: give `max_length`.')
        truncation = kwargs.pop("truncation", None) or False
        needed = padding == "max_length" or truncation
        tokens = self.tokenizer(
            text, padding=padding, truncation=truncation, max_length=length if needed else None, **kwargs
        )
        single = isinstance(text, str)
        masked = "attention_mask" in tokens
        rows = tokens["attention_mask" if masked else "input_ids"]
        for number, row in enumerate([rows] if single else rows):
            count = sum(row) if masked else len(row)
            if length is not None and count > length:
                subject = "The text" if single else f"Text {number}"
                raise ValueError(
                    f"{subject} has {count} tokens, but the text tower supports {length}. Shorten it, or give "
                    "`truncation=True`."
                )
        return tokens.convert_to_tensors(return_tensors, prepend_batch_axis=single)

    def post_process_region_classification(
        self,
        outputs: Any,
        boxes: Sequence[Any] | None = None,
        masks: Sequence[Any] | None = None,
        text_labels: Sequence[str] | None = None,
        temperature: float | None = None,
    ) -> list[dict[str, Any]]:
        r"""
        Classifies regions: the most probable text of every region.

        Args:
            outputs ([`DenseVLMOutput`]): outputs of the model for images, texts and regions.
            boxes (list with one entry per image, *optional*):
                The boxes that the model was called with, `inputs["boxes"]`, for the number of regions per image. Not
                required for a single image.
            masks (list with one entry per image, *optional*): likewise, the masks.
            text_labels (`list[str]`, *optional*): the texts, or names for them, in the same order.
            temperature (`float`, *optional*):
                Temperature of the softmax over texts. Defaults to that of the model, `1 / model.logit_scale.exp()`,
                which is 0.01 for released CLIPs.

        Returns:
            `list[dict]`: one dict per image, with `scores` `(n_i,)`, the probability of the best text; `labels`
            `(n_i,)`, its index; and `text_labels`, its name (`None` without names).

        Raises:
            `ValueError` for outputs without regions or texts, and for arguments that do not match them.
        """
        regions, texts, logits = (
            getattr(outputs, name, None) for name in ("region_embeds", "text_embeds", "logits_per_region")
        )
        if regions is None or texts is None or logits is None:
            raise ValueError(
                "The outputs lack `region_embeds`, `text_embeds` or `logits_per_region`: call the model with regions "
                "and texts, model(**processor(images=…, text=[…], boxes=[…]))."
            )
        if boxes is not None and masks is not None:
            raise ValueError("Give either `boxes` or `masks`, as in the call of the model.")
        given = masks if boxes is None else boxes
        dense = getattr(outputs, "dense_embeds", None)
        if given is None and (dense is None or len(dense) > 1):
            raise ValueError("For several images, give `boxes` or `masks`, which determine the regions per image.")
        counts = [len(regions)] if given is None else [len(of_image) for of_image in given]
        if sum(counts) != len(regions):
            raise ValueError(f"The outputs are for {len(regions)} regions, but {sum(counts)} are given.")
        if text_labels is not None and len(text_labels) != len(texts):
            raise ValueError(f"The outputs are for {len(texts)} texts, but `text_labels` has {len(text_labels)}.")
        if temperature is not None:
            if not temperature > 0:
                raise ValueError(f"`temperature` is above 0, got {temperature}.")
            regions, texts = (torch.nn.functional.normalize(embeds.float(), dim=-1) for embeds in (regions, texts))
            logits = regions @ texts.to(regions.device).T / temperature
        scores, labels = logits.float().softmax(-1).max(-1)
        return [
            {
                "scores": some_scores,
                "labels": some_labels,
                "text_labels": None if text_labels is None else [text_labels[label] for label in some_labels.tolist()],
            }
            for some_scores, some_labels in zip(scores.split(counts), labels.split(counts))
        ]

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Sequence[tuple[int, int]] | torch.Tensor | None = None,
        return_segmentation_scores: bool = False,
        content_extent: Sequence[tuple[float, float]] | torch.Tensor | None = None,
    ) -> list[torch.Tensor] | list[SemanticSegmentationPostProcessorOutput]:
        """See [`DenseVLMImageProcessor.post_process_semantic_segmentation`]."""
        return self.image_processor.post_process_semantic_segmentation(
            outputs, target_sizes, return_segmentation_scores, content_extent
        )


def load_processing(
    folder: str | PathLike, backend: str = "pil", **kwargs: Any
) -> tuple[DenseVLMImageProcessor | DenseVLMImageProcessorTorchvision, PreTrainedTokenizerBase | None]:
    """Loads the image processor and the tokenizer (`None` if there is none) of a folder or Hub name."""
    if backend not in BACK_ENDS:
        raise ValueError(f"`backend` is one of {', '.join(BACK_ENDS)}, got {backend!r}.")
    back_end: Any = BACK_ENDS[backend]
    image_processor = back_end.from_pretrained(folder, **kwargs)
    try:
        return image_processor, AutoTokenizer.from_pretrained(folder, **kwargs)
    except (OSError, ValueError, ImportError) as error:
        logger.warning(f"{folder} has no tokenizer: {str(error).splitlines()[0]}")
        return image_processor, None


def require_square_canvas(image_processor: Any, folder: str | PathLike | None = None) -> None:
    """
    Checks that an image processor prepares images as training and evaluation do: resized with the bicubic filter and
    padded to a square.

    Args:
        image_processor ([`DenseVLMImageProcessor`]): the image processor.
        folder (`str` or path, *optional*): the folder or Hub name that it was loaded from, for the message.

    Raises:
        `ValueError` that names the file, the option and the remedy.
    """
    for name, needed in SQUARE_CANVAS.items():
        given = getattr(image_processor, name)
        if given != needed:
            files = [] if folder is None else [Path(folder, name) for name in PROCESSOR_FILES]
            source = next((file for file in files if file.is_file()), folder or "The image processor")
            raise ValueError(
                f"{source}: `{name}` is {json.dumps(given)}, but training and evaluation resize images with the "
                f"bicubic filter and pad them to a square: set it to {json.dumps(needed)}."
            )


__all__ = ["DenseVLMProcessor", "load_processing", "require_square_canvas"]
