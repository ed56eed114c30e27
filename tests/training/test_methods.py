# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Methods are declared: each has its own keys, also one from outside the repository."""

import importlib
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import CLIPVisionConfig

from modeling_densevlm import DenseVLMConfig, DenseVLMImageProcessor, DenseVLMModel
from modeling_densevlm.external_towers import register_tower
from modeling_densevlm.modeling_clip_vit import DenseCLIPVisionModel
from modeling_densevlm.modeling_densevlm import VISION_TOWERS
from tests.conftest import ROOT, save_folder, tower_config
from training.methods import METHODS, find_method
from training.recipe import parse_arguments
from training.train import main


def recipe_of(method, tmp_path, **values):
    given = {"model": "u", "images": "folder", "output_dir": tmp_path / "run", "use_cpu": True, "method": method}
    return [part for key, value in (given | values).items() for part in (f"--{key}", str(value))]


KEYS_OF_OTHER_METHODS = [
    ("clipself", "threshold", 0.9, "densevlm"),
    ("clipself", "contrast", "all", "densevlm"),
    ("densevlm", "crops", 4, "clipself"),
    ("feature_distillation", "temperature", 0.1, "densevlm"),
    ("densevlm", "distance", "mse", "feature_distillation"),
]


@pytest.mark.parametrize(("method", "key", "value", "owner"), KEYS_OF_OTHER_METHODS)
def test_a_key_of_another_method_is_refused_and_its_method_named(tmp_path, capsys, method, key, value, owner):
    file = tmp_path / "recipe.yaml"
    arguments = recipe_of(method, tmp_path, **{key: value})
    written = {name.removeprefix("--"): value for name, value in zip(arguments[::2], arguments[1::2])}
    file.write_text(yaml.safe_dump(written))
    for argv in (arguments, [str(file)]):
        with pytest.raises(SystemExit):
            parse_arguments(argv)
        error = capsys.readouterr().err
        assert f"it is a key of the method {owner}, not of {method}" in error and key in error


def test_all_keys_of_other_methods_in_a_saved_recipe_are_refused_at_once_with_the_remedy(tmp_path, capsys):
    """Earlier versions saved the keys of all methods with every run."""
    values = {"model": "u", "images": "folder", "output_dir": str(tmp_path / "run"), "crops": 6, "distance": "cosine"}
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(values | {"use_cpu": True, "quuux": 1}))
    with pytest.raises(SystemExit):
        parse_arguments([str(file)])
    error = capsys.readouterr().err
    assert f"recipe {file}: unknown keys `crops` (it is a key of the method clipself, not of densevlm: delete" in error
    assert "`distance` (it is a key of the method feature_distillation, not of densevlm: delete the line)" in error
    assert "`quuux` (delete the line)" in error
    with pytest.raises(SystemExit):
        parse_arguments(recipe_of("densevlm", tmp_path, crops=6))
    assert "not of densevlm: leave it out)" in capsys.readouterr().err


def test_a_misspelt_key_of_another_method_is_suggested(tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse_arguments(recipe_of("clipself", tmp_path, treshold=0.9))
    assert "did you mean `threshold` of the method densevlm?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "key", "value"),
    [
        ("clipself", "teacher", "p"),
        ("clipself", "teacher_cache", "folder"),
        ("clipself", "categories", "coco_panoptic_133"),
        ("feature_distillation", "templates", "short"),
        ("feature_distillation", "teacher_cache", "folder"),
    ],
)
def test_a_common_key_that_a_method_does_not_use_is_refused(tmp_path, capsys, method, key, value):
    with pytest.raises(SystemExit):
        parse_arguments(recipe_of(method, tmp_path, **{key: value}))
    assert f"the method {method} does not use `{key}`" in capsys.readouterr().err


@pytest.mark.parametrize("method", METHODS)
def test_the_keys_of_a_method_come_first_in_its_help_and_those_of_transformers_after(capsys, method):
    with pytest.raises(SystemExit) as end:
        parse_arguments(["--method", method, "--help"])
    own, _, inherited = capsys.readouterr().out.partition("keys of transformers' TrainingArguments")
    assert end.value.code == 0
    for key in ("--model", "--images", "--global_batch_size"):
        assert key in own and f"{key} " not in inherited
    assert "--learning_rate" in inherited and "--learning_rate" not in own
    assert ("--threshold" in own) == (method == "densevlm") and ("--crops" in own) == (method == "clipself")


def test_no_file_of_training_branches_on_the_method():
    for file in (ROOT / "training").rglob("*.py"):
        assert "method ==" not in file.read_text(), file


MY_METHOD = """
from dataclasses import dataclass, field

import torch

from training.arguments import DistillationArguments
from training.distillation_trainer import DistillationTrainer


@dataclass
class MyArguments(DistillationArguments):
    margin: float = field(default=0.1, metadata={"help": "Margin of the distance."})


class MyTrainer(DistillationTrainer):
    arguments_class = MyArguments
    teaches_itself = True

    def compute_targets(self, batch):
        return self.teacher_region_embeds(batch)

    def count_terms(self, targets):
        return torch.tensor([float(len(targets))])

    def loss(self, outputs, inputs):
        distances = (outputs.region_embeds - inputs["targets"] + self.args.margin).square().sum(-1)
        return distances.sum() / inputs["normalizers"][0].clamp(min=1)


class NoTrainer:
    pass
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes a module into a package outside the repository."""

    def write(module: str, content: str) -> None:
        folder = tmp_path / "elsewhere" / "my_package"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").touch()
        (folder / f"{module}.py").write_text(content)
        monkeypatch.syspath_prepend(folder.parent)
        importlib.invalidate_caches()

    yield write
    for name in [name for name in sys.modules if name.startswith("my_package")]:
        del sys.modules[name]


def test_a_method_from_outside_is_given_by_its_import_path(package, recipe, tmp_path, capsys):
    package("my_module", MY_METHOD)
    path = "my_package.my_module:MyTrainer"
    options = {"model": recipe()[1], "images": recipe()[5], "max_steps": 2, "per_device_train_batch_size": 8}
    trainer = main(recipe_of(path, tmp_path, **options, margin=0.2, report_to="none", save_strategy="no"))
    assert trainer.args.margin == 0.2 and trainer.state.global_step == 2
    saved = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert saved["method"] == path and saved["margin"] == 0.2
    assert f"Trained by {path}" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        parse_arguments(recipe_of(path, tmp_path, threshold=0.2))
    assert f"it is a key of the method densevlm, not of {path}" in capsys.readouterr().err
    for wrong, reason in (
        ("my_package.my_module:NoTrainer", "is not a subclass of DistillationTrainer"),
        ("my_package.my_module:Nobody", "cannot be imported"),
        ("my_package.nowhere:MyTrainer", "cannot be imported"),
        ("denseclip", "`method` is densevlm, clipself, feature_distillation or the import path of a trainer"),
    ):
        with pytest.raises(ValueError, match=reason):
            find_method(wrong)
        with pytest.raises(SystemExit):
            parse_arguments(recipe_of(wrong, tmp_path))
        assert reason in capsys.readouterr().err


MY_TOWER = '''
from transformers import CLIPVisionConfig

from modeling_densevlm.modeling_clip_vit import DenseCLIPVisionModel


class MyConfig(CLIPVisionConfig):
    model_type = "my_vision_model"


class MyTower(DenseCLIPVisionModel):
    """CLIP's ViT under another name."""

    config_class = MyConfig
'''


def test_a_tower_from_outside_trains_and_its_folder_is_reported_not_to_carry_its_code(
    package, recipe, tokenizer, tmp_path, caplog, monkeypatch
):
    package("my_tower", MY_TOWER)
    module = importlib.import_module("my_package.my_tower")
    monkeypatch.setitem(VISION_TOWERS, "my_vision_model", module.MyTower)  # removed after the test
    register_tower(module.MyTower)
    config = tower_config("clip_vit", tokenizer).to_dict()
    config["vision_config"]["model_type"] = "my_vision_model"
    torch.manual_seed(0)
    folder = save_folder(DenseVLMModel(DenseVLMConfig.from_dict(config)), tokenizer, 32, tmp_path / "student")
    del VISION_TOWERS["my_vision_model"]
    with pytest.raises(ValueError, match="'my_vision_model' is no tower"):
        DenseVLMModel.from_pretrained(folder)
    assert DenseVLMImageProcessor.from_pretrained(folder).patch_size == config["vision_config"]["patch_size"]
    options = {"model": folder, "max_steps": 1, "learning_rate": 1e-2, "warmup_steps": 0}
    trainer = main(recipe(**options, tower="my_package.my_tower:MyTower"))
    assert type(trainer.model.vision_model).__name__ == "MyTower"
    before, after = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "run"))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert "does not carry the code of its tower my_package.my_tower:MyTower" in caplog.text
    again = DenseVLMModel.from_pretrained(tmp_path / "run")
    assert type(again.vision_model).__name__ == "MyTower"
    for wrong, reason in (("my_package.my_tower:MyConfig", "is not a subclass of VisionTower"), ("os", "cannot be")):
        with pytest.raises(SystemExit, match=reason):
            main(recipe(output_dir=tmp_path / "other", model=folder, tower=wrong))


def test_a_tower_needs_its_own_model_type():
    class SameType(DenseCLIPVisionModel):
        config_class = CLIPVisionConfig

    with pytest.raises(ValueError, match="needs a `config_class` with a `model_type` of its own"):
        register_tower(SameType)
    with pytest.raises(ValueError, match="is not a vision tower"):
        register_tower(torch.nn.Linear)
