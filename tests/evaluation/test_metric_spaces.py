# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Both metrics as Spaces: the required files exist and work, also in several processes."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.region_accuracy.inputs import flags, whole_numbers


evaluate = pytest.importorskip("evaluate")
EVALUATION = Path(__file__).parents[2] / "evaluation"


@pytest.fixture(params=["region_accuracy", "foreground_bias"])
def folder(request):
    return EVALUATION / request.param


def module_of(file):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_folder_is_laid_out_as_a_space(folder):
    for name in ("README.md", "app.py", "requirements.txt", f"{folder.name}.py", "tests.py"):
        assert (folder / name).is_file(), name
    head = (folder / "README.md").read_text().split("---")[1]
    for line in ("title:", "- evaluate", "- metric", "sdk: gradio", "sdk_version:", "app_file: app.py"):
        assert line in head


def test_its_test_cases_pass(folder):
    metric = evaluate.load(str(folder))
    cases = module_of(folder / "tests.py").test_cases
    for case in cases:
        expected = case.pop("result")
        results = metric.compute(**case)
        assert {name: results[name] for name in expected} == pytest.approx(expected)
    assert cases


def test_the_app_computes_the_example_and_reports_wrong_input(folder):
    page = module_of(folder / "app.py")
    assert page.compute(page.EXAMPLE)["foreground_bias"] > 0
    with pytest.raises(ValueError, match="This is not valid JSON"):
        page.compute("{")
    with pytest.raises(ValueError, match="`predictions` and `references`"):
        page.compute("[]")


def test_several_processes_add_up(folder, run_module, tmp_path):
    values = json.loads(module_of(folder / "app.py").EXAMPLE)
    rest = {"category_is_thing": values.pop("category_is_thing")}
    expected = evaluate.load(str(folder)).compute(**values, **rest)
    arguments = [folder, tmp_path / "cache", tmp_path / "result.json", json.dumps(values), json.dumps(rest)]
    run_module("tests.evaluation.metric_on_ranks", arguments, ranks=2)
    assert json.loads((tmp_path / "result.json").read_text()) == expected


COLUMNS = {"predictions": [0, 2, 1, -1], "references": [0, 2, 2, 1]}
CATEGORY_IS_THING = [True, True, False]


@pytest.fixture
def metric(folder):
    return evaluate.load(str(folder))


def columns_of(metric, **changed):
    """Four regions in the format of each metric; `changed` columns have one id per region."""
    columns = COLUMNS | changed
    if metric.name == "region_accuracy":
        ids = columns["predictions"]
        columns["predictions"] = [[value] for value in ids] if isinstance(ids, list) else ids[:, None]
        columns = {"is_thing": [True, False, False, True]} | columns
    return columns


SCORES = np.random.default_rng(0).random(4)
NOT_IDS = [
    ("predictions", SCORES),
    ("predictions", SCORES.astype(np.float16)),
    ("predictions", torch.from_numpy(SCORES).bfloat16()),
    ("predictions", [0, 2, 0.5, 1]),
    ("predictions", [0.0, 2.0, np.nan, 1.0]),
    ("predictions", [0.0, 2.0, np.inf, 1.0]),
    ("predictions", ["0", "2", "1", "1"]),
    ("predictions", [True, False, True, True]),
    ("predictions", [0, None, 1, 1]),
    ("predictions", [0, 2, 1, 2**70]),
    ("references", SCORES),
    ("references", ["0", "2", "2", "1"]),
    ("references", [0, 2, None, 1]),
    ("references", [[0], [2], [2], [1]]),
]


def test_values_that_are_not_ids_are_rejected_by_argument_without_rounding(metric):
    """For example scores instead of ids, as in pytorch-lightning#4840; rejected input leaves no state behind."""
    for name, values in NOT_IDS:
        columns, message = columns_of(metric, **{name: values}), f"`{name}`: .*(whole numbers, got|for each region)"
        with pytest.raises(ValueError, match=message):
            metric.compute(**columns, category_is_thing=CATEGORY_IS_THING)
        with pytest.raises(ValueError, match=message):
            metric.add_batch(**columns)
        region = {key: column[2] for key, column in columns.items()}
        if name == "references" or values is SCORES:
            region[name] = region[name] if name == "predictions" else SCORES[0]
            with pytest.raises(ValueError, match=message):
                metric.add(prediction=region.pop("predictions"), reference=region.pop("references"), **region)
    columns = columns_of(metric)
    for row in range(4):
        region = {key: column[row] for key, column in columns.items()}
        metric.add(prediction=region.pop("predictions"), reference=region.pop("references"), **region)
    assert metric.compute(category_is_thing=CATEGORY_IS_THING) == metric.compute(
        **columns, category_is_thing=CATEGORY_IS_THING
    )


def test_flags_are_0_1_true_or_false(metric):
    if metric.name == "region_accuracy":
        with pytest.raises(ValueError, match="`is_thing`: flags are 0, 1, true or false, got 2"):
            metric.add_batch(**columns_of(metric, is_thing=[True, False, 2, True]))
    with pytest.raises(ValueError, match="`category_is_thing`: flags are 0, 1, true or false, got 'false'"):
        metric.compute(**columns_of(metric), category_is_thing=["true", "true", "false"][::-1])
    for values in ([1, 0.5, 0], [1.0, np.nan, 0.0], [1, 1, None], [1, "0"], np.array([0, 1, -1])):
        with pytest.raises(ValueError, match="`f`: flags are 0, 1, true or false, got"):
            flags("f", values)


DTYPES = [np.uint8, np.int16, np.uint64, np.float32, torch.int32, torch.float16, torch.bfloat16]


def as_dtype(values, kind):
    return torch.tensor(values, dtype=kind) if isinstance(kind, torch.dtype) else np.array(values, kind)


@pytest.mark.parametrize("kind", DTYPES)
def test_integers_of_every_dtype_are_ids(kind):
    ids, row = as_dtype([0, 2, 1, 1], kind), as_dtype([[0, 2], [1, 3]], kind)
    for values in (ids, list(ids)):
        assert whole_numbers("ids", values).tolist() == [0, 2, 1, 1]
    for values in (row, list(row)):
        assert whole_numbers("ids", values, "a row").tolist() == [[0, 2], [1, 3]]
    assert flags("f", as_dtype([1, 0, 1], kind)).tolist() == [True, False, True]


def test_metrics_do_not_depend_on_the_dtype(metric):
    plain = columns_of(metric, predictions=[0, 2, 1, 1])
    expected = metric.compute(**plain, category_is_thing=CATEGORY_IS_THING)
    columns = {name: as_dtype(values, torch.bfloat16) for name, values in plain.items()}
    assert metric.compute(**columns, category_is_thing=as_dtype(CATEGORY_IS_THING, np.float32)) == expected


def test_repeated_floats_in_a_region_are_scores():
    metric = evaluate.load(str(EVALUATION / "region_accuracy"))
    certain = np.eye(5)[[0, 2]]
    with pytest.raises(ValueError, match="`predictions`: .*look like scores"):
        metric.compute(predictions=certain, references=[0, 2], is_thing=[True, False])


def test_the_number_of_pairs_is_an_integer():
    metric = evaluate.load(str(EVALUATION / "foreground_bias"))
    for pairs in (-1, 2.5):
        with pytest.raises(ValueError, match="`pairs`"):
            metric.compute(**COLUMNS, category_is_thing=CATEGORY_IS_THING, pairs=pairs)


def test_rows_of_different_lengths_are_rejected():
    metric = evaluate.load(str(EVALUATION / "region_accuracy"))
    with pytest.raises(ValueError, match="`predictions`: every region needs the same number"):
        metric.compute(predictions=[[0, 1], [0]], references=[0, 1], is_thing=[True, True])


def test_both_spaces_share_the_code_of_their_inputs_and_apps():
    """Each folder is a standalone Space, so each has a copy."""
    first, second = (EVALUATION / name for name in ("region_accuracy", "foreground_bias"))
    assert (first / "inputs.py").read_text() == (second / "inputs.py").read_text()
    apps = [(folder / "app.py").read_text().partition("\ndef compute")[2] for folder in (first, second)]
    assert apps[0] == apps[1]
