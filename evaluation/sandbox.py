# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
Evaluates the sandbox: a table of metrics on the test split, figures and a report.

    python -m evaluation.sandbox --runs runs/sandbox --seeds 0

reads the trained students in `runs/sandbox/{densevlm,all}-seed0`, compares them with the shipped models, and writes to
`runs/sandbox`: `metrics.json`, `report.md`, `report.html`, `locations.png`, `balance.png`, `training.png`, the scores.

    python -m evaluation.sandbox --runs runs/sandbox runs/pretraining-1 runs/pretraining-2 --output runs/pretraining

takes several folders as pre-training seeds, with the pre-trained models of each in its subfolder `models`.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modeling_densevlm import CategorySet, DenseVLMForSemanticSegmentation
from modeling_densevlm.command_line import check_output, one_line_errors, whole_number
from modeling_densevlm.image_processing_densevlm import load_image
from modeling_densevlm.shipped import MODEL_CARDS

from . import report
from .balance import Margins, accuracies_at, balance_curve, best_offset, compare_balance, harmonic_mean
from .charts import balance_chart, training_chart
from .datasets.panoptic import read_annotations
from .evaluate_regions import region_metrics
from .figures import location_figure
from .renamed import check_metrics
from .sandbox_scores import SplitScores, denoise_cells, ids_of, load, score, score_splits, segment, true_labels
from .scores import RegionScores


BASELINE = "all_against_all"
"""Key of the model that the others are compared with: the ablation of the decoupled contrast."""

SANDBOX_COLUMNS = {
    "boxes_top1": "Boxes",
    "masks_thing_top1": "Masks-T",
    "masks_stuff_top1": "Masks-S",
    "foreground_bias": "stuff called a thing",
    "background_bias": "thing called stuff",
    "masks_thing_home_top1": "Masks-T at home",
    "masks_thing_away_top1": "Masks-T away",
    "balance_area": "area",
}

PICTURED = {"before": "CLIP", "clipself": "CLIPSelf", "after": "DenseVLM"}
"""Keys of the models in the picture → their titles there."""

FURTHER_COLUMNS = {
    "segmentation_miou": "mIoU of the scenes",
    "images_close_up_top1": "whole images, close-ups",
    "images_small_top1": "whole images, small things",
}
"""Metrics to which no offset is applied, and their titles."""


@dataclass
class SandboxModel:
    """A model of the table: its title, its key in `metrics.json` and its folders, one per run."""

    title: str
    key: str
    folders: list[Path]


def draw_training(run: Path, data: Path, categories: CategorySet, file: Path) -> None:
    """Draws the log of a run, and the accuracies of its checkpoints on the validation scenes."""
    checkpoints = sorted(run.glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))
    if not checkpoints:
        return
    history = json.loads((checkpoints[-1] / "trainer_state.json").read_text())["log_history"]
    metrics = {}
    for folder in checkpoints:
        scores = score(folder, *load(folder, categories), data / "val", categories)
        metrics[int(folder.name.split("-")[1])] = region_metrics(scores, categories)
    training_chart(file, history, metrics)


def test_metrics(scores: SplitScores, categories: CategorySet, offset: float) -> dict[str, float]:
    """Metrics of one model on the test split at a thing offset."""
    thing, stuff = accuracies_at(margins_of(scores.test, categories), offset)
    return {
        **region_metrics(scores.test, categories, offset),
        **scores.further,
        "harmonic_mean": float(harmonic_mean(thing, stuff)),
        "thing_offset": offset,
    }


def margins_of(scores: RegionScores, categories: CategorySet) -> Margins:
    """[`Margins`] of the masks of the sandbox's categories."""
    return Margins.from_scores(scores, np.array(categories.things()))


def average(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of each metric over the seeds."""
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def collect_metrics(
    entries: Sequence[SandboxModel],
    scores_of: dict[str, list[SplitScores]],
    categories: CategorySet,
    pretrainings: int = 1,
) -> dict[str, dict]:
    """
    The content of `metrics.json`: under each model's key its metrics (averaged over seeds if there are several, with
    the individual ones in `seeds`), and under `<key>_offset` the same with δ chosen on the validation split.
    `over_<BASELINE>` is the output of [`compare_balance`] against the baseline.
    """
    metrics: dict[str, dict[str, Any]] = {}
    margins = {key: [margins_of(run.test, categories) for run in scores] for key, scores in scores_of.items()}
    for entry in entries:
        runs = scores_of[entry.key]
        plain = [test_metrics(run, categories, 0.0) for run in runs]
        offsets = [best_offset(margins_of(run.val, categories)) for run in runs]
        shifted = [test_metrics(run, categories, offset) for run, offset in zip(runs, offsets)]
        for key, rows in ((entry.key, plain), (f"{entry.key}_offset", shifted)):
            metrics[key] = average(rows) | ({"seeds": rows} if len(rows) > 1 else {})
        if BASELINE in margins and entry.key != BASELINE:
            metrics[entry.key][f"over_{BASELINE}"] = compare_balance(
                margins[BASELINE], margins[entry.key], groups=pretrainings
            )
    return metrics


def markdown_report(entries: Sequence[SandboxModel], metrics: dict[str, dict], runs: str) -> str:
    """The report in Markdown: each model uncalibrated, then at its best offset, and the gains over the baseline."""
    check_metrics(metrics.values())
    rows = [["model", "δ", *SANDBOX_COLUMNS.values(), "H"]]
    for suffix in ("", "_offset"):
        for entry in entries:
            row = metrics[f"{entry.key}{suffix}"]
            offset = "–" if not suffix else f"{row['thing_offset']:+.3f}"
            rows.append(
                [entry.title, offset, *(f"{100 * row[column]:.1f}" for column in (*SANDBOX_COLUMNS, "harmonic_mean"))]
            )
    counts = metrics[entries[0].key]
    notes = (
        f"Test split: {counts['images']:.0f} scenes, {counts['thing_regions']:.0f} thing regions, "
        f"{counts['stuff_regions']:.0f} stuff regions. Top-1 in %, means over classes; the two error shares are on "
        "masks. δ is subtracted from the cosines of all things; it was chosen on the validation split for the best H, "
        f"the harmonic mean of Masks-T and Masks-S. Area: under the curve of Masks-S over Masks-T for all δ. {runs}"
    )
    pictures = "".join(f"![]({name}.png)\n\n" for name in ("locations", "balance", "training"))
    tables = gains(entries, metrics) + further_table(entries, metrics)
    tables += denoising_table(metrics["teacher"]["denoising"])
    return f"# Sandbox\n\n{markdown(rows)}\n{notes}\n\n{tables}{pictures}"


def further_table(entries: Sequence[SandboxModel], metrics: dict[str, dict]) -> str:
    """The metrics of segmentation and of whole images."""
    rows = [["further metrics", *FURTHER_COLUMNS.values()]]
    rows += [
        [entry.title, *(f"{100 * metrics[entry.key][column]:.1f}" for column in FURTHER_COLUMNS)] for entry in entries
    ]
    return markdown(rows) + "\nWhole images: which of the sixteen things a picture of a single one shows, top-1.\n\n"


def denoising_table(rows: Sequence[dict[str, float]]) -> str:
    """What each threshold drops, in Markdown."""
    shares = {
        "dropped": "cells dropped",
        "kept_accuracy": "kept cells right",
        "dropped_accuracy": "dropped cells right",
    }
    table = [["threshold", *shares.values()]]
    for row in rows:
        table.append([f"{row['threshold']:.1f}", *(f"{100 * row[key]:.1f}" if key in row else "–" for key in shares)])
    note = "Denoising of P's predictions for the cells of a random grid on each validation scene, in %."
    return f"{markdown(table)}\n{note} Right: the category that covers most of the cell.\n\n"


def gains(entries: Sequence[SandboxModel], metrics: dict[str, dict]) -> str:
    """Gains in area and H over the baseline, the latter split into calibration and discrimination."""
    titles = {entry.key: entry.title for entry in entries}
    if BASELINE not in titles:
        return ""
    rows = [[f"over {titles.pop(BASELINE)}", "area", "gain of H", "calibration gain", "discrimination gain"]]
    for key, title in titles.items():
        differences = metrics[key][f"over_{BASELINE}"]
        cells = [
            f"{100 * value:+.1f} [{100 * lower:+.1f}, {100 * upper:+.1f}]"
            for value, lower, upper in differences.values()
        ]
        rows.append([title, *cells])
    return markdown(rows) + (
        "\nIn brackets: 95 % bootstrap intervals over scenes, and over runs if there are several. Discrimination "
        "gain: the part of the gain of H that remains when each half of the scenes is evaluated at the δ that is best "
        "on the other half; calibration gain: the rest.\n\n"
    )


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Formats rows of cells as a Markdown table with the first row as header."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def draw_locations(
    entries: Sequence[SandboxModel], data: Path, categories: CategorySet, file: Path, count: int = 4
) -> None:
    """
    Draws the predictions of the models of [`PICTURED`] per pixel, on the first test scenes with a thing and two kinds
    of stuff, whatever the models make of them. Beneath each: the share of pixels that are right, and of the pixels of
    stuff the share that is called a thing.
    """
    content = read_annotations(data / "test" / "panoptic.json")
    is_thing = dict(zip(ids_of(categories), categories.things()))
    flags = [[is_thing[s["category_id"]] for s in record["segments_info"]] for record in content["annotations"]]
    chosen = [i for i, row in enumerate(flags) if any(row) and row.count(False) >= 2][:count]
    images = [load_image(data / "test" / "images" / content["images"][i]["file_name"]) for i in chosen]
    truth = [true_labels(data / "test", content["annotations"][i], categories) for i in chosen]
    panels, notes = {"truth": truth}, {}
    things = np.array(categories.things())
    for entry in (entry for entry in entries if entry.key in PICTURED):
        model, processor, embeddings = load(entry.folders[0], categories)
        segmenter = DenseVLMForSemanticSegmentation.from_densevlm(model).set_categories(embeddings)
        labels = [one.numpy() for one in segment(segmenter, processor, images)]
        title = PICTURED[entry.key]
        panels[title] = labels
        notes[title] = [
            f"{np.mean(one == true):.0%} right,\n{np.mean(things[one[~things[true]]]):.0%} of stuff a thing"
            for one, true in zip(labels, truth)
        ]
    pixels = [np.asarray(image) for image in images]
    location_figure(file, pixels, panels, list(map(str, categories.names)), categories.things(), notes)


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the program with `argv`, by default the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.sandbox", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    where = "folders of the students, and of pre-trained models other than the shipped ones; one per pre-training seed"
    parser.add_argument("--runs", type=Path, nargs="+", default=[Path("runs/sandbox")], help=where)
    parser.add_argument("--models", type=Path, default=MODEL_CARDS, help="folder of the shipped models")
    parser.add_argument("--seeds", type=whole_number(0), nargs="+", default=[0], help="alignment seeds to evaluate")
    parser.add_argument("--data", type=Path, help="folder of the scenes; `data` in the first of --runs by default")
    parser.add_argument("--output", type=Path, help="output folder; the first of --runs by default")
    arguments = parser.parse_args(argv)
    output, data = arguments.output or arguments.runs[0], arguments.data or arguments.runs[0] / "data"
    check_output(output, folder=True)
    categories = CategorySet.load(data / "categories.json")
    entries = sandbox_models(arguments.runs, arguments.models, arguments.seeds)
    scores = {entry.key: [score_splits(folder, data, categories) for folder in entry.folders] for entry in entries}
    description = describe_runs(len(arguments.runs), arguments.seeds)
    write_results(output, entries, scores, data, categories, description)


def write_results(
    output: Path,
    entries: Sequence[SandboxModel],
    scores: dict[str, list[SplitScores]],
    data: Path,
    categories: CategorySet,
    runs: str,
) -> None:
    """Writes the scores, the metrics, both reports and the figures."""
    for key, of_model in scores.items():
        for number, run in enumerate(of_model):
            run.test.save(output / "scores" / f"{key}-{number}.safetensors")
    metrics = collect_metrics(entries, scores, categories, len(entries[0].folders))
    teachers = next(entry.folders for entry in entries if entry.key == "teacher")
    metrics["teacher"]["denoising"] = denoise_cells(teachers, data / "val", categories)
    (output / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    text = markdown_report(entries, metrics, runs)
    (output / "report.md").write_text(text, encoding="utf-8")
    draw_locations(entries, data, categories, output / "locations.png")
    draw_training(entries[-1].folders[0], data, categories, output / "training.png")
    margins = {entry.title: [margins_of(run.test, categories) for run in scores[entry.key]] for entry in entries}
    balance_chart(
        output / "balance.png", {title: [*map(balance_curve, of_model)] for title, of_model in margins.items()}
    )
    # The others are compared with the first model. Styles are those of `balance.png`.
    baseline_first = sorted(enumerate(entries), key=lambda numbered: numbered[1].key != BASELINE)
    report.write_report(
        [
            report.ReportModel(entry.title, [run.test for run in scores[entry.key]], style=number)
            for number, entry in baseline_first
        ],
        output / "report.html",
        "Foreground bias in a small world",
        report.Pictures(data / "test" / "panoptic.json", data / "test" / "images"),
    )
    print(f"{text}\nWritten to {output}: metrics.json, report.md, scores and pictures")
    for name in ("locations.png", "balance.png", "training.png", "report.html"):
        if (output / name).exists():
            print((output / name).resolve().as_uri())


def sandbox_models(runs: Sequence[Path], shipped: Path, seeds: Sequence[int]) -> list[SandboxModel]:
    """The models of the table, with one folder per pre-training, or per pre-training and alignment seed."""
    models_of = [run / "models" if (run / "models").exists() else shipped for run in runs]

    def aligned(name: str) -> list[Path]:
        return [run / f"{name}-seed{seed}" for run in runs for seed in seeds]

    def pretrained_models(name: str) -> list[Path]:
        return [models / f"densevlm-sandbox-{name}" for models in models_of]

    return [
        SandboxModel("U (a CLIP)", "before", pretrained_models("u")),
        SandboxModel("CLIPSelf(U)", "clipself", pretrained_models("clipself-u")),
        SandboxModel("P (teacher)", "teacher", pretrained_models("p")),
        SandboxModel("DenseVLM, all against all", BASELINE, aligned("all")),
        SandboxModel("DenseVLM", "after", aligned("densevlm")),
    ]


def describe_runs(pretrainings: int, seeds: Sequence[int]) -> str:
    """Describes what the rows are averaged over."""
    before = "One pre-training seed" if pretrainings == 1 else f"Means over {pretrainings} pre-training seeds"
    aligned = "one alignment seed" if len(seeds) == 1 else f"means over {len(seeds)} alignment seeds"
    return f"{before}; {aligned}{' of each' if pretrainings > 1 else ''} ({', '.join(map(str, seeds))})."


if __name__ == "__main__":
    main()
