"""What does the activation function change: how fast a network learns, how many of its units die, how much gradient arrives?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from config import TrainConfig
from images.data import ImageDataset, normalise
from lab.experiments.figures import bars, curves_with_spread
from lab.experiments.models import Convolution3, activation_layer, dead_units, gradient_norms
from lab.experiments.page import Figure, Page, Table
from lab.experiments.trainings import Outcome, Part, compare, percent, run_parts, select, take_images
from training import Trainer

if TYPE_CHECKING:
    from lab.experiments.command import Activations

LOOKS = 20  # at the held-out images, in a training
BATCH_SIZE = 64
TARGET = 0.9  # held-out accuracy, the way to which is counted in steps


def experiment(options: Activations, dataset: ImageDataset, folder: Path) -> Page:
    """Convolution3 with each activation, everything else alike, one training for each seed."""
    for name in options.activations:
        activation_layer(name)  # before anything is trained
    parts = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        images = take_images(dataset, options.classes, options.per_class, seed)
        for name in dict.fromkeys(options.activations):
            config = TrainConfig(
                steps=options.steps,
                batch_size=min(BATCH_SIZE, len(images.dataset.train.labels)),
                max_lr=options.lr,
                beta2=0.99,
                eval_every=max(1, options.steps // LOOKS),
                precision="fp32",
                seed=seed,
                device=options.device,
            )
            build = partial(Convolution3, dataset.num_channels, dataset.image_size, images.dataset.num_classes, name)
            parts.append(Part({"activation": name, "seed": seed}, build, images, config, measure=measure))
    return make_page(parts, run_parts(parts, folder / "parts"))


def measure(trainer: Trainer) -> dict[str, Any]:
    """Dead units on the held-out images by layer, and norms of the gradients by layer on the training images, after training."""
    model = trainer.trained_model.cpu()
    pixels = torch.from_numpy(trainer.val_split.images)
    return {
        "dead": dead_units(model, normalise(pixels, trainer.mean, trainer.std)),
        "gradients": gradient_norms(model, *_batch(trainer.train_split, trainer.mean, trainer.std)),
    }


def _batch(split: Any, mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    return normalise(torch.from_numpy(split.images[:256]), tuple(mean), tuple(std)), torch.from_numpy(split.labels[:256])


def make_page(parts: Sequence[Part], outcomes: Sequence[Outcome]) -> Page:
    """Curves with spread, accuracy, dead units, gradients before and after training."""
    images, config = parts[0].images, parts[0].config
    names = list(dict.fromkeys(part.facts["activation"] for part in parts))
    runs = {name: select(outcomes, activation=name) for name in names}
    before = {
        name: [
            gradient_norms(part.fresh_model(), *_batch(part.images.dataset.train, outcome.mean, outcome.std))
            for part, outcome in zip(parts, outcomes, strict=True)
            if part.facts["activation"] == name
        ]
        for name in names
    }
    after = {name: [outcome.measured["gradients"] for outcome in runs[name]] for name in names}
    seeds = len(runs[names[0]])
    page = Page(
        "activations",
        "Activation functions compared",
        __doc__,
        images.dataset.name,
        setup=[
            ("data", f"{images.dataset.name}, {images.dataset.num_classes} classes"),
            ("training images", f"{len(images.dataset.train.labels):,} a seed, the same for every activation"),
            ("held-out images", f"{len(images.val.labels):,}, from the training split, none of them trained on"),
            ("test images", f"{len(images.dataset.test.labels):,}, looked at once, at the end"),
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
        observations=observations(runs, before),
    )
    steps = [evaluation.step for evaluation in outcomes[0].history.evaluations]
    page.add(
        "Learning curves",
        *(
            Figure(
                f"{kind}-curves",
                curves_with_spread(
                    {
                        name: [[factor * getattr(e, f"val_{kind}") for e in o.history.evaluations] for o in runs[name]]
                        for name in names
                    },
                    steps,
                    "optimizer steps",
                    label,
                    log=kind == "loss",
                ),
                f"The {label} over training: mean over {seeds} seeds, and as a band from the least to the largest of them.",
            )
            for kind, factor, label in (("loss", 1, "held-out loss (nats)"), ("accuracy", 100, "held-out accuracy (%)"))
        ),
    )
    page.add(
        "The numbers",
        Table(
            ("activation", "test accuracy", "test loss", f"steps to {TARGET:.0%} held-out", "dead units", "gradient, first / last"),
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
            "size at all places of all held-out images. The last column is before training: the gradient's norm in the first layer "
            "divided by that in the last.",
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
    """The step at which the held-out accuracy was first above TARGET."""
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
    return tuple(int(number) for number in np.sum([np.sum(run.measured["dead"], 0) for run in runs], 0))


def ratios(norms: Sequence[dict[str, float]]) -> list[float]:
    """Norm of the gradient in the first layer against that in the last, of each run."""
    return [list(each.values())[0] / max(list(each.values())[-1], 1e-30) for each in norms]


def observations(runs: dict[str, list[Outcome]], before: dict[str, list[dict[str, float]]]) -> list[str]:
    """What the numbers say of accuracy, speed, dead units and gradients."""
    accuracy = {name: [o.test_accuracy for o in outcomes] for name, outcomes in runs.items()}
    ranked = sorted(accuracy, key=lambda name: -np.mean(accuracy[name]))
    says = [f"Test accuracy from the highest: {', '.join(f'{name} {percent(accuracy[name])}' for name in ranked)}."]
    reference, *others = accuracy  # not the best one, which is so by chance as well
    says += [compare(name, accuracy[name], reference, accuracy[reference], "test accuracy") for name in others]
    steps = {name: [reached(o) for o in outcomes] for name, outcomes in runs.items()}
    always = {name: float(np.mean(values)) for name, values in steps.items() if None not in values}
    if always:
        quickest, slowest = min(always, key=always.get), max(always, key=always.get)
        says.append(
            f"{TARGET:.0%} of the held-out images were first recognised, where every seed came there, after "
            f"{always[quickest]:.0f} steps with {quickest}"
            + (f", after {always[slowest]:.0f} with {slowest} (means of the seeds)." if slowest != quickest else ".")
        )
    missed = [f"{name} in {values.count(None)} of {len(values)}" for name, values in steps.items() if None in values]
    if missed:
        says.append(f"Runs that never came to {TARGET:.0%}: {', '.join(missed)}.")
    dead = {name: dead_count(outcomes) for name, outcomes in runs.items()}
    some = [f"{name} {count / units:.1%}" for name, (count, units) in dead.items() if count]
    none = [name for name, (count, _) in dead.items() if not count]
    if some:
        says.append(
            f"Share of units that are dead after training: {', '.join(some)}" + (f"; none with {', '.join(none)}." if none else ".")
        )
    else:
        says.append("No activation left a dead unit.")
    shares = {name: float(np.mean(ratios(norms))) for name, norms in before.items()}
    least, most = min(shares, key=shares.get), max(shares, key=shares.get)
    if least != most:
        says.append(
            f"Before training, the gradient in the first layer is {shares[least]:.2g} times as large as that in the last "
            f"with {least}, and {shares[most]:.2g} times with {most}."
        )
    return says
