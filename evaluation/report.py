"""
A page about models and what was measured of them: one HTML file that needs nothing else, no network either.

    python -m evaluation.report "U=runs/eval/0-u-512.safetensors" "DenseVLM=runs/eval/1-d-512.safetensors" \\
        --output report.html [--annotations panoptic_val2017.json --images val2017]

Each run is a file of scores that `evaluation.evaluate_regions` has kept, with a title before it. Runs of the same
title are seeds of one model, or the model at several sizes of its images. The first title is what the others are
compared with. With the annotations and images, the page shows what each model calls the regions of some of them.
"""

import argparse
import base64
import datetime
import html
import io
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from modeling_densevlm import CategorySet
from modeling_densevlm.image_processing_densevlm import load_image

from .balance import (
    Margins,
    balance_curve,
    balance_intervals,
    balance_numbers,
    compare,
    held_out_balance,
)
from .charts import accuracy_chart, balance_chart, confusion_chart, difference_chart
from .command_line import check_output, whole_number
from .comparison import COLUMNS
from .confusion import count_pairs
from .evaluate_regions import region_metrics, top_categories
from .figures import subplots
from .foreground_bias.bias import foreground_bias
from .panoptic import read_annotations
from .scores import RegionScores


TEMPLATE = Path(__file__).with_name("report_template.html")


@dataclass
class Entry:
    """A model of the page, at a size: its title, its scores, of each seed; `line`: what joins its sizes in a chart."""

    title: str
    runs: list[RegionScores]
    line: str = ""

    def margins(self, categories: CategorySet) -> list[Margins]:
        return [Margins.of(run, np.array(categories.things())) for run in self.runs]


@dataclass
class Pictures:
    """Where the images and their annotations are, and how many of them to show."""

    annotations: Path
    images: Path
    count: int = 12


def categories_of(entries: Sequence[Entry]) -> CategorySet:
    """
    The categories of all entries.

    Raises:
        `ValueError` where they were not evaluated on the same regions, or without flags.
    """
    runs = [(entry.title, run) for entry in entries for run in entry.runs]
    title, first = runs[0]
    for other, run in runs[1:]:
        for name in ("image_ids", "segment_ids", "labels"):
            if not np.array_equal(getattr(run, name), getattr(first, name)):
                raise ValueError(f"{title} and {other} were not evaluated on the same regions (`{name}` differ).")
        if any(run.facts.get(name) != first.facts.get(name) for name in ("categories", "is_thing")):
            raise ValueError(f"{title} and {other} were evaluated with other categories.")
    if not first.facts.get("categories"):
        raise ValueError(f"The scores of {title} do not say their categories: evaluate it again.")
    categories = CategorySet("evaluated", first.facts["categories"], first.facts["is_thing"])
    categories.require_flags("a report")
    return categories


def write_report(
    entries: Sequence[Entry],
    file: str | Path,
    title: str = "Dense features, evaluated",
    pictures: Pictures | None = None,
) -> None:
    r"""
    Args:
        entries (sequence of [`Entry`]): the first is what the others are compared with.
        file (path): HTML to write.
        pictures ([`Pictures`], *optional*): images to page through.
    """
    subplots()  # Nothing is reckoned where nothing can be drawn.
    categories = categories_of(entries)
    counts = entries[0].runs[0]
    shown = [] if pictures is None else [samples(entries, categories, pictures)]  # first: their files may be others
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="note">{datetime.date.today()}. {counts.images} images, {len(counts.labels)} regions, '
        f"{len(categories)} categories. Numbers are means over classes in %, where nothing else is said; of several "
        "seeds their mean, and beneath it the least and the largest.</p>",
        summary(entries, categories),
        over_size(entries, categories),
        balance(entries, categories),
        mistakes(entries, categories),
        differences(entries, categories),
        confusions(entries, categories),
        *shown,
        settings(entries),
    ]
    page = Template(TEMPLATE.read_text(encoding="utf-8"))
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    content = page.substitute(title=html.escape(title), body="\n".join(body))
    # Names of files may be no UTF-8.
    Path(file).write_text(content, encoding="utf-8", errors="backslashreplace")


def table(head: Sequence[str], rows: Sequence[Sequence[str]], best: Sequence[Sequence[bool]] | None = None) -> str:
    """A table that scrolls where it is wider than the page; cells are HTML."""
    # Heads are wrapped, but not at their hyphens.
    lines = ["<tr>" + "".join(f"<th>{cell.replace('-', '&#8209;')}</th>" for cell in head) + "</tr>"]
    for number, row in enumerate(rows):
        marks = best[number] if best else [False] * len(row)
        cells = (f"<td{' class=best' if mark else ''}>{cell}</td>" for cell, mark in zip(row, marks))
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def spread(values: Sequence[float]) -> str:
    """The mean in %, and beneath it the range where there are several."""
    if np.isnan(values).any():
        return "–"
    mean = f"{100 * np.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean}<br><small>{100 * min(values):.1f}–{100 * max(values):.1f}</small>"


def change(value: float, lower: float, upper: float) -> str:
    """A difference in points with its interval."""
    return f"{100 * value:+.1f}<br>[{100 * lower:+.1f}, {100 * upper:+.1f}]"


def picture(draw: Callable[[Path], None], alt: str) -> str:
    """A chart as part of the page: `draw` writes it to the file it is given."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "chart.svg"
        draw(file)
        content = base64.b64encode(file.read_bytes()).decode()
    caption = html.escape(alt)
    image = f'<img src="data:image/svg+xml;base64,{content}" alt="{caption}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def summary(entries: Sequence[Entry], categories: CategorySet) -> str:
    """The numbers of each model as it is."""
    metrics = [[region_metrics(run, categories) for run in entry.runs] for entry in entries]
    # What is measured of the balance follows, with intervals.
    columns = {key: name for key, name in COLUMNS.items() if not key.startswith(("balance_", "held_out_"))}
    shown = {key: name for key, name in columns.items() if all(key in row for rows in metrics for row in rows)}
    means = np.array([[np.mean([row[key] for row in rows]) for key in shown] for rows in metrics])
    least = np.array([key.endswith("bias") for key in shown])
    best = np.where(least, means == means.min(0), means == means.max(0)) if len(entries) > 1 else means != means
    rows = [
        [html.escape(entry.title), *(spread([row[key] for row in rows]) for key in shown)]
        for entry, rows in zip(entries, metrics)
    ]
    marks = [[False, *line] for line in best.tolist()]
    return "<h2>What was measured</h2>" + table(["model", *shown.values()], rows, marks)


def over_size(entries: Sequence[Entry], categories: CategorySet) -> str:
    """Accuracies over the size of the images, where a model was evaluated at several."""
    rows = []
    for entry in entries:
        if entry.line:
            metrics = [region_metrics(run, categories) for run in entry.runs]
            means = {key: np.mean([row[key] for row in metrics]) for key in metrics[0]}
            rows.append(means | {"model": entry.line, "image_size": entry.runs[0].facts["image_size"]})
    if not rows:
        return ""
    return picture(lambda file: accuracy_chart(file, rows), "Accuracies over the size of the images")


def balance(entries: Sequence[Entry], categories: CategorySet) -> str:
    """The curves, the areas under them with intervals, and how much of a gain is balance."""
    margins = [entry.margins(categories) for entry in entries]
    curves = {entry.title: [balance_curve(m) for m in of_entry] for entry, of_entry in zip(entries, margins)}
    names = {"area": "area", "relative_area": "relative area", "auroc": "AUROC"}

    rows, gains = [], []
    for number, (entry, of_entry) in enumerate(zip(entries, margins)):
        numbers = [balance_numbers(m) for m in of_entry]
        bounds = balance_intervals(of_entry)
        row = [html.escape(entry.title)]
        for name in names:
            lower, upper = bounds[name]
            row.append(f"{spread([n[name] for n in numbers])}<br>[{100 * lower:.1f}, {100 * upper:.1f}]")
        if number:
            over = {name: change(*values) for name, values in compare(margins[0], of_entry).items()}
            row.append(over.pop("area"))
            gains.append([html.escape(entry.title), *over.values()])
        else:
            row.append("–")
        held_out = [held_out_balance(m) for m in of_entry]
        row += [spread([h[name] for h in held_out]) for name in ("thing", "stuff", "harmonic_mean")]
        row.append(f"{np.mean([h['offset'] for h in held_out]):+.3f}")
        rows.append(row)
    first = html.escape(entries[0].title)
    head = ["model", *names.values(), f"area less that of {first}", "Masks-T", "Masks-S", "H", "δ"]
    parts = [
        "<h2>How much of it is balance</h2>",
        "<p>Subtract an offset δ from the score of every thing, and a model trades accuracy on things for accuracy on "
        "stuff, without knowing anything better. A curve shows all that can be had of a model in this way; the marker "
        "is where it stands as it is. What a model knows is how far out its curve lies.</p>",
        picture(
            lambda file: balance_chart(file, curves), "Masks-S over Masks-T for every offset of the things' scores"
        ),
        table(head, rows),
        '<p class="note">Area: under the curve, of a square whose sides are 100 %. Relative area: divided by the best '
        "Masks-T and the best Masks-S. AUROC: how well things are told from stuff. In square brackets 95 % intervals "
        "of 1,000 draws of images, and of the seeds of a row that has several; few seeds tell little of what others "
        "would change. On the right: each half of the images with the δ that is best on the other half, H the "
        "harmonic mean.</p>",
    ]
    if gains:
        parts += [
            f"<h3>Gains over {first}</h3>",
            table(["model", "gain of H, as they are", "of it balance", "of it knowledge"], gains),
            '<p class="note">Knowledge: what is left of a gain of H where each model has the δ that is best for it, '
            "chosen on the other half of the images. Balance: the rest, what an offset gives the first model more "
            "than the other one. Intervals as above, with the same δ in all draws; where both models have as many "
            "seeds, those of the same place are drawn together.</p>",
        ]
    return "\n".join(parts)


def mistakes(entries: Sequence[Entry], categories: CategorySet) -> str:
    """Which stuff is called which thing, and the reverse."""
    flags = np.array(categories.things())
    parts = ["<h2>Stuff called a thing, things called stuff</h2>"]
    for entry in entries:
        run = entry.runs[0]
        found = foreground_bias(top_categories(run.masks, 1)[:, 0], run.labels, flags)
        columns = []
        for name in ("foreground", "background"):
            pairs = found.get(f"{name}_pairs", [])
            names = [(categories.names[p["reference"]], categories.names[p["prediction"]]) for p in pairs]
            columns.append(
                [
                    f"{html.escape(true)} → {html.escape(called)} ({100 * p['share']:.0f} %)"
                    for (true, called), p in zip(names, pairs)
                ]
            )
        length = max(map(len, columns))
        rows = list(zip(*(column + [""] * (length - len(column)) for column in columns)))
        shares = [f"{100 * found.get(f'{name}_bias', np.nan):.1f} %" for name in ("foreground", "background")]
        head = [f"stuff called a thing: {shares[0]}", f"thing called stuff: {shares[1]}"]
        parts.append(f"<details><summary>{html.escape(entry.title)}</summary>{table(head, rows)}</details>")
    parts.append('<p class="note">In brackets: share of all such mistakes. Of several seeds, the first.</p>')
    return "\n".join(parts)


def class_accuracies(run: RegionScores, categories: int) -> np.ndarray:
    """Of the masks, `(categories,)`; NaN where a category does not occur."""
    hits = top_categories(run.masks, 1)[:, 0] == run.labels
    counts = np.bincount(run.labels, minlength=categories)
    return np.where(counts > 0, np.bincount(run.labels, hits, categories) / np.maximum(counts, 1), np.nan)


def differences(entries: Sequence[Entry], categories: CategorySet) -> str:
    """The categories that each model gained and lost on, against the first one."""
    accuracies = [np.mean([class_accuracies(run, len(categories)) for run in e.runs], axis=0) for e in entries]
    charts = [
        picture(
            lambda file, number=number: difference_chart(
                file, categories.names, accuracies[number] - accuracies[0], categories.things()
            ),
            f"{entry.title} against {entries[0].title}: categories with the largest gains and losses, masks",
        )
        for number, entry in enumerate(entries)
        if number
    ]
    return "\n".join(["<h2>Category by category</h2>", *charts]) if charts else ""


def confusions(entries: Sequence[Entry], categories: CategorySet) -> str:
    """What each category was called, for each model."""
    parts = ["<h2>What is called what</h2>"]
    for entry in entries:
        run = entry.runs[0]
        called = top_categories(run.masks, 1)[:, 0]
        counts = count_pairs(np.where(called < 0, -1, run.labels), called, len(categories))
        chart = picture(
            lambda file, counts=counts: confusion_chart(file, counts, categories.names, categories.things()),
            f"{entry.title}: shares of the masks of a category, things first",
        )
        parts.append(f"<details><summary>{html.escape(entry.title)}</summary>{chart}</details>")
    return "\n".join(parts)


def samples(entries: Sequence[Entry], categories: CategorySet, pictures: Pictures) -> str:
    """Some images to page through: their regions, and what each model calls them."""
    content = read_annotations(pictures.annotations)
    if not pictures.images.is_dir():
        raise FileNotFoundError(f"`images`: {pictures.images} is no folder.")
    files = {image["id"]: image["file_name"] for image in content["images"]}
    records = sorted(content["annotations"], key=lambda record: record["image_id"])
    # As in the scores: the place stands for an id that is no whole number.
    places = {r["image_id"] if isinstance(r["image_id"], int) else place: r for place, r in enumerate(records)}
    run = entries[0].runs[0]
    images = np.unique(run.image_ids)
    chosen = images[np.linspace(0, len(images) - 1, min(pictures.count, len(images))).astype(int)]
    calls = [top_categories(entry.runs[0].masks, 1)[:, 0] for entry in entries]
    head, parts = ["region", *(html.escape(entry.title) for entry in entries)], []
    for image_id in chosen.tolist():
        rows = np.flatnonzero(run.image_ids == image_id)
        try:
            record = places[image_id]
            boxes_of = {segment["id"]: segment["bbox"] for segment in record["segments_info"]}
            boxes = [boxes_of[int(run.segment_ids[row])] for row in rows]
            file = pictures.images / files[record["image_id"]]
        except KeyError as error:
            raise ValueError(
                f"{pictures.annotations} is not what was evaluated: it lacks {error}, of image {image_id}."
            ) from error
        lines = []
        for number, row in enumerate(rows, 1):
            label = run.labels[row]
            cells = (_call(categories, called[row], label) for called in calls)
            lines.append([f"{number} {_name(categories, label)}", *cells])
        try:
            image = _numbered(load_image(file), boxes)
        except Exception as error:  # a damaged file can raise anything in a decoder
            raise ValueError(f"{file}: {type(error).__name__}: {error}") from error
        alt = html.escape(f"{record['image_id']}: " + ", ".join(categories.names[run.labels[row]] for row in rows))
        image = f'<img src="data:image/jpeg;base64,{image}" alt="{alt}">'
        parts.append(f'<div class="sample">{image}{table(head, lines)}</div>')
    return (
        '<h2>Images</h2><div class="samples"><div class="pager"><button type="button" class="before" '
        'aria-label="previous image">←</button><span class="place"></span><button type="button" class="after" '
        f'aria-label="next image">→</button></div>{"".join(parts)}</div><p class="note">Evenly spread over the '
        "images, none was chosen. Things are in italics. What is called is that of the masks; of several seeds, the "
        "first.</p>"
    )


def _name(categories: CategorySet, index: int) -> str:
    name = html.escape(categories.names[index])
    return f"<i>{name}</i>" if categories.things()[index] else name


def _call(categories: CategorySet, called: int, label: int) -> str:
    if called < 0:
        return "–"
    return f'<span class="{"right" if called == label else "wrong"}">{_name(categories, called)}</span>'


def _numbered(image: Image.Image, boxes: Sequence[Sequence[float]], side: int = 640) -> str:
    """A JPEG, in base64, with the regions' boxes and numbers."""
    scale = side / max(image.size)
    image = image.resize([max(round(length * scale), 1) for length in image.size])
    draw = ImageDraw.Draw(image)
    for number, (x, y, width, height) in enumerate(boxes, 1):
        corner = (x * scale, y * scale)
        draw.rectangle(
            [corner, (corner[0] + width * scale - 1, corner[1] + height * scale - 1)], outline="white", width=2
        )
        label = draw.textbbox((corner[0] + 4, corner[1] + 2), str(number), font_size=16)
        draw.rectangle(label, fill="white")
        draw.text((corner[0] + 4, corner[1] + 2), str(number), fill="black", font_size=16)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()


def settings(entries: Sequence[Entry]) -> str:
    """What was evaluated on what, and how."""
    runs = [(entry.title, run.facts) for entry in entries for run in entry.runs]
    keys = [key for key in runs[0][1] if key not in ("categories", "is_thing", "category_ids")]
    rows = [[html.escape(title), *(html.escape(str(facts.get(key, "–"))) for key in keys)] for title, facts in runs]
    skipped = [message for entry in entries[:1] for message in entry.runs[0].skipped_images]
    told = "".join(f"<li>{html.escape(message)}</li>" for message in skipped[:20])
    more = f"<p>{len(skipped)} images were skipped:</p><ul>{told}</ul>" if skipped else "<p>No image was skipped.</p>"
    return f"<h2>Settings and versions</h2>{table(['title', *keys], rows)}{more}"


def read_entries(runs: Sequence[str]) -> list[Entry]:
    """`title=file` each; those of one title and one size become one entry, in the order of the titles."""
    read: dict[str, dict[int | None, list[RegionScores]]] = {}
    seen = set()
    for run in runs:
        # A file without a title, though it may have the sign in its path, is told by its path.
        title, _, file = ("", "", run) if Path(run).exists() else run.partition("=")
        title, file = (title, file) if file and title else (run, run)
        if (title, Path(file).resolve()) in seen:
            raise ValueError(f"{file} stands twice under the same title: seeds are runs of their own.")
        seen.add((title, Path(file).resolve()))
        if Path(file).suffix == ".json":
            raise ValueError(f"{file} holds numbers; the scores are the .safetensors in the folder of its name.")
        scores = RegionScores.load(file)
        read.setdefault(title, {}).setdefault(scores.facts.get("image_size"), []).append(scores)
    entries = []
    for title, sizes in read.items():
        if len(sizes) == 1:
            entries += [Entry(title, *sizes.values())]
        else:
            entries += [Entry(f"{title}, {size} pixels", found, line=title) for size, found in sizes.items()]
    return entries


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="TITLE=FILE", help="scores; the first title is compared with")
    parser.add_argument("--output", type=Path, required=True, help="HTML to write")
    parser.add_argument("--title", default="Dense features, evaluated")
    parser.add_argument("--annotations", type=Path, help="COCO-panoptic JSON, to show images")
    parser.add_argument("--images", type=Path, help="root of the images")
    parser.add_argument("--count", type=whole_number(), default=12, help="images to show")
    arguments = parser.parse_args(argv)
    if (arguments.annotations is None) != (arguments.images is None):
        parser.error("--annotations and --images belong together")
    pictures: Any = None
    if arguments.annotations is not None:
        pictures = Pictures(arguments.annotations, arguments.images, arguments.count)
    try:
        check_output(arguments.output)
        write_report(read_entries(arguments.runs), arguments.output, arguments.title, pictures)
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(str(error)) from error
    print(f"Written: {arguments.output}")


if __name__ == "__main__":
    main()
