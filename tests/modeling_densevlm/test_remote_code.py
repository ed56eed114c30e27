# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Saved folders carry their code and go on loading: without the package, offline, saved again, and years later."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from modeling_densevlm import (
    DenseVLMForSemanticSegmentation,
    DenseVLMImageProcessor,
    DenseVLMModel,
    DenseVLMProcessor,
)
from modeling_densevlm.publish import publish


ROOT = Path(__file__).parents[2]
SHIPPED = sorted(file.parent for file in ROOT.glob("model_cards/*/config.json"))
OLDER = sorted(file.parent for file in ROOT.glob("tests/fixtures/folders/*/config.json"))

SCRIPT = """
import sys
sys.modules["modeling_densevlm"] = None  # as if it were not installed
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoProcessor, pipeline
out, *folders = sys.argv[1:]
found, pipelines = {}, 0
for folder in folders:
    for source in (folder, f"{out}-{len(found)}"):  # as it is, and saved again by the remote code itself
        model = AutoModel.from_pretrained(source, trust_remote_code=True, dtype=torch.float32).eval()
        processor = AutoProcessor.from_pretrained(source, trust_remote_code=True)
        image_processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=True)
        assert not type(model).__module__.startswith("modeling_densevlm."), type(model).__module__
        inputs = processor(images=Image.new("RGB", (120, 80), (200, 30, 60)), text=["a photo of a kite"],
                           padding="max_length", max_length=32, return_tensors="pt")
        assert (image_processor(Image.new("RGB", (120, 80), (200, 30, 60)))["pixel_values"]
                == inputs["pixel_values"]).all()
        with torch.no_grad():
            output = model(inputs["pixel_values"], return_image_embeds=True)
            text = model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output
        result = {"pixel_values": inputs["pixel_values"], "dense": output.dense_embeds, "text": text,
                  "image": output.image_embeds}
        if "AutoModelForZeroShotImageClassification" in model.config.auto_map:  # not in folders of older versions
            for task, options in (("image-feature-extraction", {}),
                                  ("zero-shot-image-classification", {"candidate_labels": ["kite", "a red boat"]})):
                run = pipeline(task, model=source, trust_remote_code=True, device="cpu")
                assert not type(run.model).__module__.startswith("modeling_densevlm."), type(run.model).__module__
                found_here = run(Image.new("RGB", (120, 80), (200, 30, 60)), **options)
                assert len(found_here) == (2 if options else 1)
                pipelines += 1
        if source == folder:
            first = result
            model.save_pretrained(f"{out}-{len(found)}")
            processor.save_pretrained(f"{out}-{len(found)}")
        else:
            for key in first:
                torch.testing.assert_close(result[key], first[key], atol=1e-6, rtol=1e-5, msg=f"{folder}: {key}")
    found[folder] = first
assert pipelines >= 2 * len(folders)
torch.save(found, out)
"""


@pytest.fixture(scope="module")
def folders(make_tower, tower_names, tokenizer, student, tmp_path_factory):
    """One saved folder for each tower that can be built here, and the shipped ones as they are published."""
    saved = [student, *(publish(folder, tmp_path_factory.mktemp("published") / folder.name) for folder in SHIPPED)]
    for tower in tower_names:
        folder = tmp_path_factory.mktemp(tower)
        make_tower(tower, tokenizer).save_pretrained(folder)
        DenseVLMProcessor(DenseVLMImageProcessor(96), tokenizer).save_pretrained(folder)
        saved.append(folder)
    return saved


def run_script(script: str, *arguments: Path, cwd: Path, **environment: str) -> str:
    """The output of a script in a new process with an empty cache of the Hub and without this process's path."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=cwd,
        env=inherited | {"HF_HOME": str(cwd / "hf"), "HF_HUB_OFFLINE": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_folders_of_every_tower_load_as_remote_code_in_a_process_without_the_package(folders, tmp_path):
    run_script(SCRIPT, tmp_path / "out.pt", *folders, cwd=tmp_path)
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    assert len(found) == len(folders) >= 5
    for folder, outputs in found.items():
        model = DenseVLMModel.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.no_grad():
            ours = model(outputs["pixel_values"], return_image_embeds=True)
        # Not to the last bit: where a tensor lies in memory decides how its sums are grouped.
        assert_close(outputs["dense"], ours.dense_embeds, atol=1e-6, rtol=1e-5)
        assert_close(outputs["image"], ours.image_embeds, atol=1e-6, rtol=1e-5)


SEGMENTER_SCRIPT = """
import sys
sys.modules["modeling_densevlm"] = None  # as if it were not installed
from PIL import Image
from transformers import AutoModel, pipeline
out, *folders = sys.argv[1:]
for folder in folders:
    segmenter = pipeline("image-segmentation", model=folder, trust_remote_code=True, device="cpu")
    assert segmenter.model.__module__.startswith("transformers_modules."), segmenter.model.__module__
    labels = {segment["label"] for segment in segmenter(Image.new("RGB", (120, 80), (200, 30, 60)))}
    assert labels and labels <= {"kite", "sky"}, labels
    segmenter.model.set_categories(["boat"], templates="short")
    assert [segment["label"] for segment in segmenter(Image.new("RGB", (120, 80)))] == ["boat"]
    segmenter.model.save_pretrained(out)  # by the remote code itself, over and over
    segmenter.image_processor.save_pretrained(out)
    again = pipeline("image-segmentation", model=out, trust_remote_code=True, device="cpu")
    assert [segment["label"] for segment in again(Image.new("RGB", (120, 80)))] == ["boat"]
    assert type(AutoModel.from_pretrained(folder, trust_remote_code=True)).__name__ == "DenseVLMModel"
    print(folder)
"""


def test_segmenters_of_every_tower_run_in_the_pipeline_in_a_process_without_the_package(folders, tmp_path):
    saved = [tmp_path / f"segmenter-{number}" for number in range(len(folders))]
    for source, folder in zip(folders, saved):
        DenseVLMForSemanticSegmentation.from_pretrained(source).set_categories(["kite", "sky"]).save_pretrained(folder)
        DenseVLMProcessor.from_pretrained(source).save_pretrained(folder)
    output = run_script(SEGMENTER_SCRIPT, tmp_path / "again", *saved, cwd=tmp_path)
    assert output.splitlines() == list(map(str, saved))


SHIPPED_SCRIPT = """
import sys
from transformers import AutoImageProcessor, AutoModel, AutoProcessor
sys.modules["modeling_densevlm"] = None  # as if it were not installed
try:
    AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
except ImportError as error:
    assert str(error).startswith("This folder holds no modeling code: install the package `densevlm`"), error
del sys.modules["modeling_densevlm"]
for folder in sys.argv[1:]:
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__module__ == "modeling_densevlm.modeling_densevlm", type(model).__module__
    for kind in (AutoProcessor, AutoImageProcessor):
        assert type(kind.from_pretrained(folder, trust_remote_code=True)).__module__.startswith("modeling_densevlm.")
    print(folder)
"""


def test_shipped_folders_load_with_the_package_and_name_it_where_it_is_missing(tmp_path):
    """Nothing but transformers is imported: the configuration leads to the package's classes."""
    output = run_script(SHIPPED_SCRIPT, *SHIPPED, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert len(output.splitlines()) == len(SHIPPED) == 4


@pytest.mark.parametrize("folder", OLDER, ids=lambda folder: folder.name)
@torch.no_grad()
def test_a_folder_saved_by_an_older_version_loads_and_gives_the_same_outputs(folder, tower_names):
    if folder.name not in tower_names:
        pytest.skip("this tower is built by timm (extra `vision`)")
    model = DenseVLMModel.from_pretrained(folder)
    recorded = load_file(folder / "recorded.safetensors")
    output = model(recorded["pixel_values"], return_image_embeds=True)
    close = {"atol": 1e-5, "rtol": 1e-4}
    assert_close(output.dense_embeds, recorded["dense_embeds"], **close)
    assert_close(output.image_embeds, recorded["image_embeds"], **close)
    assert_close(model.get_text_features(recorded["input_ids"]).pooler_output, recorded["text_embeds"], **close)


def test_every_tower_has_a_folder_of_an_older_version():
    from modeling_densevlm.modeling_densevlm import VISION_TOWERS

    configs = [json.loads((folder / "config.json").read_text()) for folder in OLDER]
    assert {config["vision_config"]["model_type"] for config in configs} == set(VISION_TOWERS)
    assert all(config["transformers_version"] for config in configs)
