"""The board for other programs: one row a student (or a submission), one column a fact, numbers as numbers."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence

from course import leaderboard
from course.points import days_late, earned_under, in_time, most_earned
from course.store import Entry
from course.text import cell, markdown
from limits.assignments import Assignment

Facts = dict[str, str | float | None]


def students(entries: Sequence[Entry], rules: Assignment | None = None) -> list[Facts]:
    """A row for everybody who has submitted: the submission that counts, see `standing`. The ranked come first.

    Where `rules` give points, also the most that any of their submissions earns.
    """
    ranks = {row.submission: row.rank for row in leaderboard.rank(in_time(entries, rules))}
    names = _constraint_names(entries)
    rows = []
    for (name, pennkey), entry in standing(entries, rules).items():
        points: Facts = {}
        if rules and rules.course:
            most = most_earned([each for each in entries if any(key == pennkey for _, key in each.contributors)], rules)
            points = {"points": most[1].points if most else None, "points_of_submission": most[0].id if most else None}
        rows.append({"rank": ranks.get(entry.id), "name": name, "number": pennkey, **points, **_facts(entry, names)})
    return sorted(rows, key=lambda row: (row["rank"] or len(rows) + 1, row["name"], row["number"]))


def all_submissions(entries: Sequence[Entry], rules: Assignment | None = None) -> list[Facts]:
    """A row for every submission, in the order of their numbers; with its points, where `rules` give some."""
    names = _constraint_names(entries)
    rows = []
    for entry in entries:
        points: Facts = {}
        if rules and rules.course:
            found = earned_under(entry, rules)
            points = {"points": found.points if found else None, "days_late": days_late(entry.submitted, rules.course)}
        rows.append({"contributors": entry.names, **points, **_facts(entry, names)})
    return rows


def standing(entries: Sequence[Entry], rules: Assignment | None = None) -> dict[tuple[str, str], Entry]:
    """(name, pennkey) of everybody -> the submission that counts: the best graded one, else the latest that is not cancelled.

    One that was submitted after the deadline of `rules` counts only where none was graded in time.
    """
    theirs: dict[str, list[Entry]] = {}
    names: dict[str, str] = {}
    for entry in entries:
        for name, pennkey in entry.contributors:
            theirs.setdefault(pennkey, []).append(entry)
            names[pennkey] = name
    return {(names[pennkey], pennkey): _counts(each, rules) for pennkey, each in theirs.items()}


def _counts(entries: list[Entry], rules: Assignment | None) -> Entry:
    graded = [entry for entry in entries if entry.state == "graded"]
    if graded:
        return min(in_time(graded, rules) or graded, key=leaderboard.order)
    return ([entry for entry in entries if entry.state != "cancelled"] or entries)[-1]


def _constraint_names(entries: Iterable[Entry]) -> list[str]:
    return list(dict.fromkeys(name for entry in entries for name, *_ in entry.result.get("constraints", ())))


def _facts(entry: Entry, constraint_names: Sequence[str]) -> Facts:
    """The columns of a submission; None where something was not measured."""
    result = entry.result
    runs = result.get("runs", [])
    reached = [run for run in runs if run["reached"]]
    seconds = [leaderboard.seconds(run, result["count_init"]) for run in reached]
    constraints = {name: passed for name, *_, passed in result.get("constraints", ())}
    hardware = result.get("hardware", {})

    def most(values: Iterable[float]) -> float | None:
        return max(values, default=None)

    return {
        "submission": entry.id,
        "state": entry.state,
        "reason": entry.reason,
        "submitted_utc": leaderboard.when(entry.submitted),
        "seconds": entry.score,
        "fastest_seconds": min(seconds, default=None),
        "slowest_seconds": most(seconds) if len(reached) == len(runs) else None,
        "runs": len(runs),
        "runs_missed": len(runs) - len(reached),
        "accuracy": min((run["accuracies"][-1] for run in reached), default=None),
        "best_accuracy": most(accuracy for run in runs for accuracy in run["accuracies"]),
        "evaluations": most(len(run["accuracies"]) for run in runs),
        "import_seconds": most(run["import_seconds"] for run in runs),
        "init_seconds": most(run["init_seconds"] for run in runs),
        "optimizer_seconds": most(run["optimizer_seconds"] for run in runs),
        "processor_seconds_before_clock": most(run.get("processor_seconds", 0) for run in runs),
        "parameters": result.get("parameters"),
        "constraints": len(constraints) or None,
        "constraints_passed": sum(passed is True for passed in constraints.values()) if constraints else None,
        **{f"passed: {name}": None if (passed := constraints.get(name)) is None else int(passed) for name in constraint_names},
        "dataset": result.get("dataset"),
        "timeout_seconds": result.get("timeout"),
        "sandbox": result.get("sandbox"),
        "processor": leaderboard.processor(entry) if hardware else None,
        "warnings": "; ".join(entry.warnings),
    }


def as_csv(rows: Sequence[Facts]) -> str:
    """Comma-separated values, with the headings of the first row; what was not measured is empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([cell(heading) for heading in rows[0]] if rows else ["rank", "name", "number"])
    for row in rows:
        writer.writerow([cell(value) if isinstance(value, str) else value for value in row.values()])
    return buffer.getvalue()


def as_json(rows: Sequence[Facts]) -> str:
    """The rows as a JSON list of objects; what was not measured is null."""
    return json.dumps(rows, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def as_markdown(headings: Sequence[str], rows: Sequence[Sequence[str]], summary: Sequence[str]) -> str:
    """A table of text, and below it the summary."""
    lines = [headings, ["---"] * len(headings), *(list(map(markdown, row)) for row in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([table, *map(markdown, summary)]) + "\n"


class Board:
    """What `leaderboard` shows of `entries`: the ranking, or with `lists_all` every submission, in each format."""

    def __init__(self, entries: Sequence[Entry], lists_all: bool, rules: Assignment | None = None) -> None:
        self.facts = all_submissions(entries, rules) if lists_all else students(entries, rules)
        rows = leaderboard.rank(in_time(entries, rules))
        headings, *self.cells = leaderboard.listed(entries) if lists_all else leaderboard.ranked(rows)
        self.formats: dict[str, tuple[Callable[[], str], int]] = {
            "text": (
                lambda: (leaderboard.listing(entries) if lists_all else leaderboard.table(rows, entries)) + "\n",
                len(self.cells),
            ),
            "csv": (lambda: as_csv(self.facts), len(self.facts)),
            "json": (lambda: as_json(self.facts), len(self.facts)),
            "md": (lambda: as_markdown(headings, self.cells, leaderboard.summary(entries)), len(self.cells)),
            "html": (
                lambda: leaderboard.listing_page(entries) if lists_all else leaderboard.as_html(rows, entries),
                len(self.cells),
            ),
        }
