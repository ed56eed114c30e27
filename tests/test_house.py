# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The structure of the repository: imports in one direction, and consistency with README and CONTRIBUTING."""

import ast
import importlib
import io
import os
import re
import subprocess
import sys
import tokenize
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_imports

from modeling_densevlm.modeling_densevlm import VISION_TOWERS
from training.build import build_trainer
from training.recipe import parse_arguments


ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
FORBIDDEN = {
    "modeling_densevlm": {"training", "evaluation"},
    "training": {"evaluation"},
    "evaluation": {"training"},
}


def imports_of(file: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(file.read_text())))
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    found |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0}
    return {name.split(".")[0] for name in found}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_packages_import_in_one_direction(package):
    for file in (ROOT / package).rglob("*.py"):
        assert not imports_of(file) & FORBIDDEN[package], file


def test_the_core_needs_neither_torchvision_nor_timm():
    for package in FORBIDDEN:
        for file in (ROOT / package).rglob("*.py"):
            assert not set(get_imports(file)) & {"torchvision", "timm"}, file  # those inside `try` are not counted


def test_no_library_of_training_imports_a_program_and_there_are_no_import_cycles():
    """Programs are the modules with a `__main__` section; the modules of the package form an acyclic graph."""
    files = [*(ROOT / "training").glob("*.py"), *(ROOT / "training").glob("[ei]*/*.py")]
    name_of = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files}
    programs = {name for name, file in name_of.items() if 'if __name__ == "__main__":' in file.read_text()}
    assert programs == {"training.train", "training.cache_teacher", "training.check_data"}
    graph = {name: relative_imports_of(name, file) & name_of.keys() for name, file in name_of.items()}
    for name, imported in graph.items():
        assert not imported & programs, name
    list(TopologicalSorter(graph).static_order())  # raises on a cycle


def relative_imports_of(name: str, file: Path) -> set[str]:
    nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom) and node.level]
    return {".".join([*name.split(".")[: -node.level], node.module]) for node in nodes if node.module}


def code_lines(content: str) -> set[int]:
    """Line numbers of a file without blank lines, comments and docstrings."""
    tree = ast.parse(content)
    bodies = [node.body for node in ast.walk(tree) if isinstance(getattr(node, "body", None), list)]
    texts = [s for body in bodies for s in body if isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant)]
    silent = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(content).readline) if t.type not in silent]
    lines = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
    return lines - {line for text in texts for line in range(text.lineno, text.end_lineno + 1)}


def lines_of_functions(file: Path, first_lines: set[int]) -> int:
    """Number of code lines of the functions that start at `first_lines`, including decorators."""
    content, found = file.read_text(), set()
    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.FunctionDef):
            start = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            if {start, node.lineno} & first_lines:
                found |= set(range(start, node.end_lineno + 1))
    return len(found & code_lines(content))


def test_the_path_of_an_image_to_the_loss_matches_contributing(recipe):
    """Counts all our functions that run between the bytes of two images and the loss, with CLIP's ViT."""
    trainer, called = build_trainer(parse_arguments(recipe(max_steps=1))), defaultdict(set)

    def count(frame, event, _):
        file = Path(frame.f_code.co_filename)
        if event == "call" and file.is_relative_to(ROOT) and file.relative_to(ROOT).parts[0] in FORBIDDEN:
            called[file].add(frame.f_code.co_firstlineno)

    sys.setprofile(count)
    try:
        batch = trainer.data_collator([trainer.train_dataset[0, number] for number in range(2)])
        (batch,), _ = trainer.get_batch_samples(iter([batch]), 1, trainer.args.device)
        assert trainer.compute_loss(trainer.model, batch) > 0
    finally:
        sys.setprofile(None)
    lines = {str(file.relative_to(ROOT)): lines_of_functions(file, first) for file, first in called.items()}
    assert sum(lines.values()) <= 700, lines
    # Files with less than ten executed lines only log, handle signals or read settings.
    files = {file for file, count in lines.items() if count >= 10}
    table = (ROOT / "CONTRIBUTING.md").read_text().partition("way to the loss")[2].partition("\n\n**")[0]
    assert files == set(re.findall(r"^\| `([\w/]+\.py)`", table, re.MULTILINE)), lines
    assert len(files) <= 9


@pytest.mark.parametrize("package", ["training", "evaluation"])
def test_training_and_evaluation_are_independent_of_towers(package):
    known = [*VISION_TOWERS, "siglip", "eva02", "resnet", "convnext", "timm", ".encoder.layers"]
    for file in (ROOT / package).rglob("*.py"):
        if file.parent.name == "sandbox":  # it pre-trains its own CLIP
            continue
        content = file.read_text().lower()
        assert not [name for name in known if name in content], file


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda file: file.stem)
def test_every_benchmark_can_be_imported(file):
    importlib.import_module(f"benchmarks.{file.stem}")


def test_every_link_of_the_readme_exists():
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", README) if not link.startswith("http")]
    assert len(links) > 10
    for link in links:
        assert (ROOT / link).exists(), link


def test_the_first_python_lines_of_the_readme_run(tmp_path):
    lines = re.search(r"```python\n(.+?)```", README, re.DOTALL).group(1)
    for name in ("model_cards", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    paths = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", lines], cwd=tmp_path, env=paths, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = ast.literal_eval(done.stdout.splitlines()[-1])
    assert found and set(found) <= {"umbrella", "bus", "road", "snow", "sand"}


def test_the_readme_is_short():
    assert len(README.split()) <= 1_800


def test_every_recipe_is_in_the_readme():
    for recipe in (ROOT / "training" / "recipes").glob("*.yaml"):
        assert f"](training/recipes/{recipe.name})" in README, recipe.name


def test_every_file_of_code_has_the_licence_header():
    for folder in ("modeling_densevlm", "training", "evaluation", "tests", "benchmarks", "model_cards"):
        for file in (ROOT / folder).rglob("*.py"):
            assert file.read_text().splitlines()[1:2] == ["# SPDX-License-Identifier: Apache-2.0"], file
