"""What may be said of a difference: the one rule behind the sentences of the lab.

A difference is clear if it is larger than the half-width of its 95% interval. Two kinds of chance make up that half-width; they are
independent, so their squares add up:

- **The images.** An accuracy is a share of a sample of images. Two shares differ by chance as Agresti & Caffo (2000) give it: each
  share is taken with one success and one failure more, so that 0% and 100% have an uncertainty too. It does not shrink with the
  number of seeds, which are all evaluated on the same images. It counts the images of the two as if they were different ones,
  which is too cautious where they are the same.
- **The seeds.** Student's t (1908). From three seeds on for the differences of the pairs, one a seed; with two for two samples with
  a pooled variance, as two pairs leave one degree of freedom. One seed says nothing about others, and the sentence says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from lab.common.trainings import Outcome

Unit = Literal["share", "points", "number"]
"""Of values: shares from 0 to 1, differences of shares, or any numbers."""
NORMAL = 1.96  # half of a 95% interval, in standard deviations
MANY = 100
"""Images of which nearly all are right only if they are easy: of fewer, one mistake is more than a point."""


def select(outcomes: Sequence[Outcome], **facts: Any) -> list[Outcome]:
    """Those of which these facts are true, in order."""
    return [outcome for outcome in outcomes if all(outcome.facts[name] == value for name, value in facts.items())]


def percent(values: Sequence[float], digits: int = 1) -> str:
    """Shares as "95.2% ± 0.4": mean and standard deviation over seeds, in points."""
    mean = f"{100 * np.mean(values):.{digits}f}%"
    return mean if len(values) < 2 else f"{mean} ± {100 * np.std(values, ddof=1):.{digits}f}"


def span(values: Sequence[float], form: str) -> str:
    """ "3 to 5", or the one value where they are the same."""
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def of_runs(count: int, runs: int) -> str:
    """ "2 of 5 runs", "all 5 runs", "the only run"."""
    if count == runs:
        return "the only run" if runs == 1 else f"all {runs} runs"
    return f"{count} of {runs} runs"


def listed(names: Sequence[str]) -> str:
    """ "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


@dataclass(frozen=True)
class Verdict:
    """How two sets of values, one value a seed, differ."""

    mean: float
    """Of the first minus that of the second."""
    half: float
    """Half-width of the 95% interval of that difference."""
    images_half: float
    """The part of it that the choice of the images makes up."""
    seeds: int
    """The smaller number of values."""
    differences: tuple[float, ...]
    """Of each seed; empty where the numbers of values differ."""

    @property
    def is_clear(self) -> bool:
        """Whether the difference is larger than chance explains."""
        return abs(self.mean) > self.half + 1e-12

    @property
    def is_steady(self) -> bool:
        """Whether it has the same sign with each of several seeds."""
        signs = set(np.sign(np.round(self.differences, 12)))
        return len(self.differences) > 1 and signs in ({1.0}, {-1.0})


def judge(
    first: Sequence[float],
    second: Sequence[float],
    images: int | tuple[int, int] | None = None,
    floor: float = 0.0,
    by_images: float | None = None,
) -> Verdict:
    """Whether the values of `first` and `second`, in pairs, one a seed, differ by more than chance.

    Args:
        images: of how many images each value is the share, one number, or one for `first` and one for `second`; None for what is no
            share of images.
        floor: what else may make up a difference, in the unit of the values: the error of a measurement that seeds do not show.
        by_images: the half-width that the choice of the images makes up, where it is not that of two shares.
    """
    pairs = tuple(float(a - b) for a, b in zip(first, second, strict=True)) if len(first) == len(second) else ()
    counts = images if isinstance(images, tuple) else (images, images)
    if by_images is None:
        by_images = 0.0
        if counts[0] is not None and counts[1] is not None:
            by_images = share_half(float(np.mean(first)), counts[0], float(np.mean(second)), counts[1])
    half = float(np.sqrt(by_images**2 + floor**2 + _seeds_half(first, second, pairs) ** 2))
    return Verdict(float(np.mean(first) - np.mean(second)), half, by_images, min(len(first), len(second)), pairs)


def share_half(first: float, first_images: int, second: float, second_images: int) -> float:
    """Half of the 95% interval for the difference of two shares (0 to 1) of so many images, by Agresti & Caffo."""
    variance = 0.0
    for share, images in ((first, first_images), (second, second_images)):
        adjusted = (share * images + 1) / (images + 2)
        variance += adjusted * (1 - adjusted) / (images + 2)
    return float(NORMAL * np.sqrt(variance))


def _seeds_half(first: Sequence[float], second: Sequence[float], pairs: Sequence[float]) -> float:
    from scipy.stats import t

    if min(len(first), len(second)) < 2:
        return 0.0
    if len(pairs) > 2:
        return float(t.ppf(0.975, len(pairs) - 1) * np.std(pairs, ddof=1) / np.sqrt(len(pairs)))
    freedom = len(first) + len(second) - 2
    variance = (np.var(first) * len(first) + np.var(second) * len(second)) / freedom
    return float(t.ppf(0.975, freedom) * np.sqrt(variance * (1 / len(first) + 1 / len(second))))


def is_at_chance(values: Sequence[float], chance: float, images: int) -> bool:
    """Whether the mean of these accuracies on so many images is no better than guessing, right with probability `chance`."""
    mean = float(np.mean(values))
    return mean - chance <= NORMAL * float(np.sqrt(max(chance * (1 - chance), mean * (1 - mean)) / images))


def compare(
    what: str,
    first_name: str,
    first: Sequence[float],
    second_name: str,
    second: Sequence[float],
    images: int | tuple[int, int] | None = None,
    chance: float | None = None,
    unit: Unit = "share",
    word: str = "with",
    by_images: float | None = None,
) -> str:
    """One or two sentences on whether `what`, such as "Test accuracy", is higher with the first or with the second.

    Args:
        first, second: one value for each seed, in pairs.
        images, by_images: as of `judge`.
        chance: accuracy of guessing; where it is given, the sentence says which of the two are no better.
        unit: of the values.
        word: what leads from `what` to the names: "with", "on".
    """
    verdict = judge(first, second, images, by_images=by_images)
    a, b = f"{word} {first_name}", f"{word} {second_name}"
    shares = [*first, *second]
    if len(set(shares)) == 1:  # without spread and without difference
        every = "" if verdict.seeds == 1 else " in every run"
        text = f"{what} is {_value(shares[0], unit, 1)} {a} and {b}{every}"
        if unit == "share" and shares[0] == 1 and isinstance(images, int):
            return f"{text}: {_ceiling(images)}."
        return f"{text}." + _guessing(first_name, first, second_name, second, images, chance)
    digits = 1 if abs(verdict.mean) >= 0.005 or unit == "number" else 2
    values = " against ".join(_value(float(np.mean(each)), unit, digits) for each in (first, second))
    higher = "higher" if verdict.mean > 0 else "lower"
    if verdict.seeds == 1:
        text = _of_one_seed(what, a, b, higher, values, verdict, unit, digits, images)
    elif verdict.is_clear:
        text = f"{what} is {higher} {a} than {b}: {values} ({_interval(verdict, unit, digits)})."
    elif verdict.is_steady and abs(verdict.mean) > verdict.images_half:
        sizes = [abs(difference) for difference in verdict.differences]
        by = span([100 * size for size in sizes], f".{digits}f") + " points" if unit != "number" else span(sizes, ".3g")
        text = (
            f"{what} is {higher} {a} than {b} with each of the {verdict.seeds} seeds, by {by} ({values} on average), but chance is "
            f"not ruled out: {_interval(verdict, unit, digits)}."
        )
    else:
        text = f"{what} is not clearly different {a} and {b}: {values} ({_interval(verdict, unit, digits)})."
        if unit == "share" and isinstance(images, int) and 1 - min(np.mean(first), np.mean(second)) <= verdict.images_half:
            text += f" Both are within chance of 100%: {_ceiling(images)}."
    return text + _guessing(first_name, first, second_name, second, images, chance)


def _of_one_seed(
    what: str,
    a: str,
    b: str,
    higher: str,
    values: str,
    verdict: Verdict,
    unit: Unit,
    digits: int,
    images: int | tuple[int, int] | None,
) -> str:
    """The sentence on one training of each, whose difference says nothing of other seeds."""
    count = f"{min(images) if isinstance(images, tuple) else images:,}" if images else ""
    if verdict.is_clear:
        gap = f" ({100 * abs(verdict.mean):.{digits}f} points" if unit != "number" else ""
        chance = f", of which the choice of {count} images explains at most {100 * verdict.images_half:.{digits}f}" if count else ""
        return f"{what} is {higher} {a} than {b}: {values}{gap}{chance}{')' if gap else ''}. That is one seed; others may differ."
    return (
        f"{what} is not clearly different {a} and {b}: {values} with the only seed, and the choice of {count} images alone can "
        f"explain {100 * verdict.images_half:.{digits}f} points."
    )


def _ceiling(images: int) -> str:
    """Why two accuracies near 100% on the same images cannot be told apart."""
    reason = "these images are too easy" if images >= MANY else f"{images:,} images are too few"
    return f"{reason} to tell them apart"


def _value(value: float, unit: Unit, digits: int) -> str:
    if unit == "number":
        return f"{value:.3g}"
    return f"{100 * value:.{digits}f}%" if unit == "share" else f"{100 * value:+.{digits}f} points"


def _interval(verdict: Verdict, unit: Unit, digits: int) -> str:
    """The difference, its interval and the number of seeds in words; of shares no more than 100 points."""
    low, high = verdict.mean - verdict.half, verdict.mean + verdict.half
    if unit == "number":
        return f"difference {verdict.mean:+.3g}, 95% interval {low:+.3g} to {high:+.3g}, {verdict.seeds} seeds"
    if unit == "share":
        low, high = max(low, -1.0), min(high, 1.0)
    mean, low, high = 100 * verdict.mean, 100 * low, 100 * high
    return f"{mean:+.{digits}f} points, 95% interval {low:+.{digits}f} to {high:+.{digits}f}, {verdict.seeds} seeds"


def _guessing(
    first_name: str,
    first: Sequence[float],
    second_name: str,
    second: Sequence[float],
    images: int | tuple[int, int] | None,
    chance: float | None,
) -> str:
    """A sentence on those of the two that are no better than guessing; empty where there are none."""
    if chance is None or not images:
        return ""
    counts = images if isinstance(images, tuple) else (images, images)
    named = zip((first_name, second_name), (first, second), counts, strict=True)
    idle = [name for name, values, count in named if is_at_chance(values, chance, count)]
    guess = f"not clearly better than guessing ({100 * chance:.0f}%)"
    if len(idle) == 2:
        return f" Both are {guess}."
    return f" {idle[0][0].upper()}{idle[0][1:]} is {guess}." if idle else ""


def highest(what: str, values: Mapping[str, Sequence[float]], images: int) -> str:
    """One sentence on where the mean of `what` is highest, and which are not clearly lower. Needs two names or more."""
    best = max(values, key=lambda name: float(np.mean(values[name])))
    others = [name for name in values if name != best]
    level = [name for name in others if np.isclose(np.mean(values[name]), np.mean(values[best]), rtol=0, atol=1e-12)]
    close = [name for name in others if name not in level and not judge(values[best], values[name], images).is_clear]
    text = f"{what} is highest with {listed([best, *level])}: {percent(values[best])}"
    return f"{text}; it is not clearly lower with {listed(close)}." if close else f"{text}."
