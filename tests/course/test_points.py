"""Points, lateness and the deadline of an assignment's file, in what `leaderboard` writes."""

from __future__ import annotations

import csv
import datetime
import json
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import run_main
from course import points, terms
from course.store import Entry, Store
from limits.assignments import Assignment, Course, load
from made_up import RESULT, graded, run, submission

DAY = 86_400.0
DEADLINE = datetime.datetime(2026, 12, 1, 18, tzinfo=datetime.timezone(datetime.timedelta(hours=1)))
LATE = Course(deadline=DEADLINE, late_days=3, late_penalty=20)
NETWORK = {"constraints": [["GAP", "in O", "in O", True], ["dilated", "none", ">= 1", False]], "target": 0.6}


def entry(state: str, seconds_late: float = 0.0, **result: object) -> Entry:
    score = 3.0 if state == "graded" else None
    found = RESULT | NETWORK | {"assignment": "hw", "runs": [run(score)]} | result
    when = DEADLINE.timestamp() + seconds_late
    return Entry(1, state, "" if score else "not above 60%", "hw", [("Ada", "ada")], [], [], when, 1, 2, "", score, found)


@pytest.mark.parametrize(
    ("state", "seconds_late", "earned", "words"),
    [
        ("graded", 0, 85, "85 of 100 points (target 70 of 70, constraints 15 of 30)"),
        ("failed", -5, 15, "15 of 100 points (target 0 of 70, constraints 15 of 30)"),
        ("graded", 0.5, 68, "1 day late: 20% less"),
        ("graded", DAY, 68, "1 day late"),
        ("graded", DAY + 1, 51, "2 days late: 40% less"),
        ("graded", 3 * DAY, 34, "3 days late: 60% less"),
        ("graded", 3 * DAY + 1, 0, "too late"),
    ],
)
def test_what_lateness_costs(state: str, seconds_late: float, earned: float, words: str) -> None:
    found = points.earned(entry(state, seconds_late), LATE)
    assert (found.points, found.max_points) == (earned, 100)
    assert words in found.text


def test_days_cost_no_more_than_all() -> None:
    assert points.earned(entry("graded", 2.5 * DAY), LATE.model_copy(update={"late_penalty": 50})).points == 0


def test_points_are_only_for_what_the_assignment_has_graded() -> None:
    rules = Assignment(name="hw", max_parameters=5, course=LATE)
    assert points.earned_under(entry("graded"), rules)
    assert points.earned_under(entry("graded", assignment="other"), rules) is None
    assert points.earned_under(entry("cancelled"), rules) is None
    assert points.earned_under(entry("graded"), Assignment(name="hw")) is None
    first, second = entry("graded", DAY), replace(entry("failed"), id=2)
    most = points.most_earned([second, first, replace(first, id=3)], rules)
    assert most and (most[0].id, most[1].points) == (1, 68)


def test_what_students_are_told(tmp_path: Path) -> None:
    (tmp_path / "hw.toml").write_text(
        'dataset = "npz:secret.npz"\nmax_parameters = 5\ntarget_accuracy = 0.6\nseconds = 60\n'
        "[course]\ndeadline = 2999-12-01T18:00:00+01:00\nlate_days = 2\nlate_penalty = 10\nrepeats = 1\n"
    )
    rules = load(str(tmp_path / "hw.toml"))
    assert list(terms.terms(rules)) == [
        "Target: more than 60% test accuracy, within 60 s.",
        "Data set: one that you do not see.",
        "Score: the seconds of the training, one run.",
        "Points: 70 for the target, 30 for the demands on the network in equal parts.",
    ]
    assert terms.demands(rules) == ["max_parameters: 5"]
    assert rules.course
    assert terms.schedule(rules.course) == (
        "Deadline: 2999-12-01 18:00 UTC+01:00. Late submissions are taken until 2999-12-03 18:00 UTC+01:00. "
        "Each day that has begun costs 10% of the points. None of them has a place on the board."
    )
    assert "is taken any more" in terms.schedule(Course(deadline=DEADLINE.replace(year=2020), late_days=2))
    assert terms.schedule(Course()) == ""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An assignment that has ended, and a store: ada was in time, faster when late; bob was only late; eve failed; kim waits."""
    folder = tmp_path_factory.mktemp("points")
    now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
    (folder / "hw.toml").write_text(
        f"max_parameters = 5\ntarget_accuracy = 0.6\n[course]\ndeadline = {now - datetime.timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}\n"
        "late_days = 1\nlate_penalty = 10\n"
    )
    with Store(folder / "store.sqlite") as opened:
        early, measured = now.timestamp() - 2 * DAY, NETWORK | {"assignment": "hw"}
        for who, arrived, score in (("ada", early, 5.0), ("ada", None, 2.0), ("bob", None, 3.0), ("eve", early, None)):
            opened.add(submission(who), arrived)
            taken = opened.take()
            assert taken
            state = "graded" if score else "failed"
            opened.finish(taken[0].id, state, "" if score else "no", score, RESULT | measured | {"runs": [run(score)]})
        graded(opened, 1.0, "joe")  # without the assignment
        opened.add(submission("kim"))
    return folder / "store.sqlite", folder / "hw.toml"


def test_the_board_closes_and_the_points_are_told(store: tuple[Path, Path], tmp_path: Path) -> None:
    place, rules = store
    table = tmp_path / "grades.csv"
    options = ("--store", place, "--assignment", rules)
    result = run_main("leaderboard", *options, "--csv", table, "--feedback", tmp_path / "feedback")
    assert result.returncode == 0, result.stderr
    assert "note: 2 graded submissions are after the deadline and without a place" in result.stderr
    assert "Ada" in result.stdout and "5.00" in result.stdout and "Bob" not in result.stdout and "Joe" not in result.stdout
    rows = {row["number"]: row for row in csv.DictReader(table.open())}
    assert {who: (row["rank"], row["submission"], row["points"], row["points_of_submission"]) for who, row in rows.items()} == {
        "ada": ("1", "1", "85.0", "1"),
        "bob": ("", "3", "76.5", "3"),
        "eve": ("", "4", "15.0", "4"),
        "kim": ("", "6", "", ""),
    }
    every = json.loads(run_main("leaderboard", *options, "--all", "--format", "json").stdout)
    assert [(row["points"], row["days_late"]) for row in every] == [(85, 0), (76.5, 1), (76.5, 1), (15, 0), (None, 1)]
    ada, bob, kim = ((tmp_path / "feedback" / f"{who}.md").read_text().replace("\\", "") for who in ("ada", "bob", "kim"))
    assert "**85 of 100 points (target 70 of 70, constraints 15 of 30)**." in ada
    assert "1 day late: 10% less" in bob and "On A processor, 2 cores" in bob
    assert "points" not in kim
    plain = run_main("leaderboard", "--store", place, "--format", "json").stdout
    assert "points" not in plain and '"number": "joe"' in plain


def test_feedback_names_the_submission_that_earns_more(tmp_path: Path) -> None:
    from course.feedback import write_feedback

    slow = replace(entry("graded", -DAY, constraints=[["GAP", "in O", "in O", True]]), id=2, score=9.0)
    write_feedback(tmp_path, [entry("graded", -DAY), slow], Assignment(name="hw", max_parameters=5, course=LATE))
    text = (tmp_path / "ada.md").read_text().replace("\\", "")
    assert "3.00 seconds" in text and "**, but #2 earns more: 100 of 100 points" in text
