"""Feedback: what was measured of a student's submissions, why one failed, and what to do about it, as Markdown."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from config import InputError
from course.leaderboard import processor, rank, seconds, target_of, when
from course.points import Earned, earned_under, in_time, most_earned
from course.store import Entry
from course.tables import standing
from course.templating import render
from course.text import markdown
from limits.assignments import Assignment
from utils import write_atomically

HARNESS = "`.venv/bin/python course/harness.py FOLDER`"
CHECK = "`./run.sh check FOLDER/model.py:Model`"


def write_feedback(folder: Path, entries: Sequence[Entry], rules: Assignment | None = None) -> int:
    """Write PENNKEY.md for everybody who has submitted, with the points that `rules` give; returns how many files.

    Raises InputError where `folder` cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror}") from error
    ranks = {row.submission: row.rank for row in rank(in_time(entries, rules))}
    students = standing(entries, rules)
    for (name, pennkey), entry in students.items():
        theirs = [each for each in entries if any(key == pennkey for _, key in each.contributors)]
        others = [each for each in theirs if each is not entry]
        most = most_earned(theirs, rules)
        better = f"#{most[0].id} earns more: {most[1].text}" if most and most[0] is not entry else ""
        text = feedback(entry, name, ranks.get(entry.id), len(ranks), others, earned_under(entry, rules), better)
        write_atomically(folder / f"{file_stem(pennkey)}.md", text.encode())
    return len(students)


def file_stem(pennkey: str) -> str:
    """A name for a file from what a student wrote: itself where that is harmless, else with a hash that keeps it apart."""
    if re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", pennkey):
        return pennkey
    return re.sub(r"[^a-z0-9]+", "-", pennkey)[:40].strip("-") + "." + hashlib.sha256(pennkey.encode()).hexdigest()[:12]


def feedback(
    entry: Entry,
    name: str = "",
    place: int | None = None,
    places: int = 0,
    others: Sequence[Entry] = (),
    points: Earned | None = None,
    better: str = "",
) -> str:
    """The feedback on `entry` as Markdown, for the student `name` at `place` of `places`; `others` are listed at its end.

    `points` are its own; `better` says which of the others earns more.
    """
    result = entry.result
    return render(
        "feedback.md.jinja",
        entry=entry,
        name=name,
        place=place,
        places=places,
        points=points.text if points else "",
        better=better,
        target=f"{100 * target_of(entry):.4g}%",
        submitted=when(entry.submitted),
        runs=[_run(run, result.get("count_init", False)) for run in result.get("runs", ())],
        hardware=processor(entry) if "hardware" in result else "",
        constraints=[
            (constraint, value, limit, "unknown" if passed is None else "met" if passed else "**not met**")
            for constraint, value, limit, passed in result.get("constraints", ())
        ],
        advice=list(advice(entry)),
        others=[
            (each.id, when(each.submitted), each.state, f"{each.score:.2f} s" if each.score is not None else each.reason)
            for each in others
        ],
    )


def _run(run: dict[str, Any], count_init: bool) -> tuple[str, ...]:
    """The cells of a run's line."""
    return (
        str(run["seed"]),
        f"{seconds(run, count_init):.2f}" if run["reached"] else "missed",
        f"{run['accuracies'][-1]:.2%}" if run["accuracies"] else "none",
        str(len(run["accuracies"])),
        f"{run['import_seconds'] + run['init_seconds'] + run['optimizer_seconds']:.2f}",
        run["reason"],
    )


def advice(entry: Entry) -> Iterator[str]:
    """What its contributors should do, a sentence or two each."""
    runs = entry.result.get("runs", [])
    last = runs[-1] if runs else {}
    if entry.state in ("queued", "running"):
        yield "Wait: it is not graded yet. A new submission of yours takes its place in the queue."
    elif entry.state == "cancelled":
        yield "Look at your newest submission: it has replaced this one."
    elif entry.state == "refused":
        yield "Correct what is named above and submit again: nothing was run. `./run.sh submit FOLDER` makes the same check."
    elif entry.state == "failed" and last.get("stopped_by") == "failure":
        yield f"Run it yourself: {HARNESS} trains it in the same loop and names file and line of an error."
        if "memory" in entry.reason:
            yield "Use less memory: a smaller `batch_size`, or fewer and smaller copies of the images."
        if "still" in entry.reason:
            yield "Do less before the training: import, `Model.__init__` and `optimizer_factory` have a time limit of their own."
        if "not numbers" in entry.reason:
            yield "Lower the learning rate, or clip the gradients: the outputs have become NaN."
        if "replaced" in entry.reason or "disturbed" in entry.reason:
            yield "Leave Python's, torch's and the harness's own functions as they are."
    elif entry.state == "failed" and last.get("stopped_by") == "limit":
        yield "Make an epoch cheaper (a smaller network, smaller maps, fewer transforms): the time limit came first."
    elif entry.state == "failed" and last:
        if "same prediction" in entry.reason:
            yield "Check the learning rate and the normalisation: the network predicts the same class for every image."
        yield "Train for more epochs (`num_epochs` in config.py), or raise the learning rate: the training ended below the target."
        yield f"Measure it yourself with several seeds: {HARNESS} `--seed 1`."
    elif entry.state == "failed":
        yield "Ask your teacher: the grader failed, and it is not known that your files are the reason. Submit again."
    for name, value, limit, passed in entry.result.get("constraints", ()):
        if passed is False:
            demand = f"the network has {markdown(value)}, required is {markdown(limit)}"
            yield f"Meet the constraint *{markdown(name)}*: {demand}. {CHECK} computes it."
        elif passed is None:
            yield f"Ask your teacher about the constraint *{markdown(name)}*, which could not be computed. {CHECK} says why."
    if "problem" in entry.result:
        yield f"Let {CHECK} look at the network: its constraints could not be computed."
    if entry.state == "graded" and any(not run["reached"] for run in runs):
        yield "Aim higher than the target: not every run reached it."
