"""A graded submission as other systems read it.

The formats are described at
- Gradescope: https://gradescope-autograders.readthedocs.io/en/latest/specs/ (results.json) and .../leaderboards/
- Codabench: https://docs.codabench.org/latest/Organizers/Benchmark_Creation/Competition-Bundle-Structure/ (scores.json)
- GitHub Classroom: https://github.com/classroom-resources/autograding-grading-reporter (the two notices with the points)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from course.feedback import feedback
from course.leaderboard import details
from course.points import checks, earned
from course.store import Entry
from course.templating import render
from limits.assignments import Course


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


def gradescope(entry: Entry, course: Course, took: float) -> dict[str, Any]:
    """results.json; `took` are the seconds of it all."""
    tests = []
    for check in checks(entry, course):
        test = {
            "name": check.name,
            "score": check.points,
            "max_score": check.max_points,
            "output": check.output,
            "visibility": course.visibility,
        }
        tests.append(test if check.passed is None else test | {"status": check.verdict})
    for_teachers = {"name": "For teachers: all that is known", "output": details(entry), "visibility": "hidden"}
    results: dict[str, Any] = {
        "execution_time": round(took),
        "output": feedback(entry, points=earned(entry, course)),
        "output_format": "md",
        "visibility": course.visibility,
        "stdout_visibility": "hidden",
        "tests": [*tests, for_teachers | {"score": 0, "max_score": 0}],
    }
    if ranked := scores(entry):
        results["leaderboard"] = [
            {"name": name.replace("_", " ").capitalize(), "value": round(value, 4), "order": ORDERS[name]}
            for name, value in ranked.items()
        ]
    return results


def codabench(entry: Entry, course: Course, folder: Path) -> bool:
    """Write detailed_results.html, and scores.json if it is graded: without, Codabench shows it as failed. Returns whether."""
    page = render("codabench/detailed_results.html.jinja", checks=checks(entry, course))
    (folder / "detailed_results.html").write_text(page)
    if ranked := scores(entry):
        (folder / "scores.json").write_text(json.dumps(ranked) + "\n")
    return ranked is not None


def classroom(entry: Entry, course: Course) -> tuple[list[str], bool]:
    """The workflow commands that tell the points, and whether they are all."""
    found = earned(entry, course)
    report = json.dumps({"totalPoints": found.points, "maxPoints": found.max_points})
    return [
        f"::notice title=Autograding complete::Points {found.points:g}/{found.max_points:g}",
        f"::notice title=Autograding report::{report}",
    ], found.points == found.max_points
