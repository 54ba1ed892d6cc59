"""Run a course's website, its roster, its exports and the copy of its store: `./run.sh course COMMAND --help` lists the options."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import datetime
import os
import sys
from pathlib import Path
from typing import Annotated, Any, TextIO

import tyro

from config import InputError
from course.commands import STORE, Place
from course.exporting import Export
from utils import ASSIGNMENT, STATED


@dataclasses.dataclass
class Serve:
    """Serve the course's website: students upload, watch and compare; teachers see everything. Needs requirements-serve.txt.

    It grades nothing: `./run.sh grade --watch` does, here or elsewhere. Exit status: 0 when ended with Ctrl-C.
    """

    store: Place = STORE
    """The store of submissions and of the roster; made where it is missing."""
    host: str = "127.0.0.1"
    """Address to listen on. Another than this machine's own needs --origin."""
    port: int = 8000
    """Port to listen on; 0 takes any free one, which is printed."""
    origin: str = ""
    """https://NAME as browsers know this website, where a proxy with TLS stands before it. The proxy must set X-Forwarded-For."""
    assignment: Annotated[str, ASSIGNMENT] = ""
    deadline: Annotated[str, STATED] = ""
    """When the board closes and uploads end or are late, as 2026-12-01T18:00+01:00 (default: the assignment's, or never); this
    machine's time without an offset."""
    top: Annotated[int | None, STATED] = None
    """Places that everybody sees on the board; 0 shows students their own place only (default: the assignment's, or 10)."""
    strict: bool = False
    """Refuse uploads for missing annotations and docstrings, as submit does."""

    def run(self) -> int:
        from limits.assignments import Course, load

        if self.top is not None and self.top < 0:
            raise InputError("--top must be 0 or more")
        given: dict[str, Any] = {} if self.top is None else {"top": self.top}
        if self.deadline:
            try:
                deadline = datetime.datetime.fromisoformat(self.deadline).astimezone()
            except (ValueError, OverflowError):
                deadline = None
            if deadline is None or not 2000 <= deadline.year < 3000:
                raise InputError(f"--deadline is {self.deadline}: write it as 2026-12-01T18:00+01:00")
            given["deadline"] = deadline
        rules = load(self.assignment) if self.assignment else None
        course = ((rules and rules.course) or Course()).model_copy(update=given)
        if course.visibility == "after_due_date" and course.deadline is None:
            raise InputError(f"{self.assignment} shows results after the deadline, but has none: name it there or with --deadline")
        if rules and rules.course:
            rules = rules.model_copy(update={"course": course})
        try:
            from course.web import serving
        except ModuleNotFoundError as error:
            raise InputError(
                f"course serve needs {error.name}: .venv/bin/python -m pip install -r requirements-serve.txt"
            ) from None
        return serving.serve(self.store, self.host, self.port, self.origin, course, rules, self.strict)


@dataclasses.dataclass
class Copy:
    """Copy a store into an empty one: submissions, scores, roster and logins, with their numbers. All of it arrives, or nothing.

    So a course that has outgrown its SQLite file goes on in PostgreSQL. End `grade` and `course serve` first; the old store stays
    as it is.
    """

    to: Place
    """The store to copy to; made where it is missing."""
    store: Place = STORE
    """The store to copy."""

    def run(self) -> int:
        from course.copying import copy
        from course.store import Store

        if self.to == self.store:
            raise InputError("--to is the store that is to be copied: name another one")
        with Store(self.store, make=False) as source, Store(self.to) as target:
            counts = copy(source, target)
            what = ", ".join(f"{name}: {count:,}" for name, count in counts.items())
            print(f"{what}, copied from {source.database.name} to {target.database.name}")
        return 0


@dataclasses.dataclass
class Roster:
    """Say who may log in: `./run.sh course roster --help` lists the commands."""


@dataclasses.dataclass
class Add:
    """Enter the students of a CSV file (name, number, e-mail or none) and write a token for each who is new.

    Students log in with their tokens. The store keeps only hashes: a token is written once, here. Those who are on the roster
    already keep theirs; their names and addresses are corrected.
    """

    file: tyro.conf.Positional[Path]
    """NAME,NUMBER or NAME,NUMBER,E-MAIL in each line, with or without headings; submission.json calls it number or pennkey."""
    store: Place = STORE
    """The store; made where it is missing."""
    tokens: Path | None = None
    """Write the new tokens to this CSV file, which must be new and only you can read, instead of the screen."""
    renew: bool = False
    """Give new tokens also to those who are there already, whose old ones end: for those who have lost theirs."""

    def run(self) -> int:
        from course import roster
        from course.store import Store
        from course.text import cell

        students = roster.read_csv(self.file)
        with contextlib.ExitStack() as stack:
            store = stack.enter_context(Store(self.store))
            output = stack.enter_context(_new_file(self.tokens)) if self.tokens else sys.stdout
            made = roster.Roster(store).add(students, self.renew)
            writer = csv.writer(output, lineterminator="\n")
            writer.writerow(["name", "number", "e-mail", "token"])
            writer.writerows([cell(student.name), cell(student.number), cell(student.email), token] for student, token in made)
        where = f", in {self.tokens}" if self.tokens else ""
        what = f"{len(students)} student{'' if len(students) == 1 else 's'}, {len(made)} new token{'' if len(made) == 1 else 's'}"
        print(f"{what}{where}", file=sys.stdout if self.tokens else sys.stderr)
        return 0


def _new_file(path: Path) -> TextIO:
    """A file that its owner alone can read. Raises InputError where it is there already or cannot be made."""
    try:
        return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", newline="", encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


@dataclasses.dataclass
class Teacher:
    """Enter a teacher, who sees and may change everything, and print the token; one who is there already gets a new one."""

    name: tyro.conf.Positional[str]
    """The teacher's name."""
    store: Place = STORE
    """The store; made where it is missing."""

    def run(self) -> int:
        from course.roster import Roster
        from course.store import Store

        with Store(self.store) as store:
            print(Roster(store).add_teacher(self.name))
        return 0


@dataclasses.dataclass
class Remove:
    """Take students off the roster: they can no longer log in. Their submissions stay."""

    numbers: tyro.conf.Positional[tuple[str, ...]]
    """Their student numbers."""
    store: Place = STORE
    """The store."""

    def run(self) -> int:
        from course.roster import Roster
        from course.store import Store

        with Store(self.store, make=False) as store:
            Roster(store).remove(self.numbers)
        return 0


@dataclasses.dataclass
class List:
    """Print everybody on the roster."""

    store: Place = STORE
    """The store."""

    def run(self) -> int:
        from course.roster import Roster
        from course.store import Store

        with Store(self.store, make=False) as store:
            for person in Roster(store).people():
                print("  ".join(filter(None, (person.role, person.number, person.name, person.email, person.nickname))))
        return 0


COMMANDS = {"serve": Serve, "roster": Roster, "export": Export, "copy": Copy}
ROSTER = {"add": Add, "teacher": Teacher, "remove": Remove, "list": List}
