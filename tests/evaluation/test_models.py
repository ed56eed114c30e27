# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The provenance of evaluated models."""

import os
import shutil
import subprocess

import pytest

from evaluation import models


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_read_without_a_change_to_the_index(tmp_path, monkeypatch):
    """`git describe --dirty` would rewrite the index, and leaves its lock behind if it is killed meanwhile."""
    file = tmp_path / "models.py"
    monkeypatch.setattr(models, "__file__", str(file))
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    file.write_text("first")
    assert models.commit() == "unknown"
    for words in (["init", "--quiet"], ["add", "models.py"], ["commit", "--quiet", "--message", "first"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    os.utime(file, (1, 1))  # another time than in the index
    index = (tmp_path / ".git" / "index").read_bytes()
    assert models.commit() == head[:12]
    assert (tmp_path / ".git" / "index").read_bytes() == index
    file.write_text("second")
    assert models.commit() == f"{head[:12]}-dirty"
