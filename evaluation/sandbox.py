# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
What came out of the sandbox: a table on the test split, a picture and a page.

    python -m evaluation.sandbox --runs runs/sandbox --seeds 0

reads the trained students in `runs/sandbox/{densevlm,all}-seed0`, compares them with the shipped models, and writes
`metrics.json`, `report.md`, the page `report.html`, `locations.png`, `balance.png` and the scores into `runs/sandbox`.

    python -m evaluation.sandbox --runs runs/sandbox runs/pretraining-1 runs/pretraining-2 --output runs/pretraining

takes several folders as the seeds of pre-training, the models of each in its `models`.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers.image_transforms import rgb_to_id

from modeling_densevlm import CategoryEmbeddings, DenseVLMModel, DenseVLMProcessor
from modeling_densevlm.categories import CategorySet
from modeling_densevlm.command_line import check_output, one_line_errors, whole_number
from modeling_densevlm.image_processing_densevlm import load_image

from . import report as page
from .balance import Margins, accuracies_at, balance_curve, best_offset, compare_balance, harmonic_mean
from .charts import balance_chart
from .datasets.panoptic import PanopticRegions, read_annotations
from .evaluate_regions import evaluate_regions, map_side, region_metrics
from .figures import location_figure
from .models import code_digest, commit
from .renamed import check_metrics
from .scores import RegionScores
from .segmentation import segment


BASELINE = "all_against_all"
"""What the decoupled contrast adds is seen against this: the others are compared with it."""

SANDBOX_TEMPLATES = "short"
"""Its models are trained with them (`training/recipes/sandbox.yaml`)."""

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


@dataclass
class SandboxModel:
    """A model of the table: its title there, its key in `metrics.json`, its folders (one for each run)."""

    title: str
    key: str
    folders: list[Path]


@dataclass
class Measured:
    """Scores of one model on both splits."""

    val: RegionScores
    test: RegionScores


def measure(folder: Path, data: Path, categories: CategorySet) -> Measured:
    """Evaluates the model of a folder on the validation and the test split."""
    model = DenseVLMModel.from_pretrained(folder, dtype=torch.float32).eval()
    processor = DenseVLMProcessor.from_pretrained(folder)
    embeddings = CategoryEmbeddings.compute(categories, model, processor.tokenizer, SANDBOX_TEMPLATES)
    side = map_side(model, processor.image_processor.size["longest_edge"])
    scores = []
    for split in ("val", "test"):
        root = data / split
        regions = PanopticRegions(
            root / "panoptic.json", root / "images", root / "panoptic", processor.image_processor, side, categories
        )
        scores.append(evaluate_regions(model, regions, embeddings, batch_size=50, num_workers=1))
        scores[-1].provenance = {
            "model": str(folder),
            "fingerprint": model.fingerprint(),
            "categories": list(categories.names),
            "is_thing": list(categories.is_thing),
            "templates": len(embeddings.templates),
            "split": split,
            "code": code_digest(),
            "commit": commit(),
        }
    return Measured(*scores)


def row_of(measured: Measured, categories: CategorySet, offset: float) -> dict[str, float]:
    """All numbers of one model on the test split."""
    thing, stuff = accuracies_at(margins_of(measured.test, categories), offset)
    return {
        **region_metrics(measured.test, categories, offset),
        "harmonic_mean": float(harmonic_mean(thing, stuff)),
        "thing_offset": offset,
    }


def margins_of(scores: RegionScores, categories: CategorySet) -> Margins:
    return Margins.of(scores, np.array(categories.things()))


def average(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean over seeds, number by number."""
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def collect(
    entries: Sequence[SandboxModel], measured_of: dict[str, list[Measured]], categories: CategorySet
) -> dict[str, dict]:
    """
    `metrics.json`: under each entry's key its numbers (means over seeds where there are several, `seeds` then holds
    each), and under `<key>_offset` the same with the δ chosen on the validation split. `over_<BASELINE>` is what
    [`compare_balance`] says of it against the baseline.
    """
    metrics = {}
    margins = {key: [margins_of(m.test, categories) for m in measured] for key, measured in measured_of.items()}
    for entry in entries:
        measured = measured_of[entry.key]
        plain = [row_of(m, categories, 0.0) for m in measured]
        offsets = [best_offset(margins_of(m.val, categories)) for m in measured]
        shifted = [row_of(m, categories, offset) for m, offset in zip(measured, offsets)]
        for key, rows in ((entry.key, plain), (f"{entry.key}_offset", shifted)):
            metrics[key] = average(rows) | ({"seeds": rows} if len(rows) > 1 else {})
        if BASELINE in margins and entry.key != BASELINE:
            metrics[entry.key][f"over_{BASELINE}"] = compare_balance(margins[BASELINE], margins[entry.key])
    return metrics


def markdown_report(entries: Sequence[SandboxModel], metrics: dict[str, dict], runs: str) -> str:
    """In Markdown: every model uncalibrated, then with its best offset; and what is gained over the baseline."""
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
        f"Test split: {counts['images']:.0f} scenes, {counts['thing_regions']:.0f} things, "
        f"{counts['stuff_regions']:.0f} pieces of stuff. Top-1 in %, means over classes; the two error shares are of "
        "masks. δ is subtracted from every thing's cosine, and was chosen on the validation split for the best "
        f"H = harmonic mean of Masks-T and Masks-S. Area: under Masks-S over Masks-T for every δ. {runs}"
    )
    return (
        f"# Sandbox\n\n{markdown(rows)}\n{notes}\n\n{gains(entries, metrics)}![](balance.png)\n\n![](locations.png)\n"
    )


def gains(entries: Sequence[SandboxModel], metrics: dict[str, dict]) -> str:
    """How much larger the areas are than the baseline's, and what of a gain of H is calibration."""
    titles = {entry.key: entry.title for entry in entries}
    if BASELINE not in titles:
        return ""
    rows = [[f"over {titles.pop(BASELINE)}", "area", "gain of H", "calibration gain", "discrimination gain"]]
    for key, title in titles.items():
        found = metrics[key][f"over_{BASELINE}"]
        parts = [
            f"{100 * value:+.1f} [{100 * lower:+.1f}, {100 * upper:+.1f}]" for value, lower, upper in found.values()
        ]
        rows.append([title, *parts])
    return markdown(rows) + (
        "\nIn brackets 95 % intervals of draws of scenes, and of runs where there are several. Discrimination "
        "gain: what is left of a gain of H where each half of the scenes is scored with the δ that is best on the "
        "other; calibration gain: the rest.\n\n"
    )


def markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def draw(entries: Sequence[SandboxModel], data: Path, categories: CategorySet, file: Path, count: int = 4) -> None:
    """The first test scenes with a thing and at least two kinds of stuff: what each model predicts at every pixel."""
    content = read_annotations(data / "test" / "panoptic.json")
    is_thing = dict(zip(categories.ids, categories.is_thing))
    flags = [[is_thing[s["category_id"]] for s in record["segments_info"]] for record in content["annotations"]]
    chosen = [i for i, row in enumerate(flags) if any(row) and row.count(False) >= 2][:count]
    images = [load_image(data / "test" / "images" / content["images"][i]["file_name"]) for i in chosen]
    panels = {"truth": np.stack([true_labels(data / "test", content["annotations"][i], categories) for i in chosen])}
    for entry in entries:
        model = DenseVLMModel.from_pretrained(entry.folders[0], dtype=torch.float32).eval()
        processor = DenseVLMProcessor.from_pretrained(entry.folders[0])
        text = CategoryEmbeddings.compute(categories, model, processor.tokenizer, SANDBOX_TEMPLATES).embeds
        with torch.inference_mode():
            pixel_values = processor.image_processor(images)["pixel_values"]
            sizes = [(image.height, image.width) for image in images]
            panels[entry.title] = torch.stack(segment(model, pixel_values, text, sizes)).numpy()
    location_figure(file, [np.asarray(image) for image in images], panels, categories.names, categories.is_thing)


def true_labels(split: Path, record: dict, categories: CategorySet) -> np.ndarray:
    """The category of every pixel of an annotated scene, `(height, width)`."""
    with Image.open(split / "panoptic" / record["file_name"]) as png:
        ids = rgb_to_id(np.array(png.convert("RGB")))
    # The few pixels of segments that were hidden almost wholly go to the first.
    labels = np.full(ids.shape, categories.ids.index(record["segments_info"][0]["category_id"]))
    for info in record["segments_info"]:
        labels[ids == info["id"]] = categories.ids.index(info["category_id"])
    return labels


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.sandbox", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    where = "where the students are, and the other models if they are not the shipped ones; one for each pre-training"
    parser.add_argument("--runs", type=Path, nargs="+", default=[Path("runs/sandbox")], help=where)
    parser.add_argument("--models", type=Path, default=Path("model_cards"), help="where the shipped models are")
    parser.add_argument(
        "--seeds", type=whole_number(0), nargs="+", default=[0], help="alignment seeds that were trained"
    )
    parser.add_argument("--data", type=Path, help="where the scenes are; `data` of the first of --runs by default")
    parser.add_argument("--output", type=Path, help="folder to write to; the first of --runs by default")
    arguments = parser.parse_args(argv)
    if len(arguments.runs) > 1 and len(arguments.seeds) > 1:
        parser.error("several pre-trainings are compared with one alignment seed each: give one of --seeds")
    output, data = arguments.output or arguments.runs[0], arguments.data or arguments.runs[0] / "data"
    check_output(output, folder=True)
    categories = CategorySet.load(data / "categories.json")
    entries = entries_of(arguments.runs, arguments.models, arguments.seeds)
    measured = {entry.key: [measure(folder, data, categories) for folder in entry.folders] for entry in entries}
    described = describe_runs(len(arguments.runs), arguments.seeds)
    write(output, entries, measured, data, categories, described)


def write(
    output: Path,
    entries: Sequence[SandboxModel],
    measured: dict[str, list[Measured]],
    data: Path,
    categories: CategorySet,
    runs: str,
) -> None:
    """Everything that is made of what was measured."""
    for key, of_entry in measured.items():
        for number, one in enumerate(of_entry):
            one.test.save(output / "scores" / f"{key}-{number}.safetensors")
    metrics = collect(entries, measured, categories)
    (output / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    text = markdown_report(entries, metrics, runs)
    (output / "report.md").write_text(text, encoding="utf-8")
    draw(entries, data, categories, output / "locations.png")
    margins = {entry.title: [margins_of(one.test, categories) for one in measured[entry.key]] for entry in entries}
    balance_chart(output / "balance.png", {title: [*map(balance_curve, of_one)] for title, of_one in margins.items()})
    in_order = sorted(entries, key=lambda entry: entry.key != BASELINE)
    page.write_report(
        [page.ReportModel(entry.title, [one.test for one in measured[entry.key]]) for entry in in_order],
        output / "report.html",
        "Foreground bias in a small world",
        page.Pictures(data / "test" / "panoptic.json", data / "test" / "images"),
    )
    print(f"{text}\nWritten to {output}: metrics.json, report.md, report.html, locations.png, balance.png, scores")


def entries_of(runs: Sequence[Path], shipped: Path, seeds: Sequence[int]) -> list[SandboxModel]:
    """The models of the table: with a folder of each pre-training, or with one of each alignment of each of them."""
    pretrained = [run / "models" if (run / "models").exists() else shipped for run in runs]

    def aligned(name: str) -> list[Path]:
        return [run / f"{name}-seed{seed}" for run in runs for seed in seeds]

    def before(name: str) -> list[Path]:
        return [models / f"densevlm-sandbox-{name}" for models in pretrained]

    return [
        SandboxModel("U (a CLIP)", "before", before("u")),
        SandboxModel("CLIPSelf(U)", "clipself", before("clipself-u")),
        SandboxModel("P (teacher)", "teacher", before("p")),
        SandboxModel("DenseVLM, all against all", BASELINE, aligned("all")),
        SandboxModel("DenseVLM", "after", aligned("densevlm")),
    ]


def describe_runs(pretrainings: int, seeds: Sequence[int]) -> str:
    """What the rows are means over."""
    before = "One pre-training seed" if pretrainings == 1 else f"Means over {pretrainings} pre-training seeds"
    aligned = "one alignment seed" if len(seeds) == 1 else f"means over {len(seeds)} alignment seeds"
    return f"{before}; {aligned}{' of each' if pretrainings > 1 else ''} ({', '.join(map(str, seeds))})."


if __name__ == "__main__":
    main()
