"""The house: arrows point one way, and README tells the truth about what is there."""

import ast
import importlib
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_imports

from modeling_densevlm.modeling_densevlm import VISION_TOWERS


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
def test_arrows_point_one_way(package):
    for file in (ROOT / package).rglob("*.py"):
        assert not imports_of(file) & FORBIDDEN[package], file


def test_the_core_needs_neither_torchvision_nor_timm():
    for package in FORBIDDEN:
        for file in (ROOT / package).rglob("*.py"):
            assert not set(get_imports(file)) & {"torchvision", "timm"}, file  # those inside `try` are not counted


def test_no_library_of_training_imports_a_program_and_none_imports_in_a_circle():
    """A program is what `python -m` runs; of a package the modules import each other in one direction."""
    files = [*(ROOT / "training").glob("*.py"), *(ROOT / "training").glob("[ei]*/*.py")]
    name_of = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files}
    programs = {name for name, file in name_of.items() if 'if __name__ == "__main__":' in file.read_text()}
    assert programs == {"training.train", "training.cache_teacher", "training.check_data"}
    graph = {name: relative_imports_of(name, file) & name_of.keys() for name, file in name_of.items()}
    for name, imported in graph.items():
        assert not imported & programs, name
    list(TopologicalSorter(graph).static_order())  # raises where there is a circle


def relative_imports_of(name: str, file: Path) -> set[str]:
    nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom) and node.level]
    return {".".join([*name.split(".")[: -node.level], node.module]) for node in nodes if node.module}


@pytest.mark.parametrize("package", ["training", "evaluation"])
def test_training_and_evaluation_know_no_tower(package):
    known = [*VISION_TOWERS, "siglip", "eva02", "resnet", "convnext", "timm", ".encoder.layers"]
    for file in (ROOT / package).rglob("*.py"):
        if file.parent.name == "sandbox":  # it pre-trains a CLIP of its own
            continue
        content = file.read_text().lower()
        assert not [name for name in known if name in content], file


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda file: file.stem)
def test_every_benchmark_can_be_imported(file):
    importlib.import_module(f"benchmarks.{file.stem}")


def test_every_link_of_the_readme_leads_somewhere():
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", README) if not link.startswith("http")]
    assert len(links) > 10
    for link in links:
        assert (ROOT / link).exists(), link


def test_the_first_python_lines_of_the_readme_run():
    lines = re.search(r"```python\n(.+?)```", README, re.DOTALL).group(1)
    done = subprocess.run([sys.executable, "-c", lines], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(ast.literal_eval(done.stdout.splitlines()[-1])) == 9


def test_every_recipe_is_in_the_readme():
    for recipe in (ROOT / "training" / "recipes").glob("*.yaml"):
        assert f"](training/recipes/{recipe.name})" in README, recipe.name
