"""Settings that follow the data: the presets are made for tens of thousands of images, and people come with sixty."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection
from dataclasses import replace
from typing import TypeVar

import numpy as np

from config import InputError, TrainConfig
from images.data import ImageDataset, Split, demand_batch
from images.files import some_of
from images.sources import demand_splittable
from learning import distributed
from learning.schedule import budget_of

MIN_STEPS = 300
"""Optimizer steps that a training makes at least, unless its budget is set by hand."""
STEPS_PER_EPOCH, MIN_BATCH = 8, 8
"""Batches get smaller until an epoch has so many, or until they have so few images."""
SHARE_OF_VALIDATION = 10
"""One in so many training images, at most, is a validation image."""
AVERAGED_SHARE = 8
"""The weights are averaged over the last one in so many steps, at most."""
FEW = 30
"""Images on which an accuracy is rough, if they are fewer."""
FITTED = (
    "val_images",
    "batch_size",
    "images_per_draw",
    "epochs",
    "ema_decay",
    "statistics_images",
    "whiten_images",
    "flip",
    "image_size",
)
"""The fields that `fit_to_data` may change."""

PART_OF = {
    "flip": "augment",
    "shift_scale_rotate": "augment",
    "dropout": "augment",
    "temperature": "teacher",
    "teacher_weight": "teacher",
    "early_exit_margin": "early_exit_accuracy",
}
"""Fields that change nothing where another one is off."""

Value = TypeVar("Value", int, float, bool)


def demand_consistent(config: TrainConfig, given: Collection[str], dataset_name: str) -> None:
    """Raise InputError where the fields that the user set, `given`, contradict each other or mean nothing for the data set."""
    if {"epochs", "steps"} <= {*given}:
        raise InputError("epochs and steps are two ways to say the budget: name one of them")
    for name, whole in PART_OF.items():
        if name in given and getattr(config, name) and not getattr(config, whole):
            raise InputError(f"{name} has no effect without {whole}, which is off: set {whole} too, or leave out {name}")
    if config.image_size and "image_size" in given and not dataset_name.startswith("folder:"):
        raise InputError(f"image_size is for folder:PATH alone: the images of {dataset_name} keep their size")


def fit_to_data(
    config: TrainConfig, dataset: ImageDataset, given: Collection[str] | None = None, has_options: bool = True
) -> TrainConfig:
    """`config` with the numbers that are too large for `dataset` made smaller, and no mirroring of what must not be mirrored.

    Fields whose names are `given` were set by the user and stay; None, or not `has_options`: there are no options to set the
    others. What was chosen is said in one line on stderr. Data of the size of CIFAR-10 change nothing.

    Raises InputError, before anything is said, where what the user set does not fit the data.
    """
    counts = np.bincount(dataset.train.labels)
    images, processes = len(dataset.train.labels), distributed.size()

    def choose(name: str, value: Value) -> Value:
        return getattr(config, name) if name in fixed else value

    fixed = given or ()
    if dataset.val and "val_images" in fixed:
        raise InputError(f"{dataset.name} has {len(dataset.val.labels):,} validation images of its own: leave out val_images")
    most = images - int(np.count_nonzero(counts))  # every class keeps one to train on
    val = min(config.val_images, most, max(int((counts > 1).sum()), images // SHARE_OF_VALIDATION))
    val = len(dataset.val.labels) if dataset.val else choose("val_images", val)
    rest = images if dataset.val else max(1, images - val)  # fewer are refused below
    batch = max(MIN_BATCH, 2 ** int(math.log2(max(1, rest / STEPS_PER_EPOCH))))
    batch = min(config.batch_size, rest, batch)
    batch = choose("batch_size", max(processes, batch - batch % processes))
    fitted = replace(
        config,
        val_images=val,
        batch_size=batch,
        images_per_draw=choose("images_per_draw", math.gcd(config.images_per_draw, max(1, batch // processes))),
        statistics_images=choose("statistics_images", min(config.statistics_images, rest)),
        whiten_images=choose("whiten_images", min(config.whiten_images, rest)),
        flip=choose("flip", config.flip and dataset.flips),
        image_size=choose("image_size", dataset.image_size[0]),
    )
    demand_fits(fitted, dataset)
    steps_per_epoch = max(1, rest // batch)
    if not config.steps and config.epochs * steps_per_epoch < MIN_STEPS:
        fitted = replace(fitted, epochs=choose("epochs", math.ceil(MIN_STEPS / steps_per_epoch)))
    steps = budget_of(fitted, steps_per_epoch)
    fitted = replace(fitted, ema_decay=choose("ema_decay", min(config.ema_decay, max(0.0, 1 - AVERAGED_SHARE / steps))))
    _say(config, fitted, dataset, steps, given is not None and has_options)
    return fitted


def demand_fits(config: TrainConfig, dataset: ImageDataset) -> None:
    """Raise InputError where `dataset` has not as many images as the validation split or a batch of `config` needs."""
    rest = len(dataset.train.labels)
    if config.val_images and not dataset.val:
        demand_splittable(dataset.train.labels, config.val_images)
        rest -= config.val_images
    demand_batch(config.batch_size, rest, config.images_per_draw if config.augmentations else 1, distributed.size())


def _say(config: TrainConfig, fitted: TrainConfig, dataset: ImageDataset, steps: int, with_options: bool) -> None:
    """Say in one line what of `fitted` is not as in `config`; how many images there are to normalise by is of no interest."""
    texts = {
        "image_size": f"images of {fitted.image_size}x{fitted.image_size} pixels",
        "val_images": f"{fitted.val_images:,} of them for validation",
        "batch_size": f"batches of {fitted.batch_size}",
        "epochs": f"{fitted.epochs:g} epochs ({steps:,} steps)",
        "ema_decay": f"weights averaged with decay {fitted.ema_decay:.3g}" if fitted.ema_decay else "weights not averaged",
        "flip": "no flips",
    }
    if dataset.val:
        texts["val_images"] = f"the {fitted.val_images:,} validation images of the data set"
    elif not fitted.val_images:
        texts["val_images"] = "none to spare for validation: the training images stand in, whose accuracy says little"
    if not dataset.name.startswith("folder:"):
        texts.pop("image_size")
    if not (config.augment and config.flip):
        texts.pop("flip")
    changed = {name: text for name, text in texts.items() if getattr(config, name) != getattr(fitted, name)}
    if not (fitted.val_images or dataset.val or "val_images" in changed):
        print("note: no validation images: the training images are used instead, and their accuracy says little", file=sys.stderr)
    if changed:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in changed if not (dataset.val and name == "val_images"))
        print(
            f"note: chosen for {len(dataset.train.labels):,} training images: {'; '.join(changed.values())}"
            + (f" (override with {options})" if with_options and options else ""),
            file=sys.stderr,
        )


def say_limits(dataset: ImageDataset, val_split: Split) -> None:
    """Say on stderr what the accuracies leave open: classes that have no test or no validation image, and splits of few images."""
    few = {
        part: len(split.labels)
        for part, split in (("validation", val_split), ("test", dataset.test))
        if split is not dataset.train and 0 < len(split.labels) < FEW
    }
    if few:
        counts, points = ([f"{value:,.3g}" for value in values] for values in (few.values(), (100 / n for n in few.values())))
        numbers = " and ".join(f"{count} {part}" for count, part in zip(counts, few, strict=True))
        print(
            f"note: only {numbers} images: accuracies on them are rough, one image is worth {' and '.join(points)} points",
            file=sys.stderr,
        )
    for part, split in (("test", dataset.test), ("validation", val_split)):
        there = set(split.labels.tolist())
        missing = [name for label, name in enumerate(dataset.classes) if label not in there]
        if there and missing:
            print(f"note: no {part} image of {some_of(missing)}: the {part} accuracy says nothing about them", file=sys.stderr)
