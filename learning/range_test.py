"""The learning-rate range test (Smith 2015, "Cyclical learning rates for training neural networks").

The learning rate rises exponentially from step to step, until the loss diverges. Where that happens says how high it may be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from config import InputError
from learning.history import Observer

WIDTH = 2.5
"""Standard deviation, in steps, of the bell by which losses are smoothed: towards both sides, so that the curve does not lag."""
BEGINNING = 5
"""The mean loss of the first so many steps, at rates too low to learn by, is that of the untrained network."""
DIVERGED = 1.5
"""The test stops when the mean of the latest BEGINNING losses is above so many times that of the first ones."""
MIN_STEPS = 20


class Ended(Exception):
    """The range test has seen enough, and the training ends."""


@dataclass(frozen=True)
class Curve:
    """What a range test has found."""

    rates: np.ndarray
    """(steps,) learning rates, rising."""
    losses: np.ndarray
    """(steps,) training loss of the batch at each, in nats."""
    smoothed: np.ndarray
    """(steps,) the same, smoothed."""
    steepest: float
    """The rate at which the smoothed loss falls fastest, over the logarithm of the rate."""
    divergence: float | None
    """The rate from which on the smoothed loss is above that of the untrained network; None where that was not reached."""

    @property
    def suggestion(self) -> float:
        """The peak to train with: a tenth of the divergence, or the steepest descent where nothing diverged; two digits."""
        return float(f"{self.steepest if self.divergence is None else self.divergence / 10:.2g}")

    @property
    def reason(self) -> str:
        """Why that, as the rest of a sentence."""
        if self.divergence is None:
            return (
                f"where the loss falls fastest, because it does not diverge up to {self.rates[-1]:.2g}; in all, it falls from "
                f"{self.smoothed[0]:.2f} to {self.smoothed.min():.2f}: if that is little, the range ends too low (--highest)"
            )
        return (
            f"a tenth of {self.divergence:.2g}, from which on the loss is above the untrained network's: a OneCycle peaks "
            f"near the highest safe rate; the steepest descent is at {self.steepest:.2g}"
        )


class RangeTest(Observer):
    """Ends a training, whose learning rate is `schedule`, with `Ended` when the loss has diverged or after the last step.

    Args:
        lowest, highest: learning rates of the first and the last step.
        steps: how many there are at most.

    Raises InputError where they make no test.
    """

    def __init__(self, lowest: float = 1e-5, highest: float = 10.0, steps: int = 100) -> None:
        if not 0 < lowest < highest < math.inf:
            raise InputError(
                f"a range test goes from {lowest:g} to {highest:g}: the lowest rate must be above 0, the highest above it"
            )
        if steps < MIN_STEPS:
            raise InputError(f"a range test of {steps} steps shows nothing: take {MIN_STEPS} or more")
        self.lowest, self.highest, self.steps = lowest, highest, steps
        self.losses: list[float] = []
        self.became_infinite = False
        """Whether the loss of the step after the last one was not finite."""

    def schedule(self, step: int) -> float:
        """The learning rate of step number `step`, from 0."""
        return self.lowest * (self.highest / self.lowest) ** (step / (self.steps - 1))

    def read(self, step: int, learning_rate: float, loss: float, accuracy: float) -> None:
        self.losses.append(loss)
        enough = len(self.losses) > 2 * BEGINNING
        if len(self.losses) == self.steps or enough and np.mean(self.losses[-BEGINNING:]) > DIVERGED * self._untrained():
            raise Ended

    def curve(self) -> Curve:
        """What was found. Raises InputError where the losses suggest nothing."""
        if not self.losses:
            raise InputError("the loss of the first batch is not finite, before anything is learned: no learning rate helps")
        if len(self.losses) < MIN_STEPS:
            raise InputError(
                f"the loss diverges within {len(self.losses)} steps, at a learning rate of {self.schedule(len(self.losses)):.2g}: "
                "start the range test at a lower one (--lowest), or take more steps (--steps)"
            )
        if self._untrained() > DIVERGED * self.losses[0]:
            raise InputError(
                f"the loss rises from the first step on, at a learning rate of {self.lowest:.2g}: start the range test at a lower "
                "one (--lowest)"
            )
        losses = np.array(self.losses)
        rates = np.array([self.schedule(step) for step in range(len(losses))])
        smoothed = smooth(losses)
        untrained = self._untrained()
        lowest = int(smoothed.argmin())
        if lowest < BEGINNING or smoothed[lowest] >= untrained:
            raise InputError(
                f"the loss falls at no learning rate from {self.lowest:g} to {rates[-1]:.2g}: the range test has nothing to suggest"
            )
        above = int(np.flatnonzero(smoothed <= untrained)[-1]) + 1
        diverged = above < len(rates) or self.became_infinite
        divergence = float(f"{self.schedule(above):.2g}") if diverged else None
        if divergence and divergence / 10 < self.lowest:
            raise InputError(
                f"the loss is above the untrained network's from {divergence:.2g} on, less than ten times the lowest rate: start "
                "the range test at a lower one (--lowest)"
            )
        slopes = np.gradient(smoothed, np.log(rates))[: lowest + 1]
        steepest = float(f"{rates[slopes.argmin()]:.2g}")
        return Curve(rates, losses, smoothed, steepest, divergence)

    def _untrained(self) -> float:
        return float(np.mean(self.losses[:BEGINNING]))


def smooth(losses: np.ndarray) -> np.ndarray:
    """(N,) losses, each replaced by the mean of its neighbours under a bell that is WIDTH steps wide."""
    reach = math.ceil(3 * WIDTH)
    bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) / WIDTH) ** 2)
    weights = np.convolve(np.ones(len(losses)), bell)[reach:-reach]  # at the ends, there are fewer neighbours
    return np.convolve(losses, bell)[reach:-reach] / weights
