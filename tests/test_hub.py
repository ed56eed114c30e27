# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""What reaches the Hub, on a server that answers as it does: files, model cards, results of evaluations."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import save_file
from transformers import AutoTokenizer

from evaluation.card_results import results_of
from evaluation.evaluate_regions import main as evaluate_regions
from modeling_densevlm import DenseVLMForSemanticSegmentation, DenseVLMModel, DenseVLMProcessor
from modeling_densevlm.conversion import export_checkpoint
from modeling_densevlm.conversion.hub import clip_tokenizer
from modeling_densevlm.model_card import CARD
from modeling_densevlm.publish import publish, upload
from tests.fake_hub import fake_hub
from training.train import main as train


ROOT = Path(__file__).parent.parent

MODEL_FILES = {"README.md", "config.json", "model.safetensors", "processor_config.json", "tokenizer.json"}


@pytest.fixture
def hub():
    with fake_hub() as started:
        yield started


@pytest.fixture
def start(hub, tmp_path):
    """Runs a module in a process that talks to the server."""

    def run(module: str, *arguments, check: bool = True) -> subprocess.CompletedProcess:
        environment = os.environ | hub.environment | {"HF_HOME": str(tmp_path / "hf_home")}
        command = [sys.executable, "-m", module, *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0 or not check, done.stderr[-3000:]
        return done

    return run


@pytest.fixture
def trained(recipe, tmp_path, student) -> Path:
    """The folder of a finished run with checkpoints, whose student has a licence."""
    licensed = shutil.copytree(student, tmp_path / "licensed")
    (licensed / CARD).write_text("---\nlicense: mit\nbase_model: openai/clip-vit-base-patch16\n---\n# Student\n")
    train(recipe(model=licensed, save_strategy="steps", save_steps=2))
    return tmp_path / "run"


def evaluate(folder: Path, scenes: Path, output: Path, *options: str) -> None:
    test = scenes / "test"
    arguments = [("--model", folder), ("--annotations", test / "panoptic.json"), ("--images", test / "images")]
    arguments += [("--panoptic", test / "panoptic"), ("--output", output), ("--templates", "short")]
    evaluate_regions([*(str(word) for pair in arguments for word in pair), "--num_workers", "0", *options])


def test_a_run_writes_a_card_with_its_models_method_data_settings_machine_and_licence(trained):
    card = ModelCard.load(trained / CARD)
    assert card.data.license == "mit" and card.data.base_model == ["openai/clip-vit-base-patch16"]
    metadata = card.data.to_dict()
    assert (metadata["library_name"], metadata["pipeline_tag"]) == ("transformers", "zero-shot-image-classification")
    assert "densevlm" in card.data.tags and card.data.eval_results is None
    for words in (
        r"# run\n",
        r"\| student \| `.*licensed` \|",
        r"\| teacher \| `.*teacher.*` \|",
        r"\| method \| DenseVLM, contrast decoupled, .*temperature .*threshold 0\.\d",
        r"\| images \| 24, of images \|",
        r"\| categories \| sandbox_28: 16 things, 12 stuff",
        r"\| steps \| 3 of \d+ images",
        r"\| precision \| float32",
        r"\| hardware \| .*cores of a CPU",
        r"\| time \| 0\.00 hours",
        r"\| versions \| torch [\d.]+.*, transformers [\d.]+",
        r"No evaluation has been run on this model",
        r"The weights: `mit`\. Of the models that it was made from: `.*licensed`: `mit`, `.*teacher.*`: not known",
    ):
        assert re.search(words, card.content), words


def test_the_lines_of_code_in_a_card_run(trained, tmp_path, picture, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture(90, 70).save("photo.jpg")
    lines = re.search(r"```python\n(.+?)```", (trained / CARD).read_text(), re.DOTALL)[1]
    found: dict = {}
    exec(lines, found)
    assert found["outputs"].dense_embeds.shape[0] == 1


def test_evaluations_add_their_results_to_the_card_and_lose_nothing(trained, scenes, tmp_path, capsys):
    card = (trained / CARD).read_text()
    (trained / CARD).write_text(card.replace("## Limits", "## By hand\n\nWritten by me.\n\n## Limits"))
    evaluate(trained, scenes, tmp_path / "regions.json")
    assert f"Added to the model card {trained / CARD}" in capsys.readouterr().out
    first = ModelCard.load(trained / CARD)
    evaluate(trained, scenes, tmp_path / "again.json")  # replaces its own results
    assert ModelCard.load(trained / CARD).content == first.content
    evaluate(trained, scenes, tmp_path / "larger.json", "--image_size", "144")
    results = ModelCard.load(trained / CARD).data.eval_results
    names = [(result.metric_name, result.dataset_config) for result in results]
    assert {("Masks-S", f"{side} pixels, 1 templates") for side in (96, 144)} <= set(names)
    assert len(names) == len(set(names))
    text = (trained / CARD).read_text()
    assert "Written by me." in text and "No evaluation has been run" not in text
    assert re.search(r"\| panoptic, 96 pixels, 1 templates \| Masks-S \| [\d.]+ \|", text)
    untouched = (trained / CARD).read_text()
    evaluate(trained, scenes, tmp_path / "none.json", "--image_size", "120", "--no_card")
    assert (trained / CARD).read_text() == untouched


def test_publishing_uploads_each_file_once_and_nothing_else_of_a_run(hub, start, trained, tmp_path):
    assert (trained / "checkpoint-2").is_dir() and (trained / "recipe.yaml").is_file()
    dry = start("modeling_densevlm.publish", trained, "me/densevlm", "--dry_run")
    assert hub.commits == [] and "model.safetensors" in dry.stdout and "a dry run" in dry.stdout
    done = start("modeling_densevlm.publish", trained, "me/densevlm", "--private")
    assert f"Uploaded: {hub.environment['HF_ENDPOINT']}/me/densevlm/commit/" in done.stdout
    names = set(hub.commits[0])
    assert len(hub.commits) == 1 and len(names) == len(hub.commits[0]) and hub.private["me/densevlm"]
    assert names >= MODEL_FILES and all(name.endswith(".py") or name in dry.stdout for name in names)
    assert not [name for name in names if "checkpoint" in name or "optimizer" in name or "training_args" in name]
    assert not [name for name in names if "recipe" in name or "state" in name or "/" in name]
    assert b'from_pretrained("me/densevlm"' in hub.repositories["me/densevlm"]["README.md"]
    assert not list(tmp_path.glob(".publish*")) and not list(tmp_path.glob("densevlm-publish*"))


def test_publishing_again_after_an_evaluation_adds_its_results(hub, start, trained, scenes, tmp_path):
    evaluate(trained, scenes, tmp_path / "regions.json")
    start("modeling_densevlm.publish", trained, "me/densevlm")
    # Another machine, whose card does not have these results, but others.
    other = shutil.copytree(trained, tmp_path / "other")
    train_card = ModelCard.load(other / CARD)
    train_card.data.eval_results = train_card.data.model_name = None
    train_card.save(other / CARD)
    evaluate(other, scenes, tmp_path / "larger.json", "--image_size", "144")
    start("modeling_densevlm.publish", other, "me/densevlm")
    (tmp_path / "found.md").write_bytes(hub.repositories["me/densevlm"]["README.md"])
    sides = {result.dataset_config.split()[0] for result in ModelCard.load(tmp_path / "found.md").data.eval_results}
    assert sides == {"96", "144"}


def test_the_trainer_uploads_the_same_files_once_at_the_end(hub, start, recipe, tmp_path, trained):
    start("modeling_densevlm.publish", trained, "me/by-hand")
    options = {"push_to_hub": True, "hub_model_id": "me/by-trainer", "hub_token": "hf_of_me", "hub_revision": "main"}
    words = recipe(output_dir=tmp_path / "pushed", save_strategy="steps", save_steps=2, **options)
    done = start("training.train", *words)
    assert "Uploaded: " in done.stdout and len(hub.commits) == 2
    assert hub.commits[1] == hub.commits[0]
    assert b'from_pretrained("me/by-trainer"' in hub.repositories["me/by-trainer"]["README.md"]
    assert not any("hf_of_me" in file.read_text() for file in (tmp_path / "pushed").glob("*.[yjm]*"))


def test_a_path_is_not_taken_for_a_name_on_the_hub(student, tmp_path):
    with pytest.raises(ValueError, match=r"is no name on the Hub, YOU/NAME\. To write a folder, give `--folder "):
        upload(student, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_refusal_of_the_hub_is_one_line(start, student):
    done = start("modeling_densevlm.publish", student, "another/densevlm", check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "another/densevlm could not be uploaded: 403" in done.stderr


def test_a_published_segmenter_keeps_its_vocabulary(student, tmp_path):
    segmenter = DenseVLMForSemanticSegmentation.from_pretrained(student)
    segmenter.set_categories(["kite", "sky"], templates="short").save_pretrained(tmp_path / "segmenter")
    DenseVLMProcessor.from_pretrained(student).save_pretrained(tmp_path / "segmenter")
    folder = publish(tmp_path / "segmenter", tmp_path / "published")
    assert DenseVLMForSemanticSegmentation.from_pretrained(folder).config.categories["names"] == ["kite", "sky"]
    card = ModelCard.load(folder / CARD)
    assert card.data.pipeline_tag == "image-segmentation" and "Its categories: kite, sky." in card.text


def test_a_model_without_texts_has_the_pipeline_of_features(student, tmp_path):
    model = DenseVLMModel.from_pretrained(student)
    model.config.text_config = None
    vision = DenseVLMModel(model.config)
    vision.save_pretrained(tmp_path / "vision")
    DenseVLMProcessor.from_pretrained(student).image_processor.save_pretrained(tmp_path / "vision")
    card = ModelCard.load(publish(tmp_path / "vision", tmp_path / "published") / CARD)
    assert card.data.pipeline_tag == "image-feature-extraction" and "get_dense_features" in card.text


def test_segmentation_has_its_own_task_and_metric():
    row = {"miou": 0.2512, "pixel_accuracy": 0.5, "image_size": 512, "templates": 63}
    results = results_of(row, "ade20k")
    assert [(one.task_type, one.metric_type, one.metric_name, one.metric_value) for one in results] == [
        ("image-segmentation", "accuracy", "pixel accuracy", 50.0),
        ("image-segmentation", "mean_iou", "mIoU", 25.12),
    ]


def assert_same_weights(folder: Path, other: Path) -> None:
    ours, theirs = (DenseVLMModel.from_pretrained(one).state_dict() for one in (folder, other))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_checkpoint_of_the_hub_is_converted_from_the_named_file_alone(hub, start, student, tmp_path):
    tensors, config = export_checkpoint(DenseVLMModel.from_pretrained(student))
    save_file(tensors, tmp_path / "vit.safetensors")
    (tmp_path / "vit.json").write_text(json.dumps(config))
    hub.repositories["owner/clips"] = {
        "README.md": b"---\nlicense: cc-by-nc-4.0\n---\n# Clips\n",
        "sub/vit.safetensors": (tmp_path / "vit.safetensors").read_bytes(),
        "sub/other.pt": b"not to be read",
    }
    source = "hub:owner/clips/sub/vit.safetensors"
    options = ("--config", tmp_path / "vit.json", "--processor", student)
    start("modeling_densevlm.convert_open_clip", source, tmp_path / "ours", *options)
    assert set(hub.downloads) == {"owner/clips/sub/vit.safetensors", "owner/clips/README.md"}
    assert_same_weights(tmp_path / "ours", student)
    card = ModelCard.load(tmp_path / "ours" / CARD)
    assert card.data.license == "cc-by-nc-4.0" and card.data.base_model == ["owner/clips"]
    digest = hashlib.sha256((tmp_path / "vit.safetensors").read_bytes()).hexdigest()
    assert f"converted from `{source}`" in card.text and digest in card.text and "no value was trained" in card.text
    for address, message in (
        ("hub:owner/clips/none.pt", "hub:owner/clips/none.pt cannot be downloaded: 404"),
        ("hub:owner/clips", "hub:owner/clips: an address on the Hub is hub:OWNER/NAME/FILE"),
    ):
        done = start("modeling_densevlm.convert_open_clip", address, tmp_path / "none", check=False)
        assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr


def test_the_shards_of_an_index_on_the_hub_are_downloaded_with_it(hub, start, student, tmp_path):
    tensors, config = export_checkpoint(DenseVLMModel.from_pretrained(student))
    (tmp_path / "vit.json").write_text(json.dumps(config))
    files, names = {}, sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in shards.items():
        save_file({key: tensors[key] for key in keys}, tmp_path / file)
        files[file] = (tmp_path / file).read_bytes()
    index = {"weight_map": {key: file for file, keys in shards.items() for key in keys}}
    hub.repositories["owner/clips"] = files | {"model.safetensors.index.json": json.dumps(index).encode()}
    options = ("--config", tmp_path / "vit.json", "--processor", student, "--license", "mit")
    source = "hub:owner/clips/model.safetensors.index.json"
    start("modeling_densevlm.convert_open_clip", source, tmp_path / "ours", *options)
    assert_same_weights(tmp_path / "ours", student)
    assert ModelCard.load(tmp_path / "ours" / CARD).data.license == "mit"


def test_clips_tokenizer_is_built_from_the_vocabulary_of_open_clip(tmp_path):
    open_clip = pytest.importorskip("open_clip", reason="it holds the vocabulary (extra `convert`)")
    clip_tokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    texts = [
        "a photo of a cat.",
        "It's   a DOG, isn't it? naïve café 123",
        "日本語 — 🪁",
        "",
        "x" * 400,
        "don't we'll I'm",
    ]
    found = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    expected = open_clip.SimpleTokenizer()(texts)  # padded with zeros
    assert torch.equal(found.input_ids * found.attention_mask, expected)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (49_406, 49_407)
