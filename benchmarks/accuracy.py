"""The results of docs/accuracy.md: its table, and the plots of accuracy against parameters and of the learning curves.

    python benchmarks/accuracy.py            # from the records in docs/records/; draws docs/accuracy*.png and docs/learning.png
    python benchmarks/accuracy.py --readme   # and puts the table into README.md and docs/accuracy.md

Nothing is trained: a record is the run.json that `./run.sh train --preset NAME --dataset cifar10` leaves in its folder,
copied to docs/records/NAME.json, or with the preset's own data set instead. The learning curves are those of CIFAR-10.
How long fast85 and fast90 take to their targets, over seeds, is in NAME-seeds.json, which
`./run.sh sprint --preset NAME --dataset cifar10 --seeds 5 --json FILE` writes.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


from benchmarks import run_command
from config import InputError
from learning.presets import PRESETS
from results.documents import replace_between
from utils import ROOT, machine

RECORDS = ROOT / "docs" / "records"
MARKERS = ("<!-- accuracy-table -->", "<!-- /accuracy-table -->")
# Name, parameters, test accuracy; the sources are in docs/accuracy.md. DenseNet's was the best epoch's on the test set.
REFERENCES = {
    "cifar10": (
        ("cifar10-tiniest", 97_530, 0.944),
        ("DenseNet-BC-40", 176_122, 0.9357),
        ("CondenseNet-50", 220_000, 0.9378),
        ("ResNet-20", 272_474, 0.9125),
    ),
    "cifar100": (
        ("DenseNet-BC-40", 188_092, 0.7159),
        ("ResNet-20 alone", 280_000, 0.696),
        ("ResNet-20 with a teacher", 280_000, 0.737),
    ),
}
# What is known without the number of parameters: a line across the plot.
LEVELS = {"cifar10": ("best of the course, any size", 0.883), "cifar100": ("speedrun of 2026", 0.752)}
DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
COLOURS = {
    "fast85": "#56b4e9",
    "fast90": "#0072b2",
    "slim": "#009e73",
    "accurate": "#d55e00",
    "teacher": "#5f6368",
    "cifar100": "#cc79a7",
}


@dataclass
class Results:
    """Draw the plots of docs/accuracy.md from the records and print its table."""

    readme: bool = False
    """Put the table into README.md and docs/accuracy.md."""

    def run(self) -> int:
        paths = {name: RECORDS / f"{name}.json" for name in COLOURS}
        records = {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}
        if not records:
            raise InputError(f"there are no records in {RECORDS}: train a preset and copy its run.json there (--help says how)")
        for dataset, plot in (("cifar10", "accuracy.png"), ("cifar100", "accuracy-cifar100.png")):
            plot_parameters(dataset, on(dataset, records), ROOT / "docs" / plot)
        plot_learning(on("cifar10", records), ROOT / "docs" / "learning.png")
        text = table(records)
        print(text)
        if self.readme:
            for name in ("README.md", "docs/accuracy.md"):
                replace_between(ROOT / name, MARKERS, text)
        return 0


def on(dataset: str, records: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Those of the records that were trained on this data set."""
    return {name: record for name, record in records.items() if record["card"]["dataset"] == dataset}


def table(records: dict[str, dict[str, Any]]) -> str:
    """The records as a Markdown table; seconds over seeds where there is a record of them."""
    rows = ["| preset | parameters | mult-adds | epochs | time | validation | test |", "|---|---|---|---|---|---|---|"]
    for name, record in records.items():
        card = record["card"]
        cells = (
            f"`{name}`: {PRESETS[name].about}",
            f"{card['parameters']:,}",
            f"{card['mult_adds'] / 1e6:.1f} M",
            f"{card['epochs']:g}",
            duration(card["seconds"]),
            f"{card['val_accuracy']:.2%}",
            f"{card['test_accuracy']:.2%}",
        )
        rows.append(f"| {' | '.join(cells)} |")
    notes = ["The whole pipeline is included. The time covers training and validation."]
    alike: dict[str, list[str]] = {}
    for name, record in records.items():
        card = record["card"]
        what = f"{DATASETS.get(card['dataset'], card['dataset'])}, seed {record['config']['seed']}, on {machine(card)}"
        alike.setdefault(what, []).append(f"`{name}`")
    notes += [f"{', '.join(names)}: {what}." for what, names in alike.items()]
    for name in records:
        path = RECORDS / f"{name}-seeds.json"
        if path.exists():
            seeds = json.loads(path.read_text())
            command = seeds["command"].replace("python main.py", "./run.sh")  # as older records say it
            notes.append(
                f"`{name}` to more than {seeds['target']:.0%} on the whole test split, {len(seeds['runs'])} seeds, each in a "
                f"fresh process: median {seeds['median_seconds']:.0f} s ({seeds['min_seconds']:.0f} to "
                f"{seeds['max_seconds']:.0f}), {seeds['misses']} missed: `{command}`. {machine(seeds)}."
            )
    return "\n".join([*rows, "", *(f"- {note}" for note in notes)])


def duration(seconds: float) -> str:
    """In the unit that people would say it in."""
    return f"{seconds:.0f} s" if seconds < 180 else f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def plot_parameters(dataset: str, records: dict[str, dict[str, Any]], path: Path) -> None:
    """Test accuracy against parameters, ours beside the references on that data set, as a PNG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, PercentFormatter

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.axvline(200_000, color="#5f6368", linestyle="--", linewidth=1)
    axes.annotate(
        "limit of the assignment",
        (200_000, 0.25),
        xycoords=("data", "axes fraction"),
        xytext=(4, 0),
        textcoords="offset points",
        color="#5f6368",
        fontsize=9,
        rotation=90,
        va="center",
    )
    level, reached = LEVELS[dataset]
    axes.axhline(reached, color="#5f6368", linestyle=":", linewidth=1)
    axes.annotate(
        f"{level} {reached:.1%}",
        (0.99, reached),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        color="#5f6368",
        fontsize=9,
        ha="right",
    )
    points = [(name, parameters, accuracy, "#000000", "x") for name, parameters, accuracy in REFERENCES[dataset]]
    points += [
        (name, record["card"]["parameters"], record["card"]["test_accuracy"], COLOURS[name], "o")
        for name, record in records.items()
    ]
    heights: dict[str, float] = {}  # of the last label on the left of the limit, right of it, and far to the right
    for name, parameters, accuracy, colour, marker in sorted(points, key=lambda point: point[2]):
        axes.plot(parameters, accuracy, marker, color=colour, markersize=8)
        is_just_above = 200_000 < parameters < 1e6  # a label on its left would lie on the limit
        place = "right" if is_just_above else "left" if parameters < 1e6 else "far"
        heights[place] = height = max(accuracy, heights.get(place, 0) + 0.004)  # nor may two labels lie on each other
        axes.annotate(
            f"{name} {accuracy:.2%}",
            (parameters, accuracy),
            xytext=(8 if is_just_above else -8, height),
            textcoords=("offset points", "data"),
            fontsize=9,
            color=colour,
            ha="left" if is_just_above else "right",
            va="center",
        )
    axes.set(xscale="log", xlabel="parameters", ylabel="test accuracy", title=f"{DATASETS[dataset]}: accuracy against parameters")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlim(2e4, 3 * max(point[1] for point in points))
    axes.margins(y=0.1)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    print(f"plot in {path}")


def plot_learning(records: dict[str, dict[str, Any]], path: Path) -> None:
    """Validation accuracy against minutes of training, all runs in one, as a PNG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter, StrMethodFormatter

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, record in records.items():
        history = record["history"]
        axes.plot(
            [seconds / 60 for seconds in history["seconds"]],
            [e["val_accuracy"] for e in history["evaluations"]],
            ".-",
            color=COLOURS[name],
            label=name,
        )
    axes.set(
        xscale="log", ylim=(0.6, 1), xlabel="minutes of training", ylabel="validation accuracy", title="CIFAR-10: learning curves"
    )
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150)
    print(f"plot in {path}")


if __name__ == "__main__":
    sys.exit(run_command(Results, __doc__))
