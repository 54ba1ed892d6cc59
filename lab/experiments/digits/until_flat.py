"""What the experiments on few digits share: a training until its loss is flat, and the page with its curves and numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np

from config import TrainConfig
from lab.common.command import Experiment
from lab.common.figures import confusion, loss_and_accuracy
from lab.common.page import Figure, Page, Table
from lab.common.statements import compare, of_runs, span
from utils import STATED

if TYPE_CHECKING:
    from torch import nn

    from lab.common.trainings import Images, Outcome, Part

FLAT_LOSS = 0.0001  # nats
MAX_EPOCHS = 2000


@dataclass
class UntilFlat(Experiment):
    """What both can be told."""

    dataset: Annotated[str | None, STATED] = None
    """mnist, fashion_mnist or digits, or any other data set of `train` (default: mnist, with --quick digits)."""
    classes: tuple[str, ...] = ("0", "4", "6")
    """Names of two or more classes."""
    per_class: int = 16
    """Training images of each class."""
    seeds: Annotated[int | None, STATED] = None
    """Trainings, each with its own images and initial weights (default: 5, with --quick 2)."""
    lr: float = 0.001
    """Learning rate, constant."""

    DATASETS = ("mnist", "digits")

    def train_until_flat(self, network: Callable[..., nn.Module], folder: Path) -> tuple[list[Part], list[Outcome]]:
        """`network` on `per_class` images a class, all of them in each batch, one training for each seed."""
        from lab.common.trainings import Part, run_parts, take_images

        dataset = self.load(self.choose(self.dataset, *self.DATASETS))
        parts = []
        for seed in self.seed_range(self.seeds, 5, 2):
            images = take_images(dataset, self.classes, self.per_class, seed)
            config = TrainConfig(
                epochs=MAX_EPOCHS,
                batch_size=len(images.dataset.train.labels),
                flat_loss=FLAT_LOSS,
                max_lr=self.lr,
                div_factor=1,
                final_div_factor=1,
                beta2=0.999,
                weight_decay=0,
                precision="fp32",
                seed=seed,
                device=self.device,
            )
            build = partial(network, dataset.num_channels, dataset.image_size, images.dataset.num_classes)
            parts.append(Part({"model": network.__name__, "seed": seed}, build, images, config, keep_weights=True))
        return parts, run_parts(parts, folder / "parts")


def begin_page(name: str, title: str, question: str, parts: Sequence[Part], outcomes: Sequence[Outcome]) -> Page:
    """The page of such an experiment: set-up, curves, numbers, confusions, and what they show."""
    from learning.history import FLAT_EVALUATIONS

    images, config, first = parts[0].images, parts[0].config, outcomes[0]
    classes, labels = images.dataset.classes, images.dataset.test.labels
    page = Page(
        name,
        title,
        question,
        images.dataset.name,
        setup=[
            ("data", f"{images.dataset.name}, classes {', '.join(classes)}"),
            ("training images", f"{len(images.dataset.train.labels)}, {len(images.dataset.train.labels) // len(classes)} a class"),
            ("validation images", f"{len(images.val.labels)}, from the training split, none of them trained on"),
            ("test images", f"{len(labels):,}, all of these classes, evaluated once, at the end"),
            ("model", f"{first.facts['model']}, {first.parameters:,} parameters, {first.mult_adds:,} mult-adds an image"),
            (
                "training",
                f"AdamW, learning rate {config.max_lr:g}, no weight decay, all training images in each batch, until the "
                f"training loss moves by less than {FLAT_LOSS:g} nats over {FLAT_EVALUATIONS} epochs, {MAX_EPOCHS} at most",
            ),
            ("seeds", f"{len(parts)}; each has its own initial weights and its own training and validation images"),
        ],
        seconds=sum(outcome.history.total_seconds for outcome in outcomes),
        observations=observations(outcomes, images),
    )
    page.add(
        "Loss and accuracy over epochs",
        Figure(
            "curves",
            loss_and_accuracy([outcome.history for outcome in outcomes]),
            f"Cross-entropy and accuracy on training and validation images, seed {config.seed}"
            + ("; lighter, the other seeds." if len(parts) > 1 else "."),
        ),
    )
    page.add(
        "The numbers",
        Table(
            (
                "seed",
                "epochs",
                "training loss",
                "validation loss",
                "training accuracy",
                "validation accuracy",
                "test accuracy",
                "weighted F1",
                "seconds",
            ),
            [
                (
                    str(outcome.facts["seed"]),
                    f"{(last := outcome.history.evaluations[-1]).epoch:.0f}",
                    f"{last.train_loss:.4f}",
                    f"{last.val_loss:.4f}",
                    f"{outcome.train_accuracy:.1%}",
                    f"{last.val_accuracy:.1%}",
                    f"{outcome.test_accuracy:.2%}",
                    f"{outcome.f1:.4f}",
                    f"{outcome.history.total_seconds:.1f}",
                )
                for outcome in outcomes
            ],
            "F1 of each class on the test images, weighted by their number. Losses are in nats.",
        ),
    )
    page.add(
        "Test confusion matrix",
        Figure(
            "confusion",
            confusion(labels, first.predictions, classes),
            f"Predictions on the test images, seed {config.seed}; each row is normalised to the images of its true class.",
        ),
    )
    return page


def observations(outcomes: Sequence[Outcome], images: Images) -> list[str]:
    """What the numbers show of learning and overfitting."""
    runs, says = len(outcomes), []
    last = [outcome.history.evaluations[-1] for outcome in outcomes]
    flat = [e for e in last if e.epoch < MAX_EPOCHS]
    if flat:
        says.append(
            f"The training loss became flat in {of_runs(len(flat), runs)}, after {span([e.epoch for e in flat], '.0f')} epochs, at "
            f"{span([e.train_loss for e in flat], '.4f')} nats."
        )
    if len(flat) < runs:
        says.append(f"The training loss still moved after {MAX_EPOCHS} epochs in {of_runs(runs - len(flat), runs)}.")
    says.append(
        compare(
            "Accuracy",
            "the training images",
            [o.train_accuracy for o in outcomes],
            "the test images",
            [o.test_accuracy for o in outcomes],
            (len(images.dataset.train.labels), len(images.dataset.test.labels)),
            word="on",
        )
        + f" The weighted F1 on the test images is {span([o.f1 for o in outcomes], '.3f')}."
    )
    losses = [[e.val_loss for e in outcome.history.evaluations] for outcome in outcomes]
    turned = [loss[-1] > 1.01 * min(loss) for loss in losses]
    if any(turned):
        runs_turned = [(o, loss) for o, loss, turn in zip(outcomes, losses, turned, strict=True) if turn]
        lowest = [o.history.evaluations[int(np.argmin(loss))].epoch for o, loss in runs_turned]
        rises = [loss[-1] / max(min(loss), 1e-9) - 1 for _, loss in runs_turned]
        says.append(
            f"It overfits in {of_runs(sum(turned), runs)}: there the validation loss was lowest after {span(lowest, '.0f')} "
            f"epochs and then rose by {span(rises, '.0%')}, while the training loss went on falling."
        )
    if not all(turned):
        says.append(
            f"The validation loss ended within 1% of its lowest value in {of_runs(runs - sum(turned), runs)}: "
            "training longer did not harm there."
        )
    says += [worst_confusion(outcomes, images)]
    return says


def worst_confusion(outcomes: Sequence[Outcome], images: Images) -> str:
    """The most frequent confusion over all runs, in a sentence."""
    labels, classes = images.dataset.test.labels, images.dataset.classes
    predictions = np.array([outcome.predictions for outcome in outcomes])
    true = np.broadcast_to(labels, predictions.shape)[predictions != labels]
    if not len(true):
        return "Every test image was recognised."
    counts = np.zeros((len(classes), len(classes)), int)
    np.add.at(counts, (true, predictions[predictions != labels]), 1)
    a, b = np.unravel_index(counts.argmax(), counts.shape)
    if counts.max() == 1:
        return "No two classes were confused more than once."
    return f"The most frequent mistake is to take {classes[a]} for {classes[b]}: {counts[a, b]:,} of {len(true):,} mistakes."
