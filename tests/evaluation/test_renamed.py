# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Names of earlier versions are rejected with the current name and the remedy."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from evaluation.comparison import as_latex, as_markdown
from evaluation.evaluate_regions import main
from evaluation.renamed import FIELDS, METRICS, OPTIONS, check_metrics
from evaluation.report import main as report
from evaluation.sandbox import markdown_report, sandbox_models
from evaluation.scores import RegionScores
from tests.evaluation.regions import scores_of


ROW = {"model": "u", "image_size": 96, "fingerprint": "0" * 16, "miou": 0.5}


@pytest.mark.parametrize("name", METRICS)
def test_metrics_of_an_older_version_are_rejected_by_name(name, tmp_path):
    message = f"`{name}` was written by an older version, it is now `{METRICS[name]}`: evaluate again"
    for read in (as_markdown, as_latex, check_metrics):
        with pytest.raises(ValueError, match=message):
            read([ROW, ROW | {name: 0.5}])
        with pytest.raises(ValueError, match=message):
            read([ROW | {"over_all_against_all": {name: [0.0, 0.0, 0.0]}}])
    with pytest.raises(ValueError, match=message):
        markdown_report(sandbox_models([tmp_path], tmp_path, [0]), {"before": {"over": {name: 0.5}}}, "")
    check_metrics([ROW | {"over": {METRICS[name]: 0.5}}])


def test_scores_of_an_older_version_are_rejected_by_name(tmp_path):
    scores = scores_of(np.eye(4, dtype=np.float32), [0, 1, 2, 3])
    file = tmp_path / "s.safetensors"
    scores.save(file)
    metadata = {"images": "4", "skipped_images": "[]", "skipped_regions": "0", "kind": scores.TITLE}
    save_file(load_file(file), file, metadata | {"facts": json.dumps({"model": "u"})})
    assert set(FIELDS) == {"facts"}
    message = "s.safetensors: `facts` was written by an older version, it is now `provenance`: evaluate again"
    with pytest.raises(ValueError, match=message):
        RegionScores.load(file)
    with pytest.raises(SystemExit, match=message):
        report([str(file), "--output", str(tmp_path / "r.html")])


@pytest.mark.parametrize("option", OPTIONS)
def test_options_of_an_older_version_are_rejected_by_name(option, tmp_path, capsys):
    words = ["--model", "x", "--annotations", "a", "--images", "b", "--panoptic", "c", "--output"]
    with pytest.raises(SystemExit):
        main([*words, str(tmp_path / "m.json"), option, "3"])
    assert f"{option} has been renamed: give {OPTIONS[option]}" in capsys.readouterr().err
