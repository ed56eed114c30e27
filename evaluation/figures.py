# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures of what a model sees."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modeling_densevlm.command_line import check_output


def subplots(rows: int = 1, columns: int = 1, figsize: tuple[float, float] = (6, 4)) -> tuple[Any, np.ndarray]:
    """
    A figure of matplotlib and its axes, `(rows, columns)`: not one of pyplot's, whose state is the caller's.

    Raises:
        `ImportError` where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Figures need matplotlib: install it, or this package with the extra `figures`.") from error
    figure = Figure(figsize=figsize)
    return figure, figure.subplots(rows, columns, squeeze=False)


def save_figure(figure: Any, file: str | Path, dpi: int = 120, bbox_inches: str | None = "tight") -> None:
    """Writes a picture of the kind that the suffix says."""
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=dpi, bbox_inches=bbox_inches)


def check_picture(file: Path, option: str = "--output") -> None:
    """Raises a `ValueError` that names the option where no picture can be written to a file: see [`check_output`]."""
    subplots()  # without matplotlib, nothing can
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = FigureCanvasBase.get_supported_filetypes()
    if file.suffix[1:].lower() not in kinds:
        raise ValueError(f"{option}: {file} is to end in the kind of picture, one of {', '.join(sorted(kinds))}.")
    check_output(file, option=option)


def location_figure(
    file: str | Path,
    images: Sequence[np.ndarray],
    panels: Mapping[str, np.ndarray],
    names: Sequence[str],
    is_thing: Sequence[bool],
) -> None:
    """
    A row a scene: the image, then one panel a model in which every location has the colour and the name of the
    category given to it. Things are hatched and their names in italics, so that nothing hangs on colour alone.

    Args:
        file (path): picture to write; the suffix says which kind.
        images (sequence of `(height, width, 3)` arrays): uint8.
        panels (mapping of titles to `(images, height, width)` arrays): indices of categories.
        names, is_thing (sequences): of the categories.
    """
    colours = category_colours(is_thing)
    rows, columns = len(images), 1 + len(panels)
    figure, axes = subplots(rows, columns, figsize=(1.9 * columns, 1.9 * rows + 0.3))
    for row, image in enumerate(images):
        axes[row, 0].imshow(image)
        for column, labels in enumerate(panels.values(), 1):
            _draw_labels(axes[row, column], labels[row], names, is_thing, colours)
    for axis, title in zip(axes[0], ["scene", *panels]):
        axis.set_title(title, fontsize=10)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.subplots_adjust(0.005, 0.005, 0.995, 1 - 0.3 / (1.9 * rows + 0.3), 0.03, 0.03)
    save_figure(figure, file, dpi=110, bbox_inches=None)


def similarity_figure(
    file: str | Path,
    image: np.ndarray,
    similarities: Mapping[str, Mapping[str, np.ndarray]],
) -> None:
    """
    How similar each location of an image is to typed texts, for several models (Fig. 5 of the paper). Each map is
    scaled from its least to its largest similarity, which stand beneath it: only places within one map compare.

    Args:
        file (path): picture to write.
        image (`(height, width, 3)` array): uint8.
        similarities (mapping of models to mappings of texts to `(height, width)` arrays): cosines, of the same texts.
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
            found = maps[text]
            axis.imshow(image)
            axis.imshow(found, cmap="magma", alpha=0.75, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
            axis.set_title(text, fontsize=9)
            axis.text(
                0.5, -0.03, f"{found.min():.2f} to {found.max():.2f}", transform=axis.transAxes, ha="center", va="top",
                fontsize=7,
            )  # fmt: skip
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
    What each cell of a grid is called and how surely; cells that training would drop are crossed out (Fig. 11 of the
    paper).

    Args:
        file (path): picture to write.
        image (`(height, width, 3)` array): uint8.
        boxes (`(cells, 4)` array): xyxy in pixels.
        panels (mapping of titles to `(names, probabilities)`): of each model the best category of each cell, and its
            probability.
        threshold (`float`, *optional*, defaults to 0.3): cells whose probability is not above it are dropped.
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


def category_colours(is_thing: Sequence[bool]) -> np.ndarray:
    """`(categories, 3)`: stuff in pale tones of blue to green, things in warm, strong ones."""
    import matplotlib

    thing, stuff = matplotlib.colormaps["autumn"], matplotlib.colormaps["GnBu"]
    counts = {True: max(sum(map(bool, is_thing)), 1), False: max(len(is_thing) - sum(map(bool, is_thing)), 1)}
    seen = {True: 0, False: 0}
    colours = []
    for flag in map(bool, is_thing):
        share = seen[flag] / counts[flag]
        seen[flag] += 1
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
            fontsize=7,
            style="italic" if is_thing[category] else "normal",
            bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "boxstyle": "round,pad=0.15"},
        )


def _label_spot(where: np.ndarray, placed: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """
    The location of a category nearest to its middle whose label hides none of those `placed`, as `(x, y)`; `None` for
    a category that is too small or has no room.
    """
    y, x = np.nonzero(where)
    side = where.shape[0]
    if len(y) < 0.02 * where.size:
        return None
    room = np.ones(len(y), dtype=bool)
    for other_x, other_y in placed:
        room &= (np.abs(x - other_x) > 0.3 * side) | (np.abs(y - other_y) > 0.08 * side)
    if not room.any():
        return None
    distance = np.where(room, (y - y.mean()) ** 2 + (x - x.mean()) ** 2, np.inf)
    nearest = int(distance.argmin())
    return float(x[nearest]), float(y[nearest])
