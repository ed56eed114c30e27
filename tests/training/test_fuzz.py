# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""A thousand mutated inputs from a fixed seed: no hang, no crash without a named cause, nothing lost silently."""

import io
import json
import random
import re
import shutil
import signal
from contextlib import contextmanager

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.shards import jpeg, sa1b_members, write_tar
from training.cache_teacher import main as run_cache_teacher
from training.data import RegionCollator, RegionDataset, UnreadableImage, read_bytes, read_image
from training.engine.checkpoints import last_checkpoint
from training.images.sources import Source, open_source
from training.images.tar_members import walk_tars
from training.recipe import parse_arguments
from training.teacher_cache import TeacherCache


IMAGES, TARS, ANNOTATIONS, RECIPES, CACHES, CHECKPOINTS = 300, 250, 150, 150, 100, 50
"""A thousand in total."""


@contextmanager
def time_limit(seconds: int):
    """Fails if the block takes longer."""

    def too_long(*_):
        raise AssertionError(f"not finished after {seconds} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Changes bytes, truncates, deletes, duplicates, overwrites or inserts ranges."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at, length = rng.randrange(max(len(data), 1)), rng.choice((1, 2, 4, 16, 64, 512))
        kind = rng.randrange(7)
        if kind == 0:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + length]
        elif kind == 4:
            data[at : at + length] = rng.randbytes(length)
        elif kind == 5:
            data[at : at + length] = rng.choice((b"\0", b"\xff")) * length
        else:
            data[at:at] = rng.randbytes(length)
    return bytes(data)


def encoded(kind: str, seed: int) -> bytes:
    buffer = io.BytesIO()
    image = Image.open(io.BytesIO(jpeg(seed)))
    if kind == "GIF":
        image = image.quantize(32)
    image.save(buffer, kind)
    return buffer.getvalue()


def test_mutated_images_are_read_or_skipped_by_name(tmp_path):
    from modeling_densevlm import DenseVLMImageProcessor

    rng = random.Random(0)
    kinds = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
    originals = [encoded(kind, seed) for seed, kind in enumerate(kinds)]
    for number in range(IMAGES):
        suffix = kinds[number % len(kinds)].lower()
        (tmp_path / f"{number:04d}.{suffix}").write_bytes(mutate(originals[number % len(kinds)], rng))
    index = open_source(Source(tmp_path))
    dataset = RegionDataset(index, DenseVLMImageProcessor(32), DenseVLMImageProcessor(28))
    assert len(index) == IMAGES
    collator, read, skipped = RegionCollator(dataset), 0, 0
    for number in range(IMAGES):
        with time_limit(20):
            batch = collator([dataset[0, number]])
        if batch["skipped"]:
            assert f"{number:04d}." in batch["skipped"][0]
        else:
            assert batch["pixel_values"].shape == (1, 3, 32, 32) and len(batch["boxes"][0]) > 0
        read, skipped = read + (not batch["skipped"]), skipped + len(batch["skipped"])
    assert read + skipped == IMAGES and min(read, skipped) > IMAGES // 10


def test_of_mutated_tars_every_image_is_read_unchanged_or_the_damage_is_reported(tmp_path):
    rng = random.Random(1)
    members = sa1b_members(1, 4)
    whole = {name: content for name, content in members.items() if name.endswith(".jpg")}
    original = write_tar(tmp_path / "sa.tar", members).read_bytes()
    file = tmp_path / "mutated.tar"
    for _ in range(TARS):
        file.write_bytes(mutate(original, rng))
        with time_limit(20):
            rows = list(walk_tars([str(file)]))
        readable, reported = {}, max(len(original) - file.stat().st_size, 0)
        for row in rows:
            if row["error"] is None:
                readable[row["id"]] = read_bytes(row)
                continue
            with pytest.raises(OSError):
                read_bytes(row)
            first, last = (re.findall(r"bytes (\d+) to (\d+)", row["error"]) or [(0, row["size"])])[0]
            reported += int(last) - int(first)
        lost = [name for name, content in whole.items() if content not in readable.values()]
        # A change within an image's bytes is detected by decoding; its member is found nevertheless.
        missing = [name for name in lost if name not in readable]
        # The ranges reported as damaged are at least as long as the missing images.
        assert sum(len(whole[name]) for name in missing) <= reported, (missing, rows)


def test_mutated_annotation_files_are_read_or_refused_by_name(tmp_path):
    rng = random.Random(2)
    for number in range(8):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
    original = json.dumps({"images": [{"id": n, "file_name": f"{n}.jpg", "width": 96} for n in range(8)]}).encode()
    file, read = tmp_path / "instances.json", 0
    for _ in range(ANNOTATIONS):
        file.write_bytes(mutate(original, rng))
        with time_limit(20):
            try:
                index = open_source(Source(tmp_path, file))
            except (ValueError, FileNotFoundError) as error:
                assert "instances.json" in str(error)
                continue
        read += 1
        for row in index:
            try:
                read_image(row, 32)
            except UnreadableImage as error:
                assert str(tmp_path) in str(error)
    assert 0 < read < ANNOTATIONS


def test_mutated_recipes_are_parsed_or_refused_by_name(tmp_path, capsys):
    rng = random.Random(3)
    recipe = {
        "model": "u",
        "teacher": "p",
        "images": "folder",
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "temperature": 0.01,
        "threshold": 0.3,
        "max_grid": 6,
        "contrast": "decoupled",
        "learning_rate": 1e-4,
        "save_strategy": "no",
    }
    original = yaml.safe_dump(recipe).encode()
    file, refused = tmp_path / "recipe.yaml", 0
    for _ in range(RECIPES):
        file.write_bytes(mutate(original, rng))
        with time_limit(20):
            try:
                parse_arguments([str(file)])
            except SystemExit as end:
                assert end.code == 2
                message = capsys.readouterr().err
                assert "error: " in message and len(message.split("error: ")[1].strip()) > 10
                refused += 1
    assert 0 < refused < RECIPES


def test_mutated_teacher_caches_are_refused_or_unchanged(recipe, scenes, tmp_path):
    rng = random.Random(4)
    folder = tmp_path / "retrieval"
    run_cache_teacher(recipe(teacher_cache=folder, teacher_cache_top_k=8))
    images = [file.read_bytes() for file in sorted((scenes / "train" / "images").iterdir())]
    original = TeacherCache(folder)
    expected = [original.look_up(number, content, 3, 2) for number, content in enumerate(images)]
    (arrow,) = folder.glob("*.arrow")
    files = {file: file.read_bytes() for file in (arrow, folder / "retrieval.json")}
    refused = 0
    for number in range(CACHES):
        target = arrow if number % 4 else folder / "retrieval.json"
        for file, content in files.items():
            file.write_bytes(mutate(content, rng) if file == target else content)
        with time_limit(20):
            try:
                cache = TeacherCache(folder)
                found = [cache.look_up(number, content, 3, 2) for number, content in enumerate(images)]
            except (ValueError, FileNotFoundError) as error:
                assert "`teacher_cache`" in str(error)
                refused += 1
            except UnreadableImage as error:  # the mutated mark of a skipped image: skipped and named
                assert "when the cache was filled" in str(error)
                refused += 1
            else:
                for (kept, targets), (kept_before, before) in zip(found, expected):
                    assert np.array_equal(kept, kept_before)
                    assert all(np.array_equal(targets[name], before[name]) for name in before)
    assert 0 < refused <= CACHES


def test_mutated_checkpoints_are_skipped_or_complete(recipe, tmp_path):
    from training.train import main

    rng = random.Random(5)
    main(recipe(save_strategy="steps", save_steps=1, max_steps=2))
    run = tmp_path / "run"
    newest = run / "checkpoint-2"
    files = {file: file.read_bytes() for file in newest.iterdir()}
    for _ in range(CHECKPOINTS):
        target = rng.choice(sorted(files))
        target.write_bytes(files[target][: rng.randrange(len(files[target]))])
        with time_limit(20):
            found = last_checkpoint(run)
        if target.name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"):
            assert found == str(run / "checkpoint-1"), target
        else:
            assert found is not None
        target.write_bytes(files[target])
    shutil.rmtree(newest)
    assert last_checkpoint(run) == str(run / "checkpoint-1")
