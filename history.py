"""What happened in a training: plain numbers, which checkpoints and records hold."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Evaluation:
    """One look at the held-out images."""

    step: int
    """Optimizer steps taken."""
    epoch: float
    """Passes over the training images."""
    images_seen: int
    learning_rate: float
    train_loss: float
    """Mean over the batches since the last look, in nats, with label smoothing where there is any."""
    train_accuracy: float
    """Likewise, 0 to 1, on the images as augmented."""
    val_loss: float
    val_accuracy: float


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
    total_seconds: float = 0.0
    """The clock when training stopped."""
    waiting_seconds: float = field(default=0.0, compare=False)
    """How long of that the loop waited for a batch: for workers, or for its own making of it where there are none."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> History:
        """The inverse of ``dataclasses.asdict``."""
        return cls(**{**values, "evaluations": [Evaluation(**e) for e in values["evaluations"]]})
