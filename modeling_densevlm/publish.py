# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Writes a model as a complete folder for the Hub: weights, configuration, processor, tokenizer, the code that loads it
where this package is not installed, and a card.

    python -m modeling_densevlm.publish runs/coco densevlm-coco
    hf upload YOU/densevlm-coco densevlm-coco

The card (`README.md`) is that of the model's folder, where it has one.
"""

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from .command_line import check_output, one_line_errors
from .modeling_densevlm import DenseVLMModel
from .processing_densevlm import DenseVLMProcessor, load_processing


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
    Writes the model of a folder or Hub name as a complete folder, atomically.

    Args:
        source (`str` or path): folder or Hub name of a DenseVLM or a CLIP.
        output (`str` or path): folder to write; it does not exist yet, or is empty.
        dtype (`torch.dtype`, *optional*): of the weights; as they are saved by default.

    Raises:
        `ValueError` where something is in the way, or the tokenizer of a text tower is missing.
    """
    output = Path(output)
    check_output(output, folder=True, option="OUTPUT")
    if output.exists() and any(output.iterdir()):
        # What another model has left there, its tokenizer say, would be taken for this one's.
        raise ValueError(f"OUTPUT {output} exists already: give a new folder.")
    model = DenseVLMModel.from_pretrained(source, dtype=dtype or "auto")
    image_processor, tokenizer = load_processing(source)
    if tokenizer is None and model.text_model is not None:
        raise ValueError(
            f"{source} has a text tower and no tokenizer: texts could not be embedded. Save its tokenizer there "
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
            output.rmdir()  # it is empty
        shutil.move(staging, output)
    return output


def new_card(name: str, model: DenseVLMModel, image_processor: object) -> str:
    """What a card can say of any model."""
    return CARD.format(
        name=name,
        parameters=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        tower=model.config.vision_config.model_type,
        dim=model.config.projection_dim,
        side=image_processor.size["longest_edge"],
    )


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m modeling_densevlm.publish",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help="folder or Hub name of a DenseVLM or a CLIP")
    parser.add_argument("output", type=Path, help="folder to write, a new one")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights; as they are saved by default")
    arguments = parser.parse_args(argv)
    output = publish(arguments.source, arguments.output, arguments.dtype and getattr(torch, arguments.dtype))
    print(f"{arguments.source} → {output}: {', '.join(sorted(file.name for file in output.iterdir()))}")


if __name__ == "__main__":
    main()


__all__ = ["new_card", "publish"]
