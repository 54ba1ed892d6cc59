"""The store of submissions, which many processes may use at once and any of them may be killed in.

    queued -> running -> graded | failed          queued, running -> cancelled (its contributors have submitted again)

It is an SQLite file, or a PostgreSQL database for graders on several machines (databases.py): the statements here are for both.
Every change of state is one transaction. A running submission bears the mark of the grader that has taken it: without it, nobody
writes a result. When that grader dies, or has not been heard of for too long, the mark is removed and the submission queued again,
behind those that no grader has died over; after `MAX_CRASHES` it fails.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Row, and_, func, insert, null, select, update
from sqlalchemy.exc import DBAPIError

from config import InputError
from course import schema
from course.databases import database, no_store
from course.schema import submissions
from course.submission import Submission
from course.text import printable

MAX_CRASHES = 2  # of graders over one submission
GIVE_UP = 5.0  # seconds for which a grader that ends tries to reach a server that it has lost

T = TypeVar("T")
column = submissions.c
FIELDS = tuple(
    column[name]
    for name in (
        "id",
        "state",
        "reason",
        "assignment",
        "contributors",
        "sources",
        "warnings",
        "submitted",
        "started",
        "finished",
        "progress",
        "score",
        "result",
    )
)


@dataclass(frozen=True)
class Entry:
    """A submission in the store, without its files."""

    id: int
    state: str
    reason: str
    assignment: str
    contributors: list[tuple[str, str]]
    sources: list[str]
    warnings: list[str]
    submitted: float
    started: float | None
    finished: float | None
    progress: str
    """Of a running one: how far its grader is."""
    score: float | None
    result: dict[str, Any]

    @property
    def names(self) -> str:
        return ", ".join(f"{name} ({pennkey})" for name, pennkey in self.contributors)


class Store:
    """An open store. One process opens an SQLite file once at a time: closing it also drops the locks on what it is grading.

    Args:
        place: a file, or postgresql://USER@HOST/DATABASE.
        make: make it where it is missing.
        patience: seconds for which a server that is lost is called again before that is an error.

    Raises InputError where there is no store at `place`, or it cannot be made or read; later, too, where it can no longer be used.
    """

    def __init__(self, place: Path | str, make: bool = True, patience: float = 0.0) -> None:
        self.patience = patience
        self.marks: dict[int, str] = {}  # of the submissions that this process has taken
        self.database = database(place)
        try:
            with self.database.opening(make):
                self.change(lambda connection: self._prepare(connection, make))
            self.recover()
        except DBAPIError as error:
            self.close()
            raise InputError(self.database.problem(error)) from error
        except InputError:
            self.close()
            raise

    def close(self) -> None:
        self.database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, submission: Submission, arrived: float | None = None) -> tuple[int, list[int]]:
        """Queue a submission; returns its number, and those of the same contributors' not yet graded ones, now cancelled.

        It counts as submitted when it arrived (seconds since 1970), where that is known.
        """
        pennkeys = json.dumps(sorted(pennkey for _, pennkey in submission.contributors))
        values = {
            "assignment": printable(submission.assignment),
            "contributors": json.dumps(submission.contributors),
            "pennkeys": pennkeys,
            "sources": json.dumps(submission.sources),
            "warnings": json.dumps(submission.warnings),
            "files": json.dumps({name: data.decode() for name, data in submission.files.items()}),
        }

        def change(connection: Connection) -> tuple[int, list[int]]:
            self.database.one_at_a_time(connection, pennkeys)
            waiting = and_(column.pennkeys == pennkeys, column.state.in_(("queued", "running")))
            cancelled: list[int] = list(connection.scalars(select(column.id).where(waiting).order_by(column.id).with_for_update()))
            connection.execute(
                update(submissions).where(column.id.in_(cancelled)).values(state="cancelled", finished=self.database.now())
            )
            made = connection.execute(
                insert(submissions).values(**values, submitted=self.database.now() if arrived is None else arrived)
            )
            assert made.inserted_primary_key is not None  # an INSERT has been made
            return made.inserted_primary_key[0], cancelled

        return self.change(change)

    def take(self) -> tuple[Entry, dict[str, bytes]] | None:
        """The first queued submission and its files, now running and this process's; None where none is queued."""
        mark = f"{platform.node()} {os.getpid()} {uuid.uuid4().hex}"

        def change(connection: Connection) -> Row | None:
            # It is ours already where the connection was lost after all was done and before we were told so.
            if connection.scalar(select(column.id).where(column.grader == mark)) is None:
                self._queue_abandoned(connection)
                number = self._first(connection)
                if number is None:
                    return None
                connection.execute(
                    update(submissions)
                    .where(column.id == number)
                    .values(state="running", started=self.database.now(), progress="", grader=mark, lease=self._lease())
                )
            return connection.execute(select(*FIELDS, column.files).where(column.grader == mark)).one()

        row = self.change(change)
        if row is None:
            return None
        self.marks[row.id] = mark
        return _entry(row), {name: text.encode() for name, text in json.loads(row.files).items()}

    def keep(self, number: int, progress: str | None = None) -> bool:
        """Renew the lease of a submission that this process took, and say how far it is, where that is not None.

        False where it was cancelled or taken away since.
        """
        values: dict[str, Any] = {} if self._lease() is None else {"lease": self._lease()}
        if progress is not None:
            values["progress"] = printable(progress)
        if not values:
            return self.read(lambda connection: connection.scalar(select(column.id).where(self._is_mine(number)))) is not None
        renewal = update(submissions).where(self._is_mine(number)).values(**values)
        return bool(self.change(lambda connection: connection.execute(renewal).rowcount, patience=0.0))  # the next one comes soon

    def finish(self, number: int, state: str, reason: str, score: float | None, result: dict[str, Any]) -> bool:
        """Write what came of a submission that this process took; False where it was cancelled or taken away meanwhile."""
        values = {"state": state, "reason": printable(reason), "score": score, "result": json.dumps(result)}
        return self._leave(number, self.patience, **values, finished=self.database.now(), lease=None)

    def give_back(self, number: int) -> None:
        """Queue a submission that this process took and could not finish."""
        self._leave(number, min(GIVE_UP, self.patience), state="queued", started=None, grader=None, lease=None)

    def crashed(self, number: int, how: str) -> str:
        """Queue a submission over which this grader failed, or end it where that is not the first time; returns its state."""

        def change(connection: Connection) -> None:
            if connection.scalar(select(column.id).where(self._is_mine(number)).with_for_update()) is not None:
                self._count_crash(connection, number, how)

        self.change(change)
        self._forget(number)
        return self.get(number).state

    def recover(self) -> None:
        """Queue the submissions whose grader died, or end them where that is not the first time."""
        if self.read(lambda connection: connection.scalar(select(func.count()).where(column.state == "running"))):
            self.change(self._queue_abandoned)

    def get(self, number: int) -> Entry:
        """Raises InputError where there is none of that number."""
        here = select(*FIELDS).where(column.id == number)
        is_one = 0 < number <= schema.MAX_NUMBER  # neither database compares with larger ones
        row = self.read(lambda connection: connection.execute(here).one_or_none()) if is_one else None
        if row is None:
            raise InputError(f"there is no submission {number} in {self.database.name}")
        return _entry(row)

    def entries(self, *conditions: ColumnElement[bool]) -> list[Entry]:
        """All submissions, or those that satisfy the conditions, in the order of their numbers."""
        statement = select(*FIELDS).where(*conditions).order_by(column.id)
        return [_entry(row) for row in self.read(lambda connection: connection.execute(statement).all())]

    def _prepare(self, connection: Connection, make: bool) -> None:
        """Make the tables, or take the steps from those of an older store."""
        found = schema.version(connection)
        if found == schema.VERSION:
            return
        if not self.database.is_store(connection) and not make:
            raise no_store(self.database.name)
        if found and int(found) > int(schema.VERSION):
            raise InputError(f"{self.database.name} is a store of a newer version of this program")
        schema.migrate(connection)

    def _first(self, connection: Connection) -> int | None:
        """The number of the first queued submission that is nobody's; no other grader gets it while the transaction lasts."""
        tried: list[int] = []
        queue = select(column.id).where(column.state == "queued").order_by(column.crashes, column.id).limit(1)
        queue = queue.with_for_update(skip_locked=True)
        while True:
            number: int | None = connection.scalar(queue.where(column.id.not_in(tried)))
            if number is None or self.database.hold(number):
                return number
            tried.append(number)  # a grader has it that is about to notice that it was cancelled

    def _lease(self) -> ColumnElement[float] | None:
        return None if self.database.lease is None else self.database.now() + self.database.lease

    def _is_mine(self, number: int) -> ColumnElement[bool]:
        return and_(column.id == number, column.state == "running", column.grader == self.marks.get(number, ""))

    def _leave(self, number: int, patience: float, **values: Any) -> bool:
        """Write the values where the submission is still this process's; where it is told so too late, they are there already."""
        written = and_(column.id == number, column.state == values["state"], column.grader == self.marks.get(number, ""))

        def change(connection: Connection) -> bool:
            changed = connection.execute(update(submissions).where(self._is_mine(number)).values(**values)).rowcount
            return bool(changed) or connection.scalar(select(column.id).where(written)) is not None

        is_kept = self.change(change, patience)
        self._forget(number)
        return is_kept

    def _forget(self, number: int) -> None:
        self.marks.pop(number, None)
        self.database.release(number)

    def _queue_abandoned(self, connection: Connection) -> None:
        running = select(column.id).where(column.state == "running", self.database.may_have_died()).order_by(column.id)
        abandoned: list[int] = list(connection.scalars(running.with_for_update(skip_locked=True)))
        for number in abandoned:
            if number not in self.marks and self.database.hold(number):
                self._count_crash(connection, number, "was killed")
                self.database.release(number)

    def _count_crash(self, connection: Connection, number: int, how: str) -> None:
        """Of a running submission; its grader's mark is gone then."""
        here = column.id == number
        values: dict[str, Any] = {"state": "queued", "started": null()}
        if connection.execute(select(column.crashes).where(here)).scalar_one() + 1 >= MAX_CRASHES:
            reason = f"the grader {how} while it graded this, {MAX_CRASHES} times: submit it again if it was not the reason"
            values = {"state": "failed", "finished": self.database.now(), "reason": reason}
        values |= {"crashes": column.crashes + 1, "grader": null(), "lease": null()}
        connection.execute(update(submissions).where(here).values(**values))

    def read(self, read: Callable[[Connection], T]) -> T:
        """What `read` returns in a transaction that changes nothing. Raises InputError."""
        return self.change(read, reads_only=True)

    def change(self, change: Callable[[Connection], T], patience: float | None = None, reads_only: bool = False) -> T:
        """`change` in one transaction, once more where the server is lost, for so many seconds. Raises InputError."""
        patience = self.patience if patience is None else patience
        until = time.monotonic() + patience
        attempts = 0
        while True:
            try:
                with self.database.engine.execution_options(reads_only=reads_only).begin() as connection:
                    return change(connection)
            except DBAPIError as error:
                if not self.database.is_lost(error) or time.monotonic() >= until:
                    raise InputError(self.database.problem(error)) from error
            attempts += 1
            if attempts == 2:  # once is a server that restarts
                print(f"note: {self.database.name} is lost, trying again for {patience:.0f} s", file=sys.stderr)
            time.sleep(0.5)


def _entry(row: Row) -> Entry:
    return Entry(
        row.id,
        row.state,
        printable(row.reason),
        printable(row.assignment),
        [(printable(name, 100), printable(pennkey, 100)) for name, pennkey in json.loads(row.contributors)],
        [printable(source, 2000) for source in json.loads(row.sources)],
        [printable(remark) for remark in json.loads(row.warnings)],
        row.submitted,
        row.started,
        row.finished,
        printable(row.progress),
        row.score,
        json.loads(row.result) if row.result else {},
    )
