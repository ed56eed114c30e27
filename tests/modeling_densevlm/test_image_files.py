# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Image files of folders, as training and evaluation find them."""

import os

import pytest

from modeling_densevlm.image_files import HIDDEN, IMAGE_SUFFIXES, LINKED_AGAIN, LOOP, is_system_file, walk_files


@pytest.fixture
def folder(tmp_path):
    """A folder of two images, one of them in a folder that three links lead to, one of which stands in itself."""
    (tmp_path / "sub").mkdir()
    for name in ("b.JPG", "sub/a.png", ".hidden.png", "Thumbs.db"):
        (tmp_path / name).touch()
    (tmp_path / "again").symlink_to(tmp_path / "sub")
    (tmp_path / "sub" / "back").symlink_to(tmp_path)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    return tmp_path


def test_a_linked_folder_is_entered_under_each_name_or_once(folder):
    files = {"b.JPG", "sub/a.png", "gone.png", "itself"}
    litter = {".hidden.png": HIDDEN, "Thumbs.db": HIDDEN}
    each = dict(walk_files(folder))
    assert each == {
        **dict.fromkeys(files | {"again/a.png"}),
        **litter,
        **{"sub/back": LOOP, "again/back": LOOP},
    }
    once = dict(walk_files(str(folder), visit_once=True))
    assert once == {**dict.fromkeys(files), **litter, "again": LINKED_AGAIN, "sub/back": LINKED_AGAIN}


def test_a_folder_that_cannot_be_read_is_reported_and_the_walk_goes_on(folder, monkeypatch):
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)  # permissions do not bind root
    found = dict(walk_files(folder, visit_once=True))
    assert isinstance(found["sub"], PermissionError) and found["b.JPG"] is None


def test_suffixes_of_images_are_lower_case_and_system_files_are_recognised():
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in IMAGE_SUFFIXES)
    assert is_system_file("__MACOSX") and is_system_file("._x.jpg") and not is_system_file("x.jpg")
