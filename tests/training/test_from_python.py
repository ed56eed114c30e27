# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Trainers from Python, used like those of TRL, with the same constructor as the program."""

import re

import datasets
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from modeling_densevlm import CategoryEmbeddings, CategorySet, DenseVLMModel, DenseVLMProcessor
from tests.conftest import ROOT
from training.build import build_trainer
from training.clipself import CLIPSelfArguments, CLIPSelfTrainer
from training.data import RegionDataset
from training.images.sources import Source, open_source
from training.recipe import parse_arguments
from training.trainer import DenseVLMArguments, DenseVLMTrainer


@pytest.fixture
def arguments(tmp_path):
    def make(arguments_class=DenseVLMArguments, **options):
        options = {"output_dir": str(tmp_path / "run"), "max_steps": 3, "use_cpu": True, "report_to": "none"} | options
        return arguments_class(**options, save_strategy="no", disable_tqdm=True, logging_steps=1)

    return make


def losses_of(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_the_example_of_the_docs_runs(student, teacher, scenes, tmp_path):
    """With other models and images, and categories within the vocabulary of the test's tokenizer."""
    lines = re.search(r"```python\n(.+?)```", (ROOT / "docs" / "training_from_python.md").read_text(), re.DOTALL)[1]
    for name, mine in (
        ("openai/clip-vit-base-patch16", student),
        ("weights/eva02_clip_l_14_336", teacher),
        ("my_images", scenes / "train" / "images"),
        ("runs/mine", tmp_path / "run"),
    ):
        assert name in lines
        lines = lines.replace(name, str(mine))
    assert len([line for line in lines.splitlines() if line.strip()]) <= 10
    lines = lines.replace("max_steps=1000", "max_steps=2, threshold=0.15, use_cpu=True, report_to='none'")
    exec(lines.replace("    train_dataset=", f"    categories='{scenes / 'categories.json'}', train_dataset="), {})
    assert DenseVLMModel.from_pretrained(tmp_path / "run")
    assert DenseVLMProcessor.from_pretrained(tmp_path / "run").image_processor.size == {"longest_edge": 96}


def test_names_objects_and_a_recipe_give_the_same_trainer(student, teacher, scenes, recipe, arguments):
    images = scenes / "train" / "images"
    categories = CategorySet.load(scenes / "categories.json")
    by_recipe = build_trainer(parse_arguments(recipe()))
    options = {"threshold": 0.15, "learning_rate": 1e-3, "per_device_train_batch_size": 8}
    common = {"args": arguments(**options), "templates": "short"}
    index = open_source(Source(str(images)))
    by_name = DenseVLMTrainer(
        str(student), str(teacher), train_dataset=index, categories=str(scenes / "categories.json"), **common
    )
    processors = [DenseVLMProcessor.from_pretrained(folder) for folder in (student, teacher)]
    by_object = DenseVLMTrainer(
        model=DenseVLMModel.from_pretrained(student),
        teacher=DenseVLMModel.from_pretrained(teacher),
        train_dataset=RegionDataset(
            index, *(processor.image_processor for processor in processors), seed=common["args"].seed
        ),
        processing_class=processors[0],
        teacher_processing_class=processors[1],
        categories=categories,
        **common,
    )
    for trainer in (by_recipe, by_name, by_object):
        trainer.train()
    assert losses_of(by_recipe) == losses_of(by_name) == losses_of(by_object)
    for name, parameter in by_recipe.model.state_dict().items():
        assert torch.equal(parameter, by_name.model.state_dict()[name])


def test_images_are_a_column_of_a_dataset_encoded_decoded_or_as_paths(student, scenes, arguments, tmp_path):
    files = sorted(map(str, (scenes / "train" / "images").iterdir()))
    paths = datasets.Dataset.from_dict({"image": files})
    encoded = paths.cast_column("image", datasets.Image())
    decoded = datasets.Dataset.from_dict(
        {"image": [Image.open(f) for f in files]}, datasets.Features(image=datasets.Image())
    )
    common = {"model": str(student), "args": arguments(CLIPSelfArguments, crops=2, max_steps=1)}
    for dataset in (paths, encoded, encoded.add_column("label", [0] * len(files)), decoded):
        trainer = CLIPSelfTrainer(train_dataset=dataset, **common)
        trainer.train()
        assert losses_of(trainer)[0] > 0 and not trainer.skipped
    bad = datasets.Dataset.from_dict({"image": [*files[:7], str(tmp_path / "gone.jpg")]})
    trainer = CLIPSelfTrainer(train_dataset=bad, **common)
    trainer.train()
    assert [message for message in trainer.skipped if message.startswith("row 7: FileNotFoundError")]
    for dataset, reason in (
        (paths.rename_column("image", "picture"), "has no column `image`, but picture"),
        (datasets.Dataset.from_dict({"image": [1.5]}), "its column `image` holds no images"),
    ):
        with pytest.raises(ValueError, match=reason):
            CLIPSelfTrainer(train_dataset=dataset, **common)


def test_all_blocks_are_trained_unless_some_parameters_are_already_frozen(student, scenes, arguments):
    index = open_source(Source(str(scenes / "train" / "images")))
    args = arguments(CLIPSelfArguments, crops=2, ensemble_alpha=0.25, max_steps=1, learning_rate=1e-2, warmup_steps=0)
    trainer = CLIPSelfTrainer(str(student), args=args, train_dataset=index)
    assert not trainer.model.visual_projection.weight.requires_grad
    assert sum(p.requires_grad for p in trainer.model.parameters()) > 10
    model = DenseVLMModel.from_pretrained(student).requires_grad_(False)
    last = model.vision_model.trainable_blocks()[-1]
    for parameter in last:
        parameter.requires_grad_(True)
    trainer = CLIPSelfTrainer(model, args=args, train_dataset=index)
    before = load_file(student / "model.safetensors")
    trainer.train()
    trainer.save_model(args.output_dir)
    after = load_file(f"{args.output_dir}/model.safetensors")
    assert sum(not torch.equal(before[name], after[name]) for name in before) == len(last)
    # A quarter of AdamW's first step, up to rounding: the weight-space ensemble works from Python, too.
    moved = max(float((after[name] - before[name]).abs().max()) for name in before)
    assert moved == pytest.approx(0.25e-2, rel=0.02)


def test_missing_and_mismatched_arguments_are_refused_by_name(student, teacher, scenes, arguments):
    index = open_source(Source(str(scenes / "train" / "images")))
    with pytest.raises(ValueError, match="`teacher` is missing"):
        DenseVLMTrainer(str(student), args=arguments(), train_dataset=index)
    model = DenseVLMModel(DenseVLMModel.from_pretrained(student).config)
    model.name_or_path = ""
    with pytest.raises(ValueError, match="give `processing_class`"):
        CLIPSelfTrainer(model, args=arguments(CLIPSelfArguments), train_dataset=index)
    with pytest.raises(ValueError, match="CLIPSelfTrainer does not use `categories`"):
        CLIPSelfTrainer(str(student), args=arguments(CLIPSelfArguments), train_dataset=index, categories="any")
    embeddings = [
        CategoryEmbeddings(torch.eye(dim)[:2], ["a", other], [True, False], [[], []], [], "")
        for dim, other in ((24, "b"), (40, "c"))
    ]
    with pytest.raises(ValueError, match="are of different categories"):
        DenseVLMTrainer(
            str(student),
            str(teacher),
            args=arguments(),
            train_dataset=index,
            student_embeddings=embeddings[0],
            teacher_embeddings=embeddings[1],
        )
    with pytest.raises(ValueError, match="`train_dataset` is missing"):
        CLIPSelfTrainer(str(student), args=arguments(CLIPSelfArguments))


def test_a_run_from_python_resumes_as_its_arguments_say_and_overwrites_no_checkpoint(student, scenes, arguments):
    def trainer(**options):
        args = arguments(CLIPSelfArguments, per_device_train_batch_size=8, **options)
        args.save_strategy, args.save_steps = "steps", 1
        return CLIPSelfTrainer(
            str(student), args=args, train_dataset=open_source(Source(str(scenes / "train/images")))
        )

    trainer(max_steps=2).train()
    with pytest.raises(ValueError, match="holds the checkpoints of a run"):
        trainer().train()
    resumed = trainer(resume_from_checkpoint="auto")
    resumed.train()
    assert [entry["step"] for entry in resumed.state.log_history if "loss" in entry] == [1, 2, 3]


def test_a_folder_in_place_of_a_dataset_is_refused_with_the_remedy(student, arguments):
    with pytest.raises(ValueError, match=r"`train_dataset` is a dataset.*open_source\(Source\('my_images'\)\)"):
        CLIPSelfTrainer(str(student), args=arguments(CLIPSelfArguments), train_dataset="my_images")


def test_given_embeddings_load_no_category_set(student, teacher, scenes, arguments, monkeypatch):
    embeddings = [
        CategoryEmbeddings.compute(
            CategorySet.load(scenes / "categories.json"),
            DenseVLMModel.from_pretrained(folder),
            DenseVLMProcessor.from_pretrained(folder).tokenizer,
            "short",
        )
        for folder in (student, teacher)
    ]
    monkeypatch.setattr(CategorySet, "load", None)
    trainer = DenseVLMTrainer(
        str(student),
        str(teacher),
        args=arguments(),
        train_dataset=open_source(Source(str(scenes / "train" / "images"))),
        student_embeddings=embeddings[0],
        teacher_embeddings=embeddings[1],
    )
    assert trainer.student_embeddings is embeddings[0]
