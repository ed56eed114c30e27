# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The metrics of an evaluation as results in the model's card."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult
from transformers.utils import logging

from modeling_densevlm.model_card import CARD, add_results
from modeling_densevlm.shipped import MODEL_CARDS

from .comparison import METRIC_TITLES


logger = logging.get_logger(__name__)

METRICS = {
    **dict.fromkeys(("boxes_top1", "masks_thing_top1", "masks_stuff_top1", "boxes_top5"), "accuracy"),
    **dict.fromkeys(("masks_thing_top5", "masks_stuff_top5", "mean_accuracy", "pixel_accuracy"), "accuracy"),
    **dict.fromkeys(("foreground_bias", "background_bias"), "foreground_bias"),
    "miou": "mean_iou",
}
"""The metrics in a card, and their types on the Hub."""


def results_of(row: dict[str, Any], data: str, further: Sequence[str] = ()) -> list[EvalResult]:
    """The metrics of one evaluation on `data`, in %; `further` settings tell it from others on the same data."""
    segmentation = "miou" in row
    settings = f"{row['image_size']} pixels, {row['templates']} templates"
    if row.get("thing_offset"):
        settings += f", offset of things {row['thing_offset']:g}"
    settings = ", ".join([settings, *further])
    return [
        EvalResult(
            task_type="image-segmentation" if segmentation else "zero-shot-image-classification",
            task_name="Segmentation without training" if segmentation else "Classification of regions",
            dataset_type=data.lower().replace(" ", "-"),
            dataset_name=data,
            dataset_config=settings,  # results are grouped by it
            metric_type=kind,
            metric_name=METRIC_TITLES[name],
            metric_value=round(100 * row[name], 2),
        )
        for name, kind in METRICS.items()
        if name in row
    ]


def add_to_cards(rows: Sequence[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Adds the metrics to the cards of the evaluated folders that have one; names the cards."""
    annotations = Path(arguments.annotations)
    # A file of annotations has a name of its own; a folder of them is often called `val`.
    data = annotations.stem if annotations.suffix else "/".join(annotations.absolute().parts[-2:])
    further = [f"categories {Path(arguments.categories).stem}"] if arguments.categories else []
    for name in ("window", "stride", "background"):
        if getattr(arguments, name, None) is not None:
            further.append(f"{name} {getattr(arguments, name)}")
    for row in rows:
        card = Path(row["model"]) / CARD
        if card.absolute().parents[1] == MODEL_CARDS:  # those of the package are not changed
            continue
        try:
            if add_results(row["model"], results_of(row, data, further)):
                print(f"Added to the model card {card}")
        except OSError as error:
            logger.warning(f"The metrics were not added to {card}: {error}")


__all__ = ["add_to_cards", "results_of"]
