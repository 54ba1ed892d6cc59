"""What happened in a training: plain numbers, which checkpoints and records hold, and who is told of it meanwhile."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from config import TrainConfig
    from images.data import ImageDataset, Split


EPSILON = 1e-6
"""Of an epoch, by which rounding may differ."""
FLAT_EVALUATIONS = 20
"""Evaluations in a row over which a training loss that hardly moves is flat."""


@dataclass
class Evaluation:
    """One evaluation on the validation images."""

    step: int
    """Optimizer steps taken."""
    epoch: float
    """Passes over the training images."""
    images_seen: int
    learning_rate: float
    train_loss: float
    """Mean over the batches since the last evaluation, in nats, with label smoothing where there is any."""
    train_accuracy: float
    """Likewise, 0 to 1, on the images as augmented."""
    val_loss: float
    val_accuracy: float

    def is_better_than(self, other: Evaluation) -> bool:
        """Whether the validation accuracy is higher, or the loss smaller with an equal one."""
        return (self.val_accuracy, -self.val_loss) > (other.val_accuracy, -other.val_loss)


@dataclass
class History:
    """What happened in a run. All of it but the seconds is the same for the same seed, interrupted or not."""

    evaluations: list[Evaluation] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """The clock at each evaluation, from the start of `Trainer.fit`, without the time between stop and resume."""
    test_passes: int = 0
    test_accuracy: float | None = None
    """Of the last pass over the test split (early exit only)."""
    reached: bool = False
    """Whether that accuracy was above early_exit_accuracy."""
    images_seen: int = 0
    kept: str = ""
    """Which weights were kept in the end, where they are not those of the last evaluation."""
    kept_accuracy: float | None = None
    """Their validation accuracy."""
    last_test_accuracies: list[float] = field(default_factory=list)
    """Test accuracy (0 to 1) of the weights after each of the last epochs, where an assignment has `last_epochs`; evaluated when
    the training was over."""
    total_seconds: float = 0.0
    """The clock when training stopped."""
    waiting_seconds: float = field(default=0.0, compare=False)
    """How long of that the loop waited for a batch: for workers, or for its own making of it where there are none."""

    @property
    def passes(self) -> int:
        """Passes over the whole test split: those of early exit, else the one at the end; and one for each of the last epochs."""
        return (self.test_passes or 1) + len(self.last_test_accuracies)

    @property
    def val_accuracy(self) -> float:
        """Validation accuracy of the weights that are kept, 0 to 1."""
        return self.evaluations[-1].val_accuracy if self.kept_accuracy is None else self.kept_accuracy

    def evaluations_since_best(self) -> int:
        """How many evaluations have followed the best one; 0 where the last is the best."""
        best = 0
        for i, evaluation in enumerate(self.evaluations):
            if evaluation.is_better_than(self.evaluations[best]):
                best = i
        return max(0, len(self.evaluations) - 1 - best)

    def is_flat(self, least: float) -> bool:
        """Whether the training loss has moved by less than `least`, in nats, over the last FLAT_EVALUATIONS evaluations."""
        losses = [evaluation.train_loss for evaluation in self.evaluations[-FLAT_EVALUATIONS:]]
        return len(losses) == FLAT_EVALUATIONS and max(losses) - min(losses) < least

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> History:
        """The inverse of ``dataclasses.asdict``."""
        return cls(**{**values, "evaluations": [Evaluation(**e) for e in values["evaluations"]]})


class Training(Protocol):
    """What an observer may read of a training under way; the Trainer is one."""

    step: int
    """Optimizer steps taken."""
    model: nn.Module
    dataset: ImageDataset
    val_split: Split
    config: TrainConfig
    history: History
    card: dict[str, Any]
    mean: tuple[float, ...]
    """Of each channel, of pixels scaled to 0..1: what the inputs are normalised with."""
    std: tuple[float, ...]

    @property
    def trained_model(self) -> nn.Module:
        """The network to evaluate: the averaged one where there is an average."""

    def is_due(self, every: int) -> bool:
        """Whether what comes every so many steps (0: once an epoch) comes after the latest step."""


class Observer:
    """Is told by a Trainer what happens in `fit`. Does nothing; whoever wants to know overrides a method.

    It may look at everything and must change nothing. What happened after the latest checkpoint of a run that was killed is told
    again, the same, when that is resumed.
    """

    def started(self, trainer: Training) -> None:
        """All is prepared and, in a resumed run, restored."""

    def trained(self, trainer: Training, inputs: Tensor) -> None:
        """A step was made on `inputs` (B, C, H, W), the normalised images; the parameters still have the gradients of it."""

    def read(self, step: int, learning_rate: float, loss: float, accuracy: float) -> None:
        """What step number `step` was made with, and loss (nats) and accuracy (0 to 1) of its batch before it.

        On an accelerator this comes up to 20 steps late, since each reading waits for it.
        """

    def evaluated(self, trainer: Training, logits: Tensor) -> None:
        """The history has a new evaluation; `logits` (N, num_classes), float32, are those of the validation images."""

    def saving(self) -> None:
        """A checkpoint is about to be written."""


class Observers(Observer):
    """Tells each of several observers, in their order."""

    def __init__(self, *observers: Observer) -> None:
        self.observers = observers

    def started(self, trainer: Training) -> None:
        for observer in self.observers:
            observer.started(trainer)

    def trained(self, trainer: Training, inputs: Tensor) -> None:
        for observer in self.observers:
            observer.trained(trainer, inputs)

    def read(self, step: int, learning_rate: float, loss: float, accuracy: float) -> None:
        for observer in self.observers:
            observer.read(step, learning_rate, loss, accuracy)

    def evaluated(self, trainer: Training, logits: Tensor) -> None:
        for observer in self.observers:
            observer.evaluated(trainer, logits)

    def saving(self) -> None:
        for observer in self.observers:
            observer.saving()
