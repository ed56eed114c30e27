# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The models under evaluation: their options on the command line, their texts, their provenance."""

import argparse
import copy
import hashlib
import json
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

import modeling_densevlm
from modeling_densevlm import (
    CategoryEmbeddings,
    CategorySet,
    DenseVLMConfig,
    DenseVLMImageProcessor,
    DenseVLMModel,
)
from modeling_densevlm.command_line import check_output, one_line_errors, whole_number
from modeling_densevlm.processing_densevlm import load_processing
from modeling_densevlm.templates import DEFAULT_TEMPLATES, TEMPLATES

from .comparison import write
from .renamed import add_renamed_options


logger = logging.get_logger(__name__)

PACKAGES = [Path(__file__).parent, Path(modeling_densevlm.__file__).parent]
SHOWING = {
    *("report.py", "report_numbers.py", "charts.py", "figures.py", "show.py", "comparison.py", "sandbox.py"),
    *("app.py", "tests.py", "publish.py", "renamed.py"),
}
"""Files that measure nothing: they show what was measured, or start programs."""


@one_line_errors()
def run(
    parser: argparse.ArgumentParser,
    evaluate: Callable[["EvaluatedModel", argparse.Namespace], dict[str, Any]],
    argv: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """
    A program that evaluates models: adds the options that every evaluation has to those of `parser`, calls `evaluate`
    with every model at every size, writes what it gives, and returns it, a row of numbers each.
    """
    _add_options(parser)
    arguments = parser.parse_args(argv)
    if arguments.output.suffix != ".json":
        parser.error(
            f"--output {arguments.output} is a .json; results are written to the folder of its name beside it"
        )
    output = arguments.output
    tables = (
        [output.with_suffix(".md"), output.with_suffix(".tex")] if arguments.models or arguments.image_size else []
    )
    for file in (output, *tables):
        check_output(file)
    check_output(output.with_suffix(""), folder=True)
    state = PartialState(cpu=arguments.device == "cpu")
    rows = [evaluate(evaluated, arguments) for evaluated in load_models(arguments)]
    if state.is_main_process:
        write(rows, output)
    return rows


def _add_options(parser: argparse.ArgumentParser) -> None:
    models = parser.add_mutually_exclusive_group(required=True)
    models.add_argument("--model", help="folder or Hub name of a DenseVLM or a CLIP")
    models.add_argument("--models", nargs="+", help="several of them, to be compared")
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    parser.add_argument("--templates", default=DEFAULT_TEMPLATES, choices=TEMPLATES, help="prompt templates")
    parser.add_argument("--embeddings", help="category embeddings (safetensors) of `--model`; computed by default")
    parser.add_argument(
        "--image_size", type=whole_number(), nargs="+", help="input sides in pixels; the processor's by default"
    )
    parser.add_argument("--batch_size", type=whole_number(), default=8)
    parser.add_argument("--num_workers", type=whole_number(0), default=2)
    parser.add_argument(
        "--shard_size", type=whole_number(), default=128, help="images whose results are written together"
    )
    add_renamed_options(parser)
    parser.add_argument("--device", type=_device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))


def _device(text: str) -> str:
    """A type for options: a device that is there."""
    try:
        device = torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"expected cpu, cuda or another device, got {text!r}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(f"{text}: there are {torch.cuda.device_count()} such devices here")
    return text


@dataclass
class EvaluatedModel:
    """A model at a size."""

    number: int
    source: str
    model: DenseVLMModel
    image_processor: DenseVLMImageProcessor
    tokenizer: PreTrainedTokenizerBase | None
    fingerprint: str
    arguments: argparse.Namespace

    @property
    def side(self) -> int:
        return self.image_processor.size["longest_edge"]

    def embeddings(self, categories: CategorySet) -> CategoryEmbeddings:
        """Those of the given file, checked; else computed in float32. The model then takes the dtype asked for."""
        found = CategoryEmbeddings.resolve(
            categories,
            self.model,
            self.tokenizer,
            self.arguments.templates,
            given=self.arguments.embeddings,
            option="--embeddings",
        )
        found.embeds = found.embeds.cpu()
        self.model.to(getattr(torch, self.arguments.dtype))
        return found

    def provenance(self, categories: CategorySet, embeddings: CategoryEmbeddings) -> dict[str, Any]:
        """What is evaluated, and how: equal for all shards of one evaluation (see [`in_shards`])."""
        if self.arguments.embeddings:
            texts = digest(embeddings.embeds.numpy().tobytes())
        else:
            # Not the numbers themselves: another number of threads changes their last digits.
            sentences = [categories.synonyms, embeddings.templates, embeddings.encoder]
            texts = digest(json.dumps(sentences).encode())
        return {
            "model": self.source,
            "fingerprint": self.fingerprint,
            "image_size": self.side,
            "dtype": self.arguments.dtype,
            "device": self.arguments.device,
            "categories": list(categories.names),
            "is_thing": categories.is_thing,
            "category_ids": categories.ids,
            "image_mean": list(self.image_processor.image_mean),
            "image_std": list(self.image_processor.image_std),
            "templates": len(embeddings.templates),
            "embeddings": texts,
            "code": code_digest(),
            "commit": commit(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    @property
    def file(self) -> Path:
        """Where its results are written, beside the output."""
        return (
            self.arguments.output.with_suffix("") / f"{self.number}-{Path(self.source).name}-{self.side}.safetensors"
        )


def load_models(arguments: argparse.Namespace) -> Iterator[EvaluatedModel]:
    """Each model at each size, one at a time in memory. One without a configuration is reported before the first."""
    sources = arguments.models or [arguments.model]
    if len(sources) > 1 and arguments.embeddings:
        raise ValueError("--embeddings are those of one model: give --model.")
    for source in sources:
        try:
            DenseVLMConfig.from_pretrained(source)
        except OSError:
            DenseVLMModel.from_pretrained(source)  # says what is wrong
    device = PartialState().device if arguments.device == "cuda" else arguments.device
    for number, source in enumerate(sources):
        image_processor, tokenizer = load_processing(source)
        for side in arguments.image_size or [image_processor.size["longest_edge"]]:
            model = DenseVLMModel.from_pretrained(source, dtype=torch.float32).to(device).eval()
            image_processor = copy.copy(image_processor)
            image_processor.size = {"longest_edge": whole_cells(side, model.vision_model.stride, source)}
            yield EvaluatedModel(number, source, model, image_processor, tokenizer, model.fingerprint(), arguments)


def whole_cells(side: int, cell: int, source: str) -> int:
    """
    The multiple of a model's cells that is nearest to a side: else boxes, fractions of the whole square, would be
    fractions of what the map covers of it.
    """
    whole = max(int(side / cell + 0.5), 1) * cell
    torch.empty(
        3, whole, whole
    )  # fails, as nothing is written to it, for what no machine holds: not in a worker later
    if whole != side:
        logger.warning(f"{source} sees cells of {cell} pixels: {side} pixels become {whole} for it.")
    return whole


def summary(provenance: dict[str, Any]) -> dict[str, Any]:
    """What of the provenance is reported beside the metrics."""
    return {name: provenance[name] for name in ("model", "fingerprint", "image_size", "dtype", "templates", "commit")}


def digest(content: bytes) -> str:
    """Sixteen digits that stand for it."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def files_digest(root: Path, names: Iterable[str | None]) -> str:
    """A digest of files' names and sizes below a folder: enough to tell one version of a split from another."""
    files = [(name, root / name) for name in names if name is not None]
    return digest(json.dumps([[name, file.stat().st_size if file.exists() else -1] for name, file in files]).encode())


def code_digest() -> str:
    """A digest of the code that is measured by: this package's, but for what only shows numbers, and the model's."""
    files = (file for package in PACKAGES for file in package.rglob("*.py") if file.name not in SHOWING)
    return digest(b"".join(file.read_bytes() for file in sorted(files)))


def commit() -> str:
    """The commit of this repository (`-dirty`: and changes to it), where this file is of one."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        # A package installed below another repository is not of that one.
        subprocess.run([*git, "ls-files", "--error-unmatch", __file__], capture_output=True, check=True)
        command = [*git, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


__all__ = ["EvaluatedModel", "code_digest", "commit", "digest", "files_digest", "run", "summary", "whole_cells"]
