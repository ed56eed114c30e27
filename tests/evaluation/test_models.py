# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The models under evaluation: the templates they were trained with, the commit of the code."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from evaluation import evaluate_regions, evaluate_segmentation, models, show
from modeling_densevlm import CategoryEmbeddings, CategorySet, DenseVLMModel, DenseVLMProcessor
from modeling_densevlm.modeling_densevlm import VISION_TOWERS
from tests.conftest import command_line, save_folder, tower_config


@pytest.fixture
def trained_on_short_templates(student, scenes, tmp_path):
    """The folder of a run with the category embeddings that training leaves there."""
    folder = shutil.copytree(student, tmp_path / "run")
    model, processor = DenseVLMModel.from_pretrained(folder).eval(), DenseVLMProcessor.from_pretrained(folder)
    categories = CategorySet.load(scenes / "categories.json")
    embeddings = CategoryEmbeddings.compute(categories, model, processor.tokenizer, "short")
    embeddings.save(folder / "student_embeddings.safetensors")
    return folder


def evaluate_program(model, scenes, tmp_path, **options):
    split = scenes / "test"
    values = {"annotations": split / "panoptic.json", "images": split / "images", "panoptic": split / "panoptic"}
    evaluate_regions.main(command_line({"model": model, **values, "output": tmp_path / "regions.json"} | options))


def segment_program(model, scenes, tmp_path, **options):
    maps = tmp_path / "maps"
    maps.mkdir(exist_ok=True)
    value = CategorySet.load(scenes / "categories.json").ids[0]
    width, height = Image.open(scenes / "test" / "images" / "000000.jpg").size
    Image.fromarray(np.full((height, width), value, dtype=np.uint8)).save(maps / "000000.png")
    values = {"annotations": maps, "images": scenes / "test" / "images", "categories": scenes / "categories.json"}
    evaluate_segmentation.main(command_line({"model": model, **values, "output": tmp_path / "pixels.json"} | options))


def show_program(model, scenes, tmp_path, **options):
    pytest.importorskip("matplotlib")
    values = {"": scenes / "test" / "images" / "000000.jpg", "models": model, "texts": ["sky", "kite"]}
    show.main(command_line(values | {"output": tmp_path / "show.png"} | options))


@pytest.mark.parametrize("program", [evaluate_program, segment_program, show_program])
def test_other_templates_than_those_of_training_are_reported(
    program, trained_on_short_templates, scenes, tmp_path, caplog
):
    program(trained_on_short_templates, scenes, tmp_path)
    message = "run was trained with other templates: 1 (`--templates short`), and is evaluated with 63."
    assert caplog.text.count(message) == 1
    caplog.clear()
    (tmp_path / "again").mkdir()
    program(trained_on_short_templates, scenes, tmp_path / "again", templates="short")
    assert "templates" not in caplog.text


OUTSIDE_TOWER = """
from transformers import CLIPVisionConfig

from modeling_densevlm.modeling_clip_vit import DenseCLIPVisionModel


class OutsideConfig(CLIPVisionConfig):
    model_type = "outside_vision_model"


class OutsideTower(DenseCLIPVisionModel):
    config_class = OutsideConfig
"""


@pytest.mark.parametrize("program", [evaluate_program, segment_program, show_program])
def test_a_tower_from_outside_is_given_by_its_import_path(program, scenes, tokenizer, tmp_path, monkeypatch):
    (tmp_path / "outside_tower.py").write_text(OUTSIDE_TOWER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "outside_tower", raising=False)
    monkeypatch.setitem(VISION_TOWERS, "outside_vision_model", None)  # removed after the test
    del VISION_TOWERS["outside_vision_model"]
    config = tower_config("clip_vit", tokenizer)
    folder = save_folder(DenseVLMModel(config), tokenizer, 32, tmp_path / "model")
    content = json.loads((folder / "config.json").read_text())
    content["vision_config"]["model_type"] = "outside_vision_model"
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="'outside_vision_model' is no tower"):
        program(folder, scenes, tmp_path)
    with pytest.raises(SystemExit, match="`--tower` os:path is not a subclass of VisionTower"):
        program(folder, scenes, tmp_path, tower="os:path")
    program(folder, scenes, tmp_path, tower="outside_tower:OutsideTower", templates="short")
    assert VISION_TOWERS["outside_vision_model"].__name__ == "OutsideTower"


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_read_without_a_change_to_the_index(tmp_path, monkeypatch):
    """`git describe --dirty` would rewrite the index, and leaves its lock behind if it is killed meanwhile."""
    file = tmp_path / "models.py"
    monkeypatch.setattr(models, "__file__", str(file))
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    file.write_text("first")
    assert models.commit() == "unknown"
    for words in (["init", "--quiet"], ["add", "models.py"], ["commit", "--quiet", "--message", "first"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    os.utime(file, (1, 1))  # another time than in the index
    index = (tmp_path / ".git" / "index").read_bytes()
    assert models.commit() == head[:12]
    assert (tmp_path / ".git" / "index").read_bytes() == index
    file.write_text("second")
    assert models.commit() == f"{head[:12]}-dirty"
