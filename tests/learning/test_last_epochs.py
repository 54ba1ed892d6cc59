"""The weights after each of the last epochs wait in a file, also over a kill, and are evaluated on the test split in the end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from config import InputError
from conftest import random_split, run_main
from images.sources import ImageDataset
from learning.history import Observer, Observers
from learning.last_epochs import FILE, LastEpochs, evaluate_last_epochs
from learning.weights import load_checkpoint, save_checkpoint
from model import Net
from test_training import SMALL
from training import Trainer
from utils import seed_everything

CONFIG = replace(SMALL, epochs=5, batch_size=50, val_images=50, max_lr=0.02, ema_decay=0.9, checkpoint_every=8, precision="fp32")
EPOCHS = CONFIG.epochs


class Spy(Observer):
    """Evaluates the test split after each epoch, as nobody else does; `dies_at` is the step after which the process is gone."""

    def __init__(self, dies_at: int = 0) -> None:
        self.accuracies: list[float] = []
        self.dies_at = dies_at

    def evaluated(self, trainer: Trainer, logits: torch.Tensor) -> None:
        random = torch.get_rng_state()
        self.accuracies.append(trainer.evaluate(trainer.dataset.test)[1])
        torch.set_rng_state(random)

    def trained(self, trainer: Trainer, inputs: torch.Tensor) -> None:
        if trainer.step == self.dies_at:
            raise ProcessLookupError


@pytest.fixture(scope="module")
def dataset() -> ImageDataset:
    train, test = random_split(400, 4), random_split(200, 4)
    for split in (train, test):  # easy enough for the accuracies to differ from epoch to epoch
        split.images[range(len(split.labels)), :8, :8, split.labels % 3] //= 2
    return ImageDataset("noise", train, test, tuple("abcd"))


def trainer_of(dataset: ImageDataset, out: Path, *observers: Observer) -> Trainer:
    seed_everything(0)
    model = Net(3, 4, widths=(16, 16, 16, 16))
    return Trainer(model, dataset, CONFIG, out, observer=Observers(*observers, LastEpochs(out, 3)))


def test_their_test_accuracies_are_those_of_the_time(dataset, tmp_path):
    spy = Spy()
    trainer = trainer_of(dataset, tmp_path, spy)
    trainer.fit()
    assert len(spy.accuracies) == EPOCHS
    assert evaluate_last_epochs(tmp_path, trainer, torch.float32) == spy.accuracies[-3:]
    assert len(set(spy.accuracies[-3:])) > 1  # else any three would do
    kept = load_checkpoint(tmp_path / FILE)["epochs"]
    assert list(kept) == [3, 4, 5]
    assert all(torch.equal(kept[5][name], tensor) for name, tensor in trainer.averaged.module.state_dict().items())


@pytest.mark.parametrize(
    "dies_at", [27, pytest.param(30, marks=pytest.mark.slow)]
)  # after the checkpoint of step 24 within an epoch of 7 steps, before and after an end
def test_a_killed_training_goes_on_with_them(dataset, tmp_path, dies_at):
    trainer_of(dataset, tmp_path / "whole").fit()
    with pytest.raises(ProcessLookupError):
        trainer_of(dataset, tmp_path / "killed", Spy(dies_at)).fit()
    trainer_of(dataset, tmp_path / "killed").fit(resume=True)
    whole, resumed = (load_checkpoint(tmp_path / name / FILE)["epochs"] for name in ("whole", "killed"))
    assert list(whole) == list(resumed) == [3, 4, 5]
    for epoch, state in whole.items():
        assert all(torch.equal(state[name], resumed[epoch][name]) for name in state)


def test_only_the_last_epochs_of_the_training_count(dataset, tmp_path):
    trainer = trainer_of(dataset, tmp_path)
    trainer.fit()
    kept = load_checkpoint(tmp_path / FILE)
    save_checkpoint(tmp_path / FILE, kept | {"epochs": {epoch - 1: state for epoch, state in kept["epochs"].items()}})
    assert len(evaluate_last_epochs(tmp_path, trainer, torch.float32)) == 2  # epochs 3 and 4 of 5; number 2 is too old


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: {name: value for name, value in state.items() if name != "epochs"}, "does not hold the weights"),
        (lambda state: state | {"epochs": {5: {"other": torch.zeros(3)}}}, "of another network"),
    ],
)
def test_another_file_is_refused_before_the_training_goes_on(dataset, tmp_path, change, words):
    with pytest.raises(ProcessLookupError):
        trainer_of(dataset, tmp_path, Spy(27)).fit()
    save_checkpoint(tmp_path / FILE, change(load_checkpoint(tmp_path / FILE)))
    with pytest.raises(InputError, match=words):
        trainer_of(dataset, tmp_path).fit(resume=True)


def test_a_resumed_training_keeps_them_without_the_assignment(shapes_npz, tmp_path):
    (tmp_path / "mine.toml").write_text("target_accuracy = 0.01\nlast_epochs = 2")
    options = ("--dataset", f"npz:{shapes_npz}", "--batch-size", 500, "--val-images", 100, "--out", tmp_path / "run")
    first = run_main("train", "--assignment", tmp_path / "mine.toml", *options, "--epochs", 2)
    assert first.returncode == 0, first.stderr
    again = run_main("train", *options, "--epochs", 3, "--resume")
    assert again.returncode == 0, again.stderr
    assert list(load_checkpoint(tmp_path / "run" / FILE)["epochs"]) == [2, 3]
    assert len(json.loads((tmp_path / "run" / "run.json").read_text())["history"]["last_test_accuracies"]) == 2


@pytest.mark.slow
def test_an_assignment_is_judged_by_them(shapes_npz, tmp_path):
    (tmp_path / "mine.toml").write_text("target_accuracy = 0.01\nlast_epochs = 2")
    options = ("--epochs", 3, "--batch-size", 500, "--val-images", 100, "--augment", 0, "--ema-decay", 0, "--out", tmp_path / "run")
    result = run_main("train", "--assignment", tmp_path / "mine.toml", "--dataset", f"npz:{shapes_npz}", *options)
    assert result.returncode == 0, result.stderr
    history = json.loads((tmp_path / "run" / "run.json").read_text())["history"]
    last = history["last_test_accuracies"]
    assert len(last) == 2
    assert f"{last[0]:.2%}, {last[1]:.2%} on the test images" in result.stdout
    assert f"test accuracy {last[1]:.2%}" in result.stdout
    again = run_main("report", tmp_path / "run", "--assignment", tmp_path / "mine.toml")
    assert f"{last[0]:.2%}, {last[1]:.2%} on the test images" in again.stdout
