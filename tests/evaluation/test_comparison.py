# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Comparison tables of models."""

from evaluation.comparison import as_latex, as_markdown


ROWS = [
    {"model": "runs/u_vlm", "image_size": 224, "fingerprint": "0123456789", "boxes_top1": 0.5, "foreground_bias": 0.1},
    {"model": "p", "image_size": 512, "fingerprint": "abcdefabcd", "boxes_top1": 0.25, "masks_stuff_top1": 0.125},
]


def test_markdown_has_a_row_per_model_with_the_best_number_in_bold_and_the_fingerprint():
    lines = as_markdown(ROWS).splitlines()
    assert lines[0] == "| model | size | Boxes | Masks-S | stuff called a thing | weights |"
    assert lines[2] == "| u_vlm | 224 | **50.0** | – | **10.0** | 01234567 |"
    assert lines[3] == "| p | 512 | 25.0 | **12.5** | – | abcdefab |"


def test_of_a_bias_the_smallest_is_the_best():
    rows = [{**ROWS[0], "foreground_bias": 0.3}, {**ROWS[0], "foreground_bias": 0.2}]
    assert "30.0 | 01234567" in as_markdown(rows) and "**20.0** | 01234567" in as_markdown(rows)


def test_models_of_the_same_name_are_distinguished_by_their_path():
    rows = [{**ROWS[0], "model": "a/final"}, {**ROWS[0], "model": "b/final"}, ROWS[1]]
    assert [line.split(" | ")[0] for line in as_markdown(rows).splitlines()[2:5]] == ["| a/final", "| b/final", "| p"]


def test_the_note_has_the_counts_and_the_offset():
    counted = {"images": 9, "skipped_images": 1, "empty_masks": 3, "thing_offset": 0.1}
    note = as_markdown([{**ROWS[0], **counted}, {**ROWS[1], **counted, "empty_masks": 0}]).splitlines()[-1]
    assert "Images: 9." in note and "Images skipped: 1." in note and "Masks empty at map resolution: 0 to 3." in note
    assert " 0.1 was subtracted from every thing score." in note


def test_latex_is_a_tabular_with_escaped_characters():
    text = as_latex(ROWS)
    assert r"u\_vlm & 224 & \textbf{50.0} & -- & \textbf{10.0} & 01234567 \\" in text
    assert text.count(r"\\") == 3 and r"\begin{tabular}{llrrrr}" in text
