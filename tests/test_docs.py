# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The documentation: its Python runs, the site builds without a warning, and every page is in it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modeling_densevlm import DenseVLMConfig, DenseVLMModel, DenseVLMProcessor


ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

RUN_ELSEWHERE = {
    ("README.md", 0): "tests/test_house.py",
    ("export.md", 0): "tests/modeling_densevlm/test_export.py",
    ("segmentation.md", 0): "tests/modeling_densevlm/test_segmenter.py",
    ("training_from_python.md", 0): "tests/training/test_from_python.py",
}
NOT_RUN = {
    ("evaluation.md", 0): "needs COCO; the callback is tested in test_while_training.py",
    ("evaluation.md", 1): "needs the log of that run",
    ("processing.md", 1): "needs a detector; the function is tested with OWLv2 in test_rescore.py",
}
CLIP = "openai/clip-vit-base-patch16"
"""In the lines of the documentation; a folder here."""

BLOCKS = [
    (page.name, number, lines)
    for page in PAGES
    for number, lines in enumerate(re.findall(r"```python\n(.+?)```", page.read_text(), re.DOTALL))
]


def of_page(page: str) -> list[str]:
    return [lines for name, _, lines in BLOCKS if name == page]


def test_every_block_of_python_is_run_by_a_test_or_named_as_not_run():
    here = {("README.md", 1), ("processing.md", 0), ("heads.md", 0), ("heads.md", 1)}
    here |= {("extending.md", number) for number in range(3)}
    assert {(page, number) for page, number, _ in BLOCKS} == here | RUN_ELSEWHERE.keys() | NOT_RUN.keys()
    assert all((ROOT / file).is_file() for file in RUN_ELSEWHERE.values())


def test_the_lines_of_the_readme_on_use_run(student, picture):
    names = {"DenseVLMModel": DenseVLMModel, "DenseVLMProcessor": DenseVLMProcessor, "image": picture(120, 90)}
    exec(of_page("README.md")[1].replace(CLIP, str(student)), names)
    assert names["outputs"].logits_per_region.shape == (1, 2)


def test_the_lines_on_processing_run():
    names: dict = {}
    exec(of_page("processing.md")[0], names)
    assert names["outputs"].logits_per_region.shape == (1, 2)


def test_the_lines_on_heads_run(tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 12, "num_attention_heads": 4}
    vision = {"model_type": "clip_vision_model", **sizes, "image_size": 32, "patch_size": 8}
    DenseVLMModel(DenseVLMConfig(vision_config=vision, projection_dim=24)).save_pretrained(tmp_path)
    names: dict = {"folder": tmp_path, "pixel_values": torch.randn(2, 3, 32, 32)}
    imports = "import torch\nfrom modeling_densevlm import DenseVLMModel\n"
    imports += "from transformers import UperNetConfig, UperNetForSemanticSegmentation\n"
    exec(imports + of_page("heads.md")[0], names)
    assert [one.shape[1] for one in names["maps"]] == names["model"].channels
    tokens = 100 + 1 + 16
    names["bias"] = torch.zeros(2, 4, tokens, tokens)
    names["bias"][..., :100] = -torch.inf  # nothing looks at the queries
    with torch.no_grad():
        exec(of_page("heads.md")[1], names)
    assert names["query_embeds"].shape == (2, 100, 24) and names["dense_embeds"].shape == (2, 24, 4, 4)


def test_the_lines_on_methods_and_towers_of_your_own_run(student, tmp_path):
    method, tower, use = of_page("extending.md")
    for lines in (method, tower):
        file = tmp_path / lines.splitlines()[0].removeprefix("# ")
        file.parent.mkdir(exist_ok=True)
        file.write_text(lines)
    sizes = '"model_type": "my_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4'
    use = use.replace('"model_type": "my_vision_model"', sizes).replace(CLIP, str(student))
    program = f"import my_package.my_module\n{use}\n"
    program += "print(DenseVLMModel.from_pretrained('weights/mine').config.vision_config)"
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "my_vision_model" in done.stdout, done.stderr[-2000:]


def test_the_site_builds_without_a_warning_and_holds_every_page(tmp_path):
    pytest.importorskip("material", reason="the site is built with mkdocs-material (extra `dev`)")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    for page in PAGES[1:]:
        place = "index.html" if page.stem == "index" else f"{page.stem}/index.html"
        assert (tmp_path / "site" / place).is_file(), page
    assert "fonts.googleapis" not in (tmp_path / "site" / "index.html").read_text()
