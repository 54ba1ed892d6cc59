"""What is it worth to begin with features learned from other images, with few images and with many?"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np

from config import InputError, TrainConfig
from images.sources import ImageDataset, Split, stratified_split
from lab.common.command import Experiment
from lab.common.figures import points_with_spread
from lab.common.page import Figure, Page, Table
from lab.common.statements import compare, is_at_chance, listed, percent, select
from utils import ROOT, STATED

if TYPE_CHECKING:
    from torch import nn

    from lab.common.trainings import Images, Outcome, Part
    from lab.experiments.transfer.sources import Source

METHODS = {
    "from scratch": "the same network with random weights",
    "frozen features": "the source's features as they are, a new linear layer",
    "fine-tuning": "the source's features and a new linear layer, all trained",
}
IMAGENET = {
    "frozen ImageNet features": "those of EfficientNet-Lite0 as they are, a new linear layer",
    "fine-tuning from ImageNet": "EfficientNet-Lite0's features and a new linear layer, all trained",
}
"""The methods that --imagenet adds; their source is always efficientnet_lite0."""
FROZEN = ("frozen features", "frozen ImageNet features")
MAX_LR = 0.01  # the same for all: of 0.003 to 0.1 best or near it for each after 20 epochs, on validation images of both targets


@dataclass
class Transfer(Experiment):
    """Use what a network learned from other images: from scratch against frozen features against fine-tuning all of it.

    Without --source, the source is a network trained on MNIST for digits, cifar8 (trained on the eight classes of CIFAR-10 other
    than cat and dog) for a folder, and else one trained on the other classes of the target's data set: for cat and dog of CIFAR-10
    it ships in weights/, for others it is trained first.
    """

    target: Annotated[str | None, STATED] = None
    """Data set to learn: cifar10, folder:PATH or any other (default: cifar10, with --quick digits)."""
    classes: Annotated[tuple[str, ...], STATED] = ()
    """Names of two or more of its classes (default: cat dog of cifar10, star heart of shapes, else all)."""
    source: str = "auto"
    """Trained features: auto, cifar8, mnist, a weights file of `train`, efficientnet_lite0 or efficientnet_lite0:PIXELS (trained on
    ImageNet, enlarges images to 128 or PIXELS a side; requirements-imagenet.txt), or torchvision:NAME (resnet18,
    mobilenet_v3_small, any ImageNet classifier of torchvision; downloaded)."""
    imagenet: bool = False
    """Compare with features of ImageNet, too: efficientnet_lite0, frozen and fine-tuned (requirements-imagenet.txt). They cost some
    ten times the others' time."""
    pretrain: bool = False
    """Retrain the source first; for cifar8 and mnist the one that ships in weights/."""
    per_class: Annotated[tuple[int, ...], STATED] = ()
    """Training images of each class, one or more numbers, 0 for all there are (default: those of 8 32 128 0 for which there are
    images, with --quick of 8 32)."""
    epochs: Annotated[tuple[int, ...], STATED] = ()
    """Passes over them, one or more numbers (default: 1 5 20, with --quick 1 5)."""
    seeds: Annotated[int | None, STATED] = None
    """Trainings of each kind, each with its own images (default: 3, with --quick 2)."""
    image_size: Annotated[int | None, STATED] = None
    """Height and width in pixels (28 or more) to which the images of a folder are scaled; for folder:PATH alone (default: 32)."""

    NAME = "transfer"
    DATASETS = ("cifar10", "digits")

    def make(self, folder: Path) -> Page:
        """Each method on each number of images a class and each number of epochs, one training for each seed.

        The weights of the best network of the first seed, whose test images are those of `train` and `evaluate` too, are kept.
        """
        from lab.common.trainings import best_of, run_parts, sizes_that_fit, take_images
        from lab.experiments.transfer.sources import find_source, imagenet_source
        from learning.efficientnet_lite import PIXELS

        seeds, epochs = self.seed_range(self.seeds, 3, 2), self.epochs or ((1, 5) if self.quick else (1, 5, 20))
        if any(number < 0 for number in self.per_class) or any(number < 1 for number in epochs):
            raise InputError("--per-class must be 0 (all) or more, --epochs 1 or more")
        target, classes, has_splits = self.load_target()
        splits = {seed: target if has_splits or seed == self.first_seed else resplit(target, seed) for seed in seeds}
        wanted = (8, 32) if self.quick else (8, 32, 128, 0)
        sizes = self.per_class or sizes_that_fit(wanted, target, classes, self.first_seed)
        images = {
            (seed, per_class): take_images(splits[seed], classes, per_class or None, seed) for seed in seeds for per_class in sizes
        }
        others = dict.fromkeys(IMAGENET, imagenet_source(PIXELS)) if self.imagenet else {}
        source = find_source(self.source, self.pretrain, target, classes, self, folder)
        sources = dict.fromkeys(METHODS, source) | others
        for one in sources.values():
            if one.num_channels != target.num_channels:
                raise InputError(
                    f"the source {one.name} takes images of {one.num_channels} channels, those of {target.name} have "
                    f"{target.num_channels}: choose another {'--source' if one is source else '--target, or leave out --imagenet'}"
                )
        data = target.content()
        parts = [
            make_part(method, one, taken, per_class, number, seed, self.device, data if seed == self.first_seed else None)
            for (seed, per_class), taken in images.items()
            for number in dict.fromkeys(epochs)
            for method, one in sources.items()
        ]
        name = self.page_name(target.name)
        best = folder / f"{name}.safetensors"
        outcomes = run_parts(parts, folder / "parts", best)
        page = make_page(name, parts, outcomes, list(dict.fromkeys(one.about for one in sources.values())))
        page.observations = [*page.observations, about_best(best_of(parts, outcomes), best)]
        return page

    def load_target(self) -> tuple[ImageDataset, list[str], bool]:
        """The target, the names of its classes, and whether its splits are its own, as all but those of a folder of classes are.

        Unreadable files of a folder are left out, which is said on stderr.
        """
        from images.own_images import find_splits, load_folder
        from lab.common.trainings import class_labels
        from lab.experiments.transfer.sources import LEFT_OUT

        name = self.choose(self.target, *self.DATASETS)
        kind, _, path = name.partition(":")
        has_splits = True
        if kind == "folder" and path:
            side = 32 if self.image_size is None else self.image_size
            if not 28 <= side <= 2048:
                raise InputError(f"--image-size is {side}: it must be from 28 to 2048")
            target = load_folder(Path(path), side, skip_unreadable=True)
            has_splits = bool(find_splits(Path(path)))
        else:
            if self.image_size is not None:
                raise InputError(f"--image-size is for folder:PATH alone: the images of {name} keep their size")
            target = self.load(name)
        classes = list(class_labels(target, self.classes or LEFT_OUT.get(target.name, ())))
        return target, classes, has_splits


def resplit(dataset: ImageDataset, seed: int) -> ImageDataset:
    """All images of `dataset` split anew by `seed`, a fifth of each class for the test."""
    everything = Split(*(np.concatenate(arrays) for arrays in zip(dataset.train, dataset.test, strict=True)))
    train, test = stratified_split(everything, len(dataset.test.labels), seed)
    return replace(dataset, train=train, test=test)


def build(method: str, source: Source, num_classes: int) -> nn.Module:
    """The network of a method, before training. From scratch, a whitening stem takes its filters from the target's images."""
    from lab.experiments.transfer.networks import FromScratch, Transferred

    if method == "from scratch":
        features, num_features = source.untrained()
        return FromScratch(features, num_features, num_classes)
    return Transferred(*source.features(), num_classes, frozen=method in FROZEN)


def make_part(
    method: str, source: Source, images: Images, per_class: int, epochs: int, seed: int, device: str, data: dict | None
) -> Part:
    """One training. With `data`, what a card says of the target's content, its network may be kept for other commands."""
    from lab.common.trainings import Part
    from lab.experiments.transfer.networks import as_whole

    count = len(images.dataset.train.labels)
    batch = min(count, max(8, min(128, count // 8)))
    steps = epochs * (count // batch)
    config = TrainConfig(steps=steps, batch_size=batch, max_lr=MAX_LR, beta2=0.99, eval_every=steps, seed=seed, device=device)
    return Part(
        {"method": method, "per class": per_class, "images": count, "epochs": epochs, "source": source.name, "seed": seed},
        partial(build, method, source, images.dataset.num_classes),
        images,
        config,
        card=source.normalisation,
        whole=None if data is None else partial(as_whole, source.rename, source.card | {"data": data}),
    )


def about_best(outcome: Outcome, path: Path) -> str:
    """Where the weights of the best network are, and what it is."""
    facts, weights = outcome.facts, path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    epochs = f"{facts['epochs']} epoch{'s' * (facts['epochs'] > 1)}"
    return (
        f"The network with the highest validation accuracy of seed {facts['seed']} ({outcome.history.val_accuracy:.1%}; test "
        f"accuracy {outcome.test_accuracy:.1%}) is kept in {weights}: {facts['method']}, {facts['images']:,} images, "
        f"{epochs}. ./run.sh predict --weights {shlex.quote(str(weights))} IMAGE uses it."
    )


def make_page(name: str, parts: Sequence[Part], outcomes: Sequence[Outcome], sources: Sequence[str]) -> Page:
    """Accuracy against images a class for each number of epochs, and against epochs for each number of images."""
    images = parts[0].images
    dataset = images.dataset
    sizes, epochs = sorted({part.facts["images"] for part in parts}), sorted({part.facts["epochs"] for part in parts})
    seeds = sorted({part.facts["seed"] for part in parts})
    methods = {part.facts["method"]: (METHODS | IMAGENET)[part.facts["method"]] for part in parts}
    runs = {
        (method, count, number): select(outcomes, method=method, images=count, epochs=number)
        for method in methods
        for count in sizes
        for number in epochs
    }
    accuracy = {key: [o.test_accuracy for o in outcomes] for key, outcomes in runs.items()}
    everything = [part.facts["images"] for part in parts if part.facts["per class"] == 0]
    names = {count: f"{'all ' if count in everything else ''}{count // dataset.num_classes:,}" for count in sizes}
    splits_differ = not np.array_equal(dataset.test.images, parts[-1].images.dataset.test.images)
    page = Page(
        name,
        f"Transfer to {dataset.name}: {', '.join(dataset.classes)}",
        __doc__,
        dataset.name,
        setup=[
            *(("source", about) for about in sources),
            ("target", f"{dataset.name}, classes {', '.join(dataset.classes)}, none of whose images a source was trained on"),
            (
                "training images",
                f"{', '.join(names.values())} a class ({sizes[-1]:,} in all at most); with the same seed the fewer "
                "are a part of the more",
            ),
            (
                "validation images",
                "the training images stand in, of which there is one a class"
                if images.val_stands_in
                else f"{len(images.val.labels):,}, not trained on",
            ),
            (
                "test images",
                f"{len(dataset.test.labels):,}, never trained on, evaluated once after each training"
                + ("; others for each seed, a fifth of each class" if splits_differ else ""),
            ),
            *methods.items(),
            (
                "training",
                f"AdamW, OneCycle to {MAX_LR:g}, {', '.join(map(str, epochs))} epochs, each a training of its own; batches of "
                "an eighth of the images, but 8 at least and 128 at most; no augmentation; the same for all",
            ),
            ("seeds", f"{len(seeds)}; each has its own training images and initial weights"),
        ],
        seconds=sum(outcome.history.total_seconds for outcome in outcomes),
        observations=observations(accuracy, sizes, epochs, names, 1 / dataset.num_classes, len(dataset.test.labels)),
    )
    by_images = {
        f"{number} epoch{'s' * (number > 1)}": {
            method: {count: [100 * a for a in accuracy[method, count, number]] for count in sizes} for method in methods
        }
        for number in epochs
    }
    by_epochs = {
        f"{names[count]} images a class": {
            method: {number: [100 * a for a in accuracy[method, count, number]] for number in epochs} for method in methods
        }
        for count in sizes
    }
    page.add(
        "Accuracy by images and epochs",
        Figure(
            "images",
            points_with_spread(by_images, "training images a class", "test accuracy (%)", names),
            f"Test accuracy against the number of training images a class, for each number of epochs: mean and standard "
            f"deviation over {len(seeds)} seeds.",
        ),
        Figure(
            "epochs",
            points_with_spread(by_epochs, "epochs", "test accuracy (%)"),
            "The same against the number of epochs, for each number of images.",
        ),
    )
    page.add(
        "The numbers",
        Table(
            ("images a class", "epochs", *methods, "seconds: " + ", ".join(methods)),
            [
                (
                    names[count],
                    str(number),
                    *(percent(accuracy[method, count, number]) for method in methods),
                    ", ".join(
                        f"{np.mean([o.history.total_seconds for o in runs[method, count, number]]):.1f}" for method in methods
                    ),
                )
                for count in sizes
                for number in epochs
            ],
            f"Test accuracy, mean ± standard deviation over the seeds; a guess is right in {1 / dataset.num_classes:.0%} of all "
            "cases where the classes are equally frequent. Seconds of one training.",
        ),
    )
    return page


def observations(
    accuracy: dict[tuple[str, int, int], list[float]],
    sizes: Sequence[int],
    epochs: Sequence[int],
    names: dict[int, str],
    chance: float,
    images: int,
) -> list[str]:
    """What transfer is worth with few and with many images, and what the budget changes; `images` are for the test."""
    scratch, frozen, tuned = METHODS
    long, says = epochs[-1], []
    passes = f"{long} epoch{'s' * (long > 1)}"
    spoken = {method: "training from scratch" if method == scratch else method for method, *_ in accuracy}
    means = {key: float(np.mean(values)) for key, values in accuracy.items()}
    for count in sizes:
        values = {spoken[method]: accuracy[method, count, long] for method in spoken}
        best = max(values, key=lambda method: float(np.mean(values[method])))
        others = [method for method in values if method != best]
        sentences = [compare("Test accuracy", best, values[best], method, values[method], images, chance) for method in others]
        says.append(f"{names[count].capitalize()} images a class, {passes}. {' '.join(sentences)}")
    says += savings(accuracy, sizes, long, names, chance, images)
    if len(sizes) > 1:
        gains = {count: means[tuned, count, long] - means[scratch, count, long] for count in sizes}
        most, least = max(gains, key=lambda count: gains[count]), min(gains, key=lambda count: gains[count])
        says.append(
            f"Fine-tuning gains from {100 * gains[least]:+.1f} points, with {names[least]} images a class, to "
            f"{100 * gains[most]:+.1f} points, with {names[most]}, over training from scratch, on average."
        )
    if len(epochs) > 1:
        short = epochs[0]
        enough = [count for count in sizes if means[frozen, count, short] >= means[scratch, count, long]]
        what = f"frozen features after {short} epoch{'s' * (short > 1)} are, on average,"
        other = f"training from scratch after {long}"
        if enough:
            says.append(f"With {listed([names[count] for count in enough])} images a class {what} at least as accurate as {other}.")
        else:
            says.append(f"{what[0].upper()}{what[1:]} less accurate than {other}.")
    return says


def savings(
    accuracy: dict[tuple[str, int, int], list[float]],
    sizes: Sequence[int],
    long: int,
    names: dict[int, str],
    chance: float,
    images: int,
) -> list[str]:
    """How many images fine-tuning saves against training from scratch; nothing of a single number of images."""
    scratch, _, tuned = METHODS
    pairs = [
        (few, many)
        for few in sizes
        for many in sizes
        if many > few
        and np.mean(accuracy[tuned, few, long]) >= np.mean(accuracy[scratch, many, long])
        and not is_at_chance(accuracy[tuned, few, long], chance, images)
    ]
    after = f"both after {long} epoch{'s' * (long > 1)}"
    if pairs:
        few, many = max(pairs, key=lambda pair: pair[1] / pair[0])
        return [
            f"Fine-tuning with {names[few]} images a class is on average at least as accurate "
            f"({percent(accuracy[tuned, few, long])}) as training from scratch with {names[many]} "
            f"({percent(accuracy[scratch, many, long])}), {after}."
        ]
    if len(sizes) == 1:
        return []
    fewer = listed([names[count] for count in sizes[:-1]])
    return [
        f"Fine-tuning with {fewer} images a class does not reach what training from scratch reaches with the next larger number, "
        f"{after}."
    ]
