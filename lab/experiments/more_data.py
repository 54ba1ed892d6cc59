"""How does accuracy grow with the number of training images, and does the convolution keep its lead?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np

from config import TrainConfig
from lab.common.command import Experiment
from lab.common.figures import points_with_spread
from lab.common.page import Figure, Page, Table
from lab.common.statements import compare, judge, listed, percent, select
from utils import STATED

if TYPE_CHECKING:
    from lab.common.trainings import Outcome, Part

FC, CONV = "FC_only", "Grayscale1Convolution"  # of models.py
BATCH_SIZE = 128


@dataclass
class MoreData(Experiment):
    """Measure the test accuracy of FC_only and Grayscale1Convolution for several numbers of training images."""

    dataset: Annotated[str | None, STATED] = None
    """mnist, fashion_mnist or digits (default: mnist, with --quick digits)."""
    classes: Annotated[tuple[str, ...], STATED] = ()
    """Names of two or more classes (default: all)."""
    per_class: Annotated[tuple[int, ...], STATED] = ()
    """Training images of each class, one or more numbers, 0 for all there are (default: those of 16 64 256 1024 0 for which there
    are images, with --quick of 16 64 0)."""
    steps: Annotated[int | None, STATED] = None
    """Optimizer steps of each training (default: 1200, with --quick 150)."""
    seeds: Annotated[int | None, STATED] = None
    """Trainings of each network on each number of images (default: 5, with --quick 2)."""

    NAME = "more-data"
    DATASETS = ("mnist", "digits")

    def make(self, folder: Path) -> Page:
        """Both networks on each number of images a class, the same number of steps, one training for each seed."""
        from lab.common import models
        from lab.common.trainings import Part, run_parts, sizes_that_fit, take_images

        dataset = self.load(self.choose(self.dataset, *self.DATASETS))
        wanted = (16, 64, 0) if self.quick else (16, 64, 256, 1024, 0)
        sizes = self.per_class or sizes_that_fit(wanted, dataset, self.classes, self.first_seed)
        steps = self.choose(self.steps, 1200, 150)
        parts = []
        for seed in self.seed_range(self.seeds, 5, 2):
            for per_class in dict.fromkeys(sizes):
                images = take_images(dataset, self.classes, per_class or None, seed)
                count = len(images.dataset.train.labels)
                config = TrainConfig(
                    steps=steps,
                    batch_size=min(BATCH_SIZE, count),
                    max_lr=0.003,
                    beta2=0.99,
                    eval_every=max(1, steps // 10),
                    precision="fp32",
                    seed=seed,
                    device=self.device,
                )
                shape = dataset.num_channels, dataset.image_size, images.dataset.num_classes
                parts += [
                    Part(
                        {"model": name, "images": count, "all": per_class == 0, "seed": seed},
                        partial(getattr(models, name), *shape),
                        images,
                        config,
                    )
                    for name in (FC, CONV)
                ]
        return make_page(self.page_name(dataset.name), parts, run_parts(parts, folder / "parts"))


def make_page(name: str, parts: Sequence[Part], outcomes: Sequence[Outcome]) -> Page:
    """Accuracy against data, and the gap between the two networks."""
    images, config = parts[0].images, parts[0].config
    classes = images.dataset.num_classes
    counts = sorted({part.facts["images"] for part in parts})
    accuracy = {
        name: {count: [o.test_accuracy for o in select(outcomes, model=name, images=count)] for count in counts}
        for name in (FC, CONV)
    }
    seeds = len(accuracy[FC][counts[0]])
    fc, conv = (select(outcomes, model=name)[0] for name in (FC, CONV))
    everything = [part.facts["images"] for part in parts if part.facts["all"]]
    labels = {count: f"{'all there are, ' if count in everything else ''}{count // classes:,}" for count in counts}
    each_step = f"{config.steps} steps of {BATCH_SIZE} images, or of all where there are fewer"
    page = Page(
        name,
        "More data",
        __doc__,
        images.dataset.name,
        setup=[
            ("data", f"{images.dataset.name}, {classes} classes"),
            (
                "training images",
                f"{', '.join(labels[count] for count in counts)} a class; with the same seed the fewer are a part of the more",
            ),
            (
                "validation images",
                f"{len(images.val.labels):,}, from the training split, none of them trained on, the same for every number",
            ),
            ("test images", f"{len(images.dataset.test.labels):,}, evaluated once, at the end"),
            (
                "models",
                f"{FC}, {fc.parameters:,} parameters, {fc.mult_adds:,} mult-adds; {CONV}, {conv.parameters:,} parameters, "
                f"{conv.mult_adds:,} mult-adds",
            ),
            ("training", f"AdamW, OneCycle to {config.max_lr:g}, {each_step}: as many steps for few images as for many"),
            ("seeds", f"{seeds}; each has its own images and initial weights"),
        ],
        seconds=sum(outcome.history.total_seconds for outcome in outcomes),
        observations=observations(accuracy, counts, len(images.dataset.test.labels), 1 / classes),
    )
    page.add(
        "Accuracy against data",
        Figure(
            "accuracy",
            points_with_spread(
                {"": {name: {count: [100 * a for a in accuracy[name][count]] for count in counts} for name in accuracy}},
                "training images in all (logarithmic)",
                "test accuracy (%)",
            ),
            f"Test accuracy against the number of training images: mean and standard deviation over {seeds} seeds.",
        ),
    )
    page.add(
        "The gap between the models",
        Figure(
            "gap",
            points_with_spread(
                {
                    "": {
                        f"{CONV} - {FC}": {
                            count: list(100 * np.subtract(accuracy[CONV][count], accuracy[FC][count])) for count in counts
                        }
                    }
                },
                "training images in all (logarithmic)",
                "difference in test accuracy (points)",
                zero=True,
            ),
            "The difference in test accuracy of the two networks on the same images: mean and standard deviation over the seeds.",
        ),
    )
    rows = []
    for count in counts:
        verdict = judge(accuracy[CONV][count], accuracy[FC][count], len(images.dataset.test.labels))
        trained = {name: np.mean([o.train_accuracy for o in select(outcomes, model=name, images=count)]) for name in accuracy}
        seen = config.steps * min(BATCH_SIZE, count)
        rows.append(
            (
                labels[count],
                f"{count:,}",
                f"{seen / count:.3g}",
                percent(accuracy[FC][count], 2),
                f"{trained[FC]:.1%}",
                percent(accuracy[CONV][count], 2),
                f"{trained[CONV]:.1%}",
                f"{100 * verdict.mean:+.2f} ± {100 * verdict.half:.2f}",
            )
        )
    page.add(
        "The numbers",
        Table(
            ("images a class", "in all", "epochs", f"{FC}: test", "training", f"{CONV}: test", "training", "difference (points)"),
            rows,
            "Accuracy: mean ± standard deviation over the seeds. Difference: mean ± half of its 95% interval, for the choice of "
            "the test images" + (" and the seeds." if seeds > 1 else "; one seed says nothing about others."),
        ),
    )
    return page


def observations(accuracy: dict[str, dict[int, list[float]]], counts: Sequence[int], images: int, chance: float) -> list[str]:
    """What the numbers say of more data, and of the gap; `images` are for the test, `chance` is the accuracy of guessing."""
    says = []
    first, last = counts[0], counts[-1]
    if first != last:
        for name, values in accuracy.items():
            more, few = f"{last:,} training images", f"{first:,}"
            says.append(f"{name}: " + compare("test accuracy", more, values[last], few, values[first], images, chance))
            wrong, left = (float(np.mean(1 - np.array(values[count]))) for count in (first, last))
            if wrong > left > 0:
                says[-1] += f" With {first:,} it makes {wrong / left:.1f} times as many mistakes."
            steps = list(zip(counts, counts[1:], strict=False))
            idle = [pair for pair in steps if not judge(values[pair[1]], values[pair[0]], images).is_clear]
            if idle and len(steps) > 1:
                pairs = listed([f"from {fewer:,} to {more:,}" for fewer, more in idle])
                says.append(f"{name}: test accuracy is not clearly different {pairs} images.")
    says += [
        f"{count:,} images: " + compare("test accuracy", CONV, accuracy[CONV][count], FC, accuracy[FC][count], images, chance)
        for count in counts
    ]
    if first != last:
        gaps = {count: [a - b for a, b in zip(accuracy[CONV][count], accuracy[FC][count], strict=True)] for count in (first, last)}
        names = f"{last:,} training images", f"{first:,}"
        # Each lead has its own share of chance by the images, and the two are taken as independent.
        halves = [judge(accuracy[CONV][count], accuracy[FC][count], images).images_half for count in (first, last)]
        by_images = math.hypot(*halves)
        what = f"The lead of {CONV} over {FC}"
        says.append(compare(what, names[0], gaps[last], names[1], gaps[first], images, unit="points", by_images=by_images))
    return says
