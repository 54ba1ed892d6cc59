"""What is trained and what is kept: the corrected average, the best weights, early stopping, class weights, frozen features."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from config import TrainConfig
from conftest import random_split
from images.data import ImageDataset, Split
from learning.averaging import WeightAverage
from learning.history import Evaluation, History
from learning.weights import load_checkpoint
from training import Trainer
from utils import seed_everything

SMALL = TrainConfig(epochs=1, batch_size=16, val_images=20, whiten_images=0, max_lr=0.02, device="cpu", precision="fp32")


def small_net() -> nn.Module:
    seed_everything(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 5, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )


@pytest.fixture
def dataset() -> ImageDataset:
    """Bright and dark noise."""
    train, test = random_split(100, 2), random_split(20, 2)
    for split in (train, test):
        split.images[split.labels == 1] //= 2
    return ImageDataset("noise", train, test, ("bright", "dark"))


def test_average_is_that_of_all_states_with_weights_by_age():
    model = nn.Linear(1, 1, bias=False)
    average, values, decay = WeightAverage(model, 0.9), [3.0, -1.0, 4.0, 10.0, 5.0], 0.9
    for count, value in enumerate(values, 1):
        nn.init.constant_(model.weight, value)
        average.update_parameters(model)
        weights = [decay**age for age in reversed(range(count))]
        expected = sum(w * v for w, v in zip(weights, values, strict=False)) / sum(weights)
        assert average.module.weight.item() == pytest.approx(expected, rel=1e-5)
    resumed = WeightAverage(model, decay)
    resumed.restore(average.module.state_dict(), average.updates)
    for each in (average, resumed):
        nn.init.constant_(model.weight, -7.0)
        each.update_parameters(model)
    assert torch.equal(average.module.weight, resumed.module.weight)


@pytest.mark.parametrize("better", ["average", "weights"])
def test_the_better_of_average_and_weights_is_kept(dataset, better, tmp_path):
    trainer = Trainer(small_net(), dataset, replace(SMALL, ema_decay=0.5), tmp_path)
    update = WeightAverage.update_parameters

    def spoil(self: WeightAverage, model: nn.Module) -> None:
        update(self, model)
        worse = model if better == "average" and trainer.step == trainer.total_steps - 1 else self.module
        if better == "weights" or worse is model:
            worse[5].bias.data = torch.tensor([1e3, -1e3]) * (1 if better == "weights" else -1)

    trainer.averaged = None
    WeightAverage.update_parameters = spoil
    try:
        history = trainer.fit()
    finally:
        WeightAverage.update_parameters = update
    kept = trainer.model if better == "weights" else trainer.averaged.module
    for name, tensor in trainer.trained_model.state_dict().items():
        assert torch.equal(tensor, kept.state_dict()[name])
    assert history.kept == ("the weights of the last step, not their average" if better == "weights" else "")
    assert trainer.evaluate(trainer.val_split)[1] == history.val_accuracy
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    assert torch.equal(state["model"]["5.bias"], kept.state_dict()["5.bias"])
    again = Trainer(small_net(), dataset, replace(SMALL, ema_decay=0.5), tmp_path)
    assert again.fit(resume=True).kept == history.kept
    assert torch.equal(again.trained_model.state_dict()["5.bias"], kept.state_dict()["5.bias"])


def evaluation(accuracy: float, loss: float = 1.0) -> Evaluation:
    return Evaluation(0, 0, 0, 0.0, 1.0, 0.5, loss, accuracy)


def test_evaluations_since_the_best():
    history = History([evaluation(0.5), evaluation(0.7, 2.0), evaluation(0.7, 1.0), evaluation(0.6), evaluation(0.7, 1.0)])
    assert history.evaluations_since_best() == 2
    assert History().evaluations_since_best() == 0


def test_early_stopping_keeps_the_best_weights_also_after_a_resume(dataset, tmp_path):
    config = replace(SMALL, epochs=50, patience=2, eval_every=2)

    def make() -> Trainer:
        trainer = Trainer(small_net(), dataset, config, tmp_path)
        evaluate, accuracies = trainer._evaluate, [0.5, 0.6, 0.8, 0.7, 0.7, 0.9]

        def scripted() -> None:
            count = len(trainer.history.evaluations)
            trainer._group_logits_of = trainer._group_logits
            split = trainer.val_split
            correct = round(accuracies[count] * len(split.labels))
            logits = torch.zeros(len(split.labels), 2)
            logits[range(len(split.labels)), np.where(np.arange(len(split.labels)) < correct, split.labels, 1 - split.labels)] = 1
            trainer._group_logits = lambda split: logits
            evaluate()
            trainer._group_logits = trainer._group_logits_of
            states.append({name: tensor.clone() for name, tensor in trainer.model.state_dict().items()})

        states: list[dict] = []
        trainer._evaluate, trainer.states = scripted, states
        return trainer

    trainer = make()
    trainer._choose_weights = lambda: None  # the real evaluation would judge otherwise
    history = trainer.fit()
    assert [e.val_accuracy for e in history.evaluations] == [0.5, 0.6, 0.8, 0.7, 0.7]
    assert trainer.step == 10
    for name, tensor in trainer.best.items():
        assert torch.equal(tensor, trainer.states[2][name])
    resumed = make()
    resumed._choose_weights = lambda: None
    assert resumed.fit(resume=True).evaluations == history.evaluations  # there is nothing left to do
    assert torch.equal(resumed.best["5.weight"], trainer.best["5.weight"])


def test_class_weights_make_classes_count_alike(dataset):
    many = np.flatnonzero(dataset.train.labels == 0)
    chosen = np.concatenate([many, np.flatnonzero(dataset.train.labels == 1)[:10]])
    unequal = replace(dataset, train=Split(dataset.train.images[chosen], dataset.train.labels[chosen]))
    trainer = Trainer(small_net(), unequal, replace(SMALL, class_weights="balanced", val_images=6))
    trainer._prepare()
    counts = np.bincount(trainer.train_split.labels)
    assert trainer.class_weights.tolist() == pytest.approx((len(trainer.train_split.labels) / (2 * counts)).tolist())
    logits, labels = torch.zeros(4, 2), torch.tensor([0, 1, 1, 0])
    expected = math.log(2) * trainer.class_weights[labels].mean().item()
    assert trainer._loss(logits, torch.empty(0), labels).item() == pytest.approx(expected)


def test_frozen_features_stay_to_the_last_bit(dataset):
    model = small_net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Trainer(model, dataset, replace(SMALL, freeze=True)).fit()
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert changed == ["5.weight", "5.bias"]


def test_without_validation_images_the_training_images_stand_in(dataset):
    trainer = Trainer(small_net(), dataset, replace(SMALL, val_images=0))
    assert trainer.val_split is trainer.train_split is dataset.train
    assert len(trainer.fit().evaluations) == 1


def test_validation_split_of_the_data_set_leaves_all_training_images(dataset):
    own = replace(dataset, val=random_split(8, 2))
    trainer = Trainer(small_net(), own, SMALL)
    assert trainer.val_split is own.val and trainer.train_split is own.train
