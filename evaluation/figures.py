"""Pictures of what a model sees."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate


def classify_locations(dense_embeds: Tensor, text_embeds: Tensor, size: int) -> Tensor:
    """
    The best category at every pixel: cosines on the map, enlarged bilinearly, then the maximum.

    Args:
        dense_embeds (`Tensor` of shape `(batch, dim, height, width)`): unit norm.
        text_embeds (`Tensor` of shape `(categories, dim)`).
        size (`int`): side of the result in pixels.

    Returns:
        `Tensor` of shape `(batch, size, size)`: indices of categories.
    """
    cosines = torch.einsum("bdhw,cd->bchw", dense_embeds, text_embeds)
    return interpolate(cosines, size=(size, size), mode="bilinear", align_corners=False).argmax(1)


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
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = category_colours(is_thing)
    rows, columns = len(images), 1 + len(panels)
    figure, axes = plt.subplots(rows, columns, figsize=(1.9 * columns, 1.9 * rows + 0.3), squeeze=False)
    for row, image in enumerate(images):
        axes[row, 0].imshow(image)
        for column, labels in enumerate(panels.values(), 1):
            _draw_labels(axes[row, column], labels[row], names, is_thing, colours)
    for axis, title in zip(axes[0], ["scene", *panels]):
        axis.set_title(title, fontsize=10)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.subplots_adjust(0.005, 0.005, 0.995, 1 - 0.3 / (1.9 * rows + 0.3), 0.03, 0.03)
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)


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
