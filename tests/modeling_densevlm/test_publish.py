# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Publishing: a complete folder or none, and what is in the way is named."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel

from modeling_densevlm import DenseVLMModel, DenseVLMProcessor
from modeling_densevlm.publish import main, publish
from training.sandbox.ship import REFERENCE, ship
from training.sandbox.ship import main as ship_main


ROOT = Path(__file__).parents[2]
SHIPPED = sorted(file.parent for file in ROOT.glob("model_cards/*/config.json"))


@pytest.mark.parametrize("source", SHIPPED, ids=lambda folder: folder.name)
def test_a_published_folder_holds_weights_configuration_processor_tokenizer_code_and_card(source, tmp_path):
    folder = publish(source, tmp_path / "out")
    names = {file.name for file in folder.iterdir()}
    assert {"config.json", "processor_config.json", "tokenizer.json", "README.md"} <= names
    assert {"modeling_densevlm.py", "configuration_densevlm.py", "processing_densevlm.py"} <= names
    assert REFERENCE not in names and "command_line.py" not in names
    for file in ("config.json", "processor_config.json"):
        assert "installed_package" not in (folder / file).read_text()
    before, after = (load_file(where / "model.safetensors") for where in (source, folder))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert (folder / "README.md").read_text() == (source / "README.md").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # nothing staged is left


def test_a_model_of_every_tower_gets_a_card(tower, folder_of, tmp_path):
    folder = publish(folder_of(tower, 0), tmp_path / "of-mine", torch.float16)
    card = (folder / "README.md").read_text()
    config = AutoConfig.from_pretrained(folder)
    assert "# of-mine" in card and f"`{config.vision_config.model_type}`" in card and "trust_remote_code=True" in card
    assert DenseVLMModel.from_pretrained(folder).dtype == torch.float16
    assert DenseVLMProcessor.from_pretrained(folder).tokenizer is not None


def test_existing_outputs_and_missing_inputs_end_with_one_line_and_leave_no_files(student, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    bare = tmp_path / "bare"
    DenseVLMModel.from_pretrained(student).save_pretrained(bare)
    DenseVLMProcessor.from_pretrained(student).image_processor.save_pretrained(bare)
    for source, output, message in (
        (student, tmp_path / "file", "OUTPUT: the output is a folder, but .*file is a file"),
        (student, tmp_path / "file" / "out", "OUTPUT: .* cannot be written"),
        (student, tmp_path / "full", "full exists already: give a new folder"),
        (tmp_path / "gone", tmp_path / "out", "gone"),
        (tmp_path / "file", tmp_path / "out", "file"),
        (tmp_path / "empty", tmp_path / "out", "empty"),
        (broken, tmp_path / "out", "broken"),
        (bare, tmp_path / "out", "bare has a text tower but no tokenizer"),
    ):
        with pytest.raises(SystemExit, match=message) as ended:
            main([str(source), "--folder", str(output)])
        assert "\n" not in str(ended.value)
        assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".publish-*"))
    main([str(student), "--folder", str(tmp_path / "empty")])
    assert "modeling_densevlm.py" in capsys.readouterr().out


def test_a_shipped_folder_refers_to_the_package_and_loads_by_the_auto_classes(student, tmp_path):
    ship(student, tmp_path / "shipped")
    ship(tmp_path / "shipped", tmp_path / "shipped")  # again, from itself
    with pytest.raises(SystemExit, match="gone"):
        ship_main([str(tmp_path / "gone"), "name"])
    assert [file.name for file in (tmp_path / "shipped").glob("*.py")] == [REFERENCE]
    names = json.loads((tmp_path / "shipped" / "config.json").read_text())["auto_map"]
    assert names["AutoConfig"] == "installed_package.DenseVLMConfig"
    assert names["AutoModel"] == "installed_package.DenseVLMModel"
    for file in (tmp_path / "shipped").glob("*.json"):
        assert "_densevlm.DenseVLM" not in file.read_text(), file.name  # all names lead to the package
    for folder in (tmp_path / "shipped", *SHIPPED):
        assert type(AutoModel.from_pretrained(folder)) is DenseVLMModel
        assert (folder / REFERENCE).read_text() == (tmp_path / "shipped" / REFERENCE).read_text()
