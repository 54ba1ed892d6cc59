"""Figures without pyplot and its global state: made, drawn with fonts for any script, written as PNG."""

from __future__ import annotations

import base64
import contextlib
import functools
import io
import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure, FigureBase

DEFAULT_FONT = "DejaVu Sans"  # matplotlib's own


def new_figure(width: float, height: float) -> Figure:
    """A white figure of that size in inches."""
    from matplotlib.figure import Figure

    return Figure((width, height), layout="constrained", facecolor="white")


def picture_grid(figure: FigureBase, rows: int, columns: int) -> np.ndarray:
    """(rows, columns) Axes for pictures and their titles: without frame and ticks, which would take half of the time to draw."""
    grid = figure.subplots(rows, columns, squeeze=False, subplot_kw={"xticks": (), "yticks": ()})
    for axes in grid.flat:
        axes.set_axis_off()
    return grid


def png(figure: Figure, dpi: int = 160) -> bytes:
    """`figure` as a PNG file, byte for byte the same for the same figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    figure.set_dpi(dpi)
    with _any_script(figure):
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def pixels(figure: Figure) -> np.ndarray:
    """`figure` as (H, W, 3) uint8, RGB."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    with _any_script(figure):
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


@contextlib.contextmanager
def _any_script(figure: Figure) -> Iterator[None]:
    """Draw inside the block with whatever fonts of this machine have the characters of `figure` that matplotlib's own lacks.

    Characters that no font has become boxes, without a warning for each.
    """
    from matplotlib.text import Text

    texts = figure.findobj(Text)
    missing = {ord(c) for text in texts for c in text.get_text() if c.isprintable()} - _characters(DEFAULT_FONT)
    if missing:
        families = [DEFAULT_FONT, *_families_with(frozenset(missing))]
        for text in texts:
            text.set_fontfamily(families)
    log = logging.getLogger("matplotlib.font_manager")  # it complains of fonts that have no bold
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")
            yield
    finally:
        log.setLevel(level)


@functools.cache
def _characters(family: str) -> frozenset[int]:
    """The code points that the regular font of `family` has."""
    from matplotlib import font_manager

    return frozenset(font_manager.get_font(font_manager.findfont(family)).get_charmap())


@functools.cache
def _families_with(missing: frozenset[int]) -> tuple[str, ...]:
    """Families of installed fonts that together have as many of the code points `missing` as any has, the most useful first."""
    from matplotlib import font_manager

    families, left = [], set(missing)
    found: dict[str, set[int]] = {}
    for font in font_manager.fontManager.ttflist:
        with contextlib.suppress(RuntimeError, OSError):  # a damaged font file
            found.setdefault(font.name, left & set(font_manager.get_font(font.fname).get_charmap()))
    while found and (best := max(found, key=lambda name: len(found[name] & left))) and found[best] & left:
        families.append(best)
        left -= found.pop(best)
    return tuple(families)


def data_uri(data: bytes) -> str:
    """A PNG file as an address that holds all of it."""
    return "data:image/png;base64," + base64.b64encode(data).decode()
