# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
r"""
Writes a report about evaluated models: a single HTML file, self-contained and readable offline.

    python -m evaluation.report "U=runs/eval/0-u-512.safetensors" "DenseVLM=runs/eval/1-d-512.safetensors" \
        --output report.html [--annotations panoptic_val2017.json --images val2017]

Each run is a score file written by `evaluation.evaluate_regions`, preceded by a title. Runs with the same title are
seeds of one model, or one model at several image sizes. The other models are compared with the first title. Given
annotations and images, the report shows sample images with each model's predictions for their regions.
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
from .report_data import (
    BALANCE_TITLES,
    MAX_SKIPPED_SHOWN,
    Pictures,
    ReportData,
    ReportModel,
    Sample,
    report_data,
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
    Writes the HTML report.

    Args:
        models (sequence of [`ReportModel`]): the models; the others are compared with the first.
        file (`str` or path): HTML file to write.
        title (`str`, *optional*, defaults to `"Dense features, evaluated"`): heading of the page.
        pictures ([`Pictures`], *optional*): sample images to show.
    """
    subplots()  # Fails without matplotlib, before anything is computed.
    categories = shared_categories(models)
    # First, as the image files may not match the scores.
    shown = [] if pictures is None else [(one, numbered_regions(one)) for one in samples(models, categories, pictures)]
    data = report_data(models, categories)
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.globals.update(zip=zip, zip_longest=itertools.zip_longest)
    environment.filters["mean"] = np.mean
    content = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=title,
        date=datetime.date.today(),
        models=models,
        data=data,
        is_thing=categories.things(),
        balance_titles=BALANCE_TITLES,
        max_skipped=MAX_SKIPPED_SHOWN,
        charts=draw_charts(models, data),
        samples=shown,
    )
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    # File names may not be valid UTF-8.
    Path(file).write_text(content, encoding="utf-8", errors="backslashreplace")


def draw_charts(models: Sequence[ReportModel], data: ReportData) -> dict[str, str | list[str]]:
    """The charts as data URLs: `sizes` (empty for a single image size), `balance`, and lists with one per model."""
    names, is_thing = list(map(str, data.categories.names)), data.categories.things()
    styles = [position if model.style is None else model.style for position, model in enumerate(models)]
    sizes = as_svg(lambda file: accuracy_chart(file, data.by_size)) if data.by_size else ""
    return {
        "sizes": sizes,
        "balance": as_svg(lambda file: balance_chart(file, data.curves, styles=styles)),
        "differences": [
            as_svg(lambda file, values=values: difference_chart(file, names, values, is_thing))
            for values in data.differences
        ],
        "confusions": [
            as_svg(lambda file, counts=counts: confusion_chart(file, counts, names, is_thing))
            for counts in data.confusions
        ],
    }


def as_svg(draw: Callable[[Path], None]) -> str:
    """A chart as a data URL; `draw` writes it to the given file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "chart.svg"
        draw(file)
        return f"data:image/svg+xml;base64,{base64.b64encode(file.read_bytes()).decode()}"


def numbered_regions(sample: Sample, side: int = 640) -> str:
    """An image with the boxes and numbers of its regions, as the data URL of a JPEG."""
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
    """Reads runs given as `title=file`; runs of one title and image size become one model, ordered by title."""
    by_title: dict[str, dict[int | None, list[RegionScores]]] = {}
    seen = set()
    for run in runs:
        # The path is the title of a file without one; an existing path may itself contain "=".
        title, _, file = ("", "", run) if Path(run).exists() else run.partition("=")
        title, file = (title, file) if file and title else (run, run)
        if (title, Path(file).resolve()) in seen:
            raise ValueError(f"{file} is given twice under the same title: seeds are separate runs.")
        seen.add((title, Path(file).resolve()))
        if Path(file).suffix == ".json":
            raise ValueError(
                f"{file} holds metrics; the scores are the .safetensors files in the folder of that name."
            )
        scores = RegionScores.load(file)
        by_title.setdefault(title, {}).setdefault(scores.provenance.get("image_size"), []).append(scores)
    models = []
    for title, sizes in by_title.items():
        if len(sizes) == 1:
            (runs_of_title,) = sizes.values()
            models.append(ReportModel(title, runs_of_title))
        else:
            models += [ReportModel(f"{title}, {size} pixels", found, line=title) for size, found in sizes.items()]
    return models


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the program with `argv`, by default the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="+", metavar="TITLE=FILE", help="score files; the others are compared with the first title"
    )
    parser.add_argument("--output", type=Path, required=True, help="HTML file to write")
    parser.add_argument("--title", default="Dense features, evaluated")
    parser.add_argument("--annotations", type=Path, help="COCO panoptic JSON, to show sample images")
    parser.add_argument("--images", type=Path, help="root folder of the images")
    parser.add_argument("--count", type=whole_number(), default=12, help="number of images to show")
    arguments = parser.parse_args(argv)
    if (arguments.annotations is None) != (arguments.images is None):
        parser.error("--annotations and --images must be given together")
    pictures = None
    if arguments.annotations is not None:
        pictures = Pictures(arguments.annotations, arguments.images, arguments.count)
    check_output(arguments.output)
    write_report(read_models(arguments.runs), arguments.output, arguments.title, pictures)
    print(f"Written: {arguments.output}")


if __name__ == "__main__":
    main()
