# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The report: self-contained and complete, for any number of models and seeds."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from evaluation.evaluate_regions import main as evaluate
from evaluation.evaluate_regions import region_metrics
from evaluation.report import ReportModel, main, read_models, shared_categories, write_report
from evaluation.scores import RegionScores


pytest.importorskip("matplotlib")

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.fixture(scope="module")
def evaluated(request, tmp_path_factory):
    """Scores of two models on the test scenes, and the folder of the scenes."""
    scenes, student, teacher = (request.getfixturevalue(name) for name in ("scenes", "student", "teacher"))
    split, folder = scenes / "test", tmp_path_factory.mktemp("scores")
    words = ["--models", student, teacher, "--annotations", split / "panoptic.json", "--images", split / "images"]
    words += ["--panoptic", split / "panoptic", "--templates", "short", "--num_workers", 0, "--device", "cpu"]
    evaluate([str(word) for word in [*words, "--output", folder / "m.json"]])
    first, second = sorted((folder / "m").iterdir())
    other_seed = RegionScores.load(second)
    other_seed.masks[:, 0] += 1  # predicts the first category everywhere
    other_seed.save(folder / "other.safetensors")
    return split, [first, second, folder / "other.safetensors"]


@pytest.fixture
def page(evaluated, tmp_path):
    split, (first, second, other) = evaluated
    runs = [f"U={first}", f"Dense <VLM>={second}", f"Dense <VLM>={other}"]
    pictures = ["--annotations", str(split / "panoptic.json"), "--images", str(split / "images"), "--count", "4"]
    main([*runs, "--output", str(tmp_path / "report.html"), *pictures])
    return tmp_path / "report.html"


class Page(HTMLParser):
    """Collects the content of a page, and fails if a tag is closed that is not open."""

    VOID = {"meta", "link", "img", "br"}

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.images, self.words = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.addresses += [attributes[name] for name in ("src", "href") if name in attributes]
        if tag == "img":
            self.images.append(attributes["alt"])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_is_self_contained(page):
    text = page.read_text()
    parsed = Page(text)
    assert all(address.startswith("data:") for address in parsed.addresses)
    assert not re.search(r"https?://(?!www\.w3\.org)|@import|url\(", text)
    assert "$" not in re.sub(r"data:[^\"]+|\$\{[^}]+\}", "", text)


def test_the_page_holds_tables_charts_images_and_settings_of_every_model(page):
    parsed = Page(page.read_text())
    words = " ".join(parsed.words)
    for part in (
        "U",
        "Dense <VLM>",
        "Masks-S",
        "Calibration and discrimination",
        "gain of H",
        "No image was skipped",
    ):
        assert part in words
    assert "fingerprint" in words and "transformers" in words
    assert sum("Masks-S over Masks-T" in alt for alt in parsed.images) == 1
    assert sum("predictions for the masks" in alt for alt in parsed.images) == 2
    assert sum("largest gains and losses" in alt for alt in parsed.images) == 1
    assert len(re.findall('class="sample"', page.read_text())) == 4


def test_seeds_of_a_model_are_one_row_with_their_mean_and_range(page, evaluated):
    text = page.read_text()
    (row,) = re.findall(
        rf"<tr><td>{html.escape('Dense <VLM>')}</td>(.*?)</tr>", text[: text.index("Calibration and discrimination")]
    )
    metrics = [
        region_metrics(run := RegionScores.load(file), shared_categories([ReportModel("", [run])]))
        for file in evaluated[1]
    ]
    first, other = sorted(100 * one["foreground_bias"] for one in metrics[1:])
    assert f"{(first + other) / 2:.1f}<br><small>{first:.1f}–{other:.1f}</small>" in row and first < other


def test_metrics_in_place_of_scores_are_rejected_with_the_folder_of_the_scores(evaluated, tmp_path):
    metrics = evaluated[1][0].parents[1] / "m.json"
    with pytest.raises(SystemExit, match="the scores are the .safetensors files in the folder of that name"):
        main([f"U={metrics}", "--output", str(tmp_path / "r.html")])


def test_a_file_given_twice_is_not_a_second_seed(evaluated, tmp_path):
    with pytest.raises(SystemExit, match="is given twice"):
        main([f"U={evaluated[1][0]}"] * 2 + ["--output", str(tmp_path / "r.html")])


def test_integer_groups_are_things_and_stuff_everywhere_on_the_page(evaluated, tmp_path):
    """0 is a thing, 1 and 2 are stuff: a conversion to bool would swap the groups."""
    texts = []
    for numbers in (False, True):
        scores = RegionScores.load(evaluated[1][0])
        if numbers:
            flags = scores.provenance["is_thing"]
            scores.provenance["is_thing"] = [0 if flag else 1 + place % 2 for place, flag in enumerate(flags)]
        write_report([ReportModel("U", [scores])], tmp_path / "groups.html")
        text = (tmp_path / "groups.html").read_text()
        texts.append(re.sub("<img.*?>", "", text[: text.index("Settings and versions")]))
    assert texts[0] == texts[1]


def test_annotations_of_another_split_are_rejected(evaluated, tmp_path):
    split, (first, *_) = evaluated
    content = json.loads((split / "panoptic.json").read_text())
    content["annotations"] = content["annotations"][:3]
    (tmp_path / "other.json").write_text(json.dumps(content))
    pictures = ["--annotations", str(tmp_path / "other.json"), "--images", str(split / "images")]
    with pytest.raises(SystemExit, match=r"other.json does not match the evaluation: it has no \d+, of image \d+"):
        main([str(first), "--output", str(tmp_path / "r.html"), *pictures])


def test_missing_images_are_reported_before_anything_is_computed(evaluated, tmp_path, monkeypatch):
    def computed(*_):
        raise AssertionError

    monkeypatch.setattr("evaluation.report.report_data", computed)
    split, (first, *_) = evaluated
    content = json.loads((split / "panoptic.json").read_text())
    content["annotations"].append(content["annotations"][0])
    (tmp_path / "twice.json").write_text(json.dumps(content))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "000000.jpg").write_bytes(b"no image")
    for annotations, images, message in (
        (tmp_path / "twice.json", split / "images", "twice.json, `annotations`: the `image_id` 0 occurs 2 times"),
        (split / "panoptic.json", tmp_path / "gone", "`images`: .*gone is not a folder"),
        (split / "panoptic.json", tmp_path / "images", "000000.jpg"),
    ):
        pictures = ["--annotations", str(annotations), "--images", str(images)]
        with pytest.raises(SystemExit, match=message):
            main([str(first), "--output", str(tmp_path / "r.html"), *pictures])


def test_image_sizes_of_a_model_are_separate_rows_and_one_line_in_a_chart(evaluated, tmp_path):
    scores = RegionScores.load(evaluated[1][0])
    for size in (64, 96):
        scores.provenance["image_size"] = size
        scores.save(tmp_path / f"{size}.safetensors")
    runs = [f"U={tmp_path / '96.safetensors'}", f"U={tmp_path / '64.safetensors'}", f"P={evaluated[1][1]}"]
    entries = read_models(runs)
    assert [entry.title for entry in entries] == ["U, 96 pixels", "U, 64 pixels", "P"]
    write_report(entries, tmp_path / "sizes.html")
    images = Page((tmp_path / "sizes.html").read_text()).images
    assert images.count("Accuracies over image size") == 1


def test_a_single_model_has_a_report_without_gains(evaluated, tmp_path):
    _, (first, *_) = evaluated
    write_report(read_models([str(first)]), tmp_path / "one.html")
    text = (tmp_path / "one.html").read_text()
    assert "gain of H" not in text and "Confusion matrices" in text


def test_models_on_different_regions_are_rejected(evaluated, tmp_path):
    first = RegionScores.load(evaluated[1][0])
    other = RegionScores.load(evaluated[1][1])
    other.labels = np.roll(other.labels, 1)
    with pytest.raises(ValueError, match=r"U and P were not evaluated on the same regions \(`labels` differ\)"):
        write_report([ReportModel("U", [first]), ReportModel("P", [other])], tmp_path / "r.html")


@pytest.mark.parametrize(
    ("words", "message"),
    [(["U=gone.safetensors"], "gone.safetensors"), (["U={page}"], "holds no scores of regions")],
)
def test_unreadable_files_are_named(page, tmp_path, words, message):
    with pytest.raises(SystemExit, match=message):
        main([word.format(page=page) for word in words] + ["--output", str(tmp_path / "r.html")])


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_without_an_error_and_no_wider_than_the_screen(page, tmp_path, width):
    """In a frame, as windows have a minimal width; all samples are paged through and all sections opened."""
    probe, frame = page.with_name("probe.html"), page.with_name("frame.html")
    probe.write_text(
        page.read_text().replace(
            "show(0);\n});",
            "show(0); show(1); show(0);\n});\n"
            "document.querySelectorAll('details').forEach((box) => { box.open = true; });\n"
            "addEventListener('load', () => parent.postMessage(`${document.documentElement.scrollWidth} ${innerWidth} "
            "${[...document.images].every((image) => image.naturalWidth > 0)} "
            "${document.querySelector('.place').textContent}`, '*'));",
        )
    )
    frame.write_text(
        "<script>addEventListener('message', (event) => { document.title = event.data; });</script>"
        f'<iframe src="probe.html" style="width: {width}px; height: 900px; border: 0"></iframe>'
    )
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += ["--enable-logging=stderr", "--window-size=1400,1000", "--virtual-time-budget=5000"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"file://{frame}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    scroll, inner, loaded, place = re.search(r"<title>(\d+) (\d+) (\w+) (.*?)</title>", done.stdout).groups()
    assert int(scroll) <= int(inner) == width and loaded == "true" and place == "1 of 4"
