# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Shipped recipes by name, from any folder."""

from pathlib import Path

import pytest
import yaml

from training.recipe import RECIPES, parse_arguments


SHIPPED = [file for file in sorted(RECIPES.rglob("*.yaml")) if file.parent.name != "launch"]


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_a_shipped_recipe_has_a_name(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / file.stem).mkdir()  # a folder of that name is no recipe
    arguments = ["--use_cpu", "true", "--bf16", "false", "--images", "x"]
    model, _, args = parse_arguments([file.stem, *arguments])
    assert (model.model, args.output_dir) == tuple(
        yaml.safe_load(file.read_text())[k] for k in ("model", "output_dir")
    )
    assert parse_arguments([str(file), *arguments])[0] == model


def test_a_file_without_a_suffix_is_a_recipe_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine").write_text(yaml.safe_dump({"model": "u", "images": "i", "output_dir": "o", "use_cpu": True}))
    assert parse_arguments(["mine"])[0].model == "u"


def test_an_unknown_name_lists_the_known_ones(capsys):
    assert len({file.stem for file in SHIPPED}) == len(SHIPPED) > 3
    for name in ("cocoo", "8_gpus"):
        with pytest.raises(SystemExit):
            parse_arguments([name])
        error = capsys.readouterr().err
        assert f"there is no recipe {name}" in error and all(file.stem in error for file in SHIPPED)
        assert ("did you mean `coco`" in error) == (name == "cocoo")
