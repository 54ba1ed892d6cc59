"""What an assignment demands of a training, from its history, settings and card."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import pytest

from config import TrainConfig
from learning.history import Evaluation, History
from limits.assignments import parse
from limits.constraints import Constraint
from results.demands import Training, of_all, of_training


def training(
    accuracies: list[float], test_accuracy: float | None = 0.9, ends: list[float] | None = None, **config: Any
) -> Training:
    """A training with these validation accuracies at the ends of the epochs 1, 2, ..."""
    epochs = ends or [float(epoch) for epoch in range(1, len(accuracies) + 1)]
    evaluations = [
        Evaluation(round(100 * epoch), epoch, 0, 0.1, 1.0, 0.5, 1.0, accuracy)
        for epoch, accuracy in zip(epochs, accuracies, strict=True)
    ]
    history = History(evaluations, seconds=[10.0 * epoch for epoch in epochs], total_seconds=10.0 * (epochs or [0])[-1])
    card = {"dataset": "mnist", "image_size": [32, 32], "num_channels": 3, "data": {"val": 0}}
    if test_accuracy is not None:
        card["test_accuracy"] = test_accuracy
    return Training(card, dataclasses.asdict(TrainConfig(**config)), history)


def demand(lines: dict[str, Any], trained: Training | None) -> Constraint:
    """The last demand of `lines` on the training."""
    return of_training(parse(lines, "mine.toml"), trained)[-1]


def test_the_test_accuracy_must_be_above_the_target() -> None:
    assert demand({"target_accuracy": 0.9}, training([0.5], 0.9)) == Constraint("test accuracy", "90.00%", "> 90%", False)
    assert demand({"target_accuracy": 0.9}, training([0.5], 0.9001)).passed is True
    unfinished = demand({"target_accuracy": 0.9}, training([0.99], None))
    assert (unfinished.passed, unfinished.value) == (None, "unknown, because the test split has not been evaluated")


LAST = {"target_accuracy": 0.9939, "last_epochs": 3}


def test_each_of_the_last_epochs() -> None:
    good = demand(LAST, training([0.5, 0.994, 0.995, 0.996]))
    assert good.value == "99.40%, 99.50%, 99.60% on the validation images"
    assert (good.name, good.limit, good.passed) == ("accuracy after each of the last 3 epochs", "> 99.39%", True)
    assert demand(LAST, training([0.995, 0.995, 0.9939, 0.996])).passed is False
    assert demand(LAST, training([0.1, 0.995, 0.995, 0.996])).passed is True
    assert demand(LAST, training([0.995, 0.996])).value == "only 2 epochs were trained"
    assert demand(LAST, training([0.995, 0.996])).passed is False
    assert demand(LAST, training([])).passed is False


def test_the_test_split_decides_where_the_weights_of_the_last_epochs_were_kept() -> None:
    trained = training([0.1, 0.995, 0.995, 0.995])
    trained.history.last_test_accuracies = [0.995, 0.994, 0.996]
    good = demand(LAST, trained)
    assert (good.value, good.passed) == ("99.50%, 99.40%, 99.60% on the test images", True)
    trained.history.last_test_accuracies[1] = 0.9939
    assert demand(LAST, trained).passed is False
    trained.history.last_test_accuracies.pop()
    assert demand(LAST, trained).value.endswith("on the validation images")


def test_evaluations_within_epochs() -> None:
    ends = [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    assert demand(LAST, training([0.1, 0.995, 0.1, 0.995, 0.1, 0.996], ends=ends)).passed is True
    rare = demand(LAST, training([0.995, 0.996], ends=[2.0, 4.0]))
    assert (rare.passed, rare.value) == (None, "unknown, because 2 of these 3 epochs ended with an evaluation (--eval-every)")


def test_images_that_were_trained_on_show_nothing() -> None:
    trained_on = demand(LAST, training([0.999] * 4, val_images=0))
    assert (trained_on.passed, trained_on.value) == (None, "unknown, because the validation images were trained on")
    own = training([0.999] * 4, val_images=0)
    own.card["data"]["val"] = 100
    assert demand(LAST, own).passed is True


def test_epochs_and_seconds() -> None:
    assert demand({"max_epochs": 15}, training([0.5] * 15)).passed is True
    assert demand({"max_epochs": 15}, training([0.5] * 16)) == Constraint("epochs", "16", "<= 15", False)
    assert demand({"seconds": 20}, training([0.5] * 2)).passed is True
    assert demand({"seconds": 20}, training([0.5] * 3)) == Constraint("seconds", "30.0", "<= 20", False)


def test_data_set_batch_size_and_peak() -> None:
    assert demand({"dataset": "mnist"}, training([0.5])).passed is True
    assert demand({"dataset": "cifar10"}, training([0.5])) == Constraint("data set", "mnist", "cifar10", False)
    photographs = training([0.5])
    photographs.card["dataset"] = "folder:photographs"
    for name, same in (("photographs/", True), (os.path.abspath("photographs"), True), ("photograph", False)):
        assert demand({"dataset": f"folder:{name}"}, photographs).passed is same
    assert demand({"batch_size": 512}, training([0.5], batch_size=512)).passed is True
    assert demand({"batch_size": 512}, training([0.5], batch_size=256)).passed is False
    assert demand({"peak_epoch": 5}, training([0.5], epochs=10, pct_start=0.5)).passed is True
    assert demand({"peak_epoch": 5}, training([0.5], epochs=24, pct_start=0.25)).value == "at epoch 6"
    in_steps = training([0.5] * 10, steps=1000, pct_start=0.5)  # 100 steps an epoch
    assert demand({"peak_epoch": 5}, in_steps).passed is True


@pytest.mark.parametrize(
    ("config", "verdicts"),
    [
        ({"augment": 0.5, "hole": 16}, [True, True, True]),
        ({"augment": 2.0}, [True, True, True]),  # a quarter of 32 pixels, twice
        ({"augment": 1.0}, [True, True, False]),
        ({"augment": 0.0, "hole": 16}, [False, False, False]),
        ({"augment": 1.0, "hole": 16, "flip": False}, [False, True, True]),
        ({"augment": 1.0, "hole": 16, "shift_scale_rotate": False}, [True, False, True]),
        ({"augment": 1.0, "hole": 16, "dropout": False}, [True, True, False]),
    ],
)
def test_augmentation(config: dict[str, Any], verdicts: list[bool]) -> None:
    lines = {"augmentation": {"flip": True, "shift_scale_rotate": True, "hole": 16}}
    found = of_training(parse(lines, "mine.toml"), training([0.5], **config))
    assert [one.passed for one in found] == verdicts


def test_without_a_training_all_is_unknown() -> None:
    lines = LAST | {"max_epochs": 3, "seconds": 1, "dataset": "mnist", "batch_size": 4, "peak_epoch": 2}
    lines["augmentation"] = {"flip": True, "shift_scale_rotate": True, "hole": 16}
    found = of_training(parse(lines, "mine.toml"))
    assert len(found) == 10
    assert {one.value for one in found} == {"unknown, because no training is at hand"}
    assert {one.passed for one in found} == {None}


def test_network_and_training_together_the_bonus_last() -> None:
    from torch import nn

    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    lines = {"max_parameters": 1000, "target_accuracy": 0.5, "bonus": {"max_parameters": 10}}
    found = of_all(parse(lines, "mine.toml"), network, training([0.5]))
    assert [(one.name, one.verdict) for one in found] == [
        ("parameters", "pass"),
        ("test accuracy", "pass"),
        ("bonus: parameters", "no bonus"),
    ]
