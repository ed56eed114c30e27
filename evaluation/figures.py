# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Figures of predictions on images: dense maps, similarities to texts, regions of a grid."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modeling_densevlm.categories import is_thing_group
from modeling_densevlm.command_line import check_output


def subplots(
    rows: int = 1, columns: int = 1, figsize: tuple[float, float] = (6, 4), **options: Any
) -> tuple[Any, np.ndarray]:
    """
    Creates a matplotlib figure and its axes, `(rows, columns)`, without touching the global state of pyplot; `options`
    are those of `Figure.subplots`.

    Raises:
        `ImportError` if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Figures need matplotlib: install it, or this package with the extra `figures`.") from error
    figure = Figure(figsize=figsize)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def save_figure(figure: Any, file: str | Path, dpi: int = 120, bbox_inches: str | None = "tight") -> None:
    """Writes a figure, in the format of the file's suffix."""
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=dpi, bbox_inches=bbox_inches)


def check_picture(file: Path, option: str = "--output") -> None:
    """Raises a `ValueError` that names the option if no figure can be written to a file; see [`check_output`]."""
    subplots()  # raises without matplotlib
    from matplotlib.backend_bases import FigureCanvasBase

    formats = FigureCanvasBase.get_supported_filetypes()
    if file.suffix[1:].lower() not in formats:
        raise ValueError(f"{option}: {file} must end in an image format, one of {', '.join(sorted(formats))}.")
    check_output(file, option=option)


def location_figure(
    file: str | Path,
    images: Sequence[np.ndarray],
    panels: Mapping[str, Sequence[np.ndarray]],
    names: Sequence[str],
    is_thing: Sequence[bool],
    notes: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """
    Draws one row per image: the image, then one panel per model with the colour and name of the category predicted at
    each location. Things are hatched and their names in italics, so that colour is not the only cue. Letters are large
    enough for the width of a phone.

    Args:
        file (`str` or path): image file to write; its suffix selects the format.
        images (sequence of `np.ndarray` of shape `(height, width, 3)`, uint8): the images, of any sizes.
        panels (mapping of titles to sequences of `np.ndarray` of shape `(height, width)`):
            Category indices per image.
        names (sequence of `str`): category names.
        is_thing (sequence of `bool`): whether each category is a thing.
        notes (mapping of titles to sequences of `str`, *optional*): lines beneath the panels of a model, per image.
    """
    notes = notes or {}
    colours = category_colours(is_thing)
    shapes = [image.shape[0] / image.shape[1] for image in images]
    below = 0.45 if notes else 0.0  # inches
    width = 1.75  # inches: small beside the letters, so that these are legible at the width of a phone
    heights = [width * max(shape, 0.6) + below for shape in shapes]
    columns = 1 + len(panels)
    figure, axes = subplots(
        len(images), columns, (width * columns, sum(heights) + 0.4), gridspec_kw={"height_ratios": heights}
    )
    for row, image in enumerate(images):
        axes[row, 0].imshow(image)
        for column, (title, labels) in enumerate(panels.items(), 1):
            _draw_labels(axes[row, column], labels[row], names, is_thing, colours)
            if title in notes:
                axes[row, column].text(
                    0.5,
                    -0.02,
                    notes[title][row],
                    transform=axes[row, column].transAxes,
                    fontsize=11,
                    ha="center",
                    va="top",
                )
    for axis, title in zip(axes[0], ["scene", *panels]):
        axis.set_title(title, fontsize=13)
    for axis in axes.flat:
        axis.set_axis_off()
    top = 1 - 0.35 / (sum(heights) + 0.4)
    figure.subplots_adjust(0.005, below / (sum(heights) + 0.4), 0.995, top, 0.03, below / np.mean(heights) + 0.02)
    save_figure(figure, file, dpi=140, bbox_inches=None)


def similarity_figure(
    file: str | Path,
    image: np.ndarray,
    similarities: Mapping[str, Mapping[str, np.ndarray]],
) -> None:
    """
    Draws the similarity of each location of an image to texts, for several models (Fig. 5 of the paper). Each map is
    scaled from its smallest to its largest similarity, printed below: only locations within one map are comparable.

    Args:
        file (`str` or path): image file to write; its suffix selects the format.
        image (`np.ndarray` of shape `(height, width, 3)`, uint8): the image.
        similarities (mapping of models to mappings of texts to `np.ndarray` of shape `(height, width)`): cosines; all
            models have the same texts.
    """
    texts = list(next(iter(similarities.values())))
    height, width = image.shape[:2]
    cell = 2.3
    size = (cell * (1 + len(texts)), (cell * height / width + 0.45) * len(similarities))
    figure, axes = subplots(len(similarities), 1 + len(texts), size)
    for row, (model, maps) in zip(axes, similarities.items()):
        row[0].imshow(image)
        row[0].set_title(model, fontsize=9)
        for axis, text in zip(row[1:], texts):
            cosines = maps[text]
            axis.imshow(image)
            axis.imshow(cosines, cmap="magma", alpha=0.75, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
            axis.set_title(text, fontsize=9)
            axis.text(
                0.5,
                -0.03,
                f"{cosines.min():.2f} to {cosines.max():.2f}",
                transform=axis.transAxes,
                ha="center",
                va="top",
                fontsize=7,
            )
    for axis in axes.flat:
        axis.set_axis_off()
    save_figure(figure, file)


def grid_figure(
    file: str | Path,
    image: np.ndarray,
    boxes: np.ndarray,
    panels: Mapping[str, tuple[Sequence[str], np.ndarray]],
    threshold: float = 0.3,
) -> None:
    """
    Draws the predicted category and probability of each cell of a grid; cells that training would drop are crossed out
    (Fig. 11 of the paper).

    Args:
        file (`str` or path): image file to write; its suffix selects the format.
        image (`np.ndarray` of shape `(height, width, 3)`, uint8): the image.
        boxes (`np.ndarray` of shape `(cells, 4)`): xyxy in pixels.
        panels (mapping of titles to `(names, probabilities)`): per model the best category of each cell and its
            probability.
        threshold (`float`, *optional*, defaults to 0.3): cells with a probability of at most this are dropped.
    """
    from matplotlib.patches import Rectangle

    height, width = image.shape[:2]
    figure, axes = subplots(1, len(panels), (4.2 * len(panels), 4.2 * height / width + 0.4))
    for axis, (title, (names, probabilities)) in zip(axes[0], panels.items()):
        axis.imshow(image)
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
        for (x0, y0, x1, y1), name, probability in zip(boxes, names, probabilities):
            kept = probability > threshold
            axis.add_patch(
                Rectangle((x0, y0), x1 - x0, y1 - y0, fill=not kept, facecolor=(0, 0, 0, 0.55), edgecolor="white")
            )
            if not kept:
                axis.plot([x0, x1], [y0, y1], color="white", linewidth=0.6)
            axis.text(
                (x0 + x1) / 2,
                (y0 + y1) / 2,
                f"{name}\n{probability:.2f}",
                ha="center",
                va="center",
                fontsize=7,
                bbox={"facecolor": "white", "alpha": 0.8 if kept else 0.45, "edgecolor": "none", "pad": 1},
            )
    save_figure(figure, file)


def map_figure(
    file: str | Path,
    image: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    is_thing: Sequence[bool | int] | None = None,
    smallest: float = 0.005,
) -> None:
    """
    Draws an image beside its map of categories, with a legend beneath. Things are hatched, their names in italics.

    Args:
        file (`str` or path): image file to write; its suffix selects the format.
        image (`np.ndarray` of shape `(height, width, 3)`, uint8): the image.
        labels (`np.ndarray` of shape `(height, width)`): category indices.
        names (sequence of `str`): category names.
        is_thing (sequence of `bool` or `int`, *optional*): flags or groups of the categories; `None` if not known.
        smallest (`float`, *optional*, defaults to 0.005): categories with a smaller share are not in the legend.
    """
    from matplotlib.patches import Patch

    present, areas = np.unique(labels, return_counts=True)
    present = present[np.argsort(-areas)]
    things = [False if is_thing is None else is_thing_group(is_thing[label]) for label in present]
    colours = np.zeros((len(names), 3))
    colours[present] = category_colours(things) if is_thing is not None else _distinct_colours(len(present))
    height, width = image.shape[:2]
    shown = [(label, thing) for label, thing in zip(present, things) if (labels == label).mean() >= smallest]
    rows = -(-len(shown) // 3)
    tall = 3.4 * height / width
    figure, axes = subplots(1, 2, (7, tall + 0.3 * rows + 0.1))
    axes[0, 0].imshow(image)
    axes[0, 1].imshow(colours[labels], interpolation="nearest")
    thing_pixels = np.isin(labels, present[np.array(things, dtype=bool)])
    if thing_pixels.any() and not thing_pixels.all():
        axes[0, 1].contourf(thing_pixels, levels=[0.5, 1.5], colors="none", hatches=["///"])
    for axis in axes.flat:
        axis.set_axis_off()
    patches = [
        Patch(facecolor=colours[label], hatch="///" if thing else None, label=names[label]) for label, thing in shown
    ]
    bottom = (0.3 * rows + 0.1) / (tall + 0.3 * rows + 0.1)
    figure.subplots_adjust(0.005, bottom, 0.995, 0.995, 0.02, 0)
    legend = figure.legend(handles=patches, loc="lower center", ncols=3, fontsize=13, frameon=False)
    for text, (_, thing) in zip(legend.get_texts(), shown):
        text.set_style("italic" if thing else "normal")
    save_figure(figure, file, dpi=150, bbox_inches=None)


def region_figure(
    file: str | Path, image: np.ndarray, boxes: np.ndarray, names: Sequence[str], probabilities: np.ndarray
) -> None:
    """
    Draws the category and probability of each box of an image.

    Args:
        file (`str` or path): image file to write; its suffix selects the format.
        image (`np.ndarray` of shape `(height, width, 3)`, uint8): the image.
        boxes (`np.ndarray` of shape `(n, 4)`): xyxy in pixels.
        names (sequence of `str`): the category of each box.
        probabilities (`np.ndarray` of shape `(n,)`): their probabilities.
    """
    from matplotlib.patches import Rectangle

    height, width = image.shape[:2]
    figure, axes = subplots(1, 1, (7, 7 * height / width))
    axis = axes[0, 0]
    axis.imshow(image)
    axis.set_axis_off()
    colour_of = dict(zip(dict.fromkeys(names), _distinct_colours(len(set(names)))))
    for (x0, y0, x1, y1), name, probability in zip(boxes, names, probabilities):
        axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour_of[name], linewidth=2.5))
        axis.text(
            x0,
            y0,
            f"{name} {probability:.2f}",
            va="top",
            fontsize=13,
            clip_on=True,
            bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": colour_of[name], "pad": 1.5},
        )
    axis.set_xlim(-0.5, width - 0.5)
    axis.set_ylim(height - 0.5, -0.5)
    figure.subplots_adjust(0, 0, 1, 1)
    save_figure(figure, file, dpi=150, bbox_inches=None)


def _distinct_colours(count: int) -> np.ndarray:
    """`(count, 3)` colours, 0..1, of which the first ones differ most."""
    import matplotlib

    palette = matplotlib.colormaps["tab20"](np.arange(20))[:, :3]  # pairs of a dark and a light one
    return np.concatenate([palette[::2], palette[1::2]])[np.arange(count) % 20]


def category_colours(is_thing: Sequence[bool]) -> np.ndarray:
    """RGB per category, `(categories, 3)`, 0..1: pale blue to green for stuff, warm saturated colours for things."""
    import matplotlib

    thing, stuff = matplotlib.colormaps["autumn"], matplotlib.colormaps["GnBu"]
    counts = {True: max(sum(map(bool, is_thing)), 1), False: max(len(is_thing) - sum(map(bool, is_thing)), 1)}
    used = {True: 0, False: 0}
    colours = []
    for flag in map(bool, is_thing):
        share = used[flag] / counts[flag]
        used[flag] += 1
        colours.append((thing(share) if flag else stuff(0.15 + 0.7 * share))[:3])
    return np.array(colours)


def _draw_labels(
    axis, labels: np.ndarray, names: Sequence[str], is_thing: Sequence[bool], colours: np.ndarray
) -> None:
    axis.imshow(colours[labels], interpolation="nearest")
    axis.contourf(np.isin(labels, np.flatnonzero(is_thing)), levels=[0.5, 1.5], colors="none", hatches=["///"])
    placed: list[tuple[float, float]] = []
    categories, areas = np.unique(labels, return_counts=True)
    for category in categories[np.argsort(-areas)]:
        if (spot := _label_spot(labels == category, placed)) is None:
            continue
        placed.append(spot)
        axis.text(
            *spot,
            names[category],
            ha="center",
            va="center",
            fontsize=12,
            style="italic" if is_thing[category] else "normal",
            bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "boxstyle": "round,pad=0.1"},
        )


def _label_spot(where: np.ndarray, placed: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """
    The location of a category nearest to its centroid whose label does not overlap those already `placed`, as `(x,
    y)`; `None` if the category is too small or there is no space left.
    """
    y, x = np.nonzero(where)
    side = where.shape[1]
    if len(y) < 0.03 * where.size:
        return None
    # The label's half width and height; it must stay within the picture.
    free = (x > 0.26 * side) & (x < 0.74 * side) & (y > 0.07 * side) & (y < where.shape[0] - 0.07 * side)
    for other_x, other_y in placed:
        free &= (np.abs(x - other_x) > 0.55 * side) | (np.abs(y - other_y) > 0.15 * side)
    if not free.any():
        return None
    distance = np.where(free, (y - y.mean()) ** 2 + (x - x.mean()) ** 2, np.inf)
    nearest = int(distance.argmin())
    return float(x[nearest]), float(y[nearest])
