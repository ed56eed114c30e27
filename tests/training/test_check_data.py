# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from tests.shards import damage_shards, write_shards
from training.build import load_categories, open_sources
from training.check_data import main
from training.recipe import parse_arguments
from training.sandbox.pretrain import main as pretrain_program
from training.sandbox.scenes import main as scenes_program
from training.train import main as train


def test_a_source_is_counted_and_timed_and_broken_images_are_listed(recipe, tmp_path, capsys):
    expected = list(damage_shards(tmp_path, write_shards(tmp_path, [4, 4, 4])))
    report = main([*recipe(images=tmp_path), "--report", str(tmp_path / "report.json")])
    (result,) = report
    assert result["source"]["images"] == str(tmp_path)
    assert result["shards"] == 6
    # The first shard has lost its end, the second its first image.
    assert result["read"] == result["images"]
    assert result["width"] == [96, 96, 96] and result["height"] == [64, 64, 64]
    assert result["images_per_second"] > 0 and result["milliseconds_an_image"] > 0
    output = capsys.readouterr().out
    for part in expected:
        assert any(part in message for message in result["broken"]), part
        assert part in output
    assert json.loads((tmp_path / "report.json").read_text()) == report


def test_a_part_of_a_source_is_read_on_request_and_by_workers_too(recipe, scenes, capsys):
    (result,) = main([*recipe(dataloader_num_workers=2), "--samples", "5"])
    assert (result["images"], result["read"], result["broken"]) == (24, 5, [])
    assert "3 steps of 8" in capsys.readouterr().out


def test_two_sources_in_one_folder_are_reported_separately(recipe, folder):
    (folder / "b.jpg").write_bytes(b"no image")
    for name in ("a.png", "b.jpg"):
        images = [{"id": 1, "file_name": name}, {"id": 1, "file_name": name}]
        (folder / f"{name}.json").write_text(json.dumps({"images": images}))
    sources = [{"images": str(folder), "annotations": str(folder / f"{name}.json")} for name in ("b.jpg", "a.png")]
    arguments = recipe()
    at = arguments.index("--images")
    arguments[at : at + 2] = ["--sources", json.dumps(sources)]
    report = main(arguments)
    assert [len(result["broken"]) for result in report] == [2, 0]
    assert [result["repeated_ids"] for result in report] == [1, 1]


def test_the_program_exits_with_1_if_an_image_is_broken(recipe, tmp_path, run_module):
    list(damage_shards(tmp_path, write_shards(tmp_path, [2, 2])))
    assert run_module("training.check_data", recipe(images=tmp_path), check=False).returncode == 1
    assert run_module("training.check_data", recipe(), check=False).returncode == 0


def test_skipped_files_are_in_the_report_and_in_the_log_of_training(recipe, folder, capsys, caplog):
    for name in ("x.heic", "y.heic", "._a.png"):
        (folder / name).write_bytes(b"")
    (result,) = main(recipe(images=folder))
    assert result["passed_over"] == {".heic": 2, "hidden or of a system": 1, ".txt": 1} and result["broken"] == []
    assert "passed over: 2 .heic, 1 hidden or of a system" in capsys.readouterr().out
    open_sources(parse_arguments(recipe(images=folder)))
    assert "passed over: 2 .heic" in capsys.readouterr().err + caplog.text


def test_an_unwritable_report_is_refused_before_anything_is_read(recipe, tmp_path, scenes):
    main([*recipe(), "--samples", "1", "--report", str(tmp_path / "new" / "folder" / "r.json")])
    assert json.loads((tmp_path / "new" / "folder" / "r.json").read_text())[0]["read"] == 1
    (tmp_path / "file").write_text("")
    for report in (tmp_path / "file" / "r.json", tmp_path):
        with pytest.raises(SystemExit, match="`--report`: .* cannot be written"):
            main([*recipe(images="nowhere"), "--report", str(report)])


def test_fewer_than_one_sample_is_refused(recipe, capsys):
    for samples in ("0", "-5"):
        with pytest.raises(SystemExit):
            main([*recipe(), "--samples", samples])
        assert "`--samples` is a whole number from 1 on" in capsys.readouterr().err


def test_invalid_numbers_and_a_missing_category_file_are_refused_by_their_key(recipe, capsys):
    for key, method in (("image_size", "densevlm"), ("teacher_image_size", "densevlm"), ("crops", "clipself")):
        for value in ("-5", "0"):
            with pytest.raises(SystemExit):
                main(recipe(method=method, **{key: value}))
            assert f"`{key}` is a whole number from 1 on" in capsys.readouterr().err
    _, data_args, _ = parse_arguments(recipe(categories="nowhere.json"))
    with pytest.raises(SystemExit, match=r"`categories`: nowhere\.json is neither a file nor"):
        load_categories(data_args)


def test_an_output_folder_that_cannot_be_created_is_refused_before_anything_is_read(
    recipe, tmp_path, monkeypatch, capsys
):
    (tmp_path / "file").write_text("")
    output = tmp_path / "file" / "output"
    with pytest.raises(SystemExit, match="`output_dir`: the folder .* cannot be created"):
        train(recipe(output_dir=output, model="nowhere"))
    for program, argv in ((scenes_program, ["--train", "1"]), (pretrain_program, ["U"])):
        monkeypatch.setattr("sys.argv", ["program", *argv, "--output", str(output)])
        with pytest.raises(SystemExit):
            program()
        assert "--output: the folder cannot be created" in capsys.readouterr().err
