"""The store of submissions: one SQLite file that several processes may use at once and any of them may be killed in.

    queued -> running -> graded | failed          queued, running -> cancelled (its contributors have submitted again)

Every change of state is one transaction. A grader holds a lock on one byte of FILE.lock for the submission that it runs; the kernel
drops it when that process ends, however it ends, and a running submission whose byte is free is queued again, behind those that no
grader has died over; after `MAX_CRASHES` it fails.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config import InputError
from course.submission import Submission
from course.text import printable

STATES = ("queued", "running", "graded", "failed", "cancelled")
MAGIC = 0x436F6E76  # SQLite's application_id of a store
MAX_CRASHES = 2  # of graders over one submission
ADD_CRASHES = "ALTER TABLE submissions ADD COLUMN crashes INTEGER NOT NULL DEFAULT 0"
SCHEMA = f"""
CREATE TABLE IF NOT EXISTS submissions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    state TEXT NOT NULL DEFAULT 'queued' CHECK (state IN {STATES}),
    reason TEXT NOT NULL DEFAULT '',           -- why it failed
    assignment TEXT NOT NULL,
    contributors TEXT NOT NULL,                -- JSON: [[name, pennkey], ...]
    pennkeys TEXT NOT NULL,                    -- JSON, sorted: who it is from
    sources TEXT NOT NULL,                     -- JSON
    warnings TEXT NOT NULL,                    -- JSON
    files TEXT NOT NULL,                       -- JSON: {{name: text}}
    submitted REAL NOT NULL,                   -- seconds since 1970
    started REAL,
    finished REAL,
    score REAL,                                -- seconds, of a graded one
    result TEXT                                -- JSON: what the grader measured
);
CREATE INDEX IF NOT EXISTS by_state ON submissions (state, id);
CREATE INDEX IF NOT EXISTS by_pennkeys ON submissions (pennkeys);
PRAGMA application_id = {MAGIC};
"""
FIELDS = "id, state, reason, assignment, contributors, sources, warnings, submitted, started, finished, score, result"


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
    score: float | None
    result: dict[str, Any]

    @property
    def names(self) -> str:
        return ", ".join(f"{name} ({pennkey})" for name, pennkey in self.contributors)


class Store:
    """An open store. One process opens it once at a time: closing it also drops the locks on what it is grading.

    Raises InputError where `path` is not a store, or cannot be made or read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mine: set[int] = set()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Only its owner reads it: it holds everybody's work.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self.locks = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise InputError(f"cannot open the store {path}: {error.strerror or error}") from error
        try:
            self.database = sqlite3.connect(path, timeout=60, isolation_level=None)
            fcntl.lockf(self.locks, fcntl.LOCK_EX, 1, 0)  # while the journal changes SQLite refuses others instead of waiting
            if self._value("PRAGMA application_id") != MAGIC:
                if self._value("SELECT count(*) FROM sqlite_master"):
                    raise InputError(f"{path} is a database, but not a store of submissions")
                self.database.execute("PRAGMA journal_mode = WAL")
                with self._transaction():
                    for statement in SCHEMA.split(";"):
                        self.database.execute(statement)
            if not self._value("SELECT count(*) FROM pragma_table_info('submissions') WHERE name = 'crashes'"):
                self.database.execute(ADD_CRASHES)  # a store of before there was the column, or just made
            fcntl.lockf(self.locks, fcntl.LOCK_UN, 1, 0)
            self.database.execute("PRAGMA synchronous = FULL")  # a state that was told survives a power cut, too
            self.recover()
        except sqlite3.DatabaseError as error:
            self._say_if_full(error)
            raise InputError(f"{path} is not a store of submissions, or is damaged: {error}") from error

    def close(self) -> None:
        self.database.close()
        os.close(self.locks)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, submission: Submission) -> tuple[int, list[int]]:
        """Queue a submission; returns its number, and those of the same contributors' not yet graded ones, now cancelled."""
        pennkeys = json.dumps(sorted(pennkey for _, pennkey in submission.contributors))
        values = (
            submission.assignment,
            json.dumps(submission.contributors),
            pennkeys,
            json.dumps(submission.sources),
            json.dumps(submission.warnings),
            json.dumps({name: data.decode() for name, data in submission.files.items()}),
            time.time(),
        )
        with self._transaction():
            cancelled = [
                row[0]
                for row in self.database.execute(
                    "SELECT id FROM submissions WHERE pennkeys = ? AND state IN ('queued', 'running') ORDER BY id", (pennkeys,)
                )
            ]
            self.database.executemany(
                "UPDATE submissions SET state = 'cancelled', finished = ? WHERE id = ?",
                [(time.time(), number) for number in cancelled],
            )
            number = self.database.execute(
                "INSERT INTO submissions (assignment, contributors, pennkeys, sources, warnings, files, submitted) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                values,
            ).lastrowid
        assert number is not None  # an INSERT has been made
        return number, cancelled

    def take(self) -> tuple[Entry, dict[str, bytes]] | None:
        """The first queued submission and its files, now running and this process's; None where none is queued."""
        with self._transaction():
            self._queue_abandoned()
            queue = self.database.execute("SELECT id FROM submissions WHERE state = 'queued' ORDER BY crashes, id").fetchall()
            for (number,) in queue:
                if self._lock(number):  # else a grader that is about to notice that it was cancelled
                    break
            else:
                return None
            self.mine.add(number)
            self.database.execute("UPDATE submissions SET state = 'running', started = ? WHERE id = ?", (time.time(), number))
        files = json.loads(self._value("SELECT files FROM submissions WHERE id = ?", number))
        return self.get(number), {name: text.encode() for name, text in files.items()}

    def is_running(self, number: int) -> bool:
        """Whether a submission that this process took has not been cancelled since."""
        return self._value("SELECT state FROM submissions WHERE id = ?", number) == "running"

    def finish(self, number: int, state: str, reason: str, score: float | None, result: dict[str, Any]) -> bool:
        """Write what came of a submission that this process took; False where it was cancelled meanwhile."""
        return self._leave(
            number,
            "state = ?, reason = ?, score = ?, result = ?, finished = ?",
            (state, reason, score, json.dumps(result), time.time()),
        )

    def give_back(self, number: int) -> None:
        """Queue a submission that this process took and could not finish."""
        self._leave(number, "state = 'queued', started = NULL", ())

    def crashed(self, number: int, how: str) -> str:
        """Queue a submission over which this grader failed, or end it where that is not the first time; returns its state."""
        with self._transaction():
            self._count_crash(number, how)
        self._leave(number, "started = started", ())
        return self.get(number).state

    def recover(self) -> None:
        """Queue the submissions whose grader died, or end them where that is not the first time."""
        if self._value("SELECT count(*) FROM submissions WHERE state = 'running'"):
            with self._transaction():
                self._queue_abandoned()

    def get(self, number: int) -> Entry:
        """Raises InputError where there is none of that number."""
        rows = self.database.execute(f"SELECT {FIELDS} FROM submissions WHERE id = ?", (number,)).fetchall()
        if not rows:
            raise InputError(f"there is no submission {number} in {self.path}")
        return _entry(rows[0])

    def entries(self) -> list[Entry]:
        """All submissions in the order of their numbers."""
        return [_entry(row) for row in self.database.execute(f"SELECT {FIELDS} FROM submissions ORDER BY id")]

    def _leave(self, number: int, change: str, values: tuple) -> bool:
        with self._transaction():
            changed = self.database.execute(
                f"UPDATE submissions SET {change} WHERE id = ? AND state = 'running'", (*values, number)
            ).rowcount
        self.mine.discard(number)
        fcntl.lockf(self.locks, fcntl.LOCK_UN, 1, number)
        return bool(changed)

    def _queue_abandoned(self) -> None:
        for (number,) in self.database.execute("SELECT id FROM submissions WHERE state = 'running'").fetchall():
            if number not in self.mine and self._lock(number):
                self._count_crash(number, "was killed")
                fcntl.lockf(self.locks, fcntl.LOCK_UN, 1, number)

    def _count_crash(self, number: int, how: str) -> None:
        change = "crashes = crashes + 1, state = 'queued', started = NULL"
        if self._value("SELECT crashes FROM submissions WHERE id = ?", number) + 1 >= MAX_CRASHES:
            change = "crashes = crashes + 1, state = 'failed', finished = :now, reason = :reason"
        reason = f"the grader {how} while it graded this, {MAX_CRASHES} times: submit it again if it was not the reason"
        values = {"now": time.time(), "reason": reason, "number": number}
        self.database.execute(f"UPDATE submissions SET {change} WHERE id = :number AND state = 'running'", values)

    def _lock(self, number: int) -> bool:
        """Take the lock of a submission, unless another process has it."""
        try:
            fcntl.lockf(self.locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _value(self, query: str, *values: object) -> Any:
        row = self.database.execute(query, values).fetchone()
        return row and row[0]

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self.database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.database.execute("COMMIT")
            except BaseException:
                if self.database.in_transaction:  # SQLite itself has rolled back where the disk is full
                    self.database.execute("ROLLBACK")
                raise
        except sqlite3.OperationalError as error:
            self._say_if_full(error)
            raise

    def _say_if_full(self, error: sqlite3.DatabaseError) -> None:
        """Raise InputError where the reason is that there is no room on the disk; all that was written before is kept."""
        if "disk is full" in str(error) or ("disk I/O" in str(error) and shutil.disk_usage(self.path.parent).free < 1 << 20):
            raise InputError(f"the disk is full: {self.path} is as it was before; make room and start again") from error


def _entry(row: tuple) -> Entry:
    number, state, reason, assignment, contributors, sources, remarks, submitted, started, finished, score, result = row
    return Entry(
        number,
        state,
        printable(reason),
        printable(assignment),
        [(printable(name, 100), printable(pennkey, 100)) for name, pennkey in json.loads(contributors)],
        [printable(source, 2000) for source in json.loads(sources)],
        [printable(remark) for remark in json.loads(remarks)],
        submitted,
        started,
        finished,
        score,
        json.loads(result) if result else {},
    )
