# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Model cards: the `README.md` of a folder, with the metadata that the Hub reads. Training writes one, evaluations add
their numbers to it, publishing completes it.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, hf_hub_download
from transformers.utils import logging

from .shipped import model_source


logger = logging.get_logger(__name__)

CARD = "README.md"

TAGS = ["densevlm", "clip", "dense-features", "open-vocabulary"]

NOT_EVALUATED = "No evaluation has been run on this model."

EVALUATION = ("<!-- evaluation: written by the evaluation programs -->", "<!-- end of the evaluation -->")
"""Around the table of results, which is written anew from the metadata; all other text of a card is preserved."""

REGIONS = """```python
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("{name}", trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained("{name}", trust_remote_code=True)
texts = ["a boat", "water"]
inputs = processor(images=Image.open("photo.jpg"), text=texts, boxes=[[[10, 20, 90, 60]]], return_tensors="pt")
with torch.no_grad():
    outputs = model(**inputs)
processor.post_process_region_classification(outputs, text_labels=texts)  # scores and labels of the boxes, in pixels
outputs.dense_embeds  # (1, {dim}, height, width), unit norm, in the space of the texts
```"""

DENSE = """```python
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

model = AutoModel.from_pretrained("{name}", trust_remote_code=True).eval()
processor = AutoImageProcessor.from_pretrained("{name}", trust_remote_code=True)
inputs = processor(images=Image.open("photo.jpg"), return_tensors="pt")
dense = model.get_dense_features(inputs["pixel_values"])  # (1, {dim}, height, width), unit norm
```"""

SEGMENTS = """```python
from transformers import pipeline

segment = pipeline("image-segmentation", model="{name}", trust_remote_code=True)
segment("photo.jpg")  # [{{"label", "mask"}}, ...]
```

Its categories: {categories}."""


def new_card(
    name: str,
    model: Any,
    side: int,
    summary: str = "A CLIP with dense features in its image-text space.",
    training: Mapping[str, str] | None = None,
    base_models: Sequence[str] = (),
    licence: str | None = None,
    datasets: Sequence[str] = (),
    limits: str = "",
    tags: Sequence[str] = (),
) -> ModelCard:
    r"""
    A card.

    Args:
        name (`str`): name of the model.
        model ([`DenseVLMModel`] or [`DenseVLMForSemanticSegmentation`]): the model.
        side (`int`): longest side of its images in pixels.
        summary (`str`, *optional*): the first sentence.
        training (mapping of `str` to `str`, *optional*): rows of the table on its training; `None` if not known.
        base_models (sequence of `str`, *optional*): folders or Hub names of the models that it was made from.
        licence (`str`, *optional*): identifier of its licence on the Hub; see [`licence_of`].
        datasets (sequence of `str`, *optional*): Hub names of the data.
        limits (`str`, *optional*): sentences on its limits.
        tags (sequence of `str`, *optional*): further tags.

    Returns:
        `huggingface_hub.ModelCard`.
    """
    segmenter = getattr(model, "densevlm", None)
    inner = model if segmenter is None else segmenter
    licences = {source: licence_of(source) for source in base_models}
    data = ModelCardData(
        library_name="transformers",
        license=licence,
        base_model=list(dict.fromkeys(name for source in base_models for name in hub_names_of(source))) or None,
        datasets=list(datasets) or None,
        pipeline_tag="image-segmentation" if segmenter is not None else pipeline_tag(inner),
        tags=[*TAGS, *tags],
    )
    config = inner.config
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    template = SEGMENTS if segmenter is not None else (DENSE if inner.text_model is None else REGIONS)
    categories = ", ".join((config.categories or {}).get("names", []))
    use = template.format(name=name, dim=config.projection_dim, categories=categories)
    parts = [
        f"# {name}",
        f"{summary} {parameters:.1f} M parameters, vision tower `{config.vision_config.model_type}`, "
        f"{config.projection_dim} dimensions, images of {side} pixels.",
        use,
        "## Training\n\n" + (_table(training) if training else "Not recorded."),
        "## Evaluation\n\n" + "\n".join([EVALUATION[0], NOT_EVALUATED, EVALUATION[1]]),
        "## Limits\n\n"
        + (limits + " " if limits else "")
        + "It inherits the limits and biases of the models and data "
        "that it was made from. Which words it knows is not recorded: check those that you need.",
        "## Licence\n\n" + licence_text(licence, licences),
        "Made by DenseVLM for transformers; method: *Unbiased Region-Language Alignment for Open-Vocabulary Dense "
        "Prediction* (Li et al., ICCV 2025).",
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def pipeline_tag(model: Any) -> str:
    """The pipeline of transformers that runs the model's folder."""
    return "image-feature-extraction" if model.text_model is None else "zero-shot-image-classification"


def licence_text(licence: str | None, licences: Mapping[str, str | None]) -> str:
    """What is known of the licence of the weights."""
    first = f"The weights: `{licence}`." if licence else "The licence of the weights is not known: look it up."
    of_bases = [f"`{shown(source)}`: {f'`{found}`' if found else 'not known'}" for source, found in licences.items()]
    return first + (f" Of the models that it was made from: {', '.join(of_bases)}." if of_bases else "")


def card_of(source: str | Path) -> Any:
    """The `ModelCard` of a folder or of a model of the Hub; `None` if there is none, or the Hub cannot be reached."""
    try:
        folder = Path(model_source(str(source)))
        file = folder / CARD if folder.is_dir() else Path(hf_hub_download(str(source), CARD))
    except (OSError, ValueError):  # no such model, no card, no network, a name that cannot be one
        return None
    if not file.is_file():
        return None
    try:
        return ModelCard.load(file, ignore_metadata_errors=True)
    except (ValueError, yaml.YAMLError) as error:
        logger.warning(f"{file} cannot be read as a model card: {' '.join(str(error).split())}")
        return None


def shown(source: str | Path) -> str:
    """A model as a card names it: a Hub name, or the name of a folder without its place on this machine."""
    return Path(source).name if Path(source).exists() else str(source)


def licence_of(source: str | Path) -> str | None:
    """The licence that the card of a model names."""
    card = card_of(source)
    return None if card is None else card.data.license


def hub_names_of(source: str | Path) -> list[str]:
    """The Hub name of a model; of a folder, those that its card says it was made from."""
    if not Path(model_source(str(source))).exists():
        return [str(source)]
    card = card_of(source)
    names = [] if card is None else card.data.base_model or []
    return [names] if isinstance(names, str) else list(names)


def add_results(folder: str | Path, results: Sequence[EvalResult]) -> bool:
    """
    Adds results to the card of a folder: to its metadata (`model-index`) and to its table. Those of the same metric on
    the same data are replaced; nothing else is changed.

    Args:
        folder (`str` or path): of the model.
        results (sequence of `EvalResult`): the results.

    Returns:
        `bool`: whether there is a card with the tag `densevlm` to add to.
    """
    card = card_of(folder) if Path(folder).is_dir() else None
    if card is None or "densevlm" not in (card.data.tags or []):
        return False
    merged = {_key(result): result for result in [*(card.data.eval_results or []), *results]}
    card.data.eval_results = list(merged.values())
    card.data.model_name = card.data.model_name or Path(folder).absolute().name
    text, (begin, end) = card.text, EVALUATION
    table = f"{begin}\n{results_table(card.data.eval_results)}\n{end}"
    if begin in text and end in text:
        card.text = text[: text.index(begin)] + table + text[text.index(end) + len(end) :]
    else:
        card.text = f"{text.rstrip()}\n\n{table}\n"
    card.save(Path(folder) / CARD)
    return True


def _key(result: EvalResult) -> tuple[Any, ...]:
    return (
        result.task_type,
        result.dataset_type,
        result.dataset_name,
        result.dataset_config,
        result.dataset_split,
        result.metric_type,
        result.metric_name,
    )


def results_table(results: Sequence[EvalResult]) -> str:
    """Results as a table, one row per metric."""
    lines = ["| data | metric | value |", "| --- | --- | --- |"]
    for result in results:
        data = ", ".join(filter(None, (result.dataset_name, result.dataset_config)))
        lines.append(f"| {data} | {result.metric_name or result.metric_type} | {result.metric_value} |")
    return "\n".join(lines)


def rename(card: ModelCard, name: str) -> None:
    """Makes the lines of code and the metadata of a card say another name: that under which it is published."""
    title = re.search(r"^# (.+)$", card.text, re.MULTILINE)
    if title is not None:
        card.text = card.text.replace(f'"{title[1]}"', f'"{name}"')
    data: Any = card.data
    if data.model_name is not None:
        data.model_name = name.split("/")[-1]


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows.items())])


__all__ = ["CARD", "add_results", "card_of", "hub_names_of", "licence_of", "new_card", "rename", "shown"]
