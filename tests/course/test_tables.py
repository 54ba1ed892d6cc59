"""The board for other programs, and the feedback for each student."""

import csv
import io
import json
import re

import pytest

from conftest import assert_refused, run_main
from course import feedback, tables
from course.store import Store
from course.submission import Submission
from course.text import MARKUP, markdown
from made_up import RESULT, graded, run

MISS = "not above 55% in its num_epochs: the best of 2 epochs was 50.00%"


@pytest.fixture
def place(tmp_path):
    """A store with a group, one who got worse, one who failed twice, one who waits; closed."""
    path = tmp_path / "store.sqlite"
    with Store(path) as store:
        graded(store, 3.0, "ada", "bob", runs=[run(3.0, 0.61), run(None, 0.5), run(2.5, 0.58)])
        graded(store, 2.0, "eve", constraints=[["GAP", "in O", "in O", True]], parameters=None)
        graded(store, 5.0, "eve")
        for _ in range(2):
            graded(store, None, "joe", runs=[run(None, 0.5)])
        store.add(Submission({}, "hw", (("Kim", "kim"),), ("none",), ()))
    return path


def test_csv_has_one_row_a_student_and_one_column_a_fact(place, tmp_path):
    file = tmp_path / "board.csv"
    result = run_main("leaderboard", "--store", place, "--csv", file)
    assert result.stdout.endswith(f"\n5 rows written to {file}\n")
    rows = list(csv.DictReader(io.StringIO(file.read_text())))
    assert [(row["rank"], row["number"], row["state"], row["submission"]) for row in rows] == [
        ("1", "eve", "graded", "2"),
        ("2", "ada", "graded", "1"),
        ("2", "bob", "graded", "1"),
        ("", "joe", "failed", "5"),
        ("", "kim", "queued", "6"),
    ]
    ada, joe = rows[1], rows[3]
    facts = ("seconds", "fastest_seconds", "slowest_seconds", "runs", "runs_missed", "accuracy", "best_accuracy", "parameters")
    assert [ada[name] for name in facts] == ["3.0", "2.5", "", "3", "1", "0.58", "0.61", "1234"]
    assert (ada["passed: GAP"], ada["passed: dilated"], ada["constraints_passed"]) == ("1", "0", "1")
    assert (rows[0]["passed: dilated"], rows[0]["parameters"]) == ("", "")
    assert (joe["seconds"], joe["best_accuracy"], joe["reason"]) == ("", "0.5", "not above 55%")
    for row in rows:
        for name in facts:
            assert row[name] == "" or float(row[name]) >= 0


def test_all_writes_every_submission_and_says_so(place, tmp_path):
    file, page = tmp_path / "all.csv", tmp_path / "all.html"
    result = run_main("leaderboard", "--store", place, "--all", "--csv", file, "--html", page)
    assert result.stdout.endswith(f"\n6 rows written to {file}\n6 rows written to {page}\n")
    assert [row["submission"] for row in csv.DictReader(io.StringIO(file.read_text()))] == list("123456")
    assert page.read_text().count("<tr>") == 7
    assert "not above 55%" in page.read_text()


@pytest.mark.parametrize("form", ["csv", "json", "md", "html"])
def test_a_format_on_stdout_is_nothing_else_and_is_what_out_writes(place, tmp_path, form):
    other, out = tmp_path / "other.csv", tmp_path / "out"
    printed = run_main("leaderboard", "--store", place, "--format", form, "--csv", other)
    assert (printed.returncode, printed.stderr) == (0, f"5 rows written to {other}\n")
    written = run_main("leaderboard", "--store", place, "--format", form, "--out", out)
    count = 5 if form in ("csv", "json") else 2
    assert written.stdout == f"{count} rows written to {out}\n"
    assert out.read_text() == printed.stdout
    starts = {"csv": "rank,name,number,", "json": "[\n", "md": "| rank | contributors |", "html": "<!DOCTYPE html>"}
    assert printed.stdout.startswith(starts[form])


def test_json_has_numbers(place):
    rows = json.loads(run_main("leaderboard", "--store", place, "--format", "json").stdout)
    assert [(row["rank"], row["seconds"], row["state"]) for row in rows][2:4] == [(2, 3.0, "graded"), (None, None, "failed")]


def test_nothing_is_submitted(tmp_path):
    Store(tmp_path / "store.sqlite").close()
    for form, text in (("csv", "rank,name,number\n"), ("json", "[]\n")):
        assert run_main("leaderboard", "--store", tmp_path / "store.sqlite", "--format", form).stdout == text


def test_show_goes_with_no_file(place, tmp_path):
    assert_refused(run_main("leaderboard", "--store", place, "--show", 1, "--csv", tmp_path / "x.csv"), "--show")
    assert not (tmp_path / "x.csv").exists()


def test_everybody_gets_a_file_of_feedback(place, tmp_path):
    folder = tmp_path / "feedback"
    result = run_main("leaderboard", "--store", place, "--feedback", folder)
    assert result.stdout.endswith(f"\n5 files written to {folder}\n")
    assert sorted(path.name for path in folder.iterdir()) == ["ada.md", "bob.md", "eve.md", "joe.md", "kim.md"]
    ada, eve, joe, kim = ((folder / f"{name}.md").read_text() for name in ("ada", "eve", "joe", "kim"))
    for words in ("3.00 seconds", "place 2 of 2", "| 0 | missed | 50.00% | 2 | 0.88 |", "**not met**", "constraint *dilated*"):
        assert words in ada
    assert "Nothing: the target is reached" in eve
    assert "| 3 | " in eve.partition("other submissions")[2]
    assert "**Failed**: not above 55%" in joe
    assert "Train for more epochs" in joe
    assert "**Queued**" in kim


@pytest.mark.parametrize(
    ("reason", "stopped_by", "words"),
    [
        ("it used more than 8 GB of memory while training", "failure", "Use less memory"),
        ("it was still building its Model after 360 s", "failure", "Do less before the training"),
        ("its outputs for the test images are not numbers (NaN) after epoch 2", "failure", "Lower the learning rate"),
        ("it replaced time.time, which the harness uses", "failure", "Leave Python's"),
        ("ValueError: no in model.py line 3", "failure", "course/harness.py"),
        ("not above 55% within 360 s: the best of 2 epochs was 40.00%", "limit", "Make an epoch cheaper"),
        (f"{MISS}; every test image gets the same prediction", "epochs", "the same class for every image"),
    ],
)
def test_what_to_do_follows_from_why_it_failed(tmp_path, reason, stopped_by, words):
    with Store(tmp_path / "store.sqlite") as store:
        number, _ = store.add(Submission({}, "hw", (("Ada", "ada"),), ("none",), ()))
        store.take()
        store.finish(number, "failed", reason, None, RESULT | {"runs": [run(None) | {"stopped_by": stopped_by}]})
        text = feedback.feedback(store.get(number))
    assert markdown(reason) in text
    assert words in text.partition("## What to do")[2]


def test_names_of_files_are_harmless_and_apart():
    stems = [feedback.file_stem(key) for key in ("ada", "../../etc", "a/b", "a b", "con.", "-rf", "é" * 200, ".hidden")]
    assert stems[0] == "ada"
    assert len(set(stems)) == len(stems)
    assert all(re.fullmatch(r"[a-z0-9.-]{1,60}", stem) for stem in stems)


def test_markdown_shows_its_characters():
    nasty = '<img src=x onerror="x"> [a](http://b) **c** | `d` # e\n- f'
    shown = markdown(nasty)
    assert re.sub(r"\\(.)", r"\1", shown) == " ".join(nasty.split())
    assert not [c for c in re.sub(r"\\.", "", shown) if c in MARKUP]


def test_the_standing_of_one_who_only_cancelled(tmp_path):
    with Store(tmp_path / "store.sqlite") as store:
        graded(store, None, "ada")
        store.add(Submission({}, "hw", (("Ada", "ada"),), ("none",), ()))
        store.add(Submission({}, "hw", (("Ada", "ada"), ("Bob", "bob")), ("none",), ()))
        assert {key: entry.id for (_, key), entry in tables.standing(store.entries()).items()} == {"ada": 3, "bob": 3}
