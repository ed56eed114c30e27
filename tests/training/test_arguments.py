# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
import json

import pytest
import yaml

from training.arguments import DistillationArguments
from training.images.sources import Source
from training.recipe import RENAMED, parse_arguments, save_recipe


REQUIRED = {"model": "u", "teacher": "p", "images": "folder"}


@pytest.fixture
def write_recipe(tmp_path):
    def write(**values):
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(REQUIRED | {"output_dir": str(tmp_path / "run"), "use_cpu": True} | values))
        return str(file)

    return write


def test_a_recipe_fills_the_arguments_and_the_command_line_overrides_it(write_recipe):
    model, data, method = parse_arguments([write_recipe(temperature=0.07, max_grid=4), "--temperature", "0.02"])
    assert (model.model, data.images) == ("u", "folder")
    assert (method.temperature, data.max_grid) == (0.02, 4)


def test_numbers_that_yaml_reads_as_strings_are_numbers(write_recipe, tmp_path):
    file = write_recipe()
    with open(file, "a") as recipe:
        recipe.write("learning_rate: 1e-4\n")
    assert parse_arguments([file])[2].learning_rate == 1e-4


def test_an_unknown_key_of_the_recipe_stops_with_its_file_and_the_nearest_key(write_recipe, capsys):
    with pytest.raises(SystemExit):
        parse_arguments([write_recipe(temprature=0.1)])
    assert "recipe.yaml: unknown key `temprature` (did you mean `temperature`?)" in capsys.readouterr().err


def test_an_unknown_key_of_the_command_line_stops(write_recipe, capsys):
    with pytest.raises(SystemExit):
        parse_arguments([write_recipe(), "--treshold", "0.3"])
    assert "did you mean `threshold`" in capsys.readouterr().err


def test_a_missing_key_stops(tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--model", "u", "--output_dir", str(tmp_path)])
    assert "Give either `images` or a list of `sources`" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", None])
def test_an_invalid_recipe_file_is_refused_by_its_name(tmp_path, capsys, content):
    file = tmp_path / "bad.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SystemExit):
        parse_arguments([str(file)])
    assert "bad.yaml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("contrast", "things"),
        ("contrast", "[[true, false]]"),
        ("reduction", "sum"),
        ("method", "clip"),
        ("ensemble_alpha", 1.5),
        ("temperature", 0),
        ("templates", "none"),
        ("teacher_dtype", "float8"),
        ("max_grid", 0),
        ("max_samples", 0),
        ("teacher_cache_top_k", -1),
        ("sources", "{"),
        ("sources", []),
        ("sources", [{"images": "a", "wieght": 2}]),
        ("sources", [{"images": "a", "weight": 0}]),
        ("sources", [{"weight": 1}]),
        ("threshold", 1.5),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_key(write_recipe, capsys, key, value):
    if key == "sources":
        value = {"images": None, "sources": value}
    with pytest.raises(SystemExit):
        parse_arguments([write_recipe(**(value if key == "sources" else {key: value}))])
    assert f"`{key}`" in capsys.readouterr().err


def test_sources_are_a_list_in_a_recipe_or_json_on_the_command_line(write_recipe):
    sources = [{"images": "a", "weight": 2}, {"images": "b/*.tar", "max_samples": 5}]
    expected = [Source("a", weight=2), Source("b/*.tar", max_samples=5)]
    assert parse_arguments([write_recipe(images=None, sources=sources)])[1].all_sources == expected
    given = parse_arguments([write_recipe(images=None), "--sources", json.dumps(sources)])
    assert given[1].all_sources == expected


def test_images_and_sources_together_are_refused(write_recipe, capsys):
    with pytest.raises(SystemExit):
        parse_arguments([write_recipe(sources=[{"images": "a"}])])
    assert "either `images` or a list" in capsys.readouterr().err


def test_a_contrast_may_be_a_matrix(write_recipe):
    method = parse_arguments([write_recipe(), "--contrast", "[[true, false], [false, true]]"])[2]
    assert method.contrast_matrix == [[True, False], [False, True]]


def test_the_global_batch_sets_the_accumulation(write_recipe):
    method = parse_arguments([write_recipe(global_batch_size=192, per_device_train_batch_size=48)])[2]
    assert method.gradient_accumulation_steps == 4
    smaller = parse_arguments([write_recipe(global_batch_size=192, per_device_train_batch_size=50)])[2]
    assert (smaller.per_device_train_batch_size, smaller.gradient_accumulation_steps) == (48, 4)


@pytest.mark.parametrize(("processes", "per_device", "accumulation"), [(1, 48, 4), (4, 48, 1), (8, 24, 1), (6, 32, 1)])
def test_the_global_batch_is_the_same_on_any_number_of_processes(monkeypatch, processes, per_device, accumulation):
    monkeypatch.setattr(DistillationArguments, "world_size", processes)
    file = next(file for file in recipe_files() if file.stem == "coco")
    method = parse_arguments([str(file), "--use_cpu", "true", "--bf16", "false"])[2]
    assert (method.per_device_train_batch_size, method.gradient_accumulation_steps) == (per_device, accumulation)
    assert per_device * accumulation * processes == 192


def test_a_global_batch_that_cannot_be_divided_among_the_processes_is_refused(monkeypatch, write_recipe, capsys):
    monkeypatch.setattr(DistillationArguments, "world_size", 5)
    with pytest.raises(SystemExit):
        parse_arguments([write_recipe(global_batch_size=192)])
    assert "192 cannot be divided among 5 processes" in capsys.readouterr().err


def test_a_bare_no_in_yaml_is_a_strategy(write_recipe):
    assert parse_arguments([write_recipe(save_strategy=False)])[2].save_strategy == "no"


def test_an_abbreviated_key_is_unknown(write_recipe, capsys):
    with pytest.raises(SystemExit):
        parse_arguments([write_recipe(), "--thresh", "0.3"])
    assert "unknown: --thresh" in capsys.readouterr().err


def test_the_saved_recipe_starts_the_same_run(write_recipe, tmp_path):
    overrides = ["--learning_rate", "3e-4", "--threshold", "0.4", "--global_batch_size", "32", "--max_steps", "5"]
    arguments = parse_arguments([write_recipe(categories="coco_stuff_171"), *overrides])
    save_recipe(arguments, tmp_path / "saved.yaml")
    assert parse_arguments([str(tmp_path / "saved.yaml")]) == arguments
    saved = yaml.safe_load((tmp_path / "saved.yaml").read_text())
    assert saved["temperature"] == 0.01 and saved["threshold"] == 0.4


def recipe_files():
    from pathlib import Path

    return sorted((Path(__file__).parents[2] / "training" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("file", recipe_files(), ids=lambda file: file.stem)
def test_every_recipe_of_the_repository_is_valid(file):
    _, _, method = parse_arguments([str(file), "--use_cpu", "true", "--bf16", "false", "--fp16", "false"])
    assert method.adam_beta2 == 0.98


def test_the_coco_recipe_holds_the_settings_of_the_paper():
    file = next(file for file in recipe_files() if file.stem == "coco")
    _, data, method = parse_arguments([str(file), "--use_cpu", "true", "--bf16", "false"])
    assert (method.adam_beta1, method.adam_beta2, method.weight_decay) == (0.9, 0.98, 0.1)
    assert (method.learning_rate, method.global_batch_size, method.num_train_epochs) == (1e-4, 192, 6)
    assert (method.lr_scheduler_type, method.warmup_steps) == ("cosine", 1000)
    assert (data.image_size, method.temperature, method.threshold) == (512, 0.01, 0.3)
    assert (method.contrast, method.reduction, method.ensemble_alpha) == ("decoupled", "group_mean", 1.0)
    assert data.categories == "coco_stuff_ade20k_316"


@pytest.mark.parametrize("old", RENAMED)
def test_a_key_of_an_earlier_version_is_refused_with_its_new_name(write_recipe, capsys, old):
    for values, argv in (({old: "folder"}, []), ({}, [f"--{old}", "folder"]), ({}, [f"--{old}=folder"])):
        with pytest.raises(SystemExit):
            parse_arguments([write_recipe(**values), *argv])
        assert f"(it is now called `{RENAMED[old]}`)" in capsys.readouterr().err
