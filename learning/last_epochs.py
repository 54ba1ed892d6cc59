"""The weights after each of the last epochs, which are evaluated on the test split when the training is over.

Courses demand an accuracy on the test split in each of the last N epochs. Evaluated during the training, the test split would be
shown to whoever chooses settings or stops the training. So the weights wait in a file, and nothing depends on what they reach.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from learning.averaging import copy_with, state_of
from learning.history import EPSILON, Observer, Training
from learning.inference import loss_and_accuracy, predict_logits
from learning.weights import load_checkpoint, save_checkpoint

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FILE = "last-epochs.pt"


class LastEpochs(Observer):
    """Keeps the weights after each of the last `count` epochs in a file in `folder`, from which a resumed run goes on."""

    def __init__(self, folder: Path, count: int) -> None:
        self.path, self.count = folder / FILE, count
        self.states: dict[int, dict[str, Tensor]] = {}

    def started(self, trainer: Training) -> None:
        self.states = _read(self.path) if trainer.step else {}

    def evaluated(self, trainer: Training, logits: Tensor) -> None:
        at = trainer.history.evaluations[-1].epoch
        epoch = round(at)
        if abs(at - epoch) > EPSILON:
            return
        self.states[epoch] = latest = state_of(trainer.trained_model)
        # A run that was killed may have left later ones than the checkpoint from which it is resumed.
        self.states = {each: state for each, state in sorted(self.states.items()) if epoch - self.count < each <= epoch}
        save_checkpoint(self.path, {"card": trainer.card, "model": latest, "epochs": self.states})


def evaluate_last_epochs(folder: Path, trainer: Training, precision: torch.dtype) -> list[float]:
    """Accuracy (0 to 1) on the test split with the weights after each of the epochs that `LastEpochs` kept in `folder`, in their
    order."""
    test, accuracies = trainer.dataset.test, []
    for state in _read(folder / FILE).values():
        network = copy_with(trainer.model, state)
        device = next(network.parameters()).device
        logits = predict_logits(network, test.images, trainer.mean, trainer.std, device, precision)
        accuracies.append(loss_and_accuracy(logits, test.labels)[1])
    return accuracies


def _read(path: Path) -> dict[int, dict[str, Tensor]]:
    return load_checkpoint(path)["epochs"] if path.exists() else {}
