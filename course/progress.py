"""The queue as people watch it, and what a teacher does to it; graders take from it in store.py."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, func, null, select, update

from config import InputError
from course.schema import submissions
from course.store import Entry, Store
from course.text import printable

column = submissions.c


@dataclass(frozen=True)
class Waiting:
    """A submission that is queued or running."""

    id: int
    pennkeys: tuple[str, ...]
    text: str
    """Its place in the queue, or how far it is."""


def waiting(store: Store, tells_progress: bool = True) -> list[Waiting]:
    """The running submissions, then the queued ones, the next to be graded first; progress contains accuracies."""
    fields = (column.id, column.state, column.pennkeys, column.started, column.progress)
    active = select(*fields).where(column.state.in_(("running", "queued"))).order_by(column.crashes, column.id)
    rows = store.read(lambda connection: connection.execute(active).all())
    running = [row for row in rows if row.state == "running"]
    queued = [row for row in rows if row.state == "queued"]
    found = []
    for row in running:
        since = datetime.datetime.fromtimestamp(row.started, datetime.timezone.utc).strftime("%H:%M:%S")
        progress = f": {printable(row.progress)}" if row.progress and tells_progress else ""
        found.append(Waiting(row.id, tuple(json.loads(row.pennkeys)), f"being graded since {since} UTC{progress}"))
    for place, row in enumerate(queued, 1):
        found.append(Waiting(row.id, tuple(json.loads(row.pennkeys)), f"place {place} of {len(queued)} in the queue"))
    return found


def is_of(number: str) -> ColumnElement[bool]:
    """Whether a submission has the contributor of that number (a pennkey, in lower case)."""
    return column.pennkeys.contains(json.dumps(number), autoescape=True)  # with its quotes, which are nowhere inside another


def graded_at(store: Store) -> tuple[int, float]:
    """How many submissions are graded, and when the last of them was: where both are as before, so is the board."""
    graded = select(func.count(), func.coalesce(func.max(column.finished), 0.0)).where(column.state == "graded")
    row = store.read(lambda connection: connection.execute(graded).one())
    return row[0], row[1]


def page(store: Store, before: int, count: int) -> list[Entry]:
    """The last `count` submissions with numbers below `before`, the newest first."""
    numbers = select(column.id).where(column.id < before).order_by(column.id.desc()).limit(count)
    return store.entries(column.id.in_(numbers))[::-1]


def cancel(store: Store, number: int) -> None:
    """Cancel a queued or running submission; its grader notices within seconds. Raises InputError where it is done already."""
    values = {"state": "cancelled", "reason": "cancelled by a teacher", "finished": store.database.now()}
    _set(store, number, ("queued", "running"), values, "can be cancelled")


def grade_again(store: Store, number: int) -> None:
    """Queue a submission that is done, as if it had never been graded. Raises InputError where it is not done."""
    nothing = {"started": null(), "finished": null(), "score": null(), "result": null(), "grader": null(), "lease": null()}
    values = {"state": "queued", "reason": "", "progress": "", "crashes": 0, **nothing}
    _set(store, number, ("graded", "failed", "cancelled"), values, "can be graded again")


def _set(store: Store, number: int, states: tuple[str, ...], values: Mapping[str, object], what: str) -> None:
    here = update(submissions).where(column.id == number, column.state.in_(states)).values(**values)

    def change(connection: Connection) -> bool:
        return bool(connection.execute(here).rowcount)

    if not store.change(change):
        raise InputError(f"#{number} is {store.get(number).state}: only what is {' or '.join(states)} {what}")
