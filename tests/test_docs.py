# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The documentation: the site builds without a warning, and every page is in it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent


def test_the_site_builds_without_a_warning_and_holds_every_page(tmp_path):
    pytest.importorskip("material", reason="the site is built with mkdocs-material (extra `dev`)")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    for page in (ROOT / "docs").glob("*.md"):
        place = "index.html" if page.stem == "index" else f"{page.stem}/index.html"
        assert (tmp_path / "site" / place).is_file(), page
    assert "fonts.googleapis" not in (tmp_path / "site" / "index.html").read_text()
