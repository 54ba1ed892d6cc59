"""The board as students see it, and the table of all students for the teacher's own."""

from __future__ import annotations

import csv
import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from course import leaderboard, progress
from course.points import most_earned
from course.roster import Person
from course.schema import submissions
from course.store import Entry, Store
from course.text import cell
from limits.assignments import Assignment


@dataclass(frozen=True)
class Place:
    """A place on the board, before it is known who looks at it."""

    row: leaderboard.Row
    numbers: tuple[str, ...]
    """Whose best score this is: their student numbers."""


@dataclass(frozen=True)
class Line:
    """A place as one person sees it."""

    rank: int
    who: str
    """Nicknames; "you" for who looks."""
    is_own: bool
    row: leaderboard.Row


class Board:
    """Computed again only when something has been graded. Several threads may ask.

    Args:
        deadline: seconds since 1970; what was submitted later does not count. None for never.
        assignment: the name of the one with which it must have been graded, or "".
    """

    def __init__(self, store: Store, deadline: float | None, assignment: str) -> None:
        self.store, self.deadline, self.assignment = store, deadline, assignment
        self.lock = threading.Lock()
        self.of: tuple[int, float] | None = None
        self.found: list[Place] = []

    def places(self) -> list[Place]:
        """The fastest first."""
        with self.lock:
            of = progress.graded_at(self.store)
            if of != self.of:
                in_time = () if self.deadline is None else (submissions.c.submitted <= self.deadline,)
                graded = self.store.entries(submissions.c.state == "graded", *in_time)
                self.found = _places([each for each in graded if self.assignment in ("", each.result.get("assignment"))])
                self.of = of
            return self.found


def _places(entries: Sequence[Entry]) -> list[Place]:
    by_number = {entry.id: entry for entry in entries}
    seen: set[str] = set()
    found = []
    for row in leaderboard.rank(entries):
        numbers = tuple(pennkey for _, pennkey in by_number[row.submission].contributors if pennkey not in seen)
        seen |= set(numbers)
        found.append(Place(row, numbers))
    return found


def seen_by(person: Person, places: Sequence[Place], top: int, people: Sequence[Person]) -> list[Line]:
    """The first `top` places and the person's own, however far down; all, with names and numbers, for a teacher."""
    nicknames = {each.number: each.nickname for each in people}
    lines = []
    for place in places:
        is_own = person.number in place.numbers and not person.is_teacher
        if person.is_teacher:
            lines.append(Line(place.row.rank, place.row.contributors, False, place.row))
        elif is_own or place.row.rank <= top:
            who = ", ".join("you" if each == person.number else nicknames.get(each) or "anonymous" for each in place.numbers)
            lines.append(Line(place.row.rank, who, is_own, place.row))
    return lines


def as_csv(places: Sequence[Place], people: Sequence[Person], entries: Sequence[Entry], rules: Assignment | None) -> str:
    """One row for each student of the roster, also those who have submitted nothing, and for each contributor who is not on it.

    Where `rules` give points, also the most that any of a student's submissions earns.
    """
    best = {number: place.row for place in places for number in place.numbers}
    mine: dict[str, list[Entry]] = {person.number: [] for person in people if not person.is_teacher}
    names = {person.number: person.name for person in people}
    for entry in entries:
        for name, number in entry.contributors:
            mine.setdefault(number, []).append(entry)
            names.setdefault(number, name)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    headings = ["number", "name", "rank", "seconds", "accuracy", "submission", "submissions", "last_state", "last_reason"]
    gives_points = bool(rules and rules.course)
    writer.writerow([*headings, *(["points", "points_of_submission"] if gives_points else [])])
    for number, theirs in mine.items():
        row, last = best.get(number), theirs[-1] if theirs else None
        scored = [row.rank, f"{row.seconds:.3f}", f"{row.accuracy:.4f}", row.submission] if row else ["", "", "", ""]
        ended = [last.state, cell(last.reason)] if last else ["", ""]
        most = most_earned(theirs, rules)
        points = [] if not gives_points else [most[1].points, most[0].id] if most else ["", ""]
        writer.writerow([cell(number), cell(names[number]), *scored, len(theirs), *ended, *points])
    return buffer.getvalue()
