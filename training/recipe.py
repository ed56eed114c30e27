# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Recipes: parses YAML files and command lines into dataclasses, and writes the resolved configuration as YAML."""

import argparse
import difflib
import inspect
from collections.abc import Sequence
from dataclasses import MISSING, fields
from enum import Enum
from pathlib import Path
from typing import Any, cast

import yaml
from transformers import HfArgumentParser, TrainingArguments

from .arguments import DataArguments, DistillationArguments, ModelArguments
from .distillation_trainer import DistillationTrainer
from .engine.settings import RefusedSetting
from .methods import METHODS, find_method


RECIPES = Path(__file__).parent / "recipes"
"""The shipped recipes; the files in `launch` are configurations of `accelerate launch`."""

RENAMED = {"retrieval": "teacher_cache", "retrieval_top_k": "teacher_cache_top_k"}
"""Key of an earlier version → its current name."""

UNUSED_KEYS = {
    "needs_categories": (("categories", "templates", "student_embeddings", "teacher_embeddings"), False),
    "uses_teacher_cache": (("teacher_cache",), False),
    "teaches_itself": (("teacher", "teacher_image_size"), True),
}
"""Class attribute of a trainer → (common keys, the value of the attribute for which the method does not use them)."""

Arguments = tuple[ModelArguments, DataArguments, DistillationArguments]


def parse_arguments(argv: Sequence[str], program: str = "training.train", options: str = "") -> Arguments:
    """
    Parses `RECIPE [--key value ...]`: the recipe is a YAML file or the name of a shipped one; the command line
    overrides its values. The method is parsed first, since its trainer defines the keys.

    Args:
        argv (`Sequence[str]`): the command line.
        program (`str`, *optional*, defaults to `"training.train"`): name in the usage.
        options (`str`, *optional*, defaults to `""`): the program's own options, for the usage.

    Returns:
        [`ModelArguments`], [`DataArguments`] and the arguments of the method.

    Raises:
        `SystemExit` with a message for a missing key, or for an unknown one; that message suggests the closest known
        key, or names the method that the key belongs to.
    """
    argv, recipe = list(argv), {}
    usage: dict[str, Any] = {"prog": f"python -m {program}", "allow_abbrev": False}
    usage["usage"] = f"%(prog)s RECIPE {options}[--key value ...]"
    first = argparse.ArgumentParser(**usage, add_help=False)
    first.add_argument("--method")
    file = find_recipe(argv.pop(0), first) if argv and not argv[0].startswith("-") else None
    if file is not None:
        recipe = read_recipe(file, first)
    name = first.parse_known_args(argv)[0].method or str(recipe.get("method") or ModelArguments.method)
    try:
        method = find_method(name)
    except ValueError as error:
        first.error(str(error))
    classes: Any = (ModelArguments, DataArguments, method.arguments_class)
    parser = HfArgumentParser(classes, **usage)
    parser.description = f"Keys of the method {name}; `--method NAME --help` shows those of {', '.join(METHODS)}."
    _own_keys_first(parser)
    known = {action.dest for action in parser._actions}
    unknown = [f"`{key}`{_suggest(str(key), parser, name, 'delete the line')}" for key in recipe if key not in known]
    if unknown:
        parser.error(f"recipe {file}: unknown key{'s' * (len(unknown) > 1)} {', '.join(unknown)}")
    parser.set_defaults(**recipe | {"method": name})
    for action in parser._actions:
        if action.dest in recipe:
            action.required = False
    try:
        *arguments, remaining = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    except RefusedSetting as error:
        raise SystemExit(str(error)) from error
    except (ValueError, TypeError, OSError) as error:
        parser.error(str(error))
    if remaining:
        key = remaining[0].lstrip("-").partition("=")[0]
        parser.error(f"unknown: {' '.join(remaining)}{_suggest(key, parser, name, 'leave it out')}")
    _refuse_unused_keys(name, method, arguments, parser)
    return cast(Arguments, tuple(arguments))


def _refuse_unused_keys(
    name: str, method: type[DistillationTrainer], arguments: list[Any], parser: HfArgumentParser
) -> None:
    """Refuses common keys that the method does not use, unless they have their defaults."""
    for attribute, (keys, value) in UNUSED_KEYS.items():
        for key in keys if getattr(method, attribute) is value else ():
            part = next(part for part in arguments if hasattr(part, key))
            if getattr(part, key) != next(f.default for f in fields(part) if f.name == key):
                parser.error(f"the method {name} does not use `{key}` (`{attribute}` is {value}); leave it out.")
    if method.needs_captions:
        parser.error(f"the method {name} needs captions, and no source of images provides captions yet.")


def _own_keys_first(parser: HfArgumentParser) -> None:
    """Lists the keys of models, data and method before those of transformers in `--help`."""
    inherited = {f.name for f in fields(TrainingArguments)} - _own_names(DistillationArguments)
    options = next(group for group in parser._action_groups if group.title == "options")
    group = parser.add_argument_group("keys of transformers' TrainingArguments")
    group._group_actions = [action for action in options._group_actions if action.dest in inherited]
    options._group_actions = [action for action in options._group_actions if action.dest not in inherited]


def _own_names(arguments_class: type) -> set[str]:
    """The fields that a class adds to transformers' [`TrainingArguments`], or declares with other defaults."""
    own = arguments_class.__mro__[: arguments_class.__mro__.index(TrainingArguments)]
    return {name for cls in own for name in inspect.get_annotations(cls)}


def find_recipe(name: str, parser: argparse.ArgumentParser) -> Path:
    """The file of a recipe, given as a path or as the name of a shipped recipe (`coco`)."""
    file = Path(name)
    if file.suffix or file.name != name or file.is_file():
        return file
    shipped = {file.stem: file for file in sorted(RECIPES.rglob("*.yaml")) if file.parent.name != "launch"}
    if name not in shipped:
        close = difflib.get_close_matches(name, shipped, n=1)
        hint = f" (did you mean `{close[0]}`?)" if close else ""
        parser.error(f"there is no recipe {name}{hint}: give a YAML file, or one of {', '.join(shipped)}")
    return shipped[name]


def read_recipe(file: Path, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Reads a YAML file as a dict. If that fails, ends the program with a message that names the file."""
    try:
        recipe = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except OSError as error:
        parser.error(f"recipe {file}: {error.strerror or error}")
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        parser.error(f"recipe {file} is not YAML: {error}")
    if not isinstance(recipe, dict):
        parser.error(f"recipe {file}: expected `key: value` lines.")
    for key in ("save_strategy", "eval_strategy", "logging_strategy"):
        if recipe.get(key) is False:  # YAML reads a bare `no` as false
            recipe[key] = "no"
    # argparse converts strings only: so a number in a string field and 1e-4 (a string in YAML) get the field's type.
    return {
        key: value if isinstance(value, bool | list | dict | None) else str(value) for key, value in recipe.items()
    }


def _suggest(key: str, parser: HfArgumentParser, method: str, remedy: str) -> str:
    """What to do about an unknown key, in parentheses; `remedy` where no other key was meant."""
    if key in RENAMED:
        return f" (it is now called `{RENAMED[key]}`)"
    known = [action.dest for action in parser._actions]
    base = _own_names(DistillationArguments)
    others = {
        name: other
        for other, trainer in METHODS.items()
        for name in _own_names(trainer.arguments_class) - base
        if name not in known
    }
    if key in others:
        return f" (it is a key of the method {others[key]}, not of {method}: {remedy})"
    close = difflib.get_close_matches(key, [*known, *others], n=1)
    if not close:
        return f" ({remedy})"
    return f" (did you mean `{close[0]}`{f' of the method {others[close[0]]}' if close[0] in others else ''}?)"


def resolved_recipe(arguments: Arguments) -> dict[str, Any]:
    """The resolved configuration as a dict of YAML values."""
    recipe = {}
    for part in arguments:
        values = {f.name: getattr(part, f.name) for f in fields(part) if f.init}
        if isinstance(part, TrainingArguments):
            own = _own_names(type(part))
            values = {name: v for name, v in values.items() if name in own or v != _default(part, name)}
            for name in ("resume_from_checkpoint", "hub_token"):
                values.pop(name, None)
            config: Any = values.pop("accelerator_config", None)
            if config and config.non_blocking:
                values["accelerator_config"] = {"non_blocking": True}
        recipe.update({name: _to_yaml_value(value) for name, value in values.items()})
    if recipe.get("global_batch_size") is not None:
        recipe.pop("gradient_accumulation_steps", None)  # derived from it, for any number of processes
    return {key: value for key, value in recipe.items() if _is_yaml_value(value)}


def save_recipe(arguments: Arguments, file: Path) -> None:
    """Writes the resolved configuration as a recipe that reproduces the run."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(resolved_recipe(arguments), sort_keys=False), encoding="utf-8")


def _default(part: TrainingArguments, name: str) -> Any:
    found = next(f for f in fields(part) if f.name == name)
    return found.default_factory() if found.default_factory is not MISSING else found.default


def _to_yaml_value(value: Any) -> Any:
    """An enum as its value, a list of enums as their values separated by spaces."""
    if isinstance(value, list) and value and all(isinstance(part, Enum) for part in value):
        return " ".join(part.value for part in value)
    return value.value if isinstance(value, Enum) else value


def _is_yaml_value(value: Any) -> bool:
    return value is not None and isinstance(value, str | int | float | bool | list | dict)


__all__ = ["Arguments", "parse_arguments", "read_recipe", "resolved_recipe", "save_recipe"]
