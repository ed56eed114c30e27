# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Writes the sandbox's models into `model_cards`: weights in half precision, processor, tokenizer.

    python -m training.sandbox.ship runs/pretrain/u densevlm-sandbox-u  # a newly trained one
    python -m training.sandbox.ship                                     # all of them, after a change of configurations

The cards (`README.md`) are written by hand and not changed. The folders do not contain modeling code: their
configurations refer to the installed package through the file `REFERENCE`. To load a model without the package, write
a folder with the code by `python -m modeling_densevlm.publish model_cards/NAME OUTPUT`.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from modeling_densevlm.command_line import one_line_errors
from modeling_densevlm.publish import publish


MODEL_CARDS = Path(__file__).parents[2] / "model_cards"

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
        "`densevlm publish FOLDER OUTPUT`."
    ) from error
'''


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
    arguments = parser.parse_args(argv)
    if arguments.source is not None:
        ship(arguments.source, MODEL_CARDS / (arguments.name or arguments.source.name))
        return
    for config in sorted(MODEL_CARDS.glob("*/config.json")):
        ship(config.parent, config.parent)


if __name__ == "__main__":
    main()
