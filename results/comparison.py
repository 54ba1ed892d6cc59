"""Several runs of train beside each other: a table, the validation accuracy as a plot, a page with both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from config import InputError
from learning.history import History
from learning.weights import load_checkpoint
from results.canvas import data_uri, new_figure, png
from results.figures import GREY
from results.report import render
from utils import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from limits.assignments import Assignment
    from limits.constraints import Constraint

PLOT = "validation-accuracy.png"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # told apart by the colour-blind
LINES = ("-", "--", ":", "-.")
COLUMNS = (
    "run",
    "data set",
    "epochs",
    "training loss",
    "accuracy",
    "validation loss",
    "accuracy",
    "test accuracy",
    "parameters",
    "seconds",
)


@dataclass
class Run:
    """What a training left behind."""

    name: str
    dataset: str
    card: dict[str, Any]
    history: History
    seconds: float
    """On the clock of the training."""
    is_finished: bool
    config: dict[str, Any] = field(default_factory=dict)
    """The fields of TrainConfig."""
    demands: list[Constraint] = field(default_factory=list)
    """Those of an assignment, where one was named."""

    @property
    def test_accuracy(self) -> float | None:
        """0 to 1; None where the run has not evaluated the test split."""
        return self.card.get("test_accuracy", self.history.test_accuracy)

    def cells(self) -> tuple[str, ...]:
        """What stands in COLUMNS; losses in nats, as they were at the last evaluation on the validation images."""
        name, evaluations = (self.name if self.is_finished else f"{self.name} (unfinished)"), self.history.evaluations
        looked = ("-",) * 5
        if evaluations:
            last = evaluations[-1]
            looked = (
                f"{last.epoch:.4g}",
                f"{last.train_loss:.3f}",
                f"{last.train_accuracy:.2%}",
                f"{last.val_loss:.3f}",
                f"{last.val_accuracy:.2%}",
            )
        test = "-" if self.test_accuracy is None else f"{self.test_accuracy:.2%}"
        parameters = f"{self.card['parameters']:,}" if "parameters" in self.card else "-"
        return name, self.dataset, *looked, test, parameters, f"{self.seconds:,.1f}"


def load_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs in the folders `paths`, named by these; raises InputError where one holds no run, or a damaged one."""
    return [_load_run(path) for path in paths]


def _load_run(path: Path) -> Run:
    record, checkpoint = path / "run.json", path / "checkpoint.pt"
    if not path.is_dir():
        raise InputError(f"there is no folder {path}: name one that train wrote, as runs/baseline-cifar10")
    # A run that was begun again in its folder has a checkpoint newer than the record of the one before.
    if record.exists() and not (checkpoint.exists() and checkpoint.stat().st_mtime_ns > record.stat().st_mtime_ns):
        try:
            values = json.loads(record.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"cannot read {record}: {error.strerror or error}") from error
        except ValueError as error:
            raise InputError(f"{record} is damaged: it is no JSON") from error
        finished = True
    elif checkpoint.exists():
        values, finished = load_checkpoint(checkpoint), False
    else:
        raise InputError(f"{path} holds no run: neither run.json nor checkpoint.pt is in it")
    file = record if finished else checkpoint
    try:
        found = _Record.model_validate(values)
        if len(found.history.seconds) != len(found.history.evaluations):
            raise InputError(f"{file} is not what train writes: history.seconds has not one for each of history.evaluations")
        seconds = found.history.total_seconds if finished else found.seconds
        return Run(str(path), found.card.dataset, values["card"], found.history, seconds, finished, found.config)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        place = ".".join(map(str, wrong["loc"]))
        raise InputError(f"{file} is not what train writes: {place or 'all'} is {wrong['input']!r:.60}: {wrong['msg']}") from error


class _Card(BaseModel):
    dataset: str
    parameters: int = 0
    test_accuracy: float | None = None


class _Record(BaseModel):
    """What is read of run.json, and of a checkpoint."""

    card: _Card
    config: dict[str, Any]
    history: History
    seconds: float = 0.0


def judge(runs: Sequence[Run], assignment: Assignment, model: str = "") -> None:
    """Give each run what the assignment demands of its network and of its training. `model` says where the user's own network is,
    FILE.py:CLASS, if not where a card says.

    Raises InputError where the weights of a run cannot be read, or where its network is of a file that is missing.
    """
    import torch

    from learning.inference import TrainedNetwork
    from results.demands import Training, of_all

    for run in runs:
        weights = Path(run.name) / ("model.safetensors" if run.is_finished else "checkpoint.pt")
        network = TrainedNetwork.load(weights, torch.device("cpu"), model)
        run.demands = of_all(assignment, network.model, Training(run.card, run.config, run.history))


def format_table(runs: Sequence[Run]) -> str:
    """The runs as aligned plain text, one a line."""
    rows = [COLUMNS, *(run.cells() for run in runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def write(runs: Sequence[Run], folder: Path, assignment: str = "") -> Path:
    """Write the plot and the page comparison.html into `folder`; returns the path of the page, which loads nothing from outside.

    `assignment` is the name of the one whose demands the runs have, where they have some.

    Raises InputError where `folder` cannot be written.
    """
    plot = png(validation_figure(runs))
    title = f"Run {runs[0].name}" if len(runs) == 1 else f"{len(runs)} runs"
    page = render(
        Path(__file__).with_name("comparison.html.jinja"),
        heading=title,
        runs=runs,
        columns=COLUMNS,
        plot=data_uri(plot),
        plot_text=_describe(runs),
        assignment=assignment,
    )
    write_atomically(folder / PLOT, plot)
    write_atomically(folder / "comparison.html", page.encode("utf-8", "replace"))
    return folder / "comparison.html"


def validation_figure(runs: Sequence[Run]) -> Figure:
    """The validation accuracy of each run over the epochs and over the clock, a star for the test accuracy where it is known."""
    last = max((run.seconds for run in runs), default=0)
    unit, size = ("hours", 3600) if last > 7200 else ("minutes", 60) if last > 180 else ("seconds", 1)
    figure = new_figure(5.2, 6 + 0.2 * len(runs))
    figure.suptitle("Validation accuracy", fontsize=12, fontweight="bold")
    by_epoch, by_clock = figure.subplots(2, 1)
    styles = cycle((colour, line) for line in LINES for colour in COLOURS)
    for run, (colour, line) in zip(runs, styles, strict=False):
        evaluations = run.history.evaluations
        accuracy = [100 * e.val_accuracy for e in evaluations]
        marker = "o" if len(evaluations) <= 40 else ""
        epochs, clock = [e.epoch for e in evaluations], [s / size for s in run.history.seconds]
        for axes, places, end in ((by_epoch, epochs, epochs[-1:]), (by_clock, clock, [run.seconds / size])):
            axes.plot(
                places, accuracy, line, color=colour, marker=marker, markersize=3.5, label=run.name if axes is by_epoch else None
            )
            if run.test_accuracy is not None and end:
                axes.plot(end, [100 * run.test_accuracy], "*", color=colour, markeredgecolor="white", markersize=11, zorder=5)
    if any(run.test_accuracy is not None for run in runs):
        by_epoch.plot([], [], "*", color=GREY, markersize=9, label="test accuracy at the end")
    by_epoch.set(xlabel="epochs", ylabel="accuracy (%)")
    by_clock.set(xlabel=f"time on the clock ({unit})", ylabel="accuracy (%)")
    for axes in (by_epoch, by_clock):
        axes.set_xlim(left=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e3e6ea", linewidth=0.8)
        axes.set_axisbelow(True)
    legend = figure.legend(loc="outside lower left", fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _describe(runs: Sequence[Run]) -> str:
    """The plot in words, for those who cannot see it."""
    ends = [(run.history.evaluations[-1], run) for run in runs if run.history.evaluations]
    if not ends:
        return "No run has been evaluated on its validation images yet."
    return (
        "Validation accuracy at the last evaluation: "
        + "; ".join(
            f"{run.name} {last.val_accuracy:.2%} after {last.epoch:.4g} epochs and {run.seconds:,.1f} s" for last, run in ends
        )
        + "."
    )
