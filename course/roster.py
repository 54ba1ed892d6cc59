"""Who may use `course serve`: the people of a store, their tokens, and who is logged in.

A token is 128 bits from the system's random generator. Nobody finds it by trying, however fast the hash is, so the store keeps its
SHA-256: a slow, salted hash protects what people choose themselves, of which there are few likely ones. And only a hash without
salt can be searched for. Who reads the store cannot log in with what it holds.
"""

from __future__ import annotations

import csv
import hashlib
import io
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, Row, delete, insert, select, update

from config import InputError
from course.schema import people, sessions
from course.store import Store
from course.text import printable

LASTS = 12 * 3600.0  # seconds that somebody stays logged in
MAX_BYTES = 10_000_000  # of a roster's file
MAX_TEXT = 200  # characters of a name, a number or an address; as in submission.json
MAX_NICKNAME = 30
HEADINGS = {
    "name": "name",
    "student": "name",
    "number": "number",
    "student number": "number",
    "pennkey": "number",
    "id": "number",
    "e-mail": "email",
    "email": "email",
}


@dataclass(frozen=True)
class Person:
    """Somebody of the roster."""

    id: int
    role: str
    """student or teacher."""
    name: str
    number: str
    """Of a student: the pennkey of submission.json, in lower case; "" of a teacher."""
    email: str
    nickname: str
    """On the board; "" is anonymous."""

    @property
    def is_teacher(self) -> bool:
        return self.role == "teacher"


@dataclass(frozen=True)
class Listed:
    """A line of a roster's file."""

    name: str
    number: str
    email: str


def read_csv(path: Path) -> list[Listed]:
    """The students of a file: name, student number and, where there is one, e-mail, with or without a line of headings.

    Raises InputError, which names the line.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise InputError(f"{path} has more than {MAX_BYTES:,} bytes, the most for a roster")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} line {data[: error.start].count(10) + 1} is not UTF-8: save it as CSV in UTF-8") from None
    first = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count))
    fields: list[str] = ["name", "number", "email"]
    found: dict[str, Listed] = {}
    try:
        for cells in reader:
            cells = [" ".join(each.split()) for each in cells]
            if not any(cells):
                continue
            if not found and {each.lower() for each in cells} & set(HEADINGS):
                fields = [HEADINGS.get(each.lower(), "") for each in cells]
                if "name" not in fields or "number" not in fields:
                    raise InputError(f"{path} line {reader.line_num}: the headings must have name and number")
                if twice := [field for field in HEADINGS.values() if fields.count(field) > 1]:
                    same = " and ".join(cell for cell, field in zip(cells, fields, strict=True) if field == twice[0])
                    raise InputError(f"{path} line {reader.line_num}: {same} are both headings for the {twice[0]}: keep one")
                continue
            if any(cells[len(fields) :]):
                raise InputError(
                    f"{path} line {reader.line_num} has more cells than {', '.join(filter(None, fields))}: put quotes around a "
                    "name with a comma in it"
                )
            values = dict(zip(fields, cells, strict=False))
            student = _student(values, f"{path} line {reader.line_num}")
            if student.number in found:
                raise InputError(f"{path} line {reader.line_num}: the number {student.number} is there twice")
            found[student.number] = student
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num}: {error}") from None
    if not found:
        raise InputError(f"{path} has no student: each line is NAME,NUMBER or NAME,NUMBER,E-MAIL")
    return list(found.values())


def _student(values: dict[str, str], where: str) -> Listed:
    name, number, email = (values.get(field, "") for field in ("name", "number", "email"))
    if not name or not number:
        raise InputError(f"{where} has no {'number' if name else 'name'}: it is NAME,NUMBER or NAME,NUMBER,E-MAIL")
    for text in (name, number, email):
        if text != printable(text, MAX_TEXT):
            raise InputError(f"{where} has more than {MAX_TEXT} characters or some that cannot be printed: {printable(text, 50)}")
    if email and "@" not in email:
        raise InputError(f"{where}: {email} is no e-mail address")
    return Listed(name, number.lower(), email)


class Roster:
    """The people of an open store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def add(self, students: Sequence[Listed], renew: bool = False) -> list[tuple[Listed, str]]:
        """Enter those who are not there and correct the names and addresses of the others; returns the new tokens.

        With `renew` the others get new tokens, too, and are logged out.
        """

        def change(connection: Connection) -> list[tuple[Listed, str]]:
            known = {row.number: row.id for row in connection.execute(select(people.c.id, people.c.number))}
            made = []
            for student in students:
                values: dict[str, str] = {"name": student.name, "email": student.email}
                if renew or student.number not in known:
                    token = new_token()
                    values["token"] = hashed(token)
                    made.append((student, token))
                if student.number in known:
                    number = known[student.number]
                    connection.execute(update(people).where(people.c.id == number).values(**values))
                    if renew:
                        connection.execute(delete(sessions).where(sessions.c.person == number))
                else:
                    connection.execute(insert(people).values(role="student", number=student.number, **values))
            return made

        return self.store.change(change)

    def add_teacher(self, name: str) -> str:
        """Returns the token. A teacher of that name who is there already gets a new one. Raises InputError."""
        plain = " ".join(name.split())
        if not plain or plain != printable(plain, MAX_TEXT):
            raise InputError(f"a teacher's name must be 1 to {MAX_TEXT} characters that can be printed")
        token = new_token()

        def change(connection: Connection) -> None:
            here = (people.c.role == "teacher") & (people.c.name == plain)
            found = connection.scalar(select(people.c.id).where(here))
            if found is None:
                connection.execute(insert(people).values(role="teacher", name=plain, token=hashed(token)))
                return
            connection.execute(update(people).where(people.c.id == found).values(token=hashed(token)))
            connection.execute(delete(sessions).where(sessions.c.person == found))

        self.store.change(change)
        return token

    def remove(self, numbers: Sequence[str]) -> None:
        """Take students off the roster and log them out; their submissions stay. Raises InputError where one is not there."""

        def change(connection: Connection) -> None:
            for number in numbers:
                found = connection.scalar(select(people.c.id).where(people.c.number == number.lower()))
                if found is None:
                    raise InputError(f"there is no student {printable(number)} on the roster")
                connection.execute(delete(sessions).where(sessions.c.person == found))
                connection.execute(delete(people).where(people.c.id == found))

        self.store.change(change)

    def people(self) -> list[Person]:
        """Everybody, in the order of entry."""
        rows = self.store.read(lambda connection: connection.execute(select(people).order_by(people.c.id)).all())
        return [_person(row) for row in rows]

    def unknown(self, numbers: Sequence[str]) -> list[str]:
        """Those of the numbers (in lower case) that are on no line of the roster."""
        known = select(people.c.number).where(people.c.number.in_(numbers))
        found: Sequence[str | None] = self.store.read(lambda connection: connection.scalars(known).all())
        return [number for number in numbers if number not in found]

    def login(self, token: str) -> str | None:
        """A new session of whoever has that token, for the cookie; None where nobody has."""
        session = new_token()

        def change(connection: Connection) -> str | None:
            found = connection.scalar(select(people.c.id).where(people.c.token == hashed(token)))
            if found is None:
                return None
            now = self.store.database.now()
            connection.execute(delete(sessions).where(sessions.c.expires < now))
            connection.execute(insert(sessions).values(token=hashed(session), person=found, expires=now + LASTS))
            return session

        is_known = select(people.c.id).where(people.c.token == hashed(token))
        if self.store.read(lambda connection: connection.scalar(is_known)) is None:  # who guesses makes nobody wait for a lock
            return None
        return self.store.change(change)

    def logged_in(self, session: str) -> Person | None:
        """Whose session that is, where it has not ended."""
        is_open = (sessions.c.token == hashed(session)) & (sessions.c.expires > self.store.database.now())
        here = select(people).join(sessions, sessions.c.person == people.c.id).where(is_open)
        row = self.store.read(lambda connection: connection.execute(here).one_or_none())
        return None if row is None else _person(row)

    def logout(self, session: str) -> None:
        self.store.change(lambda connection: connection.execute(delete(sessions).where(sessions.c.token == hashed(session))))

    def set_nickname(self, person: Person, nickname: str) -> None:
        """Raises InputError where it cannot be one, or is another's."""
        plain = " ".join(nickname.split())
        if plain != printable(plain, MAX_NICKNAME):
            raise InputError(f"a nickname must be at most {MAX_NICKNAME} characters that can be printed")

        def change(connection: Connection) -> None:
            same = (people.c.nickname == plain) & (people.c.id != person.id)
            if plain and connection.scalar(select(people.c.id).where(same)) is not None:
                raise InputError("somebody else has this nickname: choose another one")
            connection.execute(update(people).where(people.c.id == person.id).values(nickname=plain))

        self.store.change(change)


def new_token() -> str:
    """22 letters, digits, - and _: 128 random bits."""
    return secrets.token_urlsafe(16)


def hashed(token: str) -> str:
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


def _person(row: Row) -> Person:
    return Person(row.id, row.role, row.name, row.number or "", row.email, row.nickname)
