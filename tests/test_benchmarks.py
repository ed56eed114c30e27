# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The computations of the benchmarks, and the isolation of failing parts of the GPU benchmark."""

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_parts, step
from benchmarks.dense_features import discard_attention
from benchmarks.timing import bounded


ROOT = Path(__file__).parent.parent


def test_a_ratio_above_its_maximum_is_not_printed():
    assert bounded(0.88, 1) == "88%" and bounded(1.95, 2.0, "{:.2f} x") == "1.95 x"
    assert "not printed" in bounded(1.02, 1) and "1.02" not in bounded(1.02, 1)
    ours = {"teacher": 6.0, "student": 4.0, "retrieval": 9.0, "pass": 6.0, "memory": 1, "rate": 10.0}
    gain, ceiling = step.cache_speedup(ours, {"student": 4.0})
    assert gain == pytest.approx(60 / 33) and ceiling == pytest.approx(60 / 30) and gain < ceiling
    measured = {"fused": ours, "naive": ours | {"teacher": 9.0}, "ours": ours, "cached": ours | {"student": 2.0}}
    lines = {title: value for title, value, _ in step.summarize(measured, {"teacher": 54.0, "student": 41.0})}
    assert all(title in lines for titles in step.TABLE_COLUMNS for title in titles)
    assert lines["step, against the reference with fused attention"] == "1.00 x"
    assert lines["step, against the reference with naive attention"] == "1.30 x"
    slower = step.summarize(measured | {"naive": ours | {"teacher": 11.0}}, {"teacher": 54.0, "student": 41.0})
    naive = next(value for title, value, _ in slower if title == "step, against the reference with naive attention")
    assert "not printed" in naive  # slower, relative to fused, than the reference itself
    assert (
        "not printed" in lines["6 epochs with cached teacher predictions, against online"]
    )  # its student was too fast
    assert lines["FLOP/s of the teacher, of a 4096 x 4096 product's"] == "90%"
    assert "not printed" in lines["FLOP/s of the student, of a 4096 x 4096 product's"]


def test_flop_count_matches_the_matrix_products(make_tower):
    """Of a transformer, by hand: the last block has no query, key, attention or class token."""
    config = make_tower("clip_vit").config
    hidden, inner, layers, patch, side = 32, 48, 3, 8, 64
    patches = (side // patch) ** 2
    tokens = patches + 1
    blocks = (layers - 1) * (8 * tokens * hidden**2 + 4 * tokens**2 * hidden + 4 * tokens * hidden * inner)
    last = 4 * patches * hidden**2 + 4 * patches * hidden * inner
    ends = 2 * patches * 3 * patch**2 * hidden + 2 * patches * hidden * config.projection_dim
    assert step.count_flop(config, side) == blocks + last + ends
    # Twice the blocks in the backward; the input of the first layer norm and frozen parameters need none.
    trained = step.count_flop(config, side, train=True)
    assert 2.5 < trained / step.count_flop(config, side) < 3


@torch.no_grad()
@pytest.mark.parametrize("tower", ["clip_vit", "eva02_clip"])
def test_the_reference_variant_computes_one_more_attention_and_the_same_features(tower, make_tower):
    model, calls = make_tower(tower), []
    last = model.vision_model.blocks[-1]
    images = torch.randn(2, 3, 64, 64)
    expected = model.get_dense_features(images)
    last.self_attn.q_proj.register_forward_hook(lambda module, inputs, output: calls.append("attention"))
    last.mlp.register_forward_hook(lambda module, inputs, output: calls.append("mlp"))
    discard_attention(model.vision_model)
    assert torch.equal(model.get_dense_features(images), expected)
    assert sorted(calls) == ["attention", "mlp"]
    model.set_attn_implementation("naive")
    torch.testing.assert_close(model.get_dense_features(images), expected, atol=1e-5, rtol=1e-4)


def test_a_part_that_fails_or_exceeds_its_limit_keeps_its_results(tmp_path):
    found = (
        "import os, time; f = open(os.environ['GPU_RESULTS'], 'a'); f.write('{\"a\": 1}\\n{\"a\": 0.12345}\\n{\"a'); "
    )
    found += "f.flush(); "
    results = {"card": "a card", "cpu": "", "device": "cuda", "date": "today", "remarks": ["timm: missing"]}
    results |= dict.fromkeys(("driver", "torch", "cuda", "transformers", "python"), "1.0")
    results["parts"] = {
        "good": gpu.run_part([sys.executable, "-c", found], 60, "cpu"),
        "bad": gpu.run_part([sys.executable, "-c", found + "raise ValueError('the reason')"], 60, "cpu"),
        "slow": gpu.run_part([sys.executable, "-c", found + "time.sleep(60)"], 1.5, "cpu"),
    }
    good, bad, slow = results["parts"].values()
    assert good["status"] == "done" and bad["status"] == "failed" and slow["status"].startswith("stopped")
    assert good["found"] == bad["found"] == slow["found"] == [{"a": 1}, {"a": 0.12345}]
    assert "the reason" in bad["output"] and "output" not in good
    gpu.write_results(results, tmp_path)
    assert json.loads((tmp_path / "gpu.json").read_text()) == results
    text = (tmp_path / "gpu.txt").read_text()
    for part in ("a card", "timm: missing", "0.123", "the reason", "slow: stopped"):
        assert part in text, part


def test_results_of_tests_are_listed_with_numbers_and_reasons():
    passed = {"test": "a.py::b", "outcome": "passed", "seconds": 1, "recorded": {"apart": "1e-6"}, "reason": ""}
    failed = passed | {"test": "a.py::c", "outcome": "failed", "reason": "E\nAssertionError: 3"}
    lines = gpu.summarize_tests([passed, failed])
    assert lines == [
        "  1 passed, 1 failed, 0 skipped",
        "  a.py::b   apart 1e-6",
        "  a.py::c   FAILED: AssertionError: 3",
    ]


def test_every_part_has_a_program_and_requirements_are_complete():
    assert {"tests", *gpu_parts.RUN} == set(gpu.PARTS)
    needs = gpu.requirements((ROOT / "setup.cfg").read_text())
    assert any(need.startswith("transformers>=") for need in needs) and any(
        need.startswith("pytest") for need in needs
    )


def test_the_parts_run_on_a_cpu(tmp_path, monkeypatch):
    file = tmp_path / "found.jsonl"
    monkeypatch.setenv("GPU_RESULTS", str(file))
    gpu_parts.rates("cpu")
    gpu_parts.RUN["steps_eva"]("cpu")
    found = gpu.parse(file.read_text().splitlines())
    assert {"ViT-B-16", "EVA02-CLIP-L-14-336"} <= {row.get("model") for row in found}
    assert [row["step"] for row in found if "step" in row] == [
        "online",
        "cached predictions",
        "online, eager attention",
    ]
    assert all(row["images_per_s"] > 0 for row in found if "images_per_s" in row)
    assert (
        gpu_parts.share_of_rate(40.0, 2.0, 25.0) == pytest.approx(0.8)
        and gpu_parts.share_of_rate(60.0, 2.0, 25.0) is None
    )
    assert gpu_parts.teacher_side(512) == 518 and gpu_parts.teacher_side(224) == 224
