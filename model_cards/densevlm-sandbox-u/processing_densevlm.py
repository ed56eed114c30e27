"""Image processor and tokenizer in one."""

from transformers import AutoTokenizer
from transformers.processing_utils import ProcessorMixin

from .image_processing_densevlm import DenseVLMImageProcessor


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
        image_processor = DenseVLMImageProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs)
        tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **kwargs)
        return cls(image_processor, tokenizer)


__all__ = ["DenseVLMProcessor"]
