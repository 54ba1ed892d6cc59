"""The figures of a run: learning curves, confusion matrix, most confident mistakes.

Each `..._figure` function takes plain data and returns a new matplotlib figure, or draws into the sub-figure it is given;
`canvas.png` renders one. pyplot and its global state are not used.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from results.canvas import new_figure, picture_grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    from images.data import Split
    from learning.history import History

TRAIN_COLOUR, VAL_COLOUR, GREY = "#0072b2", "#d55e00", "#5f6368"  # blue and vermilion: told apart by the colour-blind
NUM_MISTAKES = 16
MAX_NAMED_CLASSES = 20  # with more, numbers are not legible in the cells of a confusion matrix
MAX_SIDE = 20  # inches of a confusion matrix: enough for the names of 150 classes
MIN_FONT = 6  # points


def curves_figure(
    history: History, target: float | None = None, test_accuracy: float | None = None, into: SubFigure | None = None
) -> Figure | SubFigure:
    """Loss, accuracy and learning rate of a run over the images seen; the clock in seconds along the top.

    A point is an epoch where whole epochs were evaluated, and an evaluation otherwise. `target` and `test_accuracy` (0 to 1) are
    drawn as a line and as a point where training stopped.
    """
    figure = into or new_figure(5.2, 6.6)
    figure.suptitle("Learning curves", fontsize=12, fontweight="bold")
    history = by_epoch(history)
    evaluations = history.evaluations
    if not evaluations:
        figure.text(0.5, 0.5, "no evaluation was made", ha="center", color=GREY)
        return figure
    loss, accuracy, rate = figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 2])
    images = [e.images_seen for e in evaluations]
    marker = "o" if len(images) <= 40 else ""

    def plot(axes: Axes, values: list[float], label: str, colour: str, line: str = "-") -> None:
        axes.plot(images, values, line, color=colour, marker=marker, markersize=3.5, label=label)

    plot(loss, [e.train_loss for e in evaluations], "training", TRAIN_COLOUR)
    plot(loss, [e.val_loss for e in evaluations], "validation", VAL_COLOUR, "--")
    plot(accuracy, [100 * e.train_accuracy for e in evaluations], "training", TRAIN_COLOUR)
    plot(accuracy, [100 * e.val_accuracy for e in evaluations], "validation", VAL_COLOUR, "--")
    plot(rate, [e.learning_rate for e in evaluations], "learning rate", TRAIN_COLOUR)
    if target is not None:
        accuracy.axhline(100 * target, color=GREY, linestyle=":", label=f"target {100 * target:.4g}%")
    if test_accuracy is not None:
        accuracy.plot(
            [history.images_seen],
            [100 * test_accuracy],
            "*",
            color="black",
            markersize=11,
            clip_on=False,
            zorder=5,
            label=f"test {test_accuracy:.2%}",
        )
    loss.set_ylabel("loss: cross-entropy (nats)")
    accuracy.set_ylabel("accuracy (%)")
    rate.set(xlabel="images seen", ylabel="learning rate")
    rate.set_ylim(0, 1.08 * max(e.learning_rate for e in evaluations))
    loss.legend(fontsize=8)
    accuracy.legend(fontsize=8)
    for axes in (loss, accuracy, rate):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e3e6ea", linewidth=0.8)
        axes.set_axisbelow(True)
    _images_and_time(loss, history)
    return figure


def by_epoch(history: History) -> History:
    """`history` with one evaluation an epoch, where two epochs or more ended with one.

    Training loss and accuracy are then means over the epoch.
    """
    at_ends = [i for i, one in enumerate(history.evaluations) if abs(one.epoch - round(one.epoch)) < 1e-6]
    if len(at_ends) < 2 or len(at_ends) == len(history.evaluations):
        return history
    means = []
    for start, end in itertools.pairwise([-1, *at_ends]):
        within = history.evaluations[start + 1 : end + 1]
        loss, accuracy = (float(np.mean([getattr(one, name) for one in within])) for name in ("train_loss", "train_accuracy"))
        means.append(replace(within[-1], train_loss=loss, train_accuracy=accuracy))
    return replace(history, evaluations=means, seconds=[history.seconds[i] for i in at_ends])


def confusion_figure(
    labels: np.ndarray, predictions: np.ndarray, classes: Sequence[str], into: SubFigure | None = None
) -> Figure | SubFigure:
    """The confusion matrix of N class indices `labels` and `predictions`, each row normalised to the images of its true class.

    The axes carry names: all where there is room for them, else every second, third ... one. Up to 20 classes have their cells
    filled with percentages and counts (where a sub-figure has the room).
    """
    from matplotlib.ticker import PercentFormatter
    from sklearn.metrics import confusion_matrix

    num_classes = len(classes)
    has_numbers = num_classes <= MAX_NAMED_CLASSES
    side = min(MAX_SIDE, max(5.2, (0.44 if has_numbers else 0.13) * num_classes + 0.8))
    figure = into or new_figure(side, side)
    figure.suptitle("Confusion matrix", fontsize=12, fontweight="bold")
    axes = figure.subplots()
    indices = np.arange(num_classes)
    counts = confusion_matrix(labels, predictions, labels=indices)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted class", ylabel="true class")
    room = 72 * 0.72 * min(figure.bbox.width, figure.bbox.height) / figure.dpi / num_classes  # points for each class
    size = min(9, max(MIN_FONT, 0.85 * room))
    shown = indices[:: math.ceil(1.15 * size / room)]
    names = [short_name(classes[i]) for i in shown]
    turn = 45 if has_numbers else 90
    axes.set_xticks(shown, names, rotation=turn, ha="right", va="center_baseline", rotation_mode="anchor", parse_math=False)
    axes.set_yticks(shown, names, parse_math=False)
    axes.tick_params(labelsize=size, length=0)
    if not has_numbers:
        bar = figure.colorbar(picture, ax=axes, shrink=0.8, format=PercentFormatter(1))
        bar.set_label("share of the true class's images")
        return figure
    cell = 72 * 0.72 * figure.bbox.width / figure.dpi / num_classes  # points; names and margins take the rest of the width
    for true, predicted in np.argwhere(counts) if cell > 18 else ():
        share = shares[true, predicted]
        axes.text(
            predicted,
            true,
            f"{share:.0%}\n{counts[true, predicted]:,}",
            ha="center",
            va="center",
            fontsize=min(12, 0.27 * cell),
            color="white" if share > 0.7 else "black",
        )
    return figure


def mistakes_figure(
    images: np.ndarray,
    labels: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    columns: int = 8,
    into: SubFigure | None = None,
) -> Figure | SubFigure:
    """The most confident mistakes, each with the predicted class, its probability and the true class.

    `images` is (N, H, W, C) uint8 with C 1 or 3, `labels` (N,) class indices, `probabilities` (N, num_classes).
    """
    rows = NUM_MISTAKES // columns
    figure = into or new_figure(1.6 * columns, 2.1 * rows + 0.4)
    figure.suptitle("Most confident mistakes", fontsize=12, fontweight="bold")
    chosen = confident_mistakes(labels, probabilities)
    if not len(chosen):
        figure.text(0.5, 0.5, f"no mistakes on {len(labels):,} images", ha="center", color=GREY)
        return figure
    for axes, i in zip(picture_grid(figure, rows, columns).flat, chosen, strict=False):
        image = images[i]
        axes.imshow(image[..., 0] if image.shape[2] == 1 else image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        predicted, true = short_name(classes[probabilities[i].argmax()], 10), short_name(classes[labels[i]], 10)
        axes.set_title(f"{predicted} {probabilities[i].max():.0%}\ntrue: {true}", fontsize=9, parse_math=False)
    return figure


def run_figure(
    title: str, history: History, target: float | None, test: Split, probabilities: np.ndarray, classes: Sequence[str]
) -> Figure:
    """Curves, confusion matrix and mistakes side by side."""
    figure = new_figure(16, 7)
    figure.suptitle(short_name(title, 110), fontsize=14, parse_math=False)
    left, middle, right = figure.subfigures(1, 3, squeeze=False, width_ratios=[5, 6, 5], wspace=0.02)[0]
    predictions = probabilities.argmax(1)
    curves_figure(history, target, float((predictions == test.labels).mean()), into=left)
    confusion_figure(test.labels, predictions, classes, into=middle)
    mistakes_figure(test.images, test.labels, probabilities, classes, columns=4, into=right)
    return figure


def confident_mistakes(labels: np.ndarray, probabilities: np.ndarray, count: int = NUM_MISTAKES) -> np.ndarray:
    """Indices of the wrong predictions among `probabilities` (N, num_classes), at most `count`, the most probable one first."""
    wrong = np.flatnonzero(probabilities.argmax(1) != labels)
    return wrong[np.argsort(-probabilities[wrong].max(1), kind="stable")][:count]


def short_name(name: str, length: int = 16) -> str:
    """`name` on one line of at most `length` characters, the middle left out where need be."""
    name = " ".join(name.encode("utf-8", "replace").decode().split())
    return name if len(name) <= length else f"{name[: length // 2]}…{name[len(name) - (length - 1) // 2 :]}"


def _images_and_time(axes: Axes, history: History) -> None:
    """The x axis in images, and above `axes` the same on the clock (not quite proportional: evaluations take time too)."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    images = [e.images_seen for e in history.evaluations]
    last = history.seconds[-1]
    unit, size = ("hours", 3600) if last > 7200 else ("minutes", 60) if last > 180 else ("seconds", 1)
    ticks = [t for t in MaxNLocator(6).tick_values(0, last / size) if t * size <= last]
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlim(0, 1.03 * max(images[-1], history.images_seen))
    clock = axes.secondary_xaxis("top")
    clock.set_ticks(np.interp(np.multiply(ticks, size), [0, *history.seconds], [0, *images]), [f"{t:g}" for t in ticks])
    clock.set_xlabel(unit)
    clock.spines["top"].set_visible(False)
