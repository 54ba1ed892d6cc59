"""What an assignment demands of a training, computed from what the training left: its history, its settings and its card."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from learning.history import EPSILON, History
from learning.run_folder import data_place
from limits.assignments import Assignment
from limits.constraints import Constraint, check
from transform import HOLE_FRACTION, MAX_HOLE_FRACTION

if TYPE_CHECKING:
    from torch import nn

    from config import TrainConfig
    from images.data import ImageDataset
    from learning.history import Evaluation

BATCH_SIZE, PEAK, AUGMENTATION = "batch size", "peak of OneCycle", "augmentation"
"""What these demands are called."""


@dataclass(frozen=True)
class Training:
    """What a training is judged by."""

    card: dict[str, Any]
    config: dict[str, Any]
    """The fields of TrainConfig."""
    history: History

    @property
    def test_accuracy(self) -> float | None:
        """0 to 1; None where the test split has not been evaluated."""
        return self.card.get("test_accuracy", self.history.test_accuracy)

    @property
    def has_val_split(self) -> bool:
        """Whether the validation images were not trained on."""
        return self.config.get("val_images") != 0 or self.card.get("data", {}).get("val", 0) > 0


def of_all(assignment: Assignment, model: nn.Module, training: Training) -> list[Constraint]:
    """Every demand on a network and on its training, the bonus last. Raises InputError as `check` does."""
    card = training.card
    found = check(model, tuple(card["image_size"]), card["num_channels"], assignment=assignment)
    return sorted(found + of_training(assignment, training), key=lambda constraint: constraint.is_bonus)


def of_training(assignment: Assignment, training: Training | None = None) -> list[Constraint]:
    """Every demand on the training; without one, what there is to demand, all of it unknown."""
    return list(_all(assignment, training))


def settings_that_fail(assignment: Assignment, dataset: ImageDataset, config: TrainConfig) -> list[Constraint]:
    """The demands on a training that its settings alone break: batch size, peak of OneCycle, augmentation."""
    card = {"dataset": dataset.name, "image_size": list(dataset.image_size)}
    known = [BATCH_SIZE, *([] if config.steps else [PEAK]), AUGMENTATION]  # the peak of so many steps shows in the history
    found = of_training(assignment, Training(card, asdict(config), History()))
    return [one for one in found if one.passed is False and one.name.startswith(tuple(known))]


def _all(assignment: Assignment, training: Training | None) -> Iterator[Constraint]:
    nothing = "unknown, because no training is at hand"
    config: dict[str, Any] = training.config if training else {}

    def demand(name: str, limit: str, value: str, passed: bool | None) -> Constraint:
        return Constraint(name, value, limit, passed) if training else Constraint(name, nothing, limit, None)

    if assignment.dataset:
        found = training.card["dataset"] if training else ""
        yield demand("data set", assignment.dataset, found, data_place(found) == data_place(assignment.dataset))
    if assignment.target_accuracy is not None:
        accuracy = training.test_accuracy if training else None
        limit = f"> {100 * assignment.target_accuracy:.6g}%"
        unknown = "unknown, because the test split has not been evaluated"
        value = unknown if accuracy is None else f"{accuracy:.2%}"
        yield demand("test accuracy", limit, value, None if accuracy is None else accuracy > assignment.target_accuracy)
        if assignment.last_epochs:
            count = assignment.last_epochs
            name = f"accuracy after each of the last {count} epochs" if count > 1 else "accuracy after the last epoch"
            yield demand(name, limit, *_last_epochs(training, count, assignment.target_accuracy))
    last = training.history.evaluations[-1].epoch if training and training.history.evaluations else 0.0
    if assignment.max_epochs:
        yield demand("epochs", f"<= {assignment.max_epochs:g}", f"{last:.4g}", last <= assignment.max_epochs + EPSILON)
    if assignment.seconds:
        seconds = training.history.total_seconds if training else 0.0
        yield demand("seconds", f"<= {assignment.seconds:g}", f"{seconds:.1f}", seconds <= assignment.seconds)
    if assignment.batch_size:
        size = config.get("batch_size")
        yield demand(BATCH_SIZE, f"{assignment.batch_size}", f"{size}", size == assignment.batch_size)
    if assignment.peak_epoch:
        peak = _peak(training) if training else 0.0
        passed = abs(peak - assignment.peak_epoch) < 0.1
        yield demand(PEAK, f"at epoch {assignment.peak_epoch:g}", f"at epoch {peak:.3g}", passed)
    wanted = assignment.augmentation
    for name, is_wanted, part in (
        (f"{AUGMENTATION}: flip", wanted.flip, "flip"),
        (f"{AUGMENTATION}: shift, scale, rotate", wanted.shift_scale_rotate, "shift_scale_rotate"),
    ):
        if is_wanted:
            is_done = bool(config.get("augment") and config.get(part))
            yield demand(name, "by Albumentations", "done" if is_done else "not done", is_done)
    if wanted.hole:
        side = _hole(training) if training else 0
        limit = f"one hole of {wanted.hole}x{wanted.hole}, filled with the mean"
        value = f"one of {side}x{side}, filled with the mean" if side else "none"
        yield demand(f"{AUGMENTATION}: coarse dropout", limit, value, side == wanted.hole)


def _last_epochs(training: Training | None, count: int, target: float) -> tuple[str, bool | None]:
    """The accuracies after the last epochs, and whether all are above the target: on the test images where the training kept the
    weights to find them, else on the validation images."""
    if training is None:
        return "", None
    if (trained := round(training.history.evaluations[-1].epoch) if training.history.evaluations else 0) < count:
        return f"only {trained} epoch{' was' if trained == 1 else 's were'} trained", False
    if len(kept := training.history.last_test_accuracies[-count:]) == count:
        return _listed(kept, "test"), min(kept) > target
    if not training.has_val_split:
        return "unknown, because the validation images were trained on", None
    at_ends: dict[int, Evaluation] = {
        round(each.epoch): each for each in training.history.evaluations if abs(each.epoch - round(each.epoch)) < EPSILON
    }
    last = max(at_ends, default=0)
    wanted = range(last - count + 1, last + 1)
    if any(epoch not in at_ends for epoch in wanted):
        done = sum(epoch in at_ends for epoch in wanted)
        return f"unknown, because {done} of these {count} epochs ended with an evaluation (--eval-every)", None
    accuracies = [at_ends[epoch].val_accuracy for epoch in wanted]
    return _listed(accuracies, "validation"), min(accuracies) > target


def _listed(accuracies: list[float], split: str) -> str:
    return ", ".join(f"{accuracy:.2%}" for accuracy in accuracies) + f" on the {split} images"


def _peak(training: Training) -> float:
    """The epoch after which the learning rate is at its peak."""
    history, config = training.history, training.config
    epochs = config["epochs"]
    if config["steps"] and history.evaluations:
        last = history.evaluations[-1]
        epochs = config["steps"] * last.epoch / last.step
    return epochs * config["pct_start"]


def _hole(training: Training) -> int:
    """Side in pixels of the hole that is cut into images; 0 for none."""
    config = training.config
    if not (config["augment"] and config["dropout"]):
        return 0
    return config.get("hole") or round(min(HOLE_FRACTION * config["augment"], MAX_HOLE_FRACTION) * training.card["image_size"][0])
