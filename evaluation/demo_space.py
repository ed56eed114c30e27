# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The demo as a folder for a Space of the Hub: the packages, the sandbox's models, and a Space's own files."""

import importlib.metadata
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from modeling_densevlm.command_line import check_output
from modeling_densevlm.shipped import MODEL_CARDS


ROOT = Path(__file__).parents[1]

README = """---
title: DenseVLM
emoji: 🪁
colorFrom: yellow
colorTo: blue
sdk: gradio
sdk_version: {gradio}
app_file: app.py
license: apache-2.0
---

What is where in a photo, before and after DenseVLM (Li et al., ICCV 2025): DenseVLM for transformers.
"""

APP = '''"""Starts the page."""

from evaluation.demo import main


main({arguments!r})
'''


def write_space(output: Path, models: Sequence[str] | None = None, templates: str | None = None) -> None:
    """
    Writes the folder of a Space.

    Args:
        output (`Path`): new or empty folder.
        models (sequence of `str`, *optional*): Hub names of the models, or names of shipped ones.
        templates (`str`, *optional*): name of the prompt templates.

    Raises:
        `ValueError` for a folder with files, and for models that are not on the Hub.
    """
    check_output(output, folder=True, option="--space")
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"--space: {output} exists already: give a new folder.")
    names = [Path(model).name if Path(model).parent == MODEL_CARDS else model for model in models or ()]
    for name in names:
        if Path(name).exists():
            raise ValueError(f"--models: {name} is a folder here, which a Space does not have: publish it first.")
    for package in ("modeling_densevlm", "evaluation", "model_cards"):
        shutil.copytree(ROOT / package, output / package, ignore=shutil.ignore_patterns("__pycache__"))
    required = importlib.metadata.requires("densevlm") or []
    # The requirements of the core and of the extra `figures`; a Space has gradio.
    ours = [line.partition(";")[0] for line in required if re.search(r"extra == .figures.|^[^;]+$", line)]
    (output / "requirements.txt").write_text("\n".join(ours) + "\n")
    version = importlib.metadata.version("gradio")
    (output / "README.md").write_text(README.format(gradio=version), encoding="utf-8")
    arguments = [*(["--models", *names] if names else []), *(["--templates", templates] if templates else [])]
    (output / "app.py").write_text(APP.format(arguments=arguments))


__all__ = ["write_space"]
