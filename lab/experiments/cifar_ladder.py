"""How much do more layers, normalisation, dropout and a network made for the purpose gain with the same budget?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np

from config import TrainConfig
from lab.common.command import Experiment
from lab.common.figures import confusions, learning_curves
from lab.common.page import Figure, Page, Table
from lab.common.statements import compare, highest, percent, select
from learning.presets import PRESETS
from utils import STATED

if TYPE_CHECKING:
    from torch import nn

    from images.sources import ImageDataset
    from lab.common.trainings import Outcome, Part

LOOKS = 8  # at the validation images, in a training
QUICK_EPOCHS = 4.0
RUNGS = {
    "one convolution": "one 3x3 convolution, one 2x2 max-pool, one linear layer",
    "three convolutions": "three 3x3 convolutions with a 2x2 max-pool each, two linear layers",
    "six, BatchNorm, dropout": "three pairs of 3x3 convolutions with BatchNorm, a 2x2 max-pool and dropout after each pair, two "
    "linear layers",
    "constrained Net": "the preset fast85's: four blocks of three layers, whitened stem, residual sums, global average pooling",
}


def build(name: str, dataset: ImageDataset) -> nn.Module:
    """The network of a rung."""
    from lab.common.models import Convolution1, Convolution3, Convolution6NormDropout
    from model import Net

    shape = dataset.num_channels, dataset.image_size, dataset.num_classes
    if name == "one convolution":
        return Convolution1(*shape)
    if name == "three convolutions":
        return Convolution3(*shape, widths=(32, 64, 128), hidden=128)
    if name == "six, BatchNorm, dropout":
        return Convolution6NormDropout(*shape)
    return Net(dataset.num_channels, dataset.num_classes, **PRESETS["fast85"].net)


@dataclass
class CifarLadder(Experiment):
    """Compare one convolution with three better networks on CIFAR-10, all with the same budget of images."""

    dataset: Annotated[str | None, STATED] = None
    """Any data set of `train` (default: cifar10, with --quick digits)."""
    epochs: Annotated[float | None, STATED] = None
    """Passes over the training images of each training (default: 3, with --quick 4)."""
    seeds: Annotated[int | None, STATED] = None
    """Trainings of each network (default: 3, with --quick 1)."""

    NAME = "cifar-ladder"
    DATASETS = ("cifar10", "digits")

    def make(self, folder: Path) -> Page:
        """Each network on all training images but the validation images, for as many epochs, one training for each seed."""
        from lab.common.trainings import Part, run_parts, take_images

        dataset = self.load(self.choose(self.dataset, *self.DATASETS))
        epochs = self.choose(self.epochs, 3.0, QUICK_EPOCHS)
        parts = []
        for seed in self.seed_range(self.seeds, 3, 1):
            images = take_images(dataset, (), None, seed)
            batch = min(128, len(images.dataset.train.labels))
            steps = max(1, round(epochs * (len(images.dataset.train.labels) // batch)))
            config = TrainConfig(
                steps=steps,
                batch_size=batch,
                max_lr=0.005,
                beta2=0.99,
                weight_decay=0.05,
                eval_every=max(1, steps // LOOKS),
                seed=seed,
                device=self.device,
            )
            parts += [Part({"model": name, "seed": seed}, partial(build, name, dataset), images, config) for name in RUNGS]
        return make_page(self.page_name(dataset.name), parts, run_parts(parts, folder / "parts"))


def make_page(name: str, parts: Sequence[Part], outcomes: Sequence[Outcome]) -> Page:
    """Curves, cost and accuracy, confusion matrices."""
    images, config = parts[0].images, parts[0].config
    dataset = images.dataset
    runs = {name: select(outcomes, model=name) for name in RUNGS}
    seeds = len(runs["constrained Net"])
    epochs = config.steps * config.batch_size / len(dataset.train.labels)
    page = Page(
        name,
        f"From one convolution to a better network on {dataset.name}",
        __doc__,
        dataset.name,
        setup=[
            ("data", f"{dataset.name}, {dataset.num_classes} classes, {dataset.num_channels} channels"),
            ("training images", f"{len(dataset.train.labels):,}"),
            ("validation images", f"{len(images.val.labels):,}, from the training split, none of them trained on"),
            ("test images", f"{len(dataset.test.labels):,}, evaluated once, at the end"),
            *((name, text) for name, text in RUNGS.items()),
            ("budget", f"{config.steps:,} steps of {config.batch_size} images ({epochs:.2g} epochs), the same for every network"),
            ("training", f"AdamW, OneCycle to {config.max_lr:g}, weight decay {config.weight_decay:g}, no augmentation, all alike"),
            ("seeds", str(seeds)),
        ],
        seconds=sum(outcome.history.total_seconds for outcome in outcomes),
        observations=observations(runs, 1 / dataset.num_classes),
    )
    seen = [e.images_seen / 1000 for e in outcomes[0].history.evaluations]
    page.add("Learning curves", *learning_curves(runs, seen, "thousands of images seen"))
    page.add(
        "The numbers",
        Table(
            ("network", "parameters", "mult-adds", "seconds", "training accuracy", "test accuracy", "weighted F1"),
            [
                (
                    name,
                    f"{o[0].parameters:,}",
                    f"{o[0].mult_adds / 1e6:.1f} M",
                    f"{np.mean([each.history.total_seconds for each in o]):.0f}",
                    percent([each.train_accuracy for each in o]),
                    percent([each.test_accuracy for each in o], 2),
                    f"{np.mean([each.f1 for each in o]):.4f}",
                )
                for name, o in runs.items()
            ],
            "Mult-adds for one image. Seconds of one training and of validation. Training accuracy on 5,000 "
            "training images at most. Accuracy: mean ± standard deviation over the seeds.",
        ),
    )
    page.add(
        "Test confusion matrices",
        Figure(
            "confusion",
            confusions({name: o[0].predictions for name, o in runs.items()}, dataset.test.labels, dataset.classes),
            f"Predictions on the test images, seed {config.seed}; each row is normalised to the images of its true class.",
        ),
    )
    return page


def observations(runs: dict[str, list[Outcome]], chance: float) -> list[str]:
    """What each step of the ladder brings, and at what cost; `chance` is the accuracy of guessing."""
    says = []
    accuracy = {name: [o.test_accuracy for o in outcomes] for name, outcomes in runs.items()}
    seconds = {name: float(np.mean([o.history.total_seconds for o in outcomes])) for name, outcomes in runs.items()}
    names = list(runs)
    images = len(runs[names[0]][0].predictions)
    for lower, higher in zip(names, names[1:], strict=False):
        says.append(
            compare("Test accuracy", higher, accuracy[higher], lower, accuracy[lower], images, chance)
            + f" The first takes {seconds[higher] / seconds[lower]:.1f} times as long to train and has "
            f"{runs[higher][0].parameters / runs[lower][0].parameters:.2g} times as many parameters."
        )
    says.append(highest("Test accuracy", accuracy, images))
    gaps = {name: float(np.mean([o.train_accuracy - o.test_accuracy for o in outcomes])) for name, outcomes in runs.items()}
    least, most = min(gaps, key=lambda name: gaps[name]), max(gaps, key=lambda name: gaps[name])
    if least != most:
        says.append(
            f"Training accuracy minus test accuracy is largest with {most} ({100 * gaps[most]:+.1f} points) and smallest with "
            f"{least} ({100 * gaps[least]:+.1f})."
        )
    fewest = min(names, key=lambda name: runs[name][0].parameters)
    says.append(f"{fewest[0].upper()}{fewest[1:]} has the fewest parameters: {runs[fewest][0].parameters:,}.")
    return says
