"""Both metrics as Spaces: what a Space needs is there and works, in several processes, too."""

import importlib.util
import json
import multiprocessing
from pathlib import Path

import pytest


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


def test_its_cases_hold(folder):
    metric = evaluate.load(str(folder))
    cases = module_of(folder / "tests.py").test_cases
    for case in cases:
        expected = case.pop("result")
        results = metric.compute(**case)
        assert {name: results[name] for name in expected} == pytest.approx(expected)
    assert cases


def test_its_page_computes_the_example_and_says_what_is_wrong_with_other_input(folder):
    page = module_of(folder / "app.py")
    assert page.compute(page.EXAMPLE)["foreground_bias"] > 0
    with pytest.raises(ValueError, match="This is no JSON"):
        page.compute("{")
    with pytest.raises(ValueError, match="`predictions` and `references`"):
        page.compute("[]")


def rank(folder, process_id, columns, rest, cache_dir, results):
    options = {"num_process": 2, "process_id": process_id, "experiment_id": "two", "cache_dir": str(cache_dir)}
    metric = evaluate.load(str(folder), **options)
    metric.add_batch(**columns)
    results.put(metric.compute(**rest))


def test_several_processes_add_up(folder, tmp_path):
    values = json.loads(module_of(folder / "app.py").EXAMPLE)
    rest = {"category_is_thing": values.pop("category_is_thing")}
    expected = evaluate.load(str(folder)).compute(**values, **rest)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    rows = (slice(0, 1), slice(1, None))
    ranks = [
        context.Process(
            target=rank, args=(folder, number, {k: v[part] for k, v in values.items()}, rest, tmp_path, results)
        )
        for number, part in enumerate(rows)
    ]
    for process in ranks:
        process.start()
    found = [results.get(timeout=120) for _ in ranks]
    for process in ranks:
        process.join(timeout=60)
    assert [result for result in found if result is not None] == [expected]  # the first rank's
