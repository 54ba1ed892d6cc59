"""The learning rate of every step: one or more OneCycles, and how a resumed run is given another budget."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

from config import InputError, TrainConfig

GAIN = 0.045
"""About what accuracy gains from twice the steps; it chooses the length of a further OneCycle (docs/sprint.md)."""


def budget_of(config: TrainConfig, steps_per_epoch: int) -> int:
    """The steps of the first OneCycle of `config`, and of the only one where cycles is 1."""
    return config.steps or max(1, round(config.epochs * steps_per_epoch))


def images_needed(images: int, missing: float) -> int:
    """How many images reach the target, where `images` have left the validation accuracy `missing` (0 to 1) below it; as many again
    where it lacks nothing and the test accuracy alone does."""
    return round(images * 2 ** (max(0.0, missing) / GAIN))


def next_cycle(steps: int, missing: float) -> int:
    """The steps of a OneCycle that follows `steps` steps in all, after which the validation accuracy lacks `missing` (0 to 1).

    A quarter of `steps` at the least.
    """
    return max(math.ceil(steps / 4), images_needed(steps, missing) - steps)


def learning_rate(step: int, ends: Sequence[int], config: TrainConfig) -> float:
    """That of step number `step`, from 0, in OneCycles that end at `ends`: what torch's OneCycleLR gives with linear annealing.

    A function of the step alone: a resumed run needs no state, and its budget can be changed.
    """
    cycle = min(bisect.bisect_right(ends, step), len(ends) - 1)
    start = ends[cycle - 1] if cycle else 0
    length, step = ends[cycle] - start, step - start
    lowest = config.max_lr / config.div_factor
    peak = config.pct_start * length - 1
    if step <= peak:
        return lowest + (config.max_lr - lowest) * (step / peak if peak else 0.0)
    return config.max_lr + (lowest / config.final_div_factor - config.max_lr) * ((step - peak) / (length - 1 - peak))


def with_other_budget(was: Sequence[int], step: int, budget: int, config: TrainConfig) -> list[int]:
    """The ends of the cycles of a run that stands at `step`, had cycles that end at `was`, and is to end at `budget`.

    A finished run goes on with another OneCycle over the additional steps; the cycle that an unfinished one is in is stretched or
    shortened. Raises InputError where the schedule does not allow it.
    """
    if config.cycles > 1:
        raise InputError(f"the run has up to {config.cycles} OneCycles, whose budget is fixed: train anew, into another --out")
    if budget <= step:
        raise InputError(f"the run has already made {step} steps, and the new budget is {budget}: choose more --epochs or --steps")
    return [*was, budget] if step >= was[-1] else [*was[:-1], budget]
