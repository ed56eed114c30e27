# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The models under evaluation: command line options, category embeddings, provenance."""

import argparse
import copy
import hashlib
import json
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

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
from modeling_densevlm.external_towers import import_tower
from modeling_densevlm.processing_densevlm import load_processing, require_square_canvas
from modeling_densevlm.shipped import model_source
from modeling_densevlm.templates import DEFAULT_TEMPLATES, TEMPLATES, get_templates

from .card_results import add_to_cards
from .comparison import write_comparison
from .renamed import add_renamed_options


logger = logging.get_logger(__name__)

PACKAGES = [Path(__file__).parent, Path(modeling_densevlm.__file__).parent]
PRESENTATION_FILES = {
    *("report.py", "report_data.py", "charts.py", "figures.py", "show.py", "comparison.py", "sandbox.py"),
    *("app.py", "tests.py", "publish.py", "renamed.py", "card_results.py", "model_card.py"),
    *("demo.py", "demo_space.py", "export.py", "predict.py", "rescore.py"),
}
"""Files that do not influence the metrics: they present results or start programs."""

TOWER_HELP = "import path of a vision tower of your own (my_package.my_module:MyTower)"


@one_line_errors()
def run_evaluation(
    parser: argparse.ArgumentParser,
    evaluate: Callable[["EvaluatedModel", argparse.Namespace], dict[str, Any]],
    argv: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """
    Runs an evaluation program: adds the shared options to `parser`, calls `evaluate` for each model at each image
    size, and writes and returns the metrics, one row per evaluation.

    Args:
        parser (`ArgumentParser`): parser with the program's own options.
        evaluate (callable): takes an [`EvaluatedModel`] and the parsed arguments, returns its metrics.
        argv (sequence of `str`, *optional*): arguments of the program; the command line by default.

    Returns:
        One `dict` of metrics per model and image size.
    """
    _add_options(parser)
    arguments = parser.parse_args(argv)
    if arguments.output.suffix != ".json":
        parser.error(
            f"--output {arguments.output} must end in .json; results are written to the folder of that name beside it"
        )
    output = arguments.output
    tables = (
        [output.with_suffix(".md"), output.with_suffix(".tex")] if arguments.models or arguments.image_size else []
    )
    for file in (output, *tables):
        check_output(file)
    check_output(output.with_suffix(""), folder=True)
    if arguments.tower is not None:
        import_tower(arguments.tower, "--tower")
    state = PartialState(cpu=arguments.device == "cpu")
    rows = [evaluate(evaluated, arguments) for evaluated in load_models(arguments)]
    if state.is_main_process:
        write_comparison(rows, output)
        if not arguments.no_card:
            add_to_cards(rows, arguments)
    return rows


def _add_options(parser: argparse.ArgumentParser) -> None:
    models = parser.add_mutually_exclusive_group(required=True)
    models.add_argument("--model", type=model_source, help="folder or Hub name of a DenseVLM or a CLIP")
    models.add_argument("--models", type=model_source, nargs="+", help="several models to compare")
    parser.add_argument("--tower", help=TOWER_HELP)
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--templates", default=DEFAULT_TEMPLATES, choices=TEMPLATES, help="prompt templates")
    parser.add_argument("--embeddings", help="category embeddings (safetensors) of `--model`; computed by default")
    parser.add_argument(
        "--image_size", type=whole_number(), nargs="+", help="input sides in pixels; the processor's by default"
    )
    parser.add_argument("--batch_size", type=whole_number(), default=8)
    parser.add_argument("--num_workers", type=whole_number(0), default=2)
    parser.add_argument("--shard_size", type=whole_number(), default=128, help="images per shard of results")
    parser.add_argument("--no_card", action="store_true", help="do not add the metrics to the model's card")
    add_renamed_options(parser)
    parser.add_argument("--device", type=_device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))


def _device(text: str) -> str:
    """Argument type: an available device."""
    try:
        device = torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"expected cpu, cuda or another device, got {text!r}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(f"{text}: {torch.cuda.device_count()} CUDA devices are available")
    return text


@dataclass
class EvaluatedModel:
    """A model at one image size, with its processing and the arguments of the program."""

    number: int
    source: str
    model: DenseVLMModel
    image_processor: DenseVLMImageProcessor
    tokenizer: PreTrainedTokenizerBase | None
    fingerprint: str
    arguments: argparse.Namespace

    @property
    def stride(self) -> int:
        """Pixels per location of the model's map."""
        return cast(int, self.model.vision_model.stride)

    @property
    def side(self) -> int:
        """Side of the padded square image in pixels."""
        return self.image_processor.size["longest_edge"]

    def embeddings(self, categories: CategorySet) -> CategoryEmbeddings:
        """Reads and checks `--embeddings`, or computes them in float32; then casts the model to `--dtype`."""
        found = CategoryEmbeddings.resolve(
            categories,
            self.model,
            self.tokenizer,
            self.arguments.templates,
            given=self.arguments.embeddings,
            option="--embeddings",
        )
        warn_about_templates(self.source, found.templates)
        found.embeds = found.embeds.cpu()
        self.model.to(getattr(torch, self.arguments.dtype))
        return found

    def provenance(self, categories: CategorySet, embeddings: CategoryEmbeddings) -> dict[str, Any]:
        """What is evaluated and how; equal for all shards of one evaluation (see [`in_shards`])."""
        if self.arguments.embeddings:
            texts = digest(embeddings.embeds.numpy().tobytes())
        else:
            # Not the embeddings themselves: their last digits depend on the number of threads.
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
        """File of its results, beside the output."""
        return (
            self.arguments.output.with_suffix("") / f"{self.number}-{Path(self.source).name}-{self.side}.safetensors"
        )


def load_models(arguments: argparse.Namespace) -> Iterator[EvaluatedModel]:
    """
    Loads each model at each image size, one at a time. A missing configuration or an image processor that is not
    supported is reported before the first model runs.
    """
    sources = arguments.models or [arguments.model]
    if len(sources) > 1 and arguments.embeddings:
        raise ValueError("--embeddings belong to a single model: use --model.")
    for source in sources:
        try:
            DenseVLMConfig.from_pretrained(source)
        except OSError:
            DenseVLMModel.from_pretrained(source)  # raises with the reason
    device = PartialState().device if arguments.device == "cuda" else arguments.device
    processing = [load_square_processing(source) for source in sources]
    for number, (source, (image_processor, tokenizer)) in enumerate(zip(sources, processing)):
        evaluated: set[int] = set()
        for side in arguments.image_size or [image_processor.size["longest_edge"]]:
            model = DenseVLMModel.from_pretrained(source, dtype=torch.float32).to(device).eval()
            whole = whole_cells(side, model.vision_model.stride, source)
            if whole in evaluated:
                logger.warning(f"{source}: {whole} pixels are evaluated once (--image_size {side}).")
                continue
            evaluated.add(whole)
            image_processor = copy.copy(image_processor)
            image_processor.size = {"longest_edge": whole}
            yield EvaluatedModel(number, source, model, image_processor, tokenizer, model.fingerprint(), arguments)


def load_square_processing(source: str) -> tuple[DenseVLMImageProcessor, PreTrainedTokenizerBase | None]:
    """The image processor of a model, which pads images to a square, and its tokenizer, if it has one."""
    image_processor, tokenizer = load_processing(source)
    assert isinstance(image_processor, DenseVLMImageProcessor)  # the default back end
    require_square_canvas(image_processor, source)
    return image_processor, tokenizer


def whole_cells(side: int, cell: int, source: str) -> int:
    """
    The multiple of a model's stride (`cell`, in pixels) nearest to an image side. Boxes are fractions of the square,
    so the map has to cover all of it.
    """
    whole = max(int(side / cell + 0.5), 1) * cell
    torch.empty(3, whole, whole)  # a size that cannot be allocated fails here rather than in a worker
    if whole != side:
        logger.warning(f"{source} has a stride of {cell} pixels: {side} pixels become {whole}.")
    return whole


def warn_about_templates(source: str, templates: Sequence[str]) -> None:
    """
    Warns if a model is used with other templates than those that it was trained with, which its folder holds with the
    category embeddings of the run.
    """
    file = Path(source) / "student_embeddings.safetensors"
    if not file.is_file():
        return
    trained = CategoryEmbeddings.load(file).templates
    if trained != list(templates):
        name = next((name for name in TEMPLATES if get_templates(name) == trained), None)
        remedy = f" (`--templates {name}`)" if name else ""
        logger.warning(
            f"{source} was trained with other templates: {len(trained)}{remedy}, and is evaluated with "
            f"{len(templates)}."
        )


def summary(provenance: dict[str, Any]) -> dict[str, Any]:
    """The part of the provenance that is reported beside the metrics."""
    return {name: provenance[name] for name in ("model", "fingerprint", "image_size", "dtype", "templates", "commit")}


def digest(content: bytes) -> str:
    """Hash of 16 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def files_digest(root: Path, names: Iterable[str | None]) -> str:
    """Digest of file names and sizes below a folder: distinguishes versions of a split."""
    files = [(name, root / name) for name in names if name is not None]
    return digest(json.dumps([[name, file.stat().st_size if file.exists() else -1] for name, file in files]).encode())


def code_digest() -> str:
    """Digest of the code that determines the metrics: the model's and this package's, without `PRESENTATION_FILES`."""
    files = (file for package in PACKAGES for file in package.rglob("*.py") if file.name not in PRESENTATION_FILES)
    return digest(b"".join(file.read_bytes() for file in sorted(files)))


def commit() -> str:
    """Commit of this repository (`-dirty` with uncommitted changes); `unknown` outside of one."""
    # Not `describe --dirty`, which locks the index to refresh it and leaves the lock behind if it is killed.
    git = ["git", "--no-optional-locks", "-C", str(Path(__file__).parent)]

    def output(*words: str) -> str:
        return subprocess.run([*git, *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        output("ls-files", "--error-unmatch", __file__)  # a package installed inside another repository is not tracked
        name = output("rev-parse", "--short=12", "HEAD")
        return f"{name}-dirty" if output("status", "--porcelain", "--untracked-files=no") else name
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


__all__ = [
    "TOWER_HELP",
    "EvaluatedModel",
    "code_digest",
    "commit",
    "digest",
    "files_digest",
    "load_square_processing",
    "run_evaluation",
    "summary",
    "warn_about_templates",
    "whole_cells",
]
