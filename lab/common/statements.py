"""Statements that are computed from the numbers of several trainings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from lab.common.trainings import Outcome


def select(outcomes: Sequence[Outcome], **facts: Any) -> list[Outcome]:
    """Those of which these facts are true, in order."""
    return [outcome for outcome in outcomes if all(outcome.facts[name] == value for name, value in facts.items())]


def percent(values: Sequence[float], digits: int = 1) -> str:
    """Shares as "95.2% ± 0.4": mean and standard deviation over seeds, in points."""
    mean = f"{100 * np.mean(values):.{digits}f}%"
    return mean if len(values) < 2 else f"{mean} ± {100 * np.std(values, ddof=1):.{digits}f}"


def difference(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Mean of `first` - `second`, whose values belong together in pairs (one a seed), and the half-width of its 95% interval.

    The interval is Student's for the paired differences; infinite with less than three pairs, which say little of the spread.
    """
    from scipy.stats import t

    pairs = np.subtract(first, second)
    if len(pairs) < 3:
        return float(pairs.mean()), float("inf")
    return float(pairs.mean()), float(t.ppf(0.975, len(pairs) - 1) * pairs.std(ddof=1) / len(pairs) ** 0.5)


def compare(first_name: str, first: Sequence[float], second_name: str, second: Sequence[float], what: str) -> str:
    """In one sentence, which of two is better in shares such as accuracy, or that no difference shows beyond the spread."""
    mean, half = difference(first, second)
    if np.isinf(half):
        return (
            f"The {what} of {first_name} is {100 * abs(mean):.1f} points {'above' if mean >= 0 else 'below'} that of "
            f"{second_name}; how much of that is chance, {len(first)} seed{'s do' if len(first) > 1 else ' does'} not tell."
        )
    interval = f"95% interval {100 * (mean - half):+.1f} to {100 * (mean + half):+.1f}, {len(first)} seeds"
    if abs(mean) <= half:
        return (
            f"Between {first_name} and {second_name} there is no difference in {what} beyond the spread: {100 * mean:+.1f} "
            f"points, {interval}."
        )
    return (
        f"{first_name} is {'better' if mean > 0 else 'worse'} than {second_name} in {what} by {100 * abs(mean):.1f} points "
        f"({interval})."
    )
