"""The leaderboard: the best score of every contributor, as text and HTML; and all that the store knows of a submission."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from course.store import Entry
from course.submission import WEIGHTS
from course.templating import TEMPLATES
from course.text import printable
from utils import machine

MUCH_BEFORE = 20.0  # processor seconds before the clock that are worth a note
MAX_NAMES = 120  # characters of the names in a table
SETTINGS = ("dataset", "timeout", "count_init", "jobs", "threads", "assignment")  # scores compare where these are equal


@dataclass(frozen=True)
class Row:
    """A place on the leaderboard."""

    rank: int
    contributors: str
    """Those whose best score this is."""
    submission: int
    seconds: float
    """The score: the median of the repeats."""
    fastest: float
    slowest: float
    """Of the repeats; infinite where one missed the target."""
    repeats: int
    accuracy: float
    """0 to 1, after the last epoch: the least of the repeats that reached the target."""
    epochs: int
    """The most of these repeats: each was a look at the test split, counted by the grader."""
    preparation: float
    """Seconds before the clock, the most of the repeats: import, Model.__init__ and optimizer_factory."""
    parameters: int | None
    passed: int
    constraints: int
    """How many constraints of section 3 are met, of how many; 0 of 0 where they could not be computed."""
    failed: str
    """The names of those that are not."""
    submitted: str
    """UTC."""
    notes: str
    """What a reader should know or look into."""


def rank(entries: Sequence[Entry]) -> list[Row]:
    """The best graded submission of every contributor, the fastest first; equal to the hundredth of a second, the earlier first."""
    graded = sorted((entry for entry in entries if entry.state == "graded"), key=order)
    best: dict[str, Entry] = {}
    for entry in graded:
        for _, pennkey in entry.contributors:
            best.setdefault(pennkey, entry)
    placed = [entry for entry in graded if entry in best.values()]
    is_mixed = len(_processors(entries)) > 1
    return [_row(place, entry, best, is_mixed) for place, entry in enumerate(placed, 1)]


def order(entry: Entry) -> tuple[float, float, int]:
    """Graded submissions sorted by it are in the order of the board."""
    return round(_score(entry), 2), entry.submitted, entry.id


def _row(place: int, entry: Entry, best: dict[str, Entry], is_mixed: bool) -> Row:
    names = [f"{name} ({pennkey})" for name, pennkey in entry.contributors if best[pennkey] is entry]
    runs = entry.result["runs"]
    reached = [run for run in runs if run["reached"]]
    taken = [seconds(run, entry.result["count_init"]) for run in runs]
    constraints = entry.result.get("constraints", [])
    return Row(
        place,
        printable(", ".join(names), MAX_NAMES),
        entry.id,
        _score(entry),
        min(taken),
        max(taken),
        len(runs),
        min(run["accuracies"][-1] for run in reached),
        max(len(run["accuracies"]) for run in reached),
        max(map(_preparation, runs)),
        entry.result.get("parameters"),
        sum(passed is True for *_, passed in constraints),
        len(constraints),
        ", ".join(name for name, *_, passed in constraints if passed is False),
        when(entry.submitted),
        "; ".join(_notes(entry, is_mixed)),
    )


def _score(entry: Entry) -> float:
    assert entry.score is not None  # it is graded
    return entry.score


def processor(entry: Entry) -> str:
    """The kind of processor that all repeats of a submission ran on: its model, its instructions for bf16, its cores."""
    hardware = entry.result.get("hardware")
    return printable(machine({"hardware": hardware | {"threads": None}})) if hardware else "unknown"


def _processors(entries: Sequence[Entry]) -> list[str]:
    """The kinds of processors of the graded ones."""
    return list(dict.fromkeys(processor(entry) for entry in entries if entry.state == "graded"))


def _notes(entry: Entry, is_mixed: bool) -> Iterator[str]:
    """What there is to say about a score, and how far it can be trusted; of a mixed board, also the processor."""
    if is_mixed:
        yield f"on {processor(entry)}"
    if entry.result.get("sandbox") == "none":
        yield "graded without a sandbox"
    used = max(run.get("processor_seconds", 0) for run in entry.result["runs"])
    if used > MUCH_BEFORE:
        yield f"{used:.0f} s of processor time before the clock"
    yield from (warning for warning in entry.warnings if warning.startswith(WEIGHTS))


def _preparation(run: dict[str, Any]) -> float:
    return run["import_seconds"] + run["init_seconds"] + run["optimizer_seconds"]


def seconds(run: dict[str, Any], count_init: bool) -> float:
    """What a run counts; infinite where it missed the target."""
    return run["seconds"] + (_preparation(run) if count_init else 0) if run["reached"] else float("inf")


def when(seconds: float) -> str:
    """A time since the epoch, in UTC."""
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S")


# Heading -> text of a row; what text, page and CSV show.
COLUMNS: dict[str, Callable[[Row], str]] = {
    "rank": lambda row: str(row.rank),
    "contributors": lambda row: row.contributors,
    "seconds": lambda row: f"{row.seconds:.2f}",
    "spread": lambda row: f"{row.fastest:.2f} to " + (f"{row.slowest:.2f}" if row.slowest < float("inf") else "missed"),
    "runs": lambda row: str(row.repeats),
    "accuracy": lambda row: f"{row.accuracy:.2%}",
    "evaluations": lambda row: str(row.epochs),
    "before clock": lambda row: f"{row.preparation:.2f}",
    "parameters": lambda row: "" if row.parameters is None else f"{row.parameters:,}",
    "constraints": lambda row: (
        f"{row.passed} of {row.constraints}" + (f", not: {row.failed}" if row.failed else "") if row.constraints else "unknown"
    ),
    "submitted (UTC)": lambda row: row.submitted,
    "no.": lambda row: f"#{row.submission}",
    "notes": lambda row: row.notes,
}


def ranked(rows: Sequence[Row]) -> list[list[str]]:
    """The headings and the rows of the board as text."""
    return [list(COLUMNS), *([text(row) for text in COLUMNS.values()] for row in rows)]


def table(rows: Sequence[Row], entries: Sequence[Entry]) -> str:
    """The leaderboard as aligned text, with a summary of the states below it."""
    lines = _aligned(ranked(rows))
    return "\n".join([lines if rows else "nothing is graded yet", "", *summary(entries)])


def summary(entries: Sequence[Entry]) -> list[str]:
    """How many submissions are in which state, and under which settings the graded ones were."""
    states = [entry.state for entry in entries]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    lines = [f"{len(entries)} submission{'' if len(entries) == 1 else 's'}" + (f": {counts}" if counts else "")]
    settings: dict[tuple[Any, ...], None] = dict.fromkeys(
        tuple(entry.result.get(key) for key in SETTINGS) for entry in entries if entry.state == "graded"
    )
    for values in settings:
        dataset, timeout, count_init, jobs, threads, assignment = values
        lines.append(
            (f"assignment {assignment}, " if assignment else "")
            + f"on {dataset}, limit {timeout:g} s"
            + (", with the time before the clock" if count_init else "")
            + (f", {jobs} jobs side by side" if jobs > 1 else "")
            + (f", {threads} threads" if threads else "")
        )
    if len(settings) > 1:
        lines.append("these are several settings: scores compare only within one; grade all again in a store of their own")
    if len(processors := _processors(entries)) > 1:
        lines.append(f"graded on {len(processors)} kinds of processors: scores compare only on one of them; the notes say which")
    return lines


def listed(entries: Sequence[Entry]) -> list[list[str]]:
    """The headings and a row for every submission, as text."""
    rows = [
        [
            f"#{entry.id}",
            entry.state,
            printable(entry.names, MAX_NAMES),
            when(entry.submitted),
            f"{entry.score:.2f} s" if entry.score is not None else entry.reason,
        ]
        for entry in entries
    ]
    return [["no.", "state", "contributors", "submitted (UTC)", ""], *rows]


def listing(entries: Sequence[Entry]) -> str:
    """Every submission with its state, as aligned text."""
    return "\n".join([_aligned(listed(entries)), "", *summary(entries)])


def details(entry: Entry) -> str:
    """Everything about a submission, as text."""
    lines = [
        f"#{entry.id} {entry.state}{f': {entry.reason}' if entry.reason else ''}",
        f"assignment    {entry.assignment}",
        f"contributors  {entry.names}",
        f"submitted     {when(entry.submitted)} UTC",
        *(f"source        {source}" for source in entry.sources),
        *(f"warning       {warning}" for warning in entry.warnings),
    ]
    if entry.score is not None:
        lines.append(f"score         {entry.score:.2f} s")
    if "hardware" in entry.result:
        lines.append(f"processor     {processor(entry)}")
    for key in ("host", "assignment", "dataset", "timeout", "count_init", "sandbox", "parameters", "problem"):
        if key in entry.result:
            lines.append(f"{key:13} {entry.result[key]}")
    lines += [
        f"constraint    {name}: {value} (limit {limit}){' FAIL' if passed is False else ''}"
        for name, value, limit, passed in entry.result.get("constraints", ())
    ]
    for run in entry.result.get("runs", ()):
        accuracies = (
            ", ".join(
                f"{accuracy:.2%} ({seconds:.2f} s)"
                for accuracy, seconds in zip(run["accuracies"], run["epoch_seconds"], strict=True)
            )
            or "none"
        )
        lines += [
            "",
            f"seed {run['seed']}: stopped by {run['stopped_by']} after {run['seconds']:.2f} s"
            f"{': ' + run['reason'] if run['reason'] else ''}",
            f"  accuracy after each epoch: {accuracies}",
            f"  before the clock: import {run['import_seconds']:.2f} s, __init__ {run['init_seconds']:.2f} s, optimizer "
            f"{run['optimizer_seconds']:.2f} s, of a processor {run.get('processor_seconds', 0):.2f} s",
            *(f"  | {line}" for line in run["log"].splitlines()),
        ]
    return "\n".join(lines)


def as_html(rows: Sequence[Row], entries: Sequence[Entry]) -> str:
    """The leaderboard as one page that loads nothing, every value escaped."""
    return _page(ranked(rows), entries, False)


def listing_page(entries: Sequence[Entry]) -> str:
    """Every submission with its state as such a page."""
    return _page(listed(entries), entries, True)


def target_of(entry: Entry | None) -> float:
    """The test accuracy to exceed, 0 to 1, under which it was graded; of none, the usual one."""
    if entry is not None and "target" in entry.result:
        return float(entry.result["target"])
    from course.harness import TARGET  # which imports torch

    return TARGET


def _page(table: list[list[str]], entries: Sequence[Entry], lists_all: bool) -> str:
    from results.report import render

    graded = [entry for entry in entries if entry.state == "graded"]
    targets = dict.fromkeys([target_of(entry) for entry in graded] or [target_of(None)])
    return render(
        TEMPLATES / "leaderboard.html.jinja",
        lists_all=lists_all,
        headings=table[0],
        rows=table[1:],
        summary=summary(entries),
        target=" or ".join(f"{100 * target:.4g}%" for target in targets),
        hardware="; ".join(dict.fromkeys(machine({"hardware": entry.result["hardware"]}) for entry in graded)),
    )


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
