"""The curve of a learning-rate range test: as a figure, and in a line of text."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np

from results.canvas import new_figure
from results.figures import GREY, TRAIN_COLOUR, VAL_COLOUR

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from learning.range_test import Curve

BARS = "▁▂▃▄▅▆▇█"
PLAIN_BARS = "_.-=+*#@"  # for a terminal without those
COLUMNS = 50


def range_figure(curve: Curve) -> Figure:
    """Loss over learning rate, with the suggestion and what it comes from."""
    figure = new_figure(6.4, 4.2)
    figure.suptitle("Learning-rate range test", fontsize=12, fontweight="bold")
    axes = figure.subplots()
    axes.plot(curve.rates, curve.losses, ".", color=GREY, markersize=3, alpha=0.6, label="loss of a batch")
    axes.plot(curve.rates, curve.smoothed, color=TRAIN_COLOUR, label="smoothed")
    if curve.divergence is not None:
        axes.axvline(curve.divergence, color=GREY, linestyle="--", label=f"divergence: {curve.divergence:.2g}")
    axes.axvline(curve.steepest, color=GREY, linestyle=":", label=f"steepest descent: {curve.steepest:.2g}")
    axes.axvline(curve.suggestion, color=VAL_COLOUR, label=f"suggestion: {curve.suggestion:.2g}")
    bottom, top = _range(curve)
    margin = 0.08 * (top - bottom)
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss: cross-entropy (nats)")
    axes.set_ylim(bottom - margin, top + 4 * margin)
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e3e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure


def range_line(curve: Curve) -> str:
    """The smoothed loss as a row of bars, between the first and the last learning rate."""
    bottom, top = _range(curve)
    places = np.linspace(0, len(curve.smoothed) - 1, min(COLUMNS, len(curve.smoothed))).round().astype(int)
    heights = np.clip((curve.smoothed[places] - bottom) / (top - bottom), 0, 1)
    try:
        BARS.encode(sys.stdout.encoding or "utf-8")
        bars = BARS
    except UnicodeEncodeError:
        bars = PLAIN_BARS
    drawn = "".join(bars[round(height * (len(bars) - 1))] for height in heights)
    return f"loss {top:.2f} to {bottom:.2f}: {curve.rates[0]:.1g} {drawn} {curve.rates[-1]:.2g}"


def _range(curve: Curve) -> tuple[float, float]:
    """The lowest smoothed loss, and the one before anything is learned: what lies above it needs no scale."""
    return float(curve.smoothed.min()), float(curve.smoothed[: int(curve.smoothed.argmin()) + 1].max())
