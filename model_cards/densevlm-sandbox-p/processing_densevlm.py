"""Image processor and tokenizer in one."""

from os import PathLike

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.processing_utils import ProcessorMixin
from transformers.utils import logging

from .image_processing_densevlm import DenseVLMImageProcessor


logger = logging.get_logger(__name__)


class DenseVLMProcessor(ProcessorMixin):
    r"""
    A [`DenseVLMImageProcessor`] and the tokenizer of the text tower.

    Args:
        image_processor (`DenseVLMImageProcessor`): from images to `pixel_values`.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): from texts to `input_ids`.
    """

    image_processor_class = "AutoImageProcessor"
    tokenizer_class = "AutoTokenizer"

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        super().__init__(image_processor, tokenizer, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs) -> "DenseVLMProcessor":
        """As [`ProcessorMixin.from_pretrained`]; the folder of a CLIP gives its tokenizer, mean, std and size."""
        image_processor, tokenizer = load_processing(pretrained_model_name_or_path, **kwargs)
        if tokenizer is None:
            raise ValueError(
                f"{pretrained_model_name_or_path} holds no tokenizer. For images alone, use `DenseVLMImageProcessor`."
            )
        return cls(image_processor, tokenizer)


def load_processing(folder: str | PathLike, **kwargs) -> tuple[DenseVLMImageProcessor, PreTrainedTokenizerBase | None]:
    """The image processor of a folder or Hub name, and its tokenizer; `None` where it has none (no text tower)."""
    image_processor = DenseVLMImageProcessor.from_pretrained(folder, **kwargs)
    try:
        return image_processor, AutoTokenizer.from_pretrained(folder, **kwargs)
    except (OSError, ValueError, ImportError) as error:
        logger.warning(f"{folder} gives no tokenizer: {str(error).splitlines()[0]}")
        return image_processor, None


__all__ = ["DenseVLMProcessor", "load_processing"]
