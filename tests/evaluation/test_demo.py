# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The page in the browser: its function, its inputs, and the folder of a Space."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
from PIL import Image

from evaluation.demo import VIEWS, build_page, main, make_handler, read_boxes, read_vocabulary, sandbox_words
from evaluation.predict import Predictor
from modeling_densevlm import shipped


SCENE = "scenes/bus.png"


@pytest.fixture(scope="module")
def handle():
    pytest.importorskip("matplotlib", reason="pictures need matplotlib (extra `figures`)")
    return make_handler([Predictor(shipped(f"densevlm-sandbox-{name}")) for name in ("u", "p")], "short")


def test_words_are_separated_by_commas_or_lines_and_have_flags():
    categories = read_vocabulary("kite, boat\nbus,", " sky ")
    assert categories.names == ["kite", "boat", "bus", "sky"] and categories.is_thing == [True] * 3 + [False]
    with pytest.raises(ValueError, match="words: no categories"):
        read_vocabulary("", " ,\n")


def test_boxes_are_lines_of_four_numbers_with_corners_in_any_order():
    assert read_boxes("1 2 30 40\n\n30, 40, 1, 2\n").tolist() == [[1, 2, 30, 40]] * 2
    assert read_boxes("").shape == (0, 4)
    with pytest.raises(ValueError, match=r"x0 y0 x1 y1, in pixels; got '1 2 3'"):
        read_boxes("1 2 3")


def test_each_view_gives_one_picture_per_model(handle):
    image = Image.open(shipped(SCENE))
    for view, boxes in zip(VIEWS, ("", "", "10 10 90 60")):
        pictures = handle(image, *sandbox_words(), view, 2, 3, boxes, 0.0)
        assert len(pictures) == 2 and all(np.asarray(one).std() > 10 for one in pictures)
        assert np.asarray(pictures[0]).tobytes() != np.asarray(pictures[1]).tobytes()


def test_the_offset_moves_the_map_from_things_to_stuff(handle):
    image = Image.open(shipped(SCENE))
    without, with_offset = (handle(image, *sandbox_words(), VIEWS[0], 2, 3, "", offset)[1] for offset in (-0.2, 0.2))
    assert np.asarray(without).tobytes() != np.asarray(with_offset).tobytes()


def test_a_missing_photo_or_box_is_said(handle):
    with pytest.raises(ValueError, match="Choose a photo first"):
        handle(None, "bus", "road", VIEWS[0], 2, 3, "", 0.0)
    with pytest.raises(ValueError, match="Draw a box first"):
        handle(Image.open(shipped(SCENE)), "bus", "road", VIEWS[2], 2, 3, " ", 0.0)


def test_the_page_names_the_photo_through_its_server(tmp_path):
    client = pytest.importorskip("gradio_client", reason="the page needs gradio (extra `demo`)")
    pytest.importorskip("matplotlib")
    scene = shipped(SCENE)
    page = build_page([str(shipped("densevlm-sandbox-u"))], [scene], "short")
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, server_port=free_port())
    try:
        found = client.Client(address, verbose=False).predict(
            client.handle_file(str(scene)), "bus", "road, snow", VIEWS[0], 2, 3, "", 0.0, api_name="/predict"
        )
        assert np.asarray(Image.open(found)).std() > 10
    finally:
        page.close()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_the_folder_of_a_space_starts_by_itself(tmp_path):
    pytest.importorskip("gradio", reason="the page needs gradio (extra `demo`)")
    main(["--space", str(tmp_path / "space")])
    head = (tmp_path / "space" / "README.md").read_text().split("---")[1]
    assert "sdk: gradio" in head and "app_file: app.py" in head
    required = (tmp_path / "space" / "requirements.txt").read_text().splitlines()
    names = {re.match(r"[\w-]+", line)[0] for line in required}
    assert {"torch", "transformers", "matplotlib"} <= names and not names & {"densevlm", "gradio", "timm", "pytest"}
    port = free_port()
    environment = os.environ | {"GRADIO_SERVER_PORT": str(port), "PYTHONPATH": ""}
    process = subprocess.Popen([sys.executable, "app.py"], cwd=tmp_path / "space", env=environment)
    try:
        for _ in range(120):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}") as answer:
                    assert "DenseVLM" in answer.read().decode()
                    break
            except OSError:
                assert process.poll() is None
                time.sleep(0.5)
        else:
            raise AssertionError("the page did not start")
    finally:
        process.terminate()
        process.wait()


def test_a_space_starts_with_the_given_models_and_templates(tmp_path):
    pytest.importorskip("gradio", reason="the page needs gradio (extra `demo`)")
    main(["--space", str(tmp_path / "space"), "--models", "densevlm-sandbox", "me/model", "--templates", "short"])
    expected = "main(['--models', 'densevlm-sandbox', 'me/model', '--templates', 'short'])"
    assert expected in (tmp_path / "space" / "app.py").read_text()


def test_what_a_space_cannot_hold_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="is a folder here, which a Space does not have"):
        main(["--space", str(tmp_path / "space"), "--models", str(tmp_path)])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(SystemExit, match="full exists already"):
        main(["--space", str(tmp_path / "full")])
    with pytest.raises(SystemExit, match="--examples has no effect with --space"):
        main(["--space", str(tmp_path / "other"), "--examples", str(tmp_path)])


def test_without_gradio_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit, match="this package with the extra `demo`"):
        main([])
