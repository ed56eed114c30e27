# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of training."""

import pytest


@pytest.fixture
def folder(tmp_path, picture):
    """Three images of different sizes and formats, one in a subfolder, and a text file."""
    (tmp_path / "sub").mkdir()
    picture(80, 40).save(tmp_path / "b.jpg")
    picture(40, 80).save(tmp_path / "a.png")
    picture(64, 64).save(tmp_path / "sub" / "c.webp")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path
