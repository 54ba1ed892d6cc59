"""The learning rate of every step: one or more OneCycles, and how a resumed run is given another budget."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from config import InputError, TrainConfig


def cycle_ends(config: TrainConfig, steps_per_epoch: int) -> list[int]:
    """The step at which each OneCycle of `config` ends: the first spans the budget, the others twice the steps of the last."""
    budget = config.steps or max(1, round(config.epochs * steps_per_epoch))
    return [budget * (2**n - 1) for n in range(1, config.cycles + 1)]


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
        raise InputError(
            f"the run has {config.cycles} OneCycles of doubling length, whose budget is fixed: train anew, into another --out"
        )
    if budget <= step:
        raise InputError(f"the run has already made {step} steps, and the new budget is {budget}: choose more --epochs or --steps")
    return [*was, budget] if step >= was[-1] else [*was[:-1], budget]
