"""What students send to `course serve`: made-up files, as a form has them; and a course with browsers. fastapi must be there."""

from __future__ import annotations

import datetime
import io
import json
import re
import zipfile
from pathlib import Path

import httpx2
from starlette.testclient import TestClient

from course.roster import Listed, Roster
from course.store import Store
from course.web import app
from limits.assignments import Assignment, Course
from made_up import RESULT, files, run, submission

HERE = "https://grader.test"


def submission_json(*numbers: str, **fields: object) -> bytes:
    people = [{"name": number.title(), "pennkey": number} for number in numbers]
    return json.dumps({"assignment_name": "hw", "contributors": people, "sources": ["none"], **fields}).encode()


def three(*numbers: str, **fields: object) -> dict[str, bytes]:
    """The contents of a good upload of these contributors, by name."""
    return {**files(), "submission.json": submission_json(*numbers, **fields)}


def packed(contents: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def encrypted(archive: bytes) -> bytes:
    """An archive that says of its files that they are."""
    return re.sub(rb"(PK\x03\x04..|PK\x01\x02....).", b"\\1\x01", archive, flags=re.DOTALL)


def csrf(page: str) -> str:
    """What the first form of a page holds."""
    found = re.search(r'name="csrf" value="([0-9a-f]{64})"', page)
    assert found, page
    return found[1]


class Classroom:
    """A store with a roster, and browsers."""

    def __init__(self, place: str | Path, course: Course | None = None, rules: Assignment | None = None) -> None:
        self.store = Store(place)
        self.roster = Roster(self.store)
        students = [Listed(number.title(), number, "") for number in ("ada", "bob", "eve")]
        self.tokens = {student.number: token for student, token in self.roster.add(students)}
        self.tokens["teacher"] = self.roster.add_teacher("T. Cher")
        self.site = app.Site(self.store, HERE, course or Course(top=1), rules, strict=False)
        self.app = app.make_app(self.site)
        self.first = TestClient(self.app, base_url=HERE)

    def __enter__(self) -> Classroom:
        self.first.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.first.__exit__(None, None, None)
        self.store.close()

    def set_deadline(self, seconds: float) -> None:
        """In so many seconds from now."""
        deadline = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=seconds)
        self.site.course = self.site.course.model_copy(update={"deadline": deadline})
        self.site.board.deadline = deadline.timestamp()

    def browser(self, who: str = "") -> TestClient:
        """A new one, logged in as `who`."""
        client = TestClient(self.app, base_url=HERE, raise_server_exceptions=False)
        client.portal = self.first.portal  # of the one event loop
        if who:
            answer = log_in(client, self.tokens[who])
            assert answer.url == f"{HERE}/" and answer.status_code == 200
        return client

    def graded(self, score: float, *numbers: str, measured: dict[str, object] | None = None, **fields: object) -> int:
        """Submit and grade; `measured` is added to the result."""
        number, _ = self.store.add(submission(*numbers, **fields))
        assert self.store.take()[0].id == number
        result = RESULT | {"runs": [run(score) | {"log": "secret pixels"}]} | (measured or {})
        self.store.finish(number, "graded", "", score, result)
        return number


def log_in(client: TestClient, token: str) -> httpx2.Response:
    return client.post("/login", data={"csrf": csrf(client.get("/login").text), "token": token})


def upload(client: TestClient, files: dict[str, bytes] | bytes, name: str = "hw.zip", key: str | None = None) -> httpx2.Response:
    named = {name: files} if isinstance(files, bytes) else files
    key = csrf(client.get("/").text) if key is None else key
    return client.post("/upload", data={"csrf": key}, files=[("files", pair) for pair in named.items()])
