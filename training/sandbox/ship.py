# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Writes the sandbox's models into `model_cards`: weights in half precision, processor, tokenizer, model card.

    python -m training.sandbox.ship runs/pretrain/u densevlm-sandbox-u  # a newly trained one
    python -m training.sandbox.ship                                     # all of them, after a change of configurations
    python -m training.sandbox.ship --metrics runs/sandbox/metrics.json # the same, with the metrics of `make sandbox`

The folders do not contain modeling code: their
configurations refer to the installed package through the file `REFERENCE`. To load a model without the package, write
a folder with the code by `densevlm publish model_cards/NAME --folder OUTPUT`.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult

from modeling_densevlm import DenseVLMImageProcessor, DenseVLMModel
from modeling_densevlm.command_line import one_line_errors
from modeling_densevlm.model_card import CARD, add_results, new_card
from modeling_densevlm.publish import publish
from modeling_densevlm.shipped import MODEL_CARDS


REFERENCE = "installed_package.py"
"""The file of each folder that `auto_map` names: auto classes find the package's classes there."""

REFERENCE_CODE = '''\
# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The classes of the installed package; this folder holds no code of its own. Written by training.sandbox.ship."""

try:
    from modeling_densevlm import *  # noqa: F403
except ImportError as error:
    raise ImportError(
        "This folder holds no modeling code: install the package `densevlm`, or let it write a folder with code, by "
        "`densevlm publish FOLDER --folder OUTPUT`."
    ) from error
'''


COMMON = {
    "data": "synthetic, drawn from seeds by `training.sandbox.scenes`; one pre-training seed",
    "hardware": "a CPU with two cores",
}

CLIPSELF = (
    "`python -m training.train training/recipes/sandbox_clipself.yaml{options}`: 1,500 steps of 16 images with 6 "
    "crops each, of 4,000 scenes"
)

CARDS: dict[str, tuple[str, dict[str, str]]] = {
    "densevlm-sandbox-u": (
        "U of the sandbox, the student before training: a CLIP, pre-trained on captioned pictures at 96 pixels. It "
        "recognises pictures; its dense features of things are near chance.",
        {
            "pre-training": "`python -m training.sandbox.pretrain U`: 3,000 batches of 96 from 20,000 pictures, "
            "contrastive; captions name every thing, and a piece of stuff with probability 0.1"
        },
    ),
    "densevlm-sandbox-clipself-u": (
        "U of the sandbox after CLIPSelf (Wu et al., ICLR 2024), the baseline: its dense features learned its own "
        "image features of crops. It sees things, and takes much of the background for a thing.",
        {"dense training": CLIPSELF.format(options="") + ", from U"},
    ),
    "densevlm-sandbox-p": (
        "P of the sandbox, the teacher: a CLIP with smaller patches than U, better pre-trained, then dense-trained by "
        "CLIPSelf.",
        {
            "pre-training": "`python -m training.sandbox.pretrain P`: 2,000 batches of 96 from 50,000 pictures and "
            "parts of them, contrastive, by Muon; captions as for U",
            "dense training": CLIPSELF.format(options=" --image_size 144 --image_weight 1 --learning_rate 1e-3"),
        },
    ),
    "densevlm-sandbox": (
        "DenseVLM of the sandbox: U, taught by P which region is what, things contrasted with things alone.",
        {
            "training": "`python -m training.train training/recipes/sandbox.yaml`, by `make sandbox`: 400 steps of 48 "
            "of 4,000 scenes, student U, teacher P",
        },
    ),
}
"""Model → its summary and the rows about its training."""

LIMITS = (
    "A toy model: it knows 28 names of things and stuff in drawn scenes of 192 pixels, and nothing else. It serves to "
    "demonstrate and test the method without a download; use a real CLIP for real images. In training scenes half of "
    "all things are on their typical background, in test scenes they are not."
)

RESULTS = {
    "boxes_top1": ("Boxes", "accuracy"),
    "masks_thing_top1": ("Masks-T", "accuracy"),
    "masks_stuff_top1": ("Masks-S", "accuracy"),
    "foreground_bias": ("stuff called a thing", "foreground_bias"),
    "background_bias": ("thing called stuff", "foreground_bias"),
    "segmentation_miou": ("mIoU", "mean_iou"),
    "images_close_up_top1": ("images of one thing, close-ups", "accuracy"),
    "images_small_top1": ("images of one thing, small", "accuracy"),
}
"""Metric of `make sandbox` → its title in a card, and its type on the Hub."""

ROWS = {
    "densevlm-sandbox-u": "before",
    "densevlm-sandbox-clipself-u": "clipself",
    "densevlm-sandbox-p": "teacher",
    "densevlm-sandbox": "after",
}
"""Model → its row in `metrics.json`."""


def write_card(folder: Path) -> None:
    """Writes the card of a shipped model; results of an earlier one are those of other weights, and go."""
    summary, rows = CARDS[folder.name]
    model = DenseVLMModel.from_pretrained(folder)
    side = DenseVLMImageProcessor.from_pretrained(folder).size["longest_edge"]
    card = new_card(
        folder.name, model, side, summary, rows | COMMON, licence="apache-2.0", limits=LIMITS, tags=["toy"]
    )
    card.save(folder / CARD)


def add_metrics(folder: Path, metrics: dict[str, dict[str, float]]) -> None:
    """Adds the metrics of `make sandbox` to the card of a shipped model."""
    row = metrics[ROWS[folder.name]]
    add_results(
        folder,
        [
            EvalResult(
                task_type="zero-shot-image-classification",
                dataset_type="densevlm-sandbox",
                dataset_name="the sandbox's 1,200 test scenes, in %",
                metric_type=kind,
                metric_name=title,
                metric_value=round(100 * row[name], 1),
            )
            for name, (title, kind) in RESULTS.items()
        ],
    )


def ship(source: Path, folder: Path) -> None:
    """Saves the model in `source` to `folder`, with references to the installed package instead of code."""
    with tempfile.TemporaryDirectory() as temporary:
        published = publish(source, Path(temporary) / "model", torch.float16)
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted([*published.glob("*.json"), *published.glob("*.safetensors")]):
            if "config" in file.name:
                content = refer_to_package(json.loads(file.read_text(encoding="utf-8")))
                file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            shutil.copyfile(file, folder / file.name)
    (folder / REFERENCE).write_text(REFERENCE_CODE, encoding="utf-8")
    if folder.name in CARDS:
        write_card(folder)
    print(f"{source} → {folder}")


def refer_to_package(content: Any) -> Any:
    """Makes every `auto_map` of a configuration refer to the classes in `REFERENCE`."""
    if not isinstance(content, dict):
        return content
    content = {key: refer_to_package(value) for key, value in content.items()}
    if "auto_map" in content:
        content["auto_map"] = {key: _refer(names) for key, names in content["auto_map"].items()}
    return content


def _refer(names: str | list[str] | None) -> str | list[str] | None:
    """The reference to a class, or a list of references, one per back end."""
    if isinstance(names, list):
        return [_refer(name) for name in names]
    return names and f"{REFERENCE.removesuffix('.py')}.{names.split('.')[-1]}"


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Ships one newly trained model, or all models again."""
    parser = argparse.ArgumentParser(
        prog="python -m training.sandbox.ship",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, nargs="?", help="folder of the trained model")
    parser.add_argument("name", nargs="?", help="folder below model_cards")
    parser.add_argument("--metrics", type=Path, help="metrics.json of `make sandbox`, for the cards of all models")
    arguments = parser.parse_args(argv)
    if arguments.source is not None:
        ship(arguments.source, MODEL_CARDS / (arguments.name or arguments.source.name))
        return
    for config in sorted(MODEL_CARDS.glob("*/config.json")):
        ship(config.parent, config.parent)
        if arguments.metrics is not None:
            add_metrics(config.parent, json.loads(arguments.metrics.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
