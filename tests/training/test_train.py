# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Short runs of the training program, in this process."""

import json
import re
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch.nn.functional import cosine_similarity

from modeling_densevlm import CategoryEmbeddings, CategorySet, DenseVLMConfig, DenseVLMModel, DenseVLMProcessor
from modeling_densevlm.image_processing_densevlm import load_image
from training.engine.weight_averaging import mix_weights, trained_parameters
from training.train import main


def run(arguments):
    return main(arguments)


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def test_exactly_the_trained_parameters_change(recipe, student, tmp_path):
    trainer = run(recipe(learning_rate=1e-2))
    before, after = weights_of(student), weights_of(tmp_path / "run")
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == set(trained_parameters(trainer.model))
    assert all(".encoder.layers." in name and name.startswith("vision_model.") for name in moved)
    assert not any("layers.2.self_attn.q_proj" in name or "layers.2.self_attn.k_proj" in name for name in moved)


def test_the_loss_goes_down(recipe):
    trainer = run(recipe(max_steps=20, learning_rate=3e-3, per_device_train_batch_size=24))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_each_step_logs_loss_regions_things_rate_and_speed(recipe):
    trainer = run(recipe())
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == 3
    for entry in entries:
        assert entry["regions"] >= entry["regions_kept"] > 0
        assert 0 <= entry["thing_share"] <= 1
        assert entry["images_per_second"] > 0 and entry["skipped_images"] == 0
        assert "learning_rate" in entry


def test_the_saved_folder_is_complete_and_the_recipe_in_it_starts_the_same_run(recipe, tmp_path, scenes):
    run(recipe())
    folder = tmp_path / "run"
    DenseVLMModel.from_pretrained(folder)
    assert DenseVLMProcessor.from_pretrained(folder).image_processor.size == {"longest_edge": 96}
    categories = CategorySet.load(scenes / "categories.json")
    CategoryEmbeddings.load(folder / "teacher_embeddings.safetensors").check(categories, 40)
    first = weights_of(folder)
    shutil.copy(folder / "recipe.yaml", tmp_path / "again.yaml")
    run([str(tmp_path / "again.yaml"), "--output_dir", str(tmp_path / "second")])
    second = weights_of(tmp_path / "second")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_teacher_is_frozen_in_eval_and_not_saved(recipe, teacher, tmp_path):
    trainer = run(recipe())
    assert not trainer.teacher.training
    assert not any(p.requires_grad for p in trainer.teacher.parameters())
    after = trainer.teacher.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in weights_of(teacher).items())
    assert not any("teacher" in name for name in weights_of(tmp_path / "run"))


def test_only_the_last_blocks_train_with_trained_blocks(recipe, tmp_path):
    trainer = run(recipe(trained_blocks=1))
    assert {name.split(".")[3] for name in trained_parameters(trainer.model)} == {"2"}
    with pytest.raises(SystemExit, match="1 to 3"):
        run(recipe(trained_blocks=4, output_dir=tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_weight_decay_is_on_matrices_only(recipe):
    trainer = run(recipe(weight_decay=0.1))
    for group in trainer.optimizer.param_groups:
        assert all((p.ndim >= 2) == (group["weight_decay"] > 0) for p in group["params"])


def test_ensemble_alpha_is_the_share_of_the_trained_weights(recipe, student, tmp_path):
    run(recipe(output_dir=tmp_path / "full"))
    run(recipe(output_dir=tmp_path / "mixed", ensemble_alpha=0.25))
    initial, full, mixed = (weights_of(folder) for folder in (student, tmp_path / "full", tmp_path / "mixed"))
    for name in initial:
        torch.testing.assert_close(mixed[name], 0.25 * full[name] + 0.75 * initial[name], atol=1e-6, rtol=1e-5)


def test_mixing_leaves_untrained_parameters_alone(model):
    model.requires_grad_(False)
    before = model.visual_projection.weight.clone()
    mix_weights(model, {}, 0.5)
    assert torch.equal(model.visual_projection.weight, before)


def test_gradient_checkpointing_and_bf16_train_as_well(recipe, tmp_path):
    plain = run(recipe(output_dir=tmp_path / "plain"))
    half = {"bf16": True, "teacher_dtype": "bfloat16"}
    for key, options in (("activation_checkpointing", {"activation_checkpointing": True}), ("bf16", half)):
        other = run(recipe(output_dir=tmp_path / key, **options))
        losses = [[e["loss"] for e in t.state.log_history if "loss" in e] for t in (plain, other)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-5 if key == "activation_checkpointing" else 0.05)


def test_damaged_images_are_skipped_counted_and_named(recipe, scenes, tmp_path, caplog):
    shutil.copytree(scenes / "train" / "images", tmp_path / "images")
    broken = tmp_path / "images" / "000003.jpg"
    broken.write_bytes(broken.read_bytes()[:700])
    trainer = run(recipe(images=tmp_path / "images", max_steps=3))
    assert sum(e.get("skipped_images", 0) for e in trainer.state.log_history) == 1
    assert any("000003.jpg" in message for message in trainer.skipped)


def test_a_batch_in_which_nothing_can_be_read_does_not_stop_the_run(recipe, scenes, tmp_path):
    shutil.copytree(scenes / "train" / "images", tmp_path / "images")
    for index in range(1, 24):
        (tmp_path / "images" / f"{index:06d}.jpg").write_bytes(b"no image")
    trainer = run(recipe(images=tmp_path / "images", per_device_train_batch_size=8))
    log = [e for e in trainer.state.log_history if "loss" in e]
    assert sum(e["skipped_images"] for e in log) == 23
    assert sorted(e["loss"] == 0 for e in log) == [False, True, True]


def test_a_folder_in_which_nothing_can_be_read_stops_before_the_first_step(recipe, tmp_path):
    (tmp_path / "images").mkdir()
    for index in range(8):
        (tmp_path / "images" / f"{index}.jpg").write_bytes(b"no image")
    with pytest.raises(SystemExit, match=r"None of the first 8 images can be used, e.g. .*0\.jpg"):
        run(recipe(images=tmp_path / "images"))


def test_changes_at_a_resume_are_logged(recipe, caplog):
    options = {"save_strategy": "steps", "save_steps": 2}
    run(recipe(**options))
    run(recipe(**options, resume_from_checkpoint="last"))
    assert "Resumed with another" not in caplog.text
    run(recipe(**options, resume_from_checkpoint="last", contrast="all"))
    assert "Resumed with another `contrast` than before: decoupled → all" in caplog.text


def test_sides_that_are_not_multiples_of_the_patch_are_warned_about_by_their_keys(recipe, caplog):
    run(recipe(image_size=100, teacher_image_size=110, max_steps=1, dataloader_num_workers=0))
    assert "`image_size` 100 is not a multiple of 12 pixels" in caplog.text and "Give 96 or 108" in caplog.text
    assert "`teacher_image_size` 110 is not a multiple of 14 pixels" in caplog.text


def test_workers_are_persistent_if_there_are_any(recipe):
    trainer = run(recipe(dataloader_num_workers=1, max_steps=1))
    assert trainer.get_train_dataloader().persistent_workers
    trainer = run(recipe(dataloader_num_workers=0, max_steps=1))
    assert not trainer.get_train_dataloader().persistent_workers


def test_a_run_without_kept_regions_changes_no_weights_and_warns(recipe, tmp_path, student, caplog):
    trainer = run(recipe(threshold=1.0, weight_decay=0.0))
    assert (
        "Nothing was learned: for no region did the highest teacher probability exceed `threshold` 1.0" in caplog.text
    )
    assert [e["regions_kept"] for e in trainer.state.log_history if "loss" in e] == [0, 0, 0]
    before, after = weights_of(student), weights_of(tmp_path / "run")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_clipself_needs_no_teacher_and_lowers_its_loss(recipe):
    trainer = run(recipe(method="clipself", max_steps=20, learning_rate=3e-3, crops=3, max_grid=3))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-5:]) < sum(losses[:5])


def image_embeds(folder, image_folder):
    model = DenseVLMModel.from_pretrained(folder)
    processor = DenseVLMProcessor.from_pretrained(folder)
    images = [load_image(path) for path in sorted(image_folder.glob("*.jpg"))]
    with torch.inference_mode():
        return model.get_image_features(processor(images=images, return_tensors="pt")["pixel_values"]).pooler_output


def test_image_weight_keeps_the_image_features_of_before_the_training(recipe, student, scenes, tmp_path):
    options = {"method": "clipself", "max_steps": 20, "learning_rate": 3e-3, "crops": 3, "max_grid": 3}
    losses = {}
    for weight in (0.0, 2.0):
        trainer = run(recipe(output_dir=tmp_path / str(weight), image_weight=weight, **options))
        losses[weight] = trainer.state.log_history[0]["loss"]
    assert losses[0.0] == pytest.approx(losses[2.0])  # nothing has moved yet
    before = image_embeds(student, scenes / "train" / "images")
    changed, kept = (
        1 - cosine_similarity(image_embeds(tmp_path / folder, scenes / "train" / "images"), before).mean()
        for folder in ("0.0", "2.0")
    )
    assert kept < changed / 2


def test_a_run_never_overwrites_the_checkpoints_of_another(recipe, tmp_path):
    run(recipe(save_strategy="steps", save_steps=2))
    with pytest.raises(SystemExit, match="--resume_from_checkpoint last"):
        run(recipe())
    with pytest.raises(SystemExit, match="no complete checkpoint in"):
        run(recipe(output_dir=tmp_path / "new", resume_from_checkpoint="last"))


def test_an_incomplete_checkpoint_is_skipped(recipe, tmp_path):
    run(recipe(save_strategy="steps", save_steps=1, max_steps=3))
    newest = tmp_path / "run" / "checkpoint-3"
    (newest / "trainer_state.json").unlink()
    trainer = run(recipe(save_strategy="steps", save_steps=1, max_steps=3, resume_from_checkpoint="last"))
    assert [e["step"] for e in trainer.state.log_history if "loss" in e] == [1, 2, 3]


def test_embedding_files_are_used_and_those_of_another_encoder_refused(recipe, tmp_path):
    run(recipe(output_dir=tmp_path / "first"))
    files = {role: tmp_path / "first" / f"{role}_embeddings.safetensors" for role in ("student", "teacher")}
    given = {f"{role}_embeddings": file for role, file in files.items()}
    run(recipe(output_dir=tmp_path / "second", **given))
    first, second = (weights_of(tmp_path / name) for name in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(
        SystemExit, match="`student_embeddings` .*teacher_embeddings.safetensors: embeddings of 40 dimensions"
    ):
        run(recipe(output_dir=tmp_path / "third", student_embeddings=files["teacher"]))


def test_cached_embeddings_are_reused_and_computed_again_when_they_do_not_fit(recipe, tmp_path):
    kept = tmp_path / "run" / "student_embeddings.safetensors"
    run(recipe(max_steps=1))
    written = kept.stat().st_mtime_ns
    run(recipe(max_steps=1))
    assert kept.stat().st_mtime_ns == written
    run(recipe(max_steps=1, templates="vild"))
    assert len(CategoryEmbeddings.load(kept).templates) == 63


def test_a_model_without_a_text_tower_trains_with_given_embeddings_and_is_refused_without(recipe, tmp_path, student):
    run(recipe(output_dir=tmp_path / "first"))
    bare = tmp_path / "bare"
    config = DenseVLMConfig.from_pretrained(student, text_config=None)
    DenseVLMModel.from_pretrained(student, config=config).save_pretrained(bare)
    DenseVLMProcessor.from_pretrained(student).image_processor.save_pretrained(bare)
    with pytest.raises(SystemExit, match="bare has no text tower or no tokenizer: give `student_embeddings`"):
        run(recipe(output_dir=tmp_path / "second", model=bare))
    file = tmp_path / "first" / "student_embeddings.safetensors"
    trainer = run(recipe(output_dir=tmp_path / "second", model=bare, student_embeddings=file))
    assert trainer.model.text_model is None


def test_embeddings_of_another_encoder_of_the_same_width_are_refused(recipe, tmp_path, student):
    run(recipe(output_dir=tmp_path / "first"))
    other = tmp_path / "other"
    shutil.copytree(student, other)
    weights = load_file(other / "model.safetensors")
    weights["text_projection.weight"] = weights["text_projection.weight"] + 1
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    file = tmp_path / "first" / "student_embeddings.safetensors"
    with pytest.raises(SystemExit, match="computed with the text encoder"):
        run(recipe(output_dir=tmp_path / "second", model=other, student_embeddings=file))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"per_device_train_batch_size": 100}, "24 images are too few for a step of 100"),
        ({"resume_from_checkpoint": "nowhere"}, "there is no folder nowhere"),
    ],
)
def test_a_bad_configuration_stops_before_the_first_step(recipe, overrides, message):
    with pytest.raises(SystemExit, match=message):
        run(recipe(**overrides))


@pytest.mark.parametrize(("option", "value"), [("do_resize", False), ("do_pad", False), ("resample", 2)])
@pytest.mark.parametrize("role", ["model", "teacher"])
def test_a_processor_that_does_not_pad_bicubically_resized_images_to_a_square_is_refused(
    recipe, student, teacher, tmp_path, role, option, value
):
    folder = shutil.copytree({"model": student, "teacher": teacher}[role], tmp_path / "other")
    file = folder / "processor_config.json"
    content = json.loads(file.read_text())
    content["image_processor"][option] = value
    file.write_text(json.dumps(content))
    needed = {"do_resize": "true", "do_pad": "true", "resample": "3"}[option]
    with pytest.raises(SystemExit, match=f"{re.escape(str(file))}: `{option}` is .*: set it to {needed}\\."):
        run(recipe(**{role: folder}))
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["sandbox", "sandbox_clipself", "sandbox_feature_distillation"])
def test_before_its_scenes_exist_a_recipe_of_the_sandbox_names_the_command_that_writes_them(
    student, teacher, tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    models = ["--model", str(student), *(["--teacher", str(teacher)] if name != "sandbox_clipself" else [])]
    command = r"python -m training\.sandbox\.scenes --output runs/sandbox/data"
    with pytest.raises(SystemExit, match=rf"no runs/sandbox/data/train/images: write .* by `{command}`\."):
        run([name, *models])


def test_a_set_without_flags_is_refused(recipe, tmp_path):
    content = {"categories": [{"name": "kite"}, {"name": "sky"}]}
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="training needs `is_thing`"):
        run(recipe(categories=tmp_path / "c.json"))


def test_a_missing_teacher_is_refused(recipe):
    arguments = recipe()
    at = arguments.index("--teacher")
    with pytest.raises(SystemExit, match="`teacher` is missing"):
        run(arguments[:at] + arguments[at + 2 :])


def test_a_run_reports_its_processes_and_images_per_step(recipe, capsys):
    run(recipe(max_steps=1))
    assert "1 process, 8 images per step\n" in capsys.readouterr().out


def test_the_saved_recipe_is_plain_yaml(recipe, tmp_path):
    run(recipe())
    saved = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert saved["threshold"] == 0.15 and saved["contrast"] == "decoupled" and saved["max_steps"] == 3


def test_a_compiled_run_is_the_same_run_and_is_not_recompiled_for_every_grid(recipe, tmp_path):
    """Grids are 1 x 1 to 6 x 6; the graphs of the towers do not depend on them."""
    plain = main(recipe(output_dir=tmp_path / "plain", max_steps=3))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = recipe(
        output_dir=tmp_path / "compiled", torch_compile=True, torch_compile_backend="aot_eager", max_steps=3
    )
    trainer = main(compiled)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 8
    torch._dynamo.reset()
    losses = [[e["loss"] for e in t.state.log_history if "loss" in e] for t in (plain, trainer)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "compiled"))
    assert first.keys() == second.keys()
    assert max((first[name] - second[name]).abs().max() for name in first) < 1e-4
