"""The weights after each of the last epochs, which are evaluated on the test split when the training is over.

Courses demand an accuracy on the test split in each of the last N epochs. Evaluated during the training, the test split would be
shown to whoever chooses settings or stops the training. So the weights wait in a file, and nothing depends on what they reach.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from config import InputError
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
        self.states = _read(self.path)["epochs"] if trainer.step else {}
        mine = {name: tensor.shape for name, tensor in trainer.trained_model.state_dict().items()}
        for state in self.states.values():
            if {name: tensor.shape for name, tensor in state.items()} != mine:
                raise InputError(f"{self.path} is of another network than the checkpoint beside it: remove it to go on without it")

    def evaluated(self, trainer: Training, logits: Tensor) -> None:
        at = trainer.history.evaluations[-1].epoch
        epoch = round(at)
        if abs(at - epoch) > EPSILON:
            return
        self.states[epoch] = latest = state_of(trainer.trained_model)
        # A run that was killed may have left later ones than the checkpoint from which it is resumed.
        self.states = {each: state for each, state in sorted(self.states.items()) if epoch - self.count < each <= epoch}
        save_checkpoint(self.path, {"card": trainer.card, "model": latest, "epochs": self.states, "count": self.count})


def count_kept(folder: Path) -> int:
    """The last epochs whose weights the training in `folder` keeps: a resumed one goes on with that. 0 where it keeps none."""
    return int(_read(folder / FILE)["count"])


def evaluate_last_epochs(folder: Path, trainer: Training, precision: torch.dtype) -> list[float]:
    """Accuracy (0 to 1) on the test split with the weights after each of the last epochs that `LastEpochs` kept in `folder`, in
    their order; none where it kept none."""
    test, accuracies, kept = trainer.dataset.test, [], _read(folder / FILE)
    last = round(trainer.history.evaluations[-1].epoch)
    for epoch, state in kept["epochs"].items():
        if not last - kept["count"] < epoch <= last:
            continue
        network = copy_with(trainer.model, state)
        device = next(network.parameters()).device
        logits = predict_logits(network, test.images, trainer.mean, trainer.std, device, precision)
        accuracies.append(loss_and_accuracy(logits, test.labels)[1])
    return accuracies


def _read(path: Path) -> dict[str, Any]:
    """What LastEpochs wrote, nothing where there is no file. Raises InputError where it is something else."""
    kept = load_checkpoint(path) if path.exists() else {"epochs": {}}
    epochs = kept.get("epochs")
    if not isinstance(epochs, dict) or not all(isinstance(state, dict) for state in epochs.values()):
        raise InputError(f"{path} does not hold the weights of a training's last epochs: remove it to go on without them")
    return {"epochs": epochs, "count": kept.get("count", len(epochs))}
