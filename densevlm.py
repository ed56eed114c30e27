# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
The console command `densevlm`. Each of its commands runs `python -m MODULE` for a module of this project.

    densevlm train coco --images my_images --output_dir runs/mine
    densevlm evaluate regions --model runs/mine ... --output metrics.json
"""

import difflib
import importlib.util
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Command(NamedTuple):
    """The module behind a command."""

    module: str
    summary: str


COMMANDS = {
    "train": Command("training.train", "train a model with a recipe: `densevlm train coco --images FOLDER ...`"),
    "cache": Command("training.cache_teacher", "cache the teacher's predictions for all epochs of a recipe"),
    "check": Command("training.check_data", "check the images of a recipe before a long run"),
    "evaluate regions": Command(
        "evaluation.evaluate_regions", "region accuracy on boxes and masks of things and stuff"
    ),
    "evaluate segmentation": Command("evaluation.evaluate_segmentation", "zero-shot mean IoU of the dense maps"),
    "report": Command("evaluation.report", "write a report on evaluated models with tables, charts and images"),
    "predict": Command("evaluation.predict", "name what is where in photos: maps, boxes or the cells of a grid"),
    "rescore": Command("evaluation.rescore", "combine the scores of a detector's boxes with a model's probabilities"),
    "show": Command("evaluation.show", "draw the predictions of models for an image"),
    "demo": Command("evaluation.demo", "open a page in the browser: a photo, words, and what two models see"),
    "convert": Command(
        "modeling_densevlm.convert_open_clip", "convert a checkpoint of open_clip, EVA-CLIP, ... to a folder"
    ),
    "export": Command("modeling_densevlm.export", "write a graph for ONNX or torch.export, with its vocabulary"),
    "publish": Command("modeling_densevlm.publish", "write a folder for the Hub, with the code that loads it"),
}
"""Modules are named by strings, so that only the one to run is imported."""

PACKAGES = ("modeling_densevlm", "training", "evaluation")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command; without arguments, lists the commands."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return
    name = next((name for name in (argv[0], " ".join(argv[:2])) if name in COMMANDS), None)
    if name is None:
        raise SystemExit(unknown_command_message(argv))
    prefer_own_packages()
    command = COMMANDS[name]
    sys.argv = [command.module, *argv[len(name.split()) :]]
    runpy.run_module(command.module, run_name="__main__", alter_sys=True)


def usage() -> str:
    """The list of commands, one per line."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        ["usage: densevlm COMMAND ...", "", *lines, "", "`densevlm COMMAND --help` lists the options of a command."]
    )


def unknown_command_message(argv: Sequence[str]) -> str:
    """The error message for an unknown command, with the most similar one, or for an incomplete command."""
    if kinds := [name for name in COMMANDS if name.startswith(f"{argv[0]} ")]:
        names = " and ".join(f"`densevlm {name}`" for name in kinds)
        return f"densevlm {argv[0]}: incomplete command. There are {names}."
    near = difflib.get_close_matches(argv[0], [name.split()[0] for name in COMMANDS], n=1)
    hint = f" (did you mean `{near[0]}`?)" if near else ""
    names = dict.fromkeys(name.split()[0] for name in COMMANDS)
    return f"densevlm: unknown command `{argv[0]}`{hint}. There are {', '.join(names)}."


def prefer_own_packages() -> None:
    """Puts this project first on the path if, say, a folder `training` of the user would shadow its package."""
    root = Path(__file__).resolve().parent
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        origin = None if spec is None or spec.origin is None else Path(spec.origin).resolve()
        if origin is None or origin.parents[1] != root:
            sys.path.insert(0, str(root))
            return


if __name__ == "__main__":
    main()
