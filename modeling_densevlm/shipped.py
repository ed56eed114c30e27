# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""What is installed beside the packages, found by its name: the sandbox's models and a few of its scenes."""

from pathlib import Path


MODEL_CARDS = Path(__file__).parent.parent / "model_cards"


def shipped(name: str) -> Path:
    """
    The path of a model or a file of the sandbox, wherever this package is installed.

    ```python
    >>> DenseVLMModel.from_pretrained(shipped("densevlm-sandbox"))
    >>> Image.open(shipped("scenes/bus.png"))
    ```

    Args:
        name (`str`): relative to `model_cards`.

    Raises:
        `ValueError` for another name, with those that exist.
    """
    path = MODEL_CARDS / name
    if not path.exists():
        names = sorted(folder.name for folder in MODEL_CARDS.iterdir() if folder.is_dir())
        raise ValueError(f"{name} is not shipped with this package; there are {', '.join(names)}.")
    return path


def model_source(name: str) -> str:
    """A folder or Hub name as it is, and the folder of a shipped model that is given by its name."""
    is_shipped = (MODEL_CARDS / name / "config.json").is_file() and not Path(name).exists()
    return str(MODEL_CARDS / name) if is_shipped else name


__all__ = ["model_source", "shipped"]
