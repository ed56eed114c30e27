# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""What `pip install densevlm` installs: the wheel and the sdist hold all files of the packages."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
PACKAGES = ("modeling_densevlm", "training", "evaluation", "model_cards")


def test_wheel_and_sdist_are_valid_and_hold_every_file_of_the_packages(tmp_path):
    for tool in ("build", "twine"):
        pytest.importorskip(tool, reason="distributions are built with the extra `dev`")
    # The files of the repository, with the changes of the working tree.
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in listed:
        if (ROOT / name).is_file():
            (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "source" / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist"), "."]
    subprocess.run(build, cwd=tmp_path / "source", check=True, capture_output=True)
    wheel, sdist = next((tmp_path / "dist").glob("*.whl")), next((tmp_path / "dist").glob("*.tar.gz"))
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", wheel, sdist], check=True)
    expected = {name for name in listed if name.split("/")[0] in PACKAGES and (ROOT / name).is_file()}
    assert expected <= set(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert expected | {"setup.cfg", "pyproject.toml", "LICENSE", "README.md"} <= inside
