"""What a measurement of the runtimes is asked for, and what it answers."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Literal

BASE = "base"
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Job:
    """What one process does."""

    variant: str
    work: str
    """training (a step of the Trainer: forward, backward, optimizer) or inference."""
    precision: Precision
    layout: str
    device: str
    batch_size: int


@dataclass
class Result:
    """What came of it."""

    job: Job
    first_call: float = 0.0
    """Seconds of building and of the first three calls, beyond what three steady ones take."""
    images_per_second: list[float] = field(default_factory=list)
    """Of each round."""
    output: list[float] = field(default_factory=list)
    """The logits of a batch, or the loss of the first training step."""
    difference: float = 0.0
    """The largest from the output of the same work by the first base (fp32, NCHW where all are measured)."""
    peak_memory: int | None = None
    """Bytes: the process's resident set, or on an accelerator what was allocated there."""
    failed: str = ""
    """Why there are no numbers."""

    @property
    def median(self) -> float:
        return statistics.median(self.images_per_second)
