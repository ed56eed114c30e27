# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Comparison tables of evaluated models, in Markdown and LaTeX."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .renamed import check_metrics


METRIC_TITLES = {
    "boxes_top1": "Boxes",
    "masks_thing_top1": "Masks-T",
    "masks_stuff_top1": "Masks-S",
    "boxes_top5": "Boxes, top 5",
    "masks_thing_top5": "Masks-T, top 5",
    "masks_stuff_top5": "Masks-S, top 5",
    "foreground_bias": "stuff called a thing",
    "background_bias": "thing called stuff",
    "masks_thing_home_top1": "Masks-T at home",
    "masks_thing_away_top1": "Masks-T away",
    "balance_area": "balance area",
    "balance_relative_area": "relative area",
    "balance_auroc": "AUROC",
    "held_out_harmonic_mean": "H, held out",
    "miou": "mIoU",
    "miou_present_or_predicted": "mIoU, present or predicted",
    "mean_accuracy": "mean accuracy",
    "pixel_accuracy": "pixel accuracy",
}
"""Metrics in the tables and their column titles."""

REGION_NOTE = (
    "In %. Accuracies are top-1 unless stated otherwise, averaged over classes. Balance area: area under the curve of "
    "Masks-S over Masks-T for all offsets of the thing scores; relative area: divided by the product of the best "
    "values of both. AUROC: of separating things from stuff. H, held out: harmonic mean of Masks-T and Masks-S, each "
    "half of the images evaluated with the offset that is best on the other half."
)
SEGMENTATION_NOTE = (
    "In %. mIoU: mean over the categories present in the annotations; present or predicted: also over categories that "
    "are only predicted. Mean accuracy: mean over the categories present."
)


def as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """
    Formats metrics as a Markdown table with a note; the best number of each column is bold.

    Args:
        rows (sequence of `dict`): metrics, one row per model and image size.

    Raises:
        `ValueError` for metrics of an earlier version.
    """
    lines = _cells(rows, bold="**{}**")
    table = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in table) + f"\n{_note(rows)}\n"


def as_latex(rows: Sequence[dict[str, Any]]) -> str:
    """The same table as a LaTeX `tabular` with booktabs rules."""
    lines = [[_escape(cell) for cell in line] for line in _cells(rows, bold="\0{}\1")]
    lines = [[cell.replace("\0", r"\textbf{").replace("\1", "}") for cell in line] for line in lines]
    head, *body = (" & ".join(line) + r" \\" for line in lines)
    columns = "ll" + "r" * (len(lines[0]) - 2)
    begin, end = rf"\begin{{tabular}}{{{columns}}}", r"\end{tabular}"
    return "\n".join([f"% {_note(rows)}", begin, r"\toprule", head, r"\midrule", *body, r"\bottomrule", end, ""])


def write_comparison(rows: Sequence[dict[str, Any]], output: Path) -> None:
    """
    Writes and prints metrics: a single row as one JSON object, several rows as a list, with the table in Markdown and
    LaTeX beside it.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(rows[0] if len(rows) == 1 else list(rows), indent=2) + "\n", encoding="utf-8")
    if len(rows) == 1:
        for key, value in rows[0].items():
            print(f"{key:36} {value:.4f}" if isinstance(value, float) else f"{key:36} {value}")
        return
    output.with_suffix(".md").write_text(as_markdown(rows), encoding="utf-8")
    output.with_suffix(".tex").write_text(as_latex(rows), encoding="utf-8")
    print(as_markdown(rows))


def _note(rows: Sequence[dict[str, Any]]) -> str:
    """Explains the columns, the counts and the thing offset, if there is one."""
    note = SEGMENTATION_NOTE if "miou" in rows[0] else REGION_NOTE
    counts = {
        "images": "images",
        "thing_regions": "thing regions",
        "stuff_regions": "stuff regions",
        "skipped_images": "images skipped",
        "skipped_regions": "regions skipped",
        "empty_masks": "masks empty at map resolution",
    }
    for key, title in counts.items():
        # Only the number of empty masks depends on the map size; the other counts are the same for all models.
        found = sorted({row[key] for row in rows if key in row})
        if found and found[-1]:
            note += f" {title.capitalize()}: {' to '.join(str(n) for n in dict.fromkeys((found[0], found[-1])))}."
    offsets = sorted({row["thing_offset"] for row in rows if row.get("thing_offset")})
    if offsets:
        note += f" {' or '.join(map(str, offsets))} was subtracted from every thing score."
    return note


def _names(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The last component of each model's path, or the full path where two models share it."""
    models = {str(row["model"]) for row in rows}
    shared = Counter(Path(model).name for model in models)
    return [
        Path(model).name if shared[Path(model).name] == 1 else model for model in (str(row["model"]) for row in rows)
    ]


def _cells(rows: Sequence[dict[str, Any]], bold: str) -> list[list[str]]:
    check_metrics(rows)
    shown = {key: title for key, title in METRIC_TITLES.items() if any(key in row for row in rows)}
    lines = [["model", "size", *shown.values(), "weights"]]
    for name, row in zip(_names(rows), rows):
        line = [name, str(row["image_size"])]
        for key in shown:
            values = [other[key] for other in rows if key in other]
            best = min(values) if key.endswith("bias") else max(values)
            text = f"{100 * row[key]:.1f}" if key in row else "–"
            line.append(bold.format(text) if len(rows) > 1 and row.get(key) == best else text)
        lines.append([*line, row["fingerprint"][:8]])
    return lines


def _escape(text: str) -> str:
    for sign in "&%$#_{}":
        text = text.replace(sign, f"\\{sign}")
    return text.replace("–", "--")


__all__ = ["METRIC_TITLES", "as_latex", "as_markdown", "write_comparison"]
