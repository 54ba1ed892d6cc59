"""How gradients flow: their norms by layer, before and after training, with and without residual sums and average pooling.

The loss is that of training (cross-entropy with its label smoothing), on batches of training images, in fp32 and train mode.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from config import get_preset
from images.data import ImageDataset
from model import Layer, Net, ResidualPointwiseConv2d
from results.documents import measured_on, replace_between
from training import Trainer
from utils import ROOT, seed_everything

PAGE = ROOT / "docs" / "model.md"
MARKERS = "<!-- gradients -->", "<!-- /gradients -->"
BATCHES = 10
STEPS = 400  # of a preset that counts its budget in epochs
STAGES = ("at initialisation", "after training")


class WithoutResiduals(Net):
    """Each residual layer is a convolution, BatchNorm that starts at 1, and ReLU; without the sum it could not start as the
    identity."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for block in (self.C1, self.C2, self.C3, self.C4):
            for i, layer in enumerate(block):
                if isinstance(layer, ResidualPointwiseConv2d):
                    momentum = next((m.momentum for m in self.modules() if isinstance(m, nn.BatchNorm2d)), 0.1)
                    layer = block[i] = Layer(layer.in_channels, layer.out_channels, "pointwise", norm_momentum=momentum)
                if isinstance(layer, Layer) and layer.residual:
                    layer.residual = False
                    nn.init.ones_(layer.norm.weight)


class WithMaximum(Net):
    """The output block takes the global maximum of each channel instead of the average."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.O[0] = nn.AdaptiveMaxPool2d(1)


VARIANTS: dict[str, type[Net]] = {
    "as it is": Net,
    "without residual sums": WithoutResiduals,
    "global maximum instead of average": WithMaximum,
}
COLOURS = ("#0072b2", "#d55e00", "#009e73")


@dataclass
class Flow:
    """Gradients of one network at one time, by layer: means over batches."""

    outputs: dict[str, float]
    """Norm of the gradient of the loss by a layer's output, over the whole batch."""
    weights: dict[str, float]
    """Norm of the gradient by all trainable parameters of the layer; a whitening stem has none."""
    reached: float
    """Share of the numbers of the last feature map before global pooling that get a gradient at all."""


def flow(network: Net, batches: list[tuple[Tensor, Tensor]], label_smoothing: float) -> Flow:
    """The gradients of `network`, which is left as it is. `batches` are (N, C, H, W) normalised images and (N,) labels."""
    network = copy.deepcopy(network).float().train()
    layers = {
        f"{name}.{i}": layer
        for name in ("C1", "C2", "C3", "C4")
        for i, layer in enumerate(getattr(network, name))
        if not isinstance(layer, nn.MaxPool2d)
    }
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            output.retain_grad()
            kept[name] = output

        return hook

    for name, layer in layers.items():
        layer.register_forward_hook(keep(name))
    layers["O"] = network.O
    outputs: dict[str, list[float]] = {name: [] for name in layers if name != "O"}
    weights: dict[str, list[float]] = {
        name: [] for name, layer in layers.items() if any(p.requires_grad for p in layer.parameters())
    }
    reached = []
    for images, labels in batches:
        network.zero_grad()
        # The images ask for a gradient so that one reaches the output of a stem whose filters are fixed.
        loss = F.cross_entropy(network(images.requires_grad_()).float(), labels, label_smoothing=label_smoothing)
        loss.backward()
        for name in outputs:
            outputs[name].append(kept[name].grad.norm().item())
        for name in weights:
            gradients = [p.grad for p in layers[name].parameters() if p.requires_grad]
            weights[name].append(torch.cat([gradient.flatten() for gradient in gradients]).norm().item())
        reached.append((kept[list(outputs)[-1]].grad != 0).float().mean().item())
    return Flow(
        {name: statistics.fmean(values) for name, values in outputs.items()},
        {name: statistics.fmean(values) for name, values in weights.items()},
        statistics.fmean(reached),
    )


@dataclass
class Run:
    """One variant trained with one seed."""

    stages: list[Flow]
    """At initialisation and after training."""
    accuracy: float
    """On held-out images, after training."""


def measure(preset_name: str, dataset: ImageDataset, seeds: int, batches: int, steps: int) -> dict[str, list[Run]]:
    """Train each variant of the preset's network for `steps` steps, by seed in turn, without augmentation."""
    preset = get_preset(preset_name)
    runs: dict[str, list[Run]] = {name: [] for name in VARIANTS}
    for seed, name in tqdm([(seed, name) for seed in range(seeds) for name in VARIANTS], unit=" runs", disable=None, leave=False):
        seed_everything(seed)
        config = replace(preset.train, seed=seed, cycles=1, early_exit_accuracy=None, teacher=(), augment=0.0, steps=steps)
        trainer = Trainer(VARIANTS[name](dataset.num_channels, dataset.num_classes, **preset.net), dataset, config)
        trainer._prepare()  # whitens the stem
        sample = list(trainer.batches.steps(range(batches)))
        stages = [flow(trainer.model, sample, config.label_smoothing)]
        history = trainer.fit()
        stages.append(flow(trainer.model, sample, config.label_smoothing))
        runs[name].append(Run(stages, history.evaluations[-1].val_accuracy))
    return runs


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

    net, plain, maximum = VARIANTS
    lines = ["| | " + " | ".join(VARIANTS) + " |", "|---|" + "--:|" * len(VARIANTS)]
    for stage, when in enumerate(STAGES):
        lines.append(
            f"| gradient at the first layer's output / at the last one's, {when} | "
            + " | ".join(_middle(ratio(name, stage)) for name in VARIANTS)
            + " |"
        )
        lines.append(
            f"| its norm at the last feature map, {when} | "
            + " | ".join(_middle(at_the_end(name, stage), 3) for name in VARIANTS)
            + " |"
        )
        lines.append(
            f"| share of the last feature map that gets any, {when} | "
            + " | ".join(_middle([100 * run.stages[stage].reached for run in runs[name]], 0) + "%" for name in VARIANTS)
            + " |"
        )
    lines.append(
        "| held-out accuracy | "
        + " | ".join(_middle([100 * run.accuracy for run in runs[name]], 1) + "%" for name in VARIANTS)
        + " |"
    )

    def against(a: list[float], b: list[float], what: str, other: str, unit: str = "") -> str:
        """One sentence, which claims a difference only where the ranges of the seeds do not meet."""
        x, y = statistics.median(a), statistics.median(b)
        apart = max(a) < min(b) or max(b) < min(a)
        verdict = ("larger" if x > y else "smaller") if apart and len(a) > 1 else "no different beyond the spread of the seeds"
        return f"{what} is {verdict}: {x:.3g}{unit} against {y:.3g}{unit} {other}."

    def percent(name: str, value: Callable[[Run], float]) -> list[float]:
        return [100 * value(run) for run in runs[name]]

    changes = [statistics.median(ratio(name, stage)) for name in (net, plain) for stage in (0, 1)]
    vanishes = min(changes) < 0.01
    sentences = [
        "**Residual sums.** From the last layer's output back to the first one's the norm of the gradient changes by a factor of "
        f"{changes[0]:.2f} at initialisation and {changes[1]:.2f} after training, without the sums by {changes[2]:.2f} and "
        f"{changes[3]:.2f}: "
        + (
            "one of them is below 0.01, gradients do vanish."
            if vanishes
            else "in so few layers, and with BatchNorm, it vanishes in neither."
        )
        + " "
        + against(
            percent(net, lambda run: run.accuracy),
            percent(plain, lambda run: run.accuracy),
            "The held-out accuracy",
            "without the sums",
            "%",
        ),
        "**Average pooling.** "
        + " ".join(
            [
                against(
                    percent(net, lambda run: run.stages[0].reached),
                    percent(maximum, lambda run: run.stages[0].reached),
                    "At initialisation the share of the last feature map that gets a gradient",
                    "with a maximum",
                    "%",
                ),
                against(at_the_end(net, 0), at_the_end(maximum, 0), "The gradient's norm there", "with a maximum"),
                against(
                    percent(net, lambda run: run.accuracy),
                    percent(maximum, lambda run: run.accuracy),
                    "The held-out accuracy",
                    "with a maximum",
                    "%",
                ),
            ]
        ),
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


def show(preset: str, dataset: ImageDataset, seeds: int, quick: bool, out: Path, docs: bool) -> None:
    """Measure, print, and draw `out`; with `docs`, into PAGE too."""
    steps = 10 if quick else get_preset(preset).train.steps or STEPS
    runs = measure(preset, dataset, 1 if quick else seeds, 2 if quick else BATCHES, steps)
    text = in_words(runs)
    plot(runs, out)
    print(f"{text}\n\nplot in {out}")
    if docs:
        replace_between(
            PAGE,
            MARKERS,
            f"{text}\n\nThe network of `{preset}` on {dataset.name}, median (min to max) of {seeds} "
            f"seeds, {steps} steps, {BATCHES} batches each; {measured_on()}",
        )
