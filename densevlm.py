# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
The console command `densevlm`: every command is `python -m MODULE` of one of our modules, found from any folder.

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
    module: str
    summary: str
    options: tuple[str, ...] = ()
    """What stands before the user's own options."""


COMMANDS = {
    "train": Command("training.train", "train a model by a recipe: `densevlm train coco --images FOLDER ...`"),
    "cache": Command("training.cache_teacher", "compute the teacher's predictions once, for all epochs of a recipe"),
    "check": Command("training.check_data", "read the images of a recipe before a long run does"),
    "evaluate regions": Command("evaluation.evaluate_regions", "accuracy on boxes and masks of things and stuff"),
    "evaluate segmentation": Command(
        "evaluation.evaluate_segmentation", "mean IoU of the dense maps, without training"
    ),
    "report": Command("evaluation.report", "a page of tables, charts and images about evaluated models"),
    "show": Command("evaluation.show", "a picture of what models predict in an image"),
    "convert": Command("modeling_densevlm.convert_open_clip", "a checkpoint of open_clip, EVA-CLIP, ... as a folder"),
    "export": Command("modeling_densevlm.convert_open_clip", "a folder as a checkpoint of open_clip", ("--export",)),
    "publish": Command("modeling_densevlm.publish", "a folder with the code that loads it, for the Hub"),
}
"""Named by strings: nothing is imported before it is known what is started."""

PACKAGES = ("modeling_densevlm", "training", "evaluation")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the program that a command names; without a known one, lists all."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return
    name = next((name for name in (argv[0], " ".join(argv[:2])) if name in COMMANDS), None)
    if name is None:
        raise SystemExit(refusal(argv))
    own_packages_first()
    command = COMMANDS[name]
    sys.argv = [command.module, *command.options, *argv[len(name.split()) :]]
    runpy.run_module(command.module, run_name="__main__", alter_sys=True)


def usage() -> str:
    """The commands, each with one line."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        ["usage: densevlm COMMAND ...", "", *lines, "", "`densevlm COMMAND --help` lists the options of a command."]
    )


def refusal(argv: Sequence[str]) -> str:
    """What is said of a command that does not exist, with the nearest one, or of one that is not complete."""
    if kinds := [name for name in COMMANDS if name.startswith(f"{argv[0]} ")]:
        return f"densevlm {argv[0]}: what? There are {' and '.join(f'`densevlm {name}`' for name in kinds)}."
    near = difflib.get_close_matches(argv[0], [name.split()[0] for name in COMMANDS], n=1)
    hint = f" (did you mean `{near[0]}`?)" if near else ""
    names = dict.fromkeys(name.split()[0] for name in COMMANDS)
    return f"densevlm: unknown command `{argv[0]}`{hint}. There are {', '.join(names)}."


def own_packages_first() -> None:
    """Where a folder `training` of the user's comes first on the path, ours goes before it."""
    root = Path(__file__).resolve().parent
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        origin = None if spec is None or spec.origin is None else Path(spec.origin).resolve()
        if origin is None or origin.parents[1] != root:
            sys.path.insert(0, str(root))
            return


if __name__ == "__main__":
    main()
