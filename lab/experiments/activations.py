"""What does the activation function change: how fast a network learns, how many of its units die, how much gradient arrives?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from config import TrainConfig
from lab.common.command import Experiment
from lab.common.figures import bars, learning_curves
from lab.common.page import Figure, Page, Table
from lab.common.statements import compare, listed, of_runs, percent, select
from utils import STATED

if TYPE_CHECKING:
    from torch import nn

    from images.sources import Split
    from lab.common.trainings import Outcome, Part
    from training import Trainer

LOOKS = 20  # at the validation images, in a training
BATCH_SIZE = 64
TARGET = 0.9  # validation accuracy, the way to which is counted in steps


@dataclass
class Activations(Experiment):
    """Compare activation functions in one network of three convolutions: curves, dead units, norms of gradients."""

    dataset: Annotated[str | None, STATED] = None
    """Any data set of `train` (default: mnist, with --quick digits)."""
    classes: Annotated[tuple[str, ...], STATED] = ()
    """Names of two or more classes (default: all)."""
    per_class: Annotated[int | None, STATED] = None
    """Training images of each class (default: 200, with --quick 64)."""
    activations: tuple[str, ...] = ("relu", "gelu", "tanh", "sigmoid", "silu", "leaky_relu")
    """Of relu, gelu, tanh, sigmoid, silu, leaky_relu, elu, softplus, hardswish, mish; each is compared with the first."""
    steps: Annotated[int | None, STATED] = None
    """Optimizer steps of each training (default: 300, with --quick 100)."""
    seeds: Annotated[int | None, STATED] = None
    """Trainings of each activation (default: 5, with --quick 2)."""
    lr: float = 0.003
    """Highest learning rate, the same for all."""

    NAME = "activations"
    DATASETS = ("mnist", "digits")

    def make(self, folder: Path) -> Page:
        """Convolution3 with each activation, everything else alike, one training for each seed."""
        from lab.common.models import Convolution3, activation_layer
        from lab.common.trainings import Part, run_parts, take_images

        dataset = self.load(self.choose(self.dataset, *self.DATASETS))
        per_class, steps = self.choose(self.per_class, 200, 64), self.choose(self.steps, 300, 100)
        for name in self.activations:
            activation_layer(name)  # before anything is trained
        parts = []
        for seed in self.seed_range(self.seeds, 5, 2):
            images = take_images(dataset, self.classes, per_class, seed)
            for name in dict.fromkeys(self.activations):
                config = TrainConfig(
                    steps=steps,
                    batch_size=min(BATCH_SIZE, len(images.dataset.train.labels)),
                    max_lr=self.lr,
                    beta2=0.99,
                    eval_every=max(1, steps // LOOKS),
                    precision="fp32",
                    seed=seed,
                    device=self.device,
                )
                build = partial(Convolution3, dataset.num_channels, dataset.image_size, images.dataset.num_classes, name)
                parts.append(Part({"activation": name, "seed": seed}, build, images, config, measure=measure))
        return make_page(self.page_name(dataset.name), parts, run_parts(parts, folder / "parts"))


def measure(trainer: Trainer) -> dict[str, Any]:
    """Dead units on the validation images by layer, and norms of the gradients by layer on the training images, after training."""
    from lab.common.models import dead_units
    from lab.common.trainings import as_tensors

    model = trainer.trained_model.cpu()
    return {
        "dead": dead_units(model, as_tensors(trainer.val_split, trainer.mean, trainer.std)[0]),
        "gradients": gradients(model, trainer.train_split, trainer.mean, trainer.std),
    }


def gradients(model: nn.Module, train: Split, mean: Sequence[float], std: Sequence[float]) -> dict[str, float]:
    """Norms of the gradients by layer on 256 training images."""
    from lab.common.models import gradient_norms
    from lab.common.trainings import as_tensors

    return gradient_norms(model, *as_tensors(train, mean, std, 256))


def make_page(name: str, parts: Sequence[Part], outcomes: Sequence[Outcome]) -> Page:
    """Curves with spread, accuracy, dead units, gradients before and after training."""
    images, config = parts[0].images, parts[0].config
    names = list(dict.fromkeys(part.facts["activation"] for part in parts))
    runs = {name: select(outcomes, activation=name) for name in names}
    before = {
        name: [
            gradients(part.fresh_model(), part.images.dataset.train, outcome.mean, outcome.std)
            for part, outcome in zip(parts, outcomes, strict=True)
            if part.facts["activation"] == name
        ]
        for name in names
    }
    after = {name: [outcome.measured["gradients"] for outcome in runs[name]] for name in names}
    seeds = len(runs[names[0]])
    page = Page(
        name,
        "Activation functions compared",
        __doc__,
        images.dataset.name,
        setup=[
            ("data", f"{images.dataset.name}, {images.dataset.num_classes} classes"),
            ("training images", f"{len(images.dataset.train.labels):,} a seed, the same for every activation"),
            ("validation images", f"{len(images.val.labels):,}, from the training split, none of them trained on"),
            ("test images", f"{len(images.dataset.test.labels):,}, evaluated once, at the end"),
            (
                "model",
                f"Convolution3: three 3x3 convolutions and a hidden linear layer, the activation after each, no normalisation; "
                f"{outcomes[0].parameters:,} parameters; PyTorch's initial weights",
            ),
            (
                "training",
                f"AdamW, OneCycle to {config.max_lr:g}, {config.steps} steps of {config.batch_size} images, no augmentation; "
                "the same for all, tuned for none",
            ),
            ("seeds", f"{seeds}; images, their order and the initial weights of a seed are the same for every activation"),
        ],
        seconds=sum(outcome.history.total_seconds for outcome in outcomes),
        observations=observations(runs, before, 1 / images.dataset.num_classes),
    )
    steps = [evaluation.step for evaluation in outcomes[0].history.evaluations]
    page.add("Learning curves", *learning_curves(runs, steps, "optimizer steps"))
    page.add(
        "The numbers",
        Table(
            (
                "activation",
                "test accuracy",
                "test loss",
                f"steps to {TARGET:.0%} validation",
                "dead units",
                "gradient, first / last",
            ),
            [
                (
                    name,
                    percent([o.test_accuracy for o in runs[name]], 2),
                    f"{np.mean([o.test_loss for o in runs[name]]):.3f}",
                    reached_text(runs[name]),
                    dead_text(runs[name]),
                    f"{np.mean(ratios(before[name])):.2g}",
                )
                for name in names
            ],
            f"Mean and standard deviation over {seeds} seeds. A unit is dead where the activation's derivative stays below 0.01 in "
            "size at all places of all validation images. The last column is before training: the gradient's norm in the first "
            "layer divided by that in the last.",
        ),
    )
    layers = list(before[names[0]][0])
    page.add(
        "Gradients by layer",
        *(
            Figure(
                f"gradients-{when}",
                bars(
                    {layer: {name: [norms[layer] for norms in values[name]] for name in names} for layer in layers},
                    "norm of the gradient",
                    log=True,
                ),
                f"L2 norm of the loss's gradient for the weights of each layer {when} training, 256 training images: mean, least "
                "and largest over the seeds.",
            )
            for when, values in (("before", before), ("after", after))
        ),
    )
    return page


def reached(run: Outcome) -> int | None:
    """The step at which the validation accuracy was first above TARGET."""
    return next((e.step for e in run.history.evaluations if e.val_accuracy > TARGET), None)


def reached_text(runs: Sequence[Outcome]) -> str:
    """The mean of those steps, and how many runs came there if not all."""
    steps = [step for step in map(reached, runs) if step is not None]
    if not steps:
        return "never"
    return f"{np.mean(steps):.0f}" + (f" ({len(steps)} of {len(runs)} runs)" if len(steps) < len(runs) else "")


def dead_text(runs: Sequence[Outcome]) -> str:
    """Dead units of a run, in the mean, of how many."""
    dead, units = dead_count(runs)
    return f"{dead / len(runs):.1f} of {units // len(runs)}"


def dead_count(runs: Sequence[Outcome]) -> tuple[int, int]:
    """Dead units and all units, summed over layers and runs."""
    dead, units = np.sum([np.sum(run.measured["dead"], 0) for run in runs], 0)
    return int(dead), int(units)


def ratios(norms: Sequence[dict[str, float]]) -> list[float]:
    """Norm of the gradient in the first layer against that in the last, of each run."""
    return [list(each.values())[0] / max(list(each.values())[-1], 1e-30) for each in norms]


def observations(runs: dict[str, list[Outcome]], before: dict[str, list[dict[str, float]]], chance: float) -> list[str]:
    """What the numbers say of accuracy, speed, dead units and gradients; `chance` is the accuracy of guessing."""
    accuracy = {name: [o.test_accuracy for o in outcomes] for name, outcomes in runs.items()}
    reference, *others = accuracy  # not the best one, which is so by chance as well
    images = len(runs[reference][0].predictions)
    ranked = sorted(accuracy, key=lambda name: -np.mean(accuracy[name]))
    order = ", from the highest" if others else ""
    says = [f"Test accuracy{order}: {', '.join(f'{name} {percent(accuracy[name])}' for name in ranked)}."]
    says += [compare("Test accuracy", name, accuracy[name], reference, accuracy[reference], images, chance) for name in others]
    says += speed(runs)
    dead = {name: dead_count(outcomes) for name, outcomes in runs.items()}
    some = [f"{name} {count / units:.1%}" for name, (count, units) in dead.items() if count]
    none = [name for name, (count, _) in dead.items() if not count]
    if some:
        says.append(
            f"Share of units that are dead after training: {', '.join(some)}" + (f"; none with {', '.join(none)}." if none else ".")
        )
    else:
        says.append("No unit is dead after training.")
    shares = {name: float(np.mean(ratios(norms))) for name, norms in before.items()}
    least, most = min(shares, key=lambda name: shares[name]), max(shares, key=lambda name: shares[name])
    if least != most:
        says.append(
            f"Before training, the gradient in the first layer is {shares[least]:.2g} times as large as in the last "
            f"with {least}, and {shares[most]:.2g} times with {most}."
        )
    return says


def speed(runs: dict[str, list[Outcome]]) -> list[str]:
    """How many steps each activation needed to TARGET, in the mean of the seeds, and which runs did not come there."""
    steps = {name: [reached(o) for o in outcomes] for name, outcomes in runs.items()}
    always = {
        name: float(np.mean([step for step in values if step is not None])) for name, values in steps.items() if None not in values
    }
    says = []
    goal = f"{TARGET:.0%} validation accuracy"
    if always:
        fewest, most = min(always.values()), max(always.values())
        quick, slow = ([name for name in always if always[name] == count] for count in (fewest, most))
        says.append(
            f"Steps to {goal}, mean of the seeds: {fewest:.0f} with {listed(quick)}"
            + (f", the fewest, and {most:.0f} with {listed(slow)}, the most." if fewest < most else ".")
        )
    if missed := [f"{name} in {of_runs(values.count(None), len(values))}" for name, values in steps.items() if None in values]:
        says.append(f"{goal} was missed by {', '.join(missed)}.")
    return says
