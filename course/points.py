"""The points of a submission, for every page and file: what is checked, what each check earns, and what lateness costs.

The accuracy, the constraints and the score were measured by `grade`; the assignment's table [course] says what they are worth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from course.leaderboard import seconds, target_of
from course.store import Entry
from limits.assignments import Assignment, Course

DAY = 86_400.0  # seconds


@dataclass(frozen=True)
class Check:
    """One thing that is checked of a submission."""

    name: str
    passed: bool | None
    """None where it could not be computed: it earns nothing, and is no failure."""
    output: str
    points: float
    max_points: float

    @property
    def verdict(self) -> str:
        return "unknown" if self.passed is None else "passed" if self.passed else "failed"


@dataclass(frozen=True)
class Earned:
    """What a submission earns."""

    points: float
    max_points: float
    days_late: int
    text: str
    """All of it in words."""


def checks(entry: Entry, course: Course) -> list[Check]:
    """That the files are accepted, that the target is reached, and each constraint; their max_points add up to all points."""
    result = entry.result
    is_accepted, is_graded = entry.state != "refused", entry.state == "graded"
    files = "\n".join(entry.warnings) if is_accepted else entry.reason
    runs = [_run(run, result["count_init"]) for run in result.get("runs", ())]
    if is_graded:
        runs.insert(0, f"{entry.score:.2f} s, the median of the runs")
    elif is_accepted:
        runs.insert(0, entry.reason)
    limit = f" within {result['timeout']:g} s" if "timeout" in result else ""
    found = [
        Check("Files: model.py, config.py, submission.json", is_accepted, files, 0, 0),
        Check(
            f"Target: more than {100 * target_of(entry):.4g}% test accuracy{limit}",
            is_graded,
            "\n".join(runs),
            course.points if is_graded else 0,
            course.points,
        ),
    ]
    constraints = result.get("constraints", ())
    for i, (name, value, demanded, passed) in enumerate(constraints):
        share = _share(course.constraint_points, len(constraints), i)
        found.append(Check(f"Constraint: {name}", passed, f"{value} (required: {demanded})", share if passed else 0, share))
    if not constraints:
        reason = result.get("problem", "") if is_accepted else "not computed: nothing was run"
        found.append(Check("Constraints", None, reason or "not computed", 0, course.constraint_points))
    return found


def _share(points: float, count: int, i: int) -> float:
    """The i-th of `count` equal parts in hundredths, which add up to `points` all the same."""
    return round(round(points * (i + 1) / count, 2) - round(points * i / count, 2), 2)


def _run(run: dict[str, Any], count_init: bool) -> str:
    accuracy = f", {run['accuracies'][-1]:.2%} after epoch {len(run['accuracies'])}" if run["accuracies"] else ""
    return f"seed {run['seed']}: " + (f"{seconds(run, count_init):.2f} s{accuracy}" if run["reached"] else run["reason"])


def earned(entry: Entry, course: Course) -> Earned:
    """The points of a submission that is graded, failed or refused: those of its checks, less what lateness costs."""
    _, target, *constraints = checks(entry, course)
    met, most = (round(sum(values), 2) for values in zip(*((each.points, each.max_points) for each in constraints), strict=True))
    points, days = target.points + met, days_late(entry.submitted, course)
    parts = [f"target {target.points:g} of {target.max_points:g}", f"constraints {met:g} of {most:g}"]
    if days:
        cost = min(100.0, course.late_penalty * days) if days <= course.late_days else 100.0
        points *= 1 - cost / 100
        parts.append(f"{days} day{'' if days == 1 else 's'} late: {cost:g}% less" if days <= course.late_days else "too late")
    points, most = round(points, 2), round(target.max_points + most, 2)
    return Earned(points, most, days, f"{points:g} of {most:g} points ({', '.join(parts)})")


def days_late(submitted: float, course: Course) -> int:
    """Days that have begun between the deadline and `submitted` (seconds since 1970); 0 in time."""
    late = 0.0 if course.deadline is None else submitted - course.deadline.timestamp()
    return max(0, math.ceil(late / DAY))


def earned_under(entry: Entry, rules: Assignment | None) -> Earned | None:
    """The points in the assignment; None where it gives none, or has not graded this submission."""
    if rules is None or rules.course is None or not is_graded_under(entry, rules):
        return None
    return earned(entry, rules.course)


def is_graded_under(entry: Entry, rules: Assignment) -> bool:
    """Whether `grade` has measured it by these rules."""
    return entry.state in ("graded", "failed") and entry.result.get("assignment") == rules.name


def most_earned(entries: Sequence[Entry], rules: Assignment | None) -> tuple[Entry, Earned] | None:
    """The submission among a student's that earns the most, the earliest of them, and its points; None where none was graded."""
    found = [(entry, points) for entry in entries if (points := earned_under(entry, rules))]
    return max(found, key=lambda each: each[1].points, default=None)


def in_time(entries: Sequence[Entry], rules: Assignment | None) -> list[Entry]:
    """Those that were submitted before the deadline, where there is one: they may have a place on the board."""
    course = rules and rules.course
    return [entry for entry in entries if not course or not days_late(entry.submitted, course)]
