# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Converts public checkpoints to a DenseVLM, and a DenseVLM to the layout of open_clip and the reference code.

    densevlm convert CHECKPOINT OUTPUT [--config NAME_OR_JSON] [--prefix PREFIX] [--processor FOLDER] [--license ID]
    densevlm convert hub:OWNER/NAME/FILE OUTPUT ...
    densevlm convert --export FOLDER OUTPUT.pt

Supported are checkpoints of open_clip, EVA-CLIP, CLIPSelf, FineCLIP, DenseVLM, RegionCLIP, timm's EVA-02 CLIP and
transformers' CLIP, also as part of detectors and training checkpoints, in the formats `.safetensors`, `.pt`, `.pth`
and `.bin` (loaded without executing pickled code), and the index of a sharded checkpoint. Model and sizes are detected
from the keys and shapes; if they fit several known models, choose one by `--config`. If a file holds several CLIPs (a
teacher, say), choose one by `--prefix`; `--prefix visual.` converts a vision tower without its text tower. A key that
is missing, unexpected or of another shape is an error that names it.

Of a model on the Hub, only the named file is downloaded. CLIP's tokenizer is saved with the model where
open_clip_torch is installed (extra `convert`), any other by --processor. The model card names the source.
"""

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .command_line import as_one_line
from .conversion import convert_checkpoint, convert_with_report, export_checkpoint
from .conversion.configs import config_names, load_config
from .conversion.files import SUFFIXES, staged, write_checkpoint
from .conversion.hub import HUB, clip_tokenizer, local_file
from .conversion.open_clip import image_processor_for
from .conversion.recognition import UnknownConfig
from .model_card import CARD, licence_of, new_card
from .modeling_densevlm import DenseVLMModel
from .processing_densevlm import DenseVLMProcessor


def main(argv: Sequence[str] | None = None) -> None:
    """Converts a checkpoint file to a folder, or with `--export` a folder to a checkpoint file."""
    parser = argparse.ArgumentParser(
        prog="python -m modeling_densevlm.convert_open_clip",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoint", help="the checkpoint file, or hub:OWNER/NAME/FILE; with --export the folder of a DenseVLM"
    )
    parser.add_argument("config_file", nargs="?", help="the same as --config")
    parser.add_argument("output", type=Path, help="folder to save to; with --export a .pt or .safetensors file")
    parser.add_argument("--config", help=f"open_clip's JSON, or one of {', '.join(config_names())}")
    parser.add_argument("--prefix", help="prefix of the CLIP's keys, if the file holds several CLIPs")
    parser.add_argument("--processor", help="folder or Hub name of the tokenizer")
    parser.add_argument("--license", help="licence of the weights, for the model card; by default that of their card")
    parser.add_argument("--export", action="store_true", help="convert a folder to the layout of open_clip")
    arguments = parser.parse_args(argv)
    output = arguments.output
    if arguments.config and arguments.config_file:
        parser.error("give the configuration once, as --config")
    if arguments.export and (output.is_dir() or output.suffix not in SUFFIXES):
        what = "is a folder" if output.is_dir() else f"ends in {output.suffix!r}"
        parser.error(f"OUTPUT {output} {what}; with --export it is a .pt or .safetensors file")
    if not arguments.export and output.exists() and not _is_empty_folder(output):
        # Files of another model in the folder, such as its tokenizer, would be mistaken for this one's.
        parser.error(f"OUTPUT {output} exists already; give a new folder, or delete it first")
    try:
        if arguments.export:
            _export_folder(Path(arguments.checkpoint), output)
        else:
            _convert_file(arguments)
    except (ValueError, OSError, ImportError) as error:
        message = as_one_line(error)
        named = any(str(path) in message for path in (Path(arguments.checkpoint), output.with_suffix("")))
        raise SystemExit(message if named else f"{arguments.checkpoint}: {message}") from None


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _convert_file(arguments: argparse.Namespace) -> None:
    # The tokenizer is loaded first, so that an error precedes the conversion.
    tokenizer = _load_tokenizer(arguments.processor) if arguments.processor else None
    config = arguments.config or arguments.config_file
    file = local_file(arguments.checkpoint)
    try:
        model, report = convert_with_report(file, config, arguments.prefix)
    except UnknownConfig as error:
        raise ValueError(f"{error}{_suggest_config(file)}") from None
    processor: Any = image_processor_for(model, load_config(config) if config else {})
    if tokenizer is None and _has_clip_vocabulary(model):
        tokenizer = clip_tokenizer()
    if tokenizer is not None:
        processor = DenseVLMProcessor(processor, tokenizer)
    with staged(arguments.output) as (folder,):
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        _card(arguments, file, model, report).save(folder / CARD)
    if tokenizer is None and model.text_model is not None:
        print(
            "No tokenizer was saved, which training and evaluation need for texts: delete "
            f"{arguments.output} and repeat the command with --processor, a folder or Hub name "
            "(openai/clip-vit-base-patch16 has the tokenizer of CLIP and EVA-CLIP; with open_clip_torch installed it "
            "is saved without a download)."
        )
    print(report)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters in {arguments.output}")


def _has_clip_vocabulary(model: DenseVLMModel) -> bool:
    text = model.config.text_config
    return text is not None and (text.model_type, text.vocab_size) == ("clip_text_model", 49_408)


def _card(arguments: argparse.Namespace, file: Path, model: DenseVLMModel, report: Any) -> ModelCard:
    """The card of converted weights: where they come from, and that nothing was trained."""
    source = arguments.checkpoint if arguments.checkpoint.startswith(HUB) else file.name
    repo = "/".join(source.removeprefix(HUB).split("/")[:2]) if source.startswith(HUB) else None
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    rows = {
        "converted from": f"`{source}`",
        "SHA-256 of the file": digest,
        "layout": f"{report.layout}, configuration {report.config}",
        "changes": "names and layout of the tensors; no value was trained",
    }
    return new_card(
        arguments.output.absolute().name,
        model,
        image_processor_for(model, {}).size["longest_edge"],
        summary=f"Weights of other authors, converted from `{source}`.",
        training=rows,
        base_models=[repo] if repo else [],
        licence=arguments.license or (licence_of(repo) if repo else None),
    )


def _suggest_config(checkpoint: Path) -> str:
    """Part of a message: the configuration beside a checkpoint, as an export or the Hub names it."""
    files = [checkpoint.with_suffix(".json"), checkpoint.with_name("open_clip_config.json")]
    return next((f" Its own may be the one beside it: `--config {file}`." for file in files if file.is_file()), "")


def _load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(source)
    except Exception as error:  # decoders raise arbitrary exceptions for damaged files
        raise SystemExit(
            f"--processor {source}: no tokenizer found, here or on the Hub: {as_one_line(error)}"
        ) from None


def _export_folder(folder: Path, output: Path) -> None:
    try:
        model = DenseVLMModel.from_pretrained(folder, dtype=torch.float32)
    except Exception as error:  # as above
        raise ValueError(f"{folder} cannot be loaded: {as_one_line(error)}") from None
    tensors, config = export_checkpoint(model)
    with staged(output, output.with_suffix(".json")) as (file, config_file):
        write_checkpoint(tensors, file)
        config_file.write_text(json.dumps(config, indent=2) + "\n")
    print(f"{len(tensors)} tensors in {output}, their configuration in {output.with_suffix('.json')}")


__all__ = ["convert_checkpoint", "export_checkpoint", "main"]


if __name__ == "__main__":
    main()
