"""A graded submission as other systems read it.

The formats are described at
- Gradescope: https://gradescope-autograders.readthedocs.io/en/latest/specs/ (results.json) and .../leaderboards/
- Codabench: https://docs.codabench.org/latest/Organizers/Benchmark_Creation/Competition-Bundle-Structure/ (scores.json)
- GitHub Classroom: https://github.com/classroom-resources/autograding-grading-reporter (the two notices with the points)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from course.feedback import feedback
from course.leaderboard import details, seconds, target_of
from course.store import Entry
from course.templating import render


@dataclass(frozen=True)
class Points:
    """What a submission can earn."""

    target: float
    """For reaching the target accuracy within the limit."""
    constraints: float
    """For meeting all constraints, each of which earns an equal part."""


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


def checks(entry: Entry, points: Points) -> list[Check]:
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
            points.target if is_graded else 0,
            points.target,
        ),
    ]
    constraints = result.get("constraints", ())
    for i, (name, value, demanded, passed) in enumerate(constraints):
        share = _share(points.constraints, len(constraints), i)
        found.append(Check(f"Constraint: {name}", passed, f"{value} (required: {demanded})", share if passed else 0, share))
    if not constraints:
        reason = result.get("problem", "") if is_accepted else "not computed: nothing was run"
        found.append(Check("Constraints", None, reason or "not computed", 0, points.constraints))
    return found


def _share(points: float, count: int, i: int) -> float:
    """The i-th of `count` equal parts in hundredths, which add up to `points` all the same."""
    return round(round(points * (i + 1) / count, 2) - round(points * i / count, 2), 2)


def _run(run: dict[str, Any], count_init: bool) -> str:
    accuracy = f", {run['accuracies'][-1]:.2%} after epoch {len(run['accuracies'])}" if run["accuracies"] else ""
    return f"seed {run['seed']}: " + (f"{seconds(run, count_init):.2f} s{accuracy}" if run["reached"] else run["reason"])


def scores(entry: Entry) -> dict[str, float] | None:
    """What is ranked of a graded submission; None of one that failed."""
    if entry.state != "graded":
        return None
    assert entry.score is not None  # it is graded
    reached = [run for run in entry.result["runs"] if run["reached"]]
    constraints = entry.result.get("constraints", ())
    found: dict[str, float] = {"seconds": entry.score, "accuracy": min(run["accuracies"][-1] for run in reached)}
    if entry.result.get("parameters") is not None:
        found["parameters"] = entry.result["parameters"]
    return found | {"constraints_met": sum(passed is True for *_, passed in constraints)}


ORDERS = {"seconds": "asc", "accuracy": "desc", "parameters": "asc", "constraints_met": "desc"}


def gradescope(entry: Entry, points: Points, visibility: str, took: float) -> dict[str, Any]:
    """results.json; `visibility` is that of the tests, `took` the seconds of it all."""
    tests = []
    for check in checks(entry, points):
        test = {
            "name": check.name,
            "score": check.points,
            "max_score": check.max_points,
            "output": check.output,
            "visibility": visibility,
        }
        tests.append(test if check.passed is None else test | {"status": check.verdict})
    for_teachers = {"name": "For teachers: all that is known", "output": details(entry), "visibility": "hidden"}
    results: dict[str, Any] = {
        "execution_time": round(took),
        "output": feedback(entry),
        "output_format": "md",
        "visibility": visibility,
        "stdout_visibility": "hidden",
        "tests": [*tests, for_teachers | {"score": 0, "max_score": 0}],
    }
    if ranked := scores(entry):
        results["leaderboard"] = [
            {"name": name.replace("_", " ").capitalize(), "value": round(value, 4), "order": ORDERS[name]}
            for name, value in ranked.items()
        ]
    return results


def codabench(entry: Entry, points: Points, folder: Path) -> bool:
    """Write detailed_results.html, and scores.json if it is graded: without, Codabench shows it as failed. Returns whether."""
    page = render("codabench/detailed_results.html.jinja", checks=checks(entry, points))
    (folder / "detailed_results.html").write_text(page)
    if ranked := scores(entry):
        (folder / "scores.json").write_text(json.dumps(ranked) + "\n")
    return ranked is not None


def classroom(entry: Entry, points: Points) -> tuple[list[str], bool]:
    """The workflow commands that tell the points, and whether they are all."""
    found: Sequence[Check] = checks(entry, points)
    total, most = (round(sum(values), 2) for values in zip(*((check.points, check.max_points) for check in found), strict=True))
    report = json.dumps({"totalPoints": total, "maxPoints": most})
    return [
        f"::notice title=Autograding complete::Points {total:g}/{most:g}",
        f"::notice title=Autograding report::{report}",
    ], total == most
