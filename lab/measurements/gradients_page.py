"""The command that measures the gradients, and the table, the words and the plot that it puts into docs/model.md."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from config import InputError
from lab.common.quick import demand_whole, load
from lab.common.statements import compare
from learning.presets import get_preset
from results.documents import measured_on, replace_between
from utils import ROOT, STATED, demand_writable

if TYPE_CHECKING:
    from lab.measurements.gradients import Run

PAGE = ROOT / "docs" / "model.md"
MARKERS = "<!-- gradients -->", "<!-- /gradients -->"
BATCHES = 10
STEPS = 400  # of a preset that counts its budget in epochs
STAGES = ("at initialisation", "after training")
COLOURS = ("#0072b2", "#d55e00", "#009e73")


@dataclass
class Gradients:
    """Measure the gradients' norms by layer, before and after a sprint's training, and how residual sums and GAP change them."""

    preset: str = "sprint"
    """Preset of the network and its training, which lasts one OneCycle (400 steps if the preset counts in epochs)."""
    dataset: str = "auto"
    """cifar10, cifar100, mnist, fashion_mnist, digits, shapes, folder:PATH or npz:FILE."""
    data_dir: Path = ROOT / "data"
    """Folder that holds the data sets; missing public ones are downloaded to it."""
    seeds: int = 5
    """Trainings of each variant."""
    quick: bool = False
    """One seed, ten steps, on shapes: a check that the command works, not a result."""
    out: Annotated[Path | None, STATED] = None
    """Where the plot goes (default: runs/gradients.png, with --quick runs/gradients-quick.png)."""
    docs: bool = False
    """Put table, words and plot into docs/model.md."""

    def run(self) -> int:
        demand_whole(self.quick, self.docs)
        preset = get_preset(self.preset)
        if self.seeds < 1:
            raise InputError("--seeds must be 1 or more")
        from lab.measurements.gradients import measure

        default = ROOT / "runs" / f"gradients{'-quick' if self.quick else ''}.png"
        out = PAGE.with_name("gradients.png") if self.docs else self.out or default
        demand_writable(out.parent)
        dataset = load(self.dataset, self.quick, self.data_dir)
        steps = 10 if self.quick else preset.train.steps or STEPS
        runs = measure(self.preset, dataset, 1 if self.quick else self.seeds, 2 if self.quick else BATCHES, steps)
        text = in_words(runs)
        plot(runs, out)
        print(f"{text}\n\nplot in {out}")
        if self.docs:
            replace_between(
                PAGE,
                MARKERS,
                f"{text}\n\nThe network of `{self.preset}` on {dataset.name}, median (min to max) of {self.seeds} "
                f"seeds, {steps} steps, {BATCHES} batches each; {measured_on()}",
            )
        return 0


def _middle(values: list[float], digits: int = 2) -> str:
    """Median (min to max), or the median alone where all are alike."""
    low, middle, high = (f"{f(values):.{digits}f}" for f in (min, statistics.median, max))
    return middle if low == high else f"{middle} ({low} to {high})"


def in_words(runs: dict[str, list[Run]]) -> str:
    """What the gradients say of residual sums and of average pooling, each figure the median (minimum to maximum) of the seeds."""

    def ratio(name: str, stage: int) -> list[float]:
        """Gradient norm at the first layer's output over that at the last one's."""
        ends = [list(run.stages[stage].outputs.values()) for run in runs[name]]
        return [first / last for first, *_, last in ends]

    def at_the_end(name: str, stage: int) -> list[float]:
        return [list(run.stages[stage].outputs.values())[-1] for run in runs[name]]

    def reached(name: str, stage: int) -> list[float]:
        return [run.stages[stage].reached for run in runs[name]]

    def row(label: str, cells: Iterable[str]) -> str:
        return f"| {label} | {' | '.join(cells)} |"

    net, plain, maximum = runs
    accuracy = {name: [100 * run.accuracy for run in of_seeds] for name, of_seeds in runs.items()}
    lines = ["| | " + " | ".join(runs) + " |", "|---|" + "--:|" * len(runs)]
    for stage, when in enumerate(STAGES):
        ratios = (_middle(ratio(name, stage)) for name in runs)
        lines += [
            row(f"gradient at the first layer's output / at the last one's, {when}", ratios),
            row(f"gradient norm at the last feature map, {when}", (_middle(at_the_end(name, stage), 3) for name in runs)),
            row(
                f"share of the last feature map that gets a gradient, {when}",
                (f"{_middle([100 * r for r in reached(name, stage)], 0)}%" for name in runs),
            ),
        ]
    lines.append(row("validation accuracy", (f"{_middle(values, 1)}%" for values in accuracy.values())))

    def validation(other: str) -> str:
        """How the network's accuracy after training differs from that of a variant."""
        names = {plain: "the network without sums", maximum: "a maximum"}
        first, second = ([run.accuracy for run in runs[name]] for name in (net, other))
        one = runs[net][0]
        return compare("Validation accuracy", "the network as it is", first, names[other], second, one.images, 1 / one.classes)

    changes = [statistics.median(ratio(name, stage)) for name in (net, plain) for stage in (0, 1)]
    vanishes = min(changes) < 0.01
    share = "the share of the last feature map that gets a gradient"
    sentences = [
        "**Residual sums.** From the last layer's output back to the first layer's output, the norm of the gradient changes by a "
        f"factor of {changes[0]:.2f} at initialisation and {changes[1]:.2f} after training. Without the sums, the factors are "
        f"{changes[2]:.2f} and {changes[3]:.2f}. "
        + (
            "One of the four is below 0.01: the gradient vanishes."
            if vanishes
            else "With so few layers, and with BatchNorm, the gradient vanishes in neither network."
        )
        + " "
        + validation(plain),
        "**Average pooling.** "
        + compare(f"At initialisation {share}", "average pooling", reached(net, 0), "a maximum", reached(maximum, 0))
        + " "
        + compare(
            "The gradient's norm there", "average pooling", at_the_end(net, 0), "a maximum", at_the_end(maximum, 0), unit="number"
        )
        + " "
        + validation(maximum),
    ]
    return "\n".join(lines) + "\n\n" + "\n\n".join(sentences)


def plot(runs: dict[str, list[Run]], path: Path) -> None:
    """Norms by layer as a PNG: by a layer's output and by its weights, before and after training; median and range of the seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    grid = figure.subplots(2, 2, sharex="col", sharey="col")
    for stage, when in enumerate(STAGES):
        for axes, kind, title in zip(
            grid[stage], ("outputs", "weights"), ("by the layer's output", "by the layer's weights"), strict=True
        ):
            for (name, of_seeds), colour in zip(runs.items(), COLOURS, strict=True):
                values = [getattr(run.stages[stage], kind) for run in of_seeds]
                layers = list(values[0])
                columns = [[value[layer] for value in values] for layer in layers]
                axes.plot(layers, [statistics.median(column) for column in columns], "o-", markersize=4, color=colour, label=name)
                axes.fill_between(layers, list(map(min, columns)), list(map(max, columns)), color=colour, alpha=0.2, linewidth=0)
            axes.set(yscale="log", title=f"{title}, {when}")
            axes.grid(alpha=0.3)
            axes.tick_params(axis="x", rotation=45)
            axes.spines[["top", "right"]].set_visible(False)
        grid[stage, 0].set_ylabel("norm of the loss's gradient")
    for axes in grid[1]:
        axes.set_xlabel("layer, from the images to the logits")
    grid[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
