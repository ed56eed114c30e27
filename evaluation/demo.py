# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""
A page in the browser: a photo, words, and what two models see in it.

    densevlm demo                                                       # the sandbox's models, before and after
    densevlm demo --models openai/clip-vit-base-patch16 runs/mine --examples photos/

Every pixel is named, or the cells of a grid, or boxes drawn by two clicks each. Needs the extra `demo` (gradio).
"""

import argparse
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from modeling_densevlm import CategorySet
from modeling_densevlm.command_line import one_line_errors, whole_number
from modeling_densevlm.image_files import IMAGE_SUFFIXES
from modeling_densevlm.shipped import MODEL_CARDS, model_source, shipped
from modeling_densevlm.templates import DEFAULT_TEMPLATES, TEMPLATES

from .demo_space import write_space
from .figures import map_figure, region_figure, subplots
from .predict import Predictor, grid_of
from .sandbox_scores import SANDBOX_TEMPLATES


SANDBOX_MODELS = ("densevlm-sandbox-u", "densevlm-sandbox")

VIEWS = ("every pixel", "cells of a grid", "boxes")

INTRODUCTION = """
# What is where?

A CLIP recognises whole images and often takes background for a thing. DenseVLM teaches it to name every region,
without annotation (Li et al., ICCV 2025). Enter words for **things** (countable: a kite) and **stuff** (background:
sky); the same photo is labelled by the model before and after that training. Things are hatched.
"""

TOY = "*These are toy models of the sandbox: they know these words alone, in drawn scenes like the examples.*"

WORDS = ("person, dog, car, boat, bicycle", "sky, water, road, grass, building")
"""Things and stuff that the page starts with, but for the sandbox's models."""


def read_vocabulary(things: str, stuff: str) -> CategorySet:
    """The categories of two lists of words, separated by commas or lines."""
    groups = [[word.strip() for word in re.split(r"[,\n]", text) if word.strip()] for text in (things, stuff)]
    return CategorySet("words", groups[0] + groups[1], [True] * len(groups[0]) + [False] * len(groups[1]))


def sandbox_words() -> tuple[str, str]:
    """The sandbox's things and stuff, as the page has them."""
    categories = CategorySet.load(shipped("scenes/categories.json"))
    things, stuff = (
        [name for name, flag in zip(categories.names, categories.things()) if flag == is_thing]
        for is_thing in (True, False)
    )
    return ", ".join(things), ", ".join(stuff)


def read_boxes(text: str) -> np.ndarray:
    """Boxes `(n, 4)` of lines of four numbers each, xyxy in pixels; corners in any order."""
    rows = []
    for line in filter(str.strip, text.splitlines()):
        try:
            x0, y0, x1, y1 = (float(number) for number in line.replace(",", " ").split())
        except ValueError:
            raise ValueError(f"A box is four numbers, x0 y0 x1 y1, in pixels; got {line.strip()!r}.") from None
        rows.append([min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)])
    return np.array(rows, np.float32).reshape(-1, 4)


def draw(
    predictor: Predictor, image: Image.Image, view: str, rows: int, columns: int, boxes: np.ndarray
) -> Image.Image:
    """The picture of what a model sees in an image: one of `VIEWS`."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "picture.png"
        pixels = np.asarray(image)
        if view == VIEWS[0]:
            labels = predictor.maps([image])[0]
            map_figure(file, pixels, labels, predictor.categories.names, predictor.categories.is_thing)
        else:
            boxes = grid_of(image, rows, columns) if view == VIEWS[1] else boxes
            region_figure(file, pixels, boxes, *predictor.regions([image], [boxes])[0])
        with Image.open(file) as picture:
            return picture.convert("RGB")


def make_handler(predictors: Sequence[Predictor], templates: str) -> Callable[..., list[Image.Image]]:
    """The function behind the button: from the values of the page to one picture per model."""

    def handle(
        image: Image.Image | None,
        things: str,
        stuff: str,
        view: str,
        rows: float,
        columns: float,
        boxes: str,
        offset: float,
    ) -> list[Image.Image]:
        if image is None:
            raise ValueError("Choose a photo first.")
        if view == VIEWS[2] and not boxes.strip():
            raise ValueError("Draw a box first: click on two of its corners in the photo.")
        categories = read_vocabulary(things, stuff)
        return [
            draw(
                predictor.set_categories(categories, templates, offset),
                image.convert("RGB"),
                view,
                int(rows),
                int(columns),
                read_boxes(boxes),
            )
            for predictor in predictors
        ]

    return handle


def build_page(
    sources: Sequence[str], examples: Sequence[Path] = (), templates: str = DEFAULT_TEMPLATES, device: str = "cpu"
) -> Any:
    """
    The page, as `gradio.Blocks`.

    Args:
        sources (sequence of `str`): folders or Hub names of the models, drawn beneath each other.
        examples (sequence of `Path`, *optional*): photos to choose from.
        templates (`str`, *optional*, defaults to the paper's): name of the prompt templates.
        device (`str`, *optional*, defaults to `"cpu"`): where the models run.

    Raises:
        `ImportError` without gradio or matplotlib.
    """
    try:
        import gradio
    except ImportError as error:
        raise ImportError("The demo needs gradio: install it, or this package with the extra `demo`.") from error
    subplots()  # raises without matplotlib
    predictors = [Predictor(source, device) for source in sources]
    handle = make_handler(predictors, templates)

    def run(*values: Any) -> Any:
        try:
            drawn = handle(*values)
            return drawn if len(drawn) > 1 else drawn[0]
        except ValueError as error:
            raise gradio.Error(str(error)) from error

    def click(boxes: str, corner: list[int] | None, event: gradio.SelectData) -> tuple[str, list[int] | None, str]:
        x, y = event.index
        if corner is None:
            return boxes, [x, y], VIEWS[2]
        return f"{boxes.rstrip()}\n{corner[0]} {corner[1]} {x} {y}".lstrip(), None, VIEWS[2]

    toy = are_shipped(sources)
    words = sandbox_words() if toy else WORDS
    with gradio.Blocks(title="DenseVLM: what is where?", analytics_enabled=False) as page:
        gradio.Markdown(INTRODUCTION + (f"\n{TOY}" if toy else ""))
        corner = gradio.State(None)
        with gradio.Row():
            with gradio.Column():
                image = gradio.Image(
                    value=Image.open(examples[0]).convert("RGB") if examples else None,
                    type="pil",
                    label="Photo (two clicks draw a box)",
                    sources=["upload", "clipboard"],
                )
                things = gradio.Textbox(words[0], label="Things")
                stuff = gradio.Textbox(words[1], label="Stuff")
                view = gradio.Radio(list(VIEWS), value=VIEWS[0], label="Name")
                offset = gradio.Slider(
                    -0.2, 0.2, value=0.0, step=0.01, label="δ, subtracted from the similarity of things"
                )
                with gradio.Row():
                    rows = gradio.Slider(1, 8, value=3, step=1, label="Rows of the grid")
                    columns = gradio.Slider(1, 8, value=4, step=1, label="Columns")
                boxes = gradio.Textbox(label="Boxes: x0 y0 x1 y1 in pixels, one per line", lines=2)
                button = gradio.Button("Name", variant="primary")
            with gradio.Column():
                pictures = [gradio.Image(label=title, interactive=False, format="png") for title in titles_of(sources)]
        if examples:
            gradio.Examples([[str(file)] for file in examples], inputs=[image], label="Examples")
        inputs = [image, things, stuff, view, rows, columns, boxes, offset]
        image.change(lambda: ("", None), None, [boxes, corner], show_progress="hidden")  # of another photo
        image.select(click, [boxes, corner], [boxes, corner, view], show_progress="hidden")
        # One at a time: they share the models, whose vocabulary each sets.
        button.click(run, inputs, pictures, api_name="predict", concurrency_id="models")
        private: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "models"}
        offset.release(run, inputs, pictures, **private)
        if examples:
            page.load(run, inputs, pictures, **private)
    return page


def are_shipped(sources: Sequence[str]) -> bool:
    """Whether all models are those of the sandbox."""
    return all(Path(source).parent == MODEL_CARDS for source in sources)


def titles_of(sources: Sequence[str]) -> list[str]:
    """Titles of the pictures."""
    names = [Path(source).name for source in sources]
    return [f"before: {names[0]}", f"after: {names[1]}"] if len(names) == 2 else names


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Starts the page."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models",
        type=model_source,
        nargs="+",
        help="folders or Hub names, e.g. of a CLIP and of the same after training; the sandbox's by default",
    )
    parser.add_argument("--examples", type=Path, help="folder of photos to choose from")
    parser.add_argument("--templates", choices=TEMPLATES, help="prompt templates")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--host", help="address to listen at; 0.0.0.0 for other machines, this one alone by default")
    parser.add_argument("--port", type=whole_number(), help="port; the first free one from 7860 on by default")
    parser.add_argument(
        "--space", type=Path, help="write a folder for a Space of the Hub instead of starting the page"
    )
    arguments = parser.parse_args(argv)
    if arguments.space is not None:
        if arguments.examples is not None:
            raise ValueError("--examples has no effect with --space: put photos into its folder model_cards/scenes.")
        write_space(arguments.space, arguments.models, arguments.templates)
        print(f"Written: {arguments.space}")
        return
    sources = arguments.models or [str(shipped(name)) for name in SANDBOX_MODELS]
    sandbox = are_shipped(sources)
    folder = arguments.examples or (shipped("scenes") if sandbox else None)
    examples = [] if folder is None else sorted(f for f in folder.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES)
    templates = arguments.templates or (SANDBOX_TEMPLATES if sandbox else DEFAULT_TEMPLATES)
    page = build_page(sources, examples, templates, arguments.device)
    launch(page, server_name=arguments.host, server_port=arguments.port)


def launch(page: Any, **options: Any) -> Any:
    """Starts the server of a page; fonts are the system's, so that nothing is fetched from elsewhere."""
    import gradio

    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    return page.launch(theme=theme, footer_links=[], **options)


if __name__ == "__main__":
    main()
