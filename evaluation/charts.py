# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Charts: confusion matrices, differences between models, balance curves, accuracy over image size."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .balance import BalanceCurve
from .figures import save_figure, subplots


COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, distinguishable with colour vision deficiency; lines also differ in dashes and markers."""
DASHES = ("-", "--", "-.", ":", (0, (6, 2, 1, 2, 1, 2)), (0, (1, 3)), (0, (8, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def confusion_chart(
    file: str | Path, counts: np.ndarray, names: Sequence[str], is_thing: Sequence[bool], title: str = ""
) -> None:
    r"""
    Draws a confusion matrix, things first, with lines between things and stuff (Fig. 7–10 of the paper): foreground
    bias shows at the lower left. Rows sum to 1; categories that are neither present nor predicted are omitted.

    Args:
        file (`str` or path): image file to write; its suffix selects the format.
        counts (`np.ndarray` of shape `(categories, categories)`): true categories as rows, predicted ones as columns.
        names (sequence of `str`): category names.
        is_thing (sequence of `bool`): whether each category is a thing.
        title (`str`, *optional*, defaults to `""`): title of the chart.
    """
    flags = np.array(is_thing, dtype=bool)
    used = (counts.sum(0) > 0) | (counts.sum(1) > 0)
    order = np.concatenate([np.flatnonzero(used & flags), np.flatnonzero(used & ~flags)])
    shares = counts[np.ix_(order, order)] / np.maximum(counts.sum(1)[order], 1)[:, None]
    count, things = len(order), int((used & flags).sum())
    side = min(max(0.19 * count + 2.2, 4.5), 24)
    figure, ((axis,),) = subplots(figsize=(side + 0.8, side))
    image = axis.imshow(shares, cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
    axis.set_xticks(range(count), [_short(names[i]) for i in order], rotation=90)
    axis.set_yticks(range(count), [_short(names[i]) for i in order])
    size = 8 if count <= 60 else 6
    axis.tick_params(labelsize=size, length=0)
    for number, label in enumerate([*axis.get_xticklabels(), *axis.get_yticklabels()]):
        label.set_style("italic" if number % count < things else "normal")
    if 0 < things < count:
        axis.axhline(things - 0.5, color="white", linewidth=1.5)
        axis.axvline(things - 0.5, color="white", linewidth=1.5)
        for position, text in ((things / 2, "things"), ((things + count) / 2, "stuff")):
            axis.text((position - 0.5), -0.8, text, ha="center", va="bottom", fontsize=9)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    figure.suptitle(title, fontsize=11)
    figure.colorbar(image, ax=axis, shrink=0.6, label="share of the category's regions")
    save_figure(figure, file)


def difference_chart(
    file: str | Path,
    names: Sequence[str],
    differences: np.ndarray,
    is_thing: Sequence[bool],
    title: str = "",
    max_shown: int = 20,
) -> None:
    r"""
    Draws the categories with the largest gains and losses of a model over another (Fig. 4 of the paper).

    Args:
        file (`str` or path): image file to write; its suffix selects the format.
        names (sequence of `str`): category names.
        differences (`np.ndarray` of shape `(categories,)`): differences in accuracy, -1..1; NaN omits a category.
        is_thing (sequence of `bool`): whether each category is a thing.
        title (`str`, *optional*, defaults to `""`): title of the chart.
        max_shown (`int`, *optional*, defaults to 20): maximal number of gains and of losses.
    """
    rows = np.flatnonzero(~np.isnan(differences) & (differences != 0))
    rows = rows[np.argsort(differences[rows], kind="stable")]
    if len(rows) > 2 * max_shown:
        rows = np.concatenate([rows[:max_shown], rows[-max_shown:]])
    shown = rows.tolist()
    figure, ((axis,),) = subplots(figsize=(6.4, 0.24 * max(len(shown), 4) + 1.2))
    for position, row in enumerate(shown):
        thing = bool(is_thing[row])
        axis.barh(
            position,
            100 * differences[row],
            color=COLOURS[1] if thing else COLOURS[0],
            hatch="///" if thing else None,
            edgecolor="white",
        )
    axis.set_yticks(range(len(shown)), [_short(names[row]) for row in shown], fontsize=8)
    for label, row in zip(axis.get_yticklabels(), shown):
        label.set_style("italic" if is_thing[row] else "normal")
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_xlabel("difference in accuracy, percentage points")
    from matplotlib.patches import Rectangle

    handles = [
        Rectangle((0, 0), 1, 1, facecolor=COLOURS[1], hatch="///", edgecolor="white", label="things"),
        Rectangle((0, 0), 1, 1, facecolor=COLOURS[0], label="stuff"),
    ]
    axis.legend(handles=handles, fontsize=8, loc="lower right")
    axis.set_title(title, fontsize=11)
    save_figure(figure, file)


def balance_chart(
    file: str | Path,
    curves: Mapping[str, Sequence[BalanceCurve]],
    title: str = "",
    styles: Sequence[int] | None = None,
) -> None:
    r"""
    Draws Masks-S over Masks-T for all offsets of the thing scores. The marker is the uncalibrated model, at zero
    offset; the further out a curve lies, the better the model discriminates. Grey lines: equal harmonic mean.

    Args:
        file (`str` or path): image file to write; its suffix selects the format.
        curves (mapping of titles to sequences of [`BalanceCurve`]): per model one curve per seed; those after
            the first are drawn thinner.
        title (`str`, *optional*, defaults to `""`): title of the chart.
        styles (sequence of `int`, *optional*): number of the colour, dashes and marker per model; 0, 1 ... by default.
    """
    figure, ((axis,),) = subplots(figsize=(6.2, 5.6))
    ends = [(curve.thing.max(), curve.stuff.max()) for of_model in curves.values() for curve in of_model]
    right, top = (100 * min(1.0, max(1.08 * max(end), 0.01)) for end in zip(*ends))
    x, y = np.meshgrid(np.linspace(0.1, right, 200), np.linspace(0.1, top, 200))
    levels = axis.contour(x, y, 2 * x * y / (x + y), levels=8, colors="0.85", linewidths=0.8)
    axis.clabel(levels, fmt="%.0f", fontsize=7, colors="0.6")
    for number, (name, of_model) in zip(styles or range(len(curves)), curves.items()):
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
        for seed, curve in enumerate(of_model):
            style = {"color": colour, "linestyle": dash, "linewidth": 1.8 if seed == 0 else 0.8}
            axis.plot(100 * curve.thing, 100 * curve.stuff, label=name if seed == 0 else None, **style)
            point = (100 * accuracy for accuracy in curve.uncalibrated)
            axis.plot(*point, marker=MARKERS[number % len(MARKERS)], color=colour, markersize=7 if seed == 0 else 4)
    axis.set_xlim(0, right)
    axis.set_ylim(0, top)
    axis.set_xlabel("Masks-T, top-1 in %")
    axis.set_ylabel("Masks-S, top-1 in %")
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncol=2, frameon=False)
    axis.set_title(title, fontsize=11)
    save_figure(figure, file)


def accuracy_chart(
    file: str | Path,
    rows: Sequence[Mapping[str, Any]],
    over: str = "image_size",
    metrics: Mapping[str, str] | None = None,
    xlabel: str = "image side in pixels",
) -> None:
    r"""
    Draws accuracies of each model over the image size (Table 10 of the paper) or over the number of training images
    (Fig. 6).

    Args:
        file (`str` or path): image file to write; its suffix selects the format.
        rows (sequence of `dict`): rows of metrics of `evaluation.evaluate_regions`, with the keys `model` and `over`.
        over (`str`, *optional*, defaults to `"image_size"`): key of the horizontal axis.
        metrics (mapping of keys to titles, *optional*): one panel each; Boxes, Masks-T and Masks-S by default.
        xlabel (`str`, *optional*): label of the horizontal axis.
    """
    metrics = metrics or {"boxes_top1": "Boxes", "masks_thing_top1": "Masks-T", "masks_stuff_top1": "Masks-S"}
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, axes = subplots(1, len(metrics), (3.4 * len(metrics), 3.2))
    for axis, (key, name) in zip(axes[0], metrics.items()):
        for number, model in enumerate(models):
            points = sorted((row[over], 100 * row[key]) for row in rows if row["model"] == model and key in row)
            style = {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number % len(DASHES)]}
            marker = MARKERS[number % len(MARKERS)]
            axis.plot(*zip(*points), marker=marker, markersize=5, label=str(model), **style)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel(xlabel, fontsize=9)
        axis.grid(color="0.9")
        axis.tick_params(labelsize=8)
    axes[0, 0].set_ylabel("top-1 in %", fontsize=9)
    axes[0, 0].legend(fontsize=8)
    save_figure(figure, file)


def training_chart(
    file: str | Path, history: Sequence[Mapping[str, float]], evaluations: Mapping[int, Mapping[str, float]]
) -> None:
    r"""
    Draws a run over its steps: the loss, the share of regions that denoising keeps, and accuracies of the student.

    Args:
        file (`str` or path): image file to write; its suffix selects the format.
        history (sequence of `dict`): the `log_history` of a `trainer_state.json`, of a DenseVLM run.
        evaluations (mapping of steps to `dict`): metrics of `evaluation.evaluate_regions` at checkpoints.
    """
    figure, ((loss, kept, accuracy),) = subplots(1, 3, (10.5, 3.0))
    rows = [entry for entry in history if "loss" in entry]
    steps = [entry["step"] for entry in rows]
    loss.plot(steps, [entry["loss"] for entry in rows], color=COLOURS[0])
    loss.set_title("loss", fontsize=10)
    kept.plot(steps, [100 * entry["regions_kept"] / max(entry["regions"], 1) for entry in rows], color=COLOURS[0])
    kept.set_title("kept regions in %", fontsize=10)
    kept.set_ylim(0, 100)
    titles = {"masks_thing_top1": "Masks-T", "masks_stuff_top1": "Masks-S", "foreground_bias": "stuff called a thing"}
    for number, (key, title) in enumerate(titles.items()):
        values = [100 * metrics[key] for metrics in evaluations.values()]
        style = {"color": COLOURS[number], "linestyle": DASHES[number], "marker": MARKERS[number], "markersize": 4}
        accuracy.plot(list(evaluations), values, label=title, **style)
    accuracy.set_title("validation scenes, in %", fontsize=10)
    accuracy.set_ylim(0, 100)
    accuracy.legend(fontsize=8)
    for axis in (loss, kept, accuracy):
        axis.set_xlabel("step", fontsize=9)
        axis.grid(color="0.9")
        axis.tick_params(labelsize=8)
    save_figure(figure, file)


def _short(name: str, max_shown: int = 22) -> str:
    first = name.split(",")[0]
    return first if len(first) <= max_shown else f"{first[: max_shown - 1]}…"


__all__ = ["accuracy_chart", "balance_chart", "confusion_chart", "difference_chart", "training_chart"]
