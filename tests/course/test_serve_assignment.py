"""The website of an assignment: what its file says is shown to students, and is kept to."""

from __future__ import annotations

import csv
import datetime
import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="requirements-serve.txt is not installed")
from browsing import Classroom, three, upload

from conftest import ROOT, assert_refused, run_main
from limits.assignments import parse
from made_up import submission

MEASURED = {"assignment": "hw", "target": 0.6, "constraints": [["GAP", "in O", "in O", True], ["dilated", "none", ">= 1", False]]}
FACTS = ("2.00 s", "85 of 100 points", "60.00%", "dilated")  # of such a submission


@pytest.fixture
def open_course(tmp_path: Path) -> Iterator[Callable[..., Classroom]]:
    """Opens the website of an assignment whose deadline is in `ends` seconds, with more lines of its table [course]."""
    opened: list[Classroom] = []

    def make(ends: float, **course: object) -> Classroom:
        deadline = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=ends)
        lines = {"max_parameters": 200_000, "target_accuracy": 0.6, "dataset": "npz:secret.npz", "about": "<b>small</b>"}
        rules = parse({"name": "hw", "course": {"deadline": deadline, "top": 1, **course}, **lines}, "hw.toml")
        assert rules.course
        opened.append(Classroom(tmp_path / f"{len(opened)}.sqlite", rules.course, rules).__enter__())
        return opened[-1]

    yield make
    for each in opened:
        each.__exit__()


def test_a_student_sees_the_assignment_the_points_and_the_hardware(open_course: Callable[..., Classroom]) -> None:
    course = open_course(3600)
    course.graded(2.0, "ada", measured=MEASURED)
    course.graded(1.0, "ada")  # by a grader without the assignment
    page = course.browser("ada").get("/").text
    for words in ("Assignment hw", "&lt;b&gt;small", "more than 60% test accuracy", "max_parameters: 200000", "Deadline: 2"):
        assert words in page
    assert "secret" not in page
    assert "You have <strong>85 of 100 points, by #1</strong>" in page
    assert "85 of 100 points (target 70 of 70, constraints 15 of 30)" in page
    assert page.count("85 of 100") == 2  # and none of the other
    assert "graded on A processor, 2 cores" in page
    assert course.browser("ada").get("/board").text.count('class="own"') == 1
    (row, *_) = csv.DictReader(io.StringIO(course.browser("teacher").get("/students.csv").text))
    assert (row["number"], row["seconds"], row["points"], row["points_of_submission"]) == ("ada", "2.000", "85.0", "1")


def test_late_submissions_are_taken_and_cost_points_and_have_no_place(open_course: Callable[..., Classroom]) -> None:
    course = open_course(-60, late_days=2, late_penalty=10)
    ada = course.browser("ada")
    course.graded(2.0, "ada", measured=MEASURED)
    page = ada.get("/").text
    assert "The deadline was" in page and "Late submissions are taken until" in page
    assert "76.5 of 100 points (target 70 of 70, constraints 15 of 30, 1 day late: 10% less)" in page
    assert "The board is closed" in ada.get("/board").text and 'class="own"' not in ada.get("/board").text
    assert upload(ada, three("ada")).status_code == 200
    over = open_course(-2 * 86_400 - 60, late_days=2)
    refused = upload(over.browser("ada"), three("ada"), key=None)
    assert refused.status_code == 403 and "nothing is taken any more" in refused.text


@pytest.mark.parametrize(("visibility", "is_shown"), [("visible", True), ("after_due_date", False), ("hidden", False)])
def test_results_are_shown_when_the_file_says_so(open_course: Callable[..., Classroom], visibility: str, is_shown: bool) -> None:
    course = open_course(3600, visibility=visibility)
    course.graded(2.0, "ada", measured=MEASURED)
    course.store.add(submission("ada"))
    taken = course.store.take()
    assert taken and course.store.keep(taken[0].id, "run 1 of 3: training, 41.00%")
    ada, teacher = course.browser("ada"), course.browser("teacher")
    (live,) = course.first.portal.call(course.site.live.look)
    page = ada.get("/").text
    shown = [words in page for words in (*FACTS, "41.00%", ">graded<")] + ["41.00%" in live.text]
    assert shown == [is_shown] * len(shown)
    assert ("The result is not shown yet." in page) is not is_shown
    assert ('class="own"' in ada.get("/board").text) is is_shown
    assert "Ada (ada)" in teacher.get("/board").text and "2.00 s" in teacher.get("/").text
    course.set_deadline(-1)
    page = ada.get("/").text
    assert all(words in page for words in FACTS) is (visibility != "hidden")
    assert ('class="own"' in ada.get("/board").text) is (visibility != "hidden")


def test_the_file_and_the_options_of_the_command(tmp_path: Path) -> None:
    rules = tmp_path / "hw.toml"
    serve = ("course", "serve", "--store", tmp_path / "s.sqlite", "--assignment", rules)
    rules.write_text('max_parameters = 5\n[course]\nvisibility = "after_due_date"\n')
    assert_refused(run_main(*serve), "hw.toml shows results after the deadline, but has none")
    assert_refused(run_main(*serve, "--deadline", "2026-12-01T18:00+01:00", "--port", "70000"), "cannot listen on port 70000")
    rules.write_text("max_parameters = 5\n[course]\nlate_days = 2\n")
    assert_refused(run_main(*serve), "hw.toml: late_days count from the deadline, but deadline is missing")
    assert_refused(run_main("course", "serve", "--assignment", "hw5"), "unknown assignment 'hw5'")


def test_the_website_does_without_torch() -> None:
    code = (
        "import sys, course.web.app, course.group\nfrom limits.assignments import load\nfrom course import terms\n"
        "list(terms.terms(load('c1c2c3c4o-strict')))\nprint('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True).stdout == "False\n"
