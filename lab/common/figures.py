"""Figures that the experiments need. Each function takes plain data and returns a PNG file, or with captions Figures of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypedDict

import numpy as np

from lab.common.page import Figure
from results.canvas import new_figure, png
from results.figures import GREY, TRAIN_COLOUR, VAL_COLOUR, confusion_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lab.common.trainings import Outcome
    from learning.history import History

Line = Literal["-", "--", ":"]
# Okabe & Ito's, told apart by the colour-blind; further series take other lines.
COLOURS = (TRAIN_COLOUR, VAL_COLOUR, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
LINES: tuple[Line, ...] = ("-", "--", ":")


class Style(TypedDict):
    """How a series is drawn."""

    color: str
    linestyle: Line


def style(index: int) -> Style:
    """Colour and line of the series of that number."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": LINES[index // len(COLOURS) % len(LINES)]}


def tidy(*axes: Axes) -> None:
    """No frame on the right and above, a light grid."""
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(color="#e3e6ea", linewidth=0.8)
        each.set_axisbelow(True)


def loss_and_accuracy(histories: Sequence[History]) -> bytes:
    """Training and validation loss and accuracy over epochs; the first run drawn strongly, the others lightly."""
    figure = new_figure(9.6, 3.8)
    loss, accuracy = figure.subplots(1, 2)
    for i, history in reversed(list(enumerate(histories))):
        epochs = [e.epoch for e in history.evaluations]
        alpha, width = (1.0, 1.8) if i == 0 else (0.25, 1.0)
        for axes, names, factor in ((loss, ("train_loss", "val_loss"), 1), (accuracy, ("train_accuracy", "val_accuracy"), 100)):
            for name, label, number in zip(names, ("training", "validation"), (0, 1), strict=True):
                axes.plot(
                    epochs,
                    [factor * getattr(e, name) for e in history.evaluations],
                    LINES[number],
                    color=COLOURS[number],
                    label=label if i == 0 else None,
                    alpha=alpha,
                    linewidth=width,
                )
    loss.set(xlabel="epoch", ylabel="loss: cross-entropy (nats)", ylim=(0, None))
    accuracy.set(xlabel="epoch", ylabel="accuracy (%)")
    loss.legend(fontsize=9)
    tidy(loss, accuracy)
    return png(figure, 110)


def learning_curves(runs: Mapping[str, Sequence[Outcome]], x: Sequence[float], xlabel: str) -> list[Figure]:
    """Validation loss and accuracy over training, a curve for each name: of its runs, all evaluated at `x`, the mean, and as a band
    the least and the largest value."""
    seeds = len(next(iter(runs.values())))
    figures = []
    for kind, factor, label in (("loss", 1, "validation loss (nats)"), ("accuracy", 100, "validation accuracy (%)")):
        figure = new_figure(7.6, 4.4)
        axes = figure.subplots()
        for index, (name, outcomes) in enumerate(runs.items()):
            values = [[factor * getattr(e, f"val_{kind}") for e in outcome.history.evaluations] for outcome in outcomes]
            axes.plot(x, np.mean(values, 0), label=name, linewidth=1.8, **style(index))
            axes.fill_between(x, np.min(values, 0), np.max(values, 0), color=style(index)["color"], alpha=0.12, linewidth=0)
        axes.set(xlabel=xlabel, ylabel=label)
        if kind == "loss":
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:g}")
            axes.tick_params(which="minor", labelsize=7)
        figure.legend(loc="outside right upper", fontsize=9)
        tidy(axes)
        caption = f"The {label} over training: mean over {seeds} seeds; band: minimum to maximum."
        figures.append(Figure(f"{kind}-curves", png(figure, 110), caption))
    return figures


def points_with_spread(
    panels: Mapping[str, Mapping[str, Mapping[int, Sequence[float]]]],
    xlabel: str,
    ylabel: str,
    x_names: Mapping[int, str] | None = None,
    zero: bool = False,
) -> bytes:
    """Mean and standard deviation of each series' values at each x (logarithmic), in titled panels; `zero` draws that line."""
    figure = new_figure(max(7.6, 3.7 * len(panels) + 0.4), 4.2)
    for axes, (title, series) in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items(), strict=True):
        draw_points(axes, series, x_names)
        axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
        axes.label_outer()
        if zero:
            axes.axhline(0, color=GREY, linewidth=1)
    axes.legend(fontsize=9)
    return png(figure, 110)


def draw_points(axes: Axes, series: Mapping[str, Mapping[int, Sequence[float]]], x_names: Mapping[int, str] | None) -> None:
    """One panel of `points_with_spread`."""
    for index, (label, values) in enumerate(series.items()):
        spread = [float(np.std(v, ddof=1)) if len(v) > 1 else 0.0 for v in values.values()]
        axes.errorbar(
            list(values),
            [np.mean(v) for v in values.values()],
            spread,
            label=label,
            marker="o",
            markersize=5,
            capsize=3,
            linewidth=1.6,
            **style(index),
        )
    places = sorted({place for values in series.values() for place in values})
    axes.set_xscale("log")
    axes.set_xticks(places, [x_names[place] if x_names else f"{place:,}" for place in places])
    axes.minorticks_off()
    tidy(axes)


def bars(groups: Mapping[str, Mapping[str, Sequence[float]]], ylabel: str, log: bool = False) -> bytes:
    """A bar for each group and label, its mean, with the least and largest value."""
    figure = new_figure(8.6, 4.2)
    axes = figure.subplots()
    labels = list(next(iter(groups.values())))
    width = 0.8 / len(labels)
    for index, label in enumerate(labels):
        values = [group[label] for group in groups.values()]
        means = np.array([np.mean(v) for v in values])
        reach = np.abs([[mean - min(v), max(v) - mean] for mean, v in zip(means, values, strict=True)]).T
        places = np.arange(len(groups)) + (index - (len(labels) - 1) / 2) * width
        axes.bar(
            places, means, width * 0.92, yerr=reach, capsize=2, label=label, color=style(index)["color"], error_kw={"linewidth": 1}
        )
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set(ylabel=ylabel, **({"yscale": "log"} if log else {}))
    figure.legend(loc="outside right upper", fontsize=9)
    tidy(axes)
    return png(figure, 110)


def image_grid(rows: Mapping[str, Sequence[np.ndarray]], titles: Sequence[str] = (), signed: bool = True) -> bytes:
    """Pictures (H, W) in named rows, each row with one scale: blue below zero, red above where `signed`, else grey."""
    columns = max(len(row) for row in rows.values())
    side = max(1.0, 6 / columns)  # inches
    figure = new_figure(side * columns + 1.9, 1.12 * side * len(rows) + 0.4)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for number, (line, (name, pictures)) in enumerate(zip(grid, rows.items(), strict=True)):
        largest = max((float(np.abs(picture).max()) for picture in pictures), default=0) or 1
        look = {"cmap": "RdBu_r", "vmin": -largest, "vmax": largest} if signed else {"cmap": "gray", "vmin": 0, "vmax": largest}
        for axes in line:
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_frame_on(False)
        for axes, picture in zip(line, pictures, strict=False):
            drawn = axes.imshow(picture, interpolation="nearest", **look)
        if number == 0:
            for axes, title in zip(line, titles, strict=False):
                axes.set_title(title, fontsize=8, parse_math=False)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        ticks = [-largest, 0, largest] if signed else [0, largest]
        bar = figure.colorbar(drawn, ax=list(line), fraction=0.05, pad=0.01, ticks=ticks)
        bar.ax.set_yticklabels([f"{value:.2g}" for value in bar.get_ticks()], fontsize=7)
        bar.outline.set_visible(False)
    return png(figure, 110)


def confusion(labels: np.ndarray, predictions: Sequence[int], classes: Sequence[str]) -> bytes:
    """The confusion matrix of a test split."""
    from matplotlib.figure import Figure as Drawing

    figure = confusion_figure(labels, np.asarray(predictions), classes)
    assert isinstance(figure, Drawing), "it is one of its own unless it is drawn into another"
    return png(figure, 110)


def confusions(named: Mapping[str, Sequence[int]], labels: np.ndarray, classes: Sequence[str]) -> bytes:
    """Several confusion matrices of the same test split, two in a row."""
    rows = (len(named) + 1) // 2
    figure = new_figure(12, 5.8 * rows)
    panels = figure.subfigures(rows, 2, squeeze=False).flat
    for panel, (name, predictions) in zip(panels, named.items(), strict=False):
        confusion_figure(labels, np.asarray(predictions), classes, into=panel)
        panel.suptitle(name, fontsize=12, fontweight="bold")
    return png(figure, 90)
