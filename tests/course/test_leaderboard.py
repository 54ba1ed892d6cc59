"""Who stands where, and that nothing a student writes becomes anything else than text."""

import csv
import io

import pytest

from conftest import run_main
from course import feedback, leaderboard, tables, text
from course.store import Store
from course.submission import WEIGHTS, Submission
from made_up import RESULT, graded, run


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store.sqlite") as opened:
        yield opened


def places(store):
    return [(row.contributors, row.submission) for row in leaderboard.rank(store.entries())]


def test_the_best_of_each_the_fastest_first_ties_to_the_earlier(store):
    graded(store, 3.0, "ada")
    graded(store, 5.0, "bob")
    graded(store, 2.0, "ada")
    graded(store, 4.0, "ada")
    graded(store, 1.9996, "eve")  # 2.00, as ada's of earlier
    graded(store, None, "joe")
    store.add(Submission({}, "hw", (("Kim", "kim"),), ("none",), ()))
    assert places(store) == [("Ada (ada)", 3), ("Eve (eve)", 5), ("Bob (bob)", 2)]


def test_a_board_of_several_kinds_of_processors_says_so(store):
    """Those with other instructions, or another number of cores, are another kind; another number of threads is none."""
    amx = {"processor": "Xeon", "bf16": "amx_bf16", "cores": 2, "threads": 2}
    graded(store, 3.0, "ada", hardware=amx)
    graded(store, 2.0, "bob", hardware=amx | {"threads": 1})
    assert "processors" not in leaderboard.table(leaderboard.rank(store.entries()), store.entries())
    assert [row.notes for row in leaderboard.rank(store.entries())] == ["", ""]
    graded(store, 1.0, "eve", hardware=amx | {"bf16": None})
    graded(store, 4.0, "joe", hardware=amx | {"cores": 4})
    rows = leaderboard.rank(store.entries())
    expected = ["on Xeon, 2 cores", "on Xeon (amx_bf16), 2 cores", "on Xeon (amx_bf16), 2 cores", "on Xeon (amx_bf16), 4 cores"]
    assert [row.notes for row in rows] == expected
    assert "graded on 3 kinds of processors" in leaderboard.table(rows, store.entries())
    assert "Xeon (amx_bf16), 4 cores" in leaderboard.as_html(rows, store.entries())
    assert "processor     Xeon, 2 cores" in leaderboard.details(store.get(3))


def test_who_submits_alone_and_in_a_group(store):
    graded(store, 3.0, "ada", "bob")
    graded(store, 2.0, "ada")
    graded(store, 4.0, "bob")
    assert places(store) == [("Ada (ada)", 2), ("Bob (bob)", 1)]


def test_what_a_row_says(store):
    graded(store, 3.0, "ada", runs=[run(3.0, 0.61), run(None, 0.5), run(2.5, 0.58)])
    (row,) = leaderboard.rank(store.entries())
    assert {heading: text(row) for heading, text in leaderboard.COLUMNS.items()} == {
        "rank": "1",
        "contributors": "Ada (ada)",
        "seconds": "3.00",
        "spread": "2.50 to missed",
        "runs": "3",
        "accuracy": "58.00%",
        "evaluations": "2",
        "before clock": "0.88",
        "parameters": "1,234",
        "constraints": "1 of 2, not: dilated",
        "submitted (UTC)": row.submitted,
        "no.": "#1",
        "notes": "",
    }


def test_without_constraints(store):
    graded(store, 3.0, "ada", constraints=[], parameters=None)
    (row,) = leaderboard.rank(store.entries())
    assert leaderboard.COLUMNS["constraints"](row) == "unknown"
    assert leaderboard.COLUMNS["parameters"](row) == ""


def test_several_settings_are_told(store):
    graded(store, 3.0, "ada")
    assert "several settings" not in leaderboard.table(leaderboard.rank(store.entries()), store.entries())
    graded(store, 3.0, "bob", dataset="cifar10")
    assert "several settings" in leaderboard.table(leaderboard.rank(store.entries()), store.entries())


def test_names_are_text_everywhere(store, tmp_path):
    graded(store, 3.0, ("<script>alert(1)</script>", "=1+1"), ('=2+2, "Eve"', "@eve"))
    page, table = tmp_path / "board.html", tmp_path / "board.csv"
    result = run_main("leaderboard", "--store", tmp_path / "store.sqlite", "--html", page, "--csv", table)
    assert result.returncode == 0, result.stderr
    assert "&lt;script&gt;" in page.read_text()
    assert "<script" not in page.read_text()
    assert "http" not in page.read_text().replace("http-equiv", "")  # it loads nothing
    heading, *rows = csv.reader(io.StringIO(table.read_text()))
    assert heading[:3] == ["rank", "name", "number"]
    assert [row[:3] for row in rows] == [["1", "<script>alert(1)</script>", "'=1+1"], ["1", '\'=2+2, "Eve"', "'@eve"]]


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\uff1d", "\ufe66", "\u2212", "\uff0b", " ="])
def test_a_csv_cell_is_no_formula(store, sign):
    assert text.cell(sign + "HYPERLINK(1)") == f"'{sign}HYPERLINK(1)"
    graded(store, 3.0, (sign + "HYPERLINK(1)", "eve"))
    assert f",'{sign.strip()}HYPERLINK" in tables.as_csv(tables.students(store.entries()))


NASTY = "A\u202e\x1b[2J\nB\u200b\u3164" + "e\u0301\u0301\u0301\u0301\u0301" + "x" * 4000


def test_one_function_for_all_that_comes_from_others(store):
    """Names, reasons, sources and warnings as an old store may hold them, in each of the outputs."""
    assert text.printable(NASTY, 20) == "A\ufffd\ufffd[2J B\ufffd\ufffde\u0301\u0301xxxxxx…"
    number, _ = store.add(Submission({}, NASTY, ((NASTY, NASTY),), (NASTY,), (NASTY,)))
    store.take()
    store.finish(number, "failed", NASTY * 20, None, RESULT | {"runs": []})
    graded(store, 3.0, (NASTY, "eve"))
    entries = store.entries()
    rows = leaderboard.rank(entries)
    shown = [leaderboard.table(rows, entries), leaderboard.listing(entries), leaderboard.details(entries[0])]
    boards = [tables.Board(entries, lists_all) for lists_all in (False, True)]
    shown += [feedback.feedback(entry, entry.names, None, 1, entries) for entry in entries]
    for output in (*shown, *(make() for board in boards for make, _ in board.formats.values())):
        assert not set("\u202e\x1b\u200b\u3164") & set(output)
        assert "e\u0301\u0301\u0301" not in output
    for output in shown[:2]:  # the two tables
        assert max(map(len, output.splitlines())) < 600


def test_what_a_line_of_the_board_warns_of(store):
    graded(store, 3.0, "ada", sandbox="none")
    graded(store, 4.0, "bob", runs=[run(4.0) | {"processor_seconds": 93.0}])
    number, _ = store.add(Submission({}, "hw", (("Eve", "eve"),), ("none",), ("no docstring", f"{WEIGHTS} model.py has 9 bytes")))
    store.take()
    store.finish(number, "graded", "", 5.0, RESULT | {"runs": [run(5.0)]})
    assert [row.notes for row in leaderboard.rank(store.entries())] == [
        "graded without a sandbox",
        "93 s of processor time before the clock",
        f"{WEIGHTS} model.py has 9 bytes",
    ]
    assert "graded without a sandbox" in leaderboard.as_html(leaderboard.rank(store.entries()), store.entries())


def test_empty(store):
    assert leaderboard.table([], []).startswith("nothing is graded yet\n\n0 submissions")
    assert "Nothing is graded yet" in leaderboard.as_html([], [])


def test_details(store, tmp_path):
    graded(store, None, "ada", runs=[run(None)])
    text = leaderboard.details(store.get(1))
    for words in (
        "#1 failed: not above 55%",
        "Ada (ada)",
        "40.00% (1.00 s), 60.00% (2.00 s)",
        "  | <b>said</b>",
        "dilated: none",
        "import 0.50 s, __init__ 0.25 s, optimizer 0.12 s",
    ):
        assert words in text
    shown = run_main("leaderboard", "--store", tmp_path / "store.sqlite", "--show", 1)
    assert shown.stdout == text + "\n"
    assert run_main("leaderboard", "--store", tmp_path / "store.sqlite", "--show", 2).returncode == 2
    assert "#1   failed" in run_main("leaderboard", "--store", tmp_path / "store.sqlite", "--all").stdout
