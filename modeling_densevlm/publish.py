# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Writes a complete folder for the Hub: weights, configuration, processor, tokenizer, a model card, and the code that
loads the model without this package.

    python -m modeling_densevlm.publish runs/coco densevlm-coco
    hf upload YOU/densevlm-coco densevlm-coco

The model card (`README.md`) is copied from the source folder if it has one.
"""

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .command_line import check_output, one_line_errors
from .modeling_densevlm import DenseVLMModel
from .processing_densevlm import DenseVLMProcessor, load_processing
from .shipped import model_source


DTYPES = ("float32", "bfloat16", "float16")

CARD = """---
library_name: transformers
pipeline_tag: zero-shot-image-classification
tags:
- densevlm
- clip
- dense-features
---

# {name}

A CLIP with dense features in its image-text space, {parameters:.1f} M parameters (vision tower
`{tower}`, {dim} dimensions, images of {side} pixels).

```python
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("{name}", trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained("{name}", trust_remote_code=True)
inputs = processor(images=image, return_tensors="pt")
dense = model.get_dense_features(inputs["pixel_values"])  # (1, {dim}, height, width), unit norm
```

Written by DenseVLM for transformers; method: *Unbiased Region-Language Alignment for Open-Vocabulary Dense Prediction*
(Li et al., ICCV 2025).
"""


def publish(source: str | Path, output: str | Path, dtype: torch.dtype | None = None) -> Path:
    """
    Writes a model to a complete folder for the Hub, atomically.

    Args:
        source (`str` or path): folder or Hub name of a DenseVLM or a CLIP.
        output (`str` or path): folder to write, new or empty.
        dtype (`torch.dtype`, *optional*): dtype of the weights; by default that in which they are saved.

    Returns:
        `Path`: the folder.

    Raises:
        `ValueError` if the folder is not empty, or the tokenizer of a text tower is missing.
    """
    output = Path(output)
    check_output(output, folder=True, option="OUTPUT")
    if output.exists() and any(output.iterdir()):
        # Files of another model in the folder, such as its tokenizer, would be mistaken for this one's.
        raise ValueError(f"OUTPUT {output} exists already: give a new folder.")
    model = DenseVLMModel.from_pretrained(source, dtype=dtype or "auto")
    image_processor, tokenizer = load_processing(source)
    if tokenizer is None and model.text_model is not None:
        raise ValueError(
            f"{source} has a text tower but no tokenizer: texts could not be embedded. Save its tokenizer there "
            "(`densevlm convert ... --processor` does)."
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".publish-") as folder:
        staging = Path(folder) / output.name
        model.save_pretrained(staging)
        processor = image_processor if tokenizer is None else DenseVLMProcessor(image_processor, tokenizer)
        processor.save_pretrained(staging)
        card = Path(source) / "README.md"
        content = card.read_text(encoding="utf-8") if card.is_file() else new_card(output.name, model, image_processor)
        (staging / "README.md").write_text(content, encoding="utf-8")
        if output.exists():
            output.rmdir()  # empty, see above
        shutil.move(staging, output)
    return output


def new_card(name: str, model: DenseVLMModel, image_processor: Any) -> str:
    """A model card with what is known of any model."""
    return CARD.format(
        name=name,
        parameters=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        tower=model.config.vision_config.model_type,
        dim=model.config.projection_dim,
        side=image_processor.size["longest_edge"],
    )


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """The command line of [`publish`]."""
    parser = argparse.ArgumentParser(
        prog="python -m modeling_densevlm.publish",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=model_source, help="folder or Hub name of a DenseVLM or a CLIP")
    parser.add_argument("output", type=Path, help="new folder to write")
    parser.add_argument(
        "--dtype", choices=DTYPES, help="dtype of the weights; by default that in which they are saved"
    )
    arguments = parser.parse_args(argv)
    output = publish(arguments.source, arguments.output, arguments.dtype and getattr(torch, arguments.dtype))
    print(f"{arguments.source} → {output}: {', '.join(sorted(file.name for file in output.iterdir()))}")


if __name__ == "__main__":
    main()


__all__ = ["new_card", "publish"]
