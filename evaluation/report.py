# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
A page about models and their metrics: one HTML file that needs nothing else, no network either.

    python -m evaluation.report "U=runs/eval/0-u-512.safetensors" "DenseVLM=runs/eval/1-d-512.safetensors" \\
        --output report.html [--annotations panoptic_val2017.json --images val2017]

Each run is a file of scores that `evaluation.evaluate_regions` has written, with a title before it. Runs of the same
title are seeds of one model, or the model at several sizes of its images. The first title is what the others are
compared with. With the annotations and images, the page shows some of them, and what each model predicts for their
regions.
"""

import argparse
import base64
import datetime
import io
import itertools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image, ImageDraw

from modeling_densevlm.command_line import check_output, one_line_errors, whole_number
from modeling_densevlm.image_processing_densevlm import load_image

from .charts import accuracy_chart, balance_chart, confusion_chart, difference_chart
from .figures import subplots
from .report_numbers import (
    BALANCE_TITLES,
    MAX_SKIPPED_SHOWN,
    Pictures,
    ReportModel,
    ReportNumbers,
    Sample,
    report_numbers,
    samples,
    shared_categories,
)
from .scores import RegionScores


TEMPLATE = Path(__file__).with_name("report_template.html")


def write_report(
    models: Sequence[ReportModel],
    file: str | Path,
    title: str = "Dense features, evaluated",
    pictures: Pictures | None = None,
) -> None:
    r"""
    Args:
        models (sequence of [`ReportModel`]): the first is what the others are compared with.
        file (path): HTML to write.
        pictures ([`Pictures`], *optional*): images to page through.
    """
    subplots()  # Nothing is computed where nothing can be drawn.
    categories = shared_categories(models)
    # First: their files may be others.
    shown = [] if pictures is None else [(one, numbered_regions(one)) for one in samples(models, categories, pictures)]
    numbers = report_numbers(models, categories)
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.globals.update(zip=zip, zip_longest=itertools.zip_longest)
    environment.filters["mean"] = np.mean
    content = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=title,
        date=datetime.date.today(),
        models=models,
        numbers=numbers,
        is_thing=categories.things(),
        balance_titles=BALANCE_TITLES,
        max_skipped=MAX_SKIPPED_SHOWN,
        charts=draw_charts(models, numbers),
        samples=shown,
    )
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    # Names of files may be no UTF-8.
    Path(file).write_text(content, encoding="utf-8", errors="backslashreplace")


def draw_charts(models: Sequence[ReportModel], numbers: ReportNumbers) -> dict[str, str | list[str]]:
    """The charts as data addresses: `sizes` (empty without several sizes), `balance`, and of others one each."""
    names, is_thing = numbers.categories.names, numbers.categories.things()
    sizes = as_svg(lambda file: accuracy_chart(file, numbers.by_size)) if numbers.by_size else ""
    return {
        "sizes": sizes,
        "balance": as_svg(lambda file: balance_chart(file, numbers.curves)),
        "differences": [
            as_svg(lambda file, values=values: difference_chart(file, names, values, is_thing))
            for values in numbers.differences
        ],
        "confusions": [
            as_svg(lambda file, counts=counts: confusion_chart(file, counts, names, is_thing))
            for counts in numbers.confusions
        ],
    }


def as_svg(draw: Callable[[Path], None]) -> str:
    """A chart as a data address: `draw` writes it to the file it is given."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "chart.svg"
        draw(file)
        return f"data:image/svg+xml;base64,{base64.b64encode(file.read_bytes()).decode()}"


def numbered_regions(sample: Sample, side: int = 640) -> str:
    """An image with the boxes and numbers of its regions, a JPEG as a data address."""
    try:
        content = _draw_regions(load_image(sample.file), sample.boxes, side)
    except Exception as error:  # a damaged file can raise anything in a decoder
        raise ValueError(f"{sample.file}: {type(error).__name__}: {error}") from error
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"


def _draw_regions(image: Image.Image, boxes: Sequence[Sequence[float]], side: int) -> bytes:
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
    return buffer.getvalue()


def read_models(runs: Sequence[str]) -> list[ReportModel]:
    """`title=file` each; those of one title and one size become one model, in the order of the titles."""
    read: dict[str, dict[int | None, list[RegionScores]]] = {}
    seen = set()
    for run in runs:
        # A file without a title, though it may have the sign in its path, has its path as title.
        title, _, file = ("", "", run) if Path(run).exists() else run.partition("=")
        title, file = (title, file) if file and title else (run, run)
        if (title, Path(file).resolve()) in seen:
            raise ValueError(f"{file} stands twice under the same title: seeds are runs of their own.")
        seen.add((title, Path(file).resolve()))
        if Path(file).suffix == ".json":
            raise ValueError(f"{file} holds metrics; the scores are the .safetensors in the folder of its name.")
        scores = RegionScores.load(file)
        read.setdefault(title, {}).setdefault(scores.provenance.get("image_size"), []).append(scores)
    models = []
    for title, sizes in read.items():
        if len(sizes) == 1:
            models += [ReportModel(title, *sizes.values())]
        else:
            models += [ReportModel(f"{title}, {size} pixels", found, line=title) for size, found in sizes.items()]
    return models


@one_line_errors()
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
    pictures = None
    if arguments.annotations is not None:
        pictures = Pictures(arguments.annotations, arguments.images, arguments.count)
    check_output(arguments.output)
    write_report(read_models(arguments.runs), arguments.output, arguments.title, pictures)
    print(f"Written: {arguments.output}")


if __name__ == "__main__":
    main()
