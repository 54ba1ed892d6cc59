"""The rules of `course serve`: who sees and does what, what an upload may be, and what is never shown as it was written."""

import asyncio
import csv
import io
import re
import time
import zipfile
from collections.abc import Iterator

import pytest

pytest.importorskip("fastapi", reason="requirements-serve.txt is not installed")
from browsing import HERE, Classroom, csrf, encrypted, log_in, packed, submission_json, three, upload
from sqlalchemy.exc import DBAPIError

from config import InputError
from conftest import ROOT, assert_refused, run_main
from course import progress
from course.progress import Waiting
from course.submission import MAX_BYTES
from course.web import app, guard, live, uploads
from made_up import submission

NASTY = '<script>alert("x")</script>&<img src=x onerror=y>'


@pytest.fixture
def course(tmp_path) -> Iterator[Classroom]:
    with Classroom(tmp_path / "store.sqlite") as made:
        yield made


@pytest.fixture
def anywhere(place) -> Iterator[Classroom]:
    """The same in a store of each kind."""
    with Classroom(place) as made:
        yield made


def test_an_upload_is_checked_queued_and_replaced(anywhere):
    course = anywhere
    ada = course.browser("ada")
    page = upload(ada, three("ada"))
    assert page.status_code == 200 and str(page.url) == f"{HERE}/#s1"
    assert "place 1 of 1 in the queue" in page.text and "The check found nothing." in page.text
    assert course.store.get(1).contributors == [("Ada", "ada")]
    bare = three("ada")
    bare["model.py"] = bare["model.py"].replace(b"x: torch.Tensor", b"x")
    page = upload(ada, packed({f"hw1/{name}": data for name, data in bare.items()} | {"__MACOSX/hw1/model.py": b"\0"}))
    assert "forward of Model has no annotation for x" in page.text
    assert "replaced by a newer submission" in page.text
    assert [entry.state for entry in course.store.entries()] == ["cancelled", "queued"]
    assert course.store.take()[1]["model.py"] == bare["model.py"]


@pytest.mark.parametrize(
    ("files", "name", "words"),
    [
        ({"model.py": b"1"}, "", "no config.py in it"),
        ({**three("ada"), "notes.txt": b""}, "", "Too many files"),
        ({"notes.txt": b""}, "", "notes.txt is not asked for"),
        (b"hello", "hw.zip", "the archive cannot be read"),
        (packed({"a/b.txt": b""}), "hw.zip", "no model.py"),
        (packed(three("ada"), zipfile.ZIP_LZMA), "hw.zip", "another method"),
        (encrypted(packed(three("ada"))), "hw.zip", "pack it again without a password"),
        (packed({**three("ada"), "model.py": b" " * 50_000_000}), "hw.zip", f"{MAX_BYTES:,} is the most"),
        (packed({f"f{i}": b"" for i in range(1001)}), "hw.zip", "1,000 is the most"),
        (packed({**three("ada"), "config.py": b"import helper\nCONFIG = 1", "helper.py": b"1"}), "w.ZIP", "imports helper"),
        (packed({f"../../{name}": data for name, data in three("bob").items()}), "hw.zip", "you are not among the contributors"),
        (three("ada", "mallory"), "", "not on the roster of this course: mallory"),
        ({**three("ada"), "submission.json": submission_json("ada", assignment_name="todo")}, "", "template"),
        ({**three("ada"), "model.py": f"x = ({NASTY}".encode()}, "", "model.py line 1"),
    ],
)  # fmt: skip
def test_an_upload_that_is_refused(course, files, name, words):
    ada = course.browser("ada")
    page = upload(ada, files, name)
    assert page.status_code == 400 and 'role="alert"' in page.text
    assert words in page.text
    assert "/tmp" not in page.text and "convsprint-upload" not in page.text
    assert course.store.entries() == []


def test_nothing_of_a_student_is_shown_as_it_was_written(course):
    people = [{"name": NASTY, "pennkey": "ada"}]
    ada, teacher = course.browser("ada"), course.browser("teacher")
    assert upload(ada, three("ada", contributors=people, assignment_name=NASTY, sources=[NASTY])).status_code == 200
    taken, _ = course.store.take()
    course.store.keep(taken.id, NASTY)
    pages = [ada.get("/"), teacher.get("/")]
    course.store.finish(taken.id, "failed", NASTY, None, {"runs": []})
    course.graded(2.0, "ada", contributors=((NASTY, "ada"),), warnings=(NASTY,))
    ada.post("/nickname", data={"csrf": csrf(ada.get("/").text), "nickname": "<b>me</b>"})
    pages += [ada.get("/"), ada.get("/board"), course.browser("bob").get("/board"), teacher.get("/"), teacher.get("/submissions/1")]
    pages += [
        upload(ada, {NASTY: b""}),
        ada.get(f"/{NASTY}"),
        log_in(course.browser(), NASTY),
        teacher.get(f"/submissions/{NASTY}"),
    ]
    for page in pages:
        assert "<script>alert" not in page.text and "<img src" not in page.text and "<b>" not in page.text
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert page.headers["x-content-type-options"] == "nosniff"
    assert "&lt;script&gt;" in pages[0].text and "&lt;b&gt;me" in pages[4].text


def test_a_student_sees_own_submissions_and_not_what_they_printed(course):
    course.graded(2.0, "ada", "bob")
    course.graded(3.0, "eve")
    bob = course.browser("bob").get("/").text
    assert "2.00 s" in bob and 'id="s1"' in bob and 'id="s2"' not in bob
    assert "60.00%" in bob and "secret pixels" not in bob  # it would tell what the data set is
    assert "secret pixels" in course.browser("teacher").get("/submissions/1").text
    for address in ("/submissions/1", "/students.csv"):
        assert course.browser("bob").get(address).status_code == 403


def test_the_board_shows_the_top_and_the_own_place(anywhere):
    course = anywhere
    course.graded(2.0, "ada")
    course.graded(3.0, "bob")
    course.graded(4.0, "eve")
    bob = course.browser("bob")
    assert who(bob.get("/board").text) == [("1", "anonymous"), ("2", "you")]
    ada = course.browser("ada")
    assert ada.post("/nickname", data={"csrf": csrf(ada.get("/").text), "nickname": "first"}).status_code == 200
    assert who(bob.get("/board").text) == [("1", "first"), ("2", "you")]
    assert who(course.browser("teacher").get("/board").text) == [("1", "Ada (ada)"), ("2", "Bob (bob)"), ("3", "Eve (eve)")]
    course.graded(1.0, "eve")
    assert who(bob.get("/board").text) == [("1", "anonymous"), ("3", "you")]


def who(page: str) -> list[tuple[str, str]]:
    return re.findall(r'<td>(\d+)</td><th scope="row">(.*?)</th>', page)


def test_the_deadline_ends_uploads_and_closes_the_board(course):
    course.set_deadline(3600)
    course.graded(2.0, "ada")
    ada = course.browser("ada")
    key = csrf(ada.get("/").text)
    course.set_deadline(0)
    time.sleep(0.01)
    late = upload(ada, three("ada"), key=key)
    assert late.status_code == 403 and "The deadline was" in late.text
    assert 'type="file"' not in ada.get("/").text
    course.graded(1.0, "bob")  # by ./run.sh submit
    page = ada.get("/board").text
    assert who(page) == [("1", "you")] and "closed" in page


def test_what_arrives_in_time_counts_however_long_it_waits(course, monkeypatch):
    ada = course.browser("ada")
    key, check = csrf(ada.get("/").text), uploads.check
    course.set_deadline(3600)

    def slow(*arguments):
        course.set_deadline(0)
        time.sleep(0.1)
        return check(*arguments)

    monkeypatch.setattr(uploads, "check", slow)
    assert upload(ada, three("ada"), key=key).status_code == 200
    assert course.store.get(1).submitted < course.site.board.deadline


def test_what_a_teacher_does(anywhere):
    course = anywhere
    course.graded(2.0, "ada")
    course.store.add(submission("bob", warnings=("=1+1",)))
    teacher, ada = course.browser("teacher"), course.browser("ada")
    key = csrf(teacher.get("/").text)
    for client, mine, status in ((ada, csrf(ada.get("/").text), 403), (teacher, "", 403), (teacher, key, 200)):
        assert client.post("/submissions/2/cancel", data={"csrf": mine}).status_code == status
    assert teacher.post("/submissions/2/cancel", data={"csrf": key}).status_code == 400  # it is already
    assert teacher.post("/submissions/9/again", data={"csrf": key}).status_code == 400
    assert teacher.post("/submissions/1/delete", data={"csrf": key}).status_code == 404
    assert teacher.post(f"/submissions/{10**20}/again", data={"csrf": key}).status_code == 404
    assert [teacher.get(f"{address}{10**20}").status_code for address in ("/submissions/", "/?before=")] == [404, 404]
    table = list(csv.DictReader(io.StringIO(teacher.get("/students.csv").text)))
    assert [(row["number"], row["rank"], row["seconds"], row["last_state"]) for row in table] == [
        ("ada", "1", "2.000", "graded"),
        ("bob", "", "", "cancelled"),
        ("eve", "", "", ""),
    ]
    assert teacher.post("/submissions/1/again", data={"csrf": key}).status_code == 200
    assert [entry.state for entry in course.store.entries()] == ["queued", "cancelled"]
    assert "Nothing is graded yet" in ada.get("/board").text  # the board is not that of before
    assert teacher.post("/upload", data={"csrf": key}).status_code == 403


def test_older_submissions_are_on_further_pages(course, monkeypatch):
    monkeypatch.setattr(app, "PAGE", 2)
    for key in "abc":
        course.store.add(submission(key))
    teacher = course.browser("teacher")
    assert 'id="s3"' in teacher.get("/").text and 'id="s1"' not in teacher.get("/").text
    assert 'href="/?before=2"' in teacher.get("/").text and 'id="s1"' in teacher.get("/?before=2").text


def test_cookies_and_forms(course):
    client = course.browser()
    visit = client.get("/login").headers["set-cookie"]
    assert all(word in visit for word in ("HttpOnly", "Secure", "SameSite=lax"))
    key = csrf(client.get("/login").text)
    assert client.post("/login", data={"csrf": "0" * 64, "token": course.tokens["ada"]}).status_code == 403
    answer = client.post("/login", data={"csrf": key, "token": course.tokens["ada"]}, follow_redirects=False)
    assert all(word in answer.headers["set-cookie"] for word in ("session=", "HttpOnly", "Secure", "SameSite=lax"))
    session = client.cookies["session"]
    assert course.tokens["ada"] not in answer.headers["set-cookie"] and session not in client.get("/").text
    assert upload(client, three("ada"), key=key).status_code == 403  # of before the login
    assert upload(client, three("ada"), key=csrf(course.browser("bob").get("/").text)).status_code == 403  # another's
    assert client.post("/logout").status_code == 403
    assert course.store.entries() == []
    assert client.post("/logout", data={"csrf": csrf(client.get("/").text)}).url == f"{HERE}/login"
    client.cookies.set("session", session, domain="grader.test")
    for address in ("/", "/board", "/events", "/students.csv", "/submissions/1"):
        assert client.get(address).url == f"{HERE}/login"


def test_requests_of_other_websites_and_names_are_refused(course):
    ada = course.browser("ada")
    key = csrf(ada.get("/").text)
    for headers in ({"Origin": "https://evil.test"}, {"Origin": "null"}, {"Origin": "http://grader.test"}, {"Host": "evil.test"}):
        assert ada.post("/nickname", data={"csrf": key, "nickname": "x"}, headers=headers).status_code == 403
    assert ada.post("/nickname", data={"csrf": key, "nickname": "x"}, headers={"Origin": HERE}).status_code == 200


def test_who_guesses_or_uploads_too_often_waits(course, monkeypatch):
    course.site.failures.count, course.site.uploads.count = 3, 2
    guess = course.browser()
    for _ in range(3):
        assert log_in(guess, "x").status_code == 403
    refused = log_in(guess, course.tokens["ada"])
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 500
    course.site.failures.known.clear()
    ada, bob = course.browser("ada"), course.browser("bob")
    for client in (ada, ada, bob):
        assert upload(client, b"x").status_code == 400
    assert upload(ada, three("ada")).status_code == 429
    assert upload(bob, three("bob")).status_code == 200  # each has an own count
    monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + app.PERIOD)
    assert upload(ada, three("ada")).status_code == 200


def test_a_limiter_forgets_the_oldest():
    limiter = guard.Limiter(1, 60.0, most_known=2)
    for who in "abc":
        limiter.note(who)
    assert list(limiter.known) == ["b", "c"]
    limiter.demand("a", "things")
    with pytest.raises(guard.HTTPException, match="too many things"):
        limiter.demand("c", "things")


def test_what_is_too_large_is_refused(course):
    ada = course.browser("ada")
    assert upload(ada, {"model.py": b" " * (uploads.MAX_UPLOAD + 1)}).status_code == 413
    many = upload(ada, {f"{i}.py": b"" for i in range(9)})
    assert many.status_code == 400 and course.store.entries() == []
    assert ada.post("/nickname", data={"csrf": csrf(ada.get("/").text), "nickname": "x" * 30_000}).status_code == 413


def test_a_mistake_of_the_server_shows_nothing_of_itself(course, monkeypatch, capsys):
    ada = course.browser("ada")
    monkeypatch.setattr(progress, "waiting", lambda *_: 1 / 0)
    page = ada.get("/")
    assert page.status_code == 500 and "ZeroDivision" not in page.text
    assert page.headers["content-security-policy"] == guard.HEADERS["Content-Security-Policy"]
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_store_that_is_lost_is_no_fault_of_the_student(course, monkeypatch, capsys):
    ada = course.browser("ada")
    key = csrf(ada.get("/").text)
    change = course.store.change

    def lost(what, patience=None, reads_only=False):
        if reads_only:
            return change(what, patience, reads_only)
        raise InputError("cannot use the store postgresql://course@db.example.org/course") from DBAPIError(None, None, ValueError())

    monkeypatch.setattr(course.store, "change", lost)
    for page in (upload(ada, three("ada"), key=key), ada.post("/nickname", data={"csrf": key, "nickname": "x"})):
        assert page.status_code == 503 and "try again in a minute" in page.text and "db.example.org" not in page.text
    assert capsys.readouterr().err.count("error: cannot use the store postgresql://") == 2


def test_events_tell_of_changes_to_whom_they_concern(monkeypatch):
    monkeypatch.setattr(live, "POLL", 0.01)
    monkeypatch.setattr(live, "QUIET", 0.1)
    texts = ["place 1 of 1"]

    async def look() -> list[Waiting]:
        if not texts[0]:
            raise InputError("the store is out of reach")
        return [Waiting(7, ("ada",), texts[0]), Waiting(8, ("bob",), "other")]

    async def listen() -> list[str]:
        heard = []
        feed = live.Live(look)
        async with feed.running():
            stream = feed.stream(1, lambda each: "ada" in each.pennkeys)
            heard.append(await anext(stream))
            heard.append(await anext(stream))  # nothing has changed
            texts[0] = ""
            heard.append(await anext(stream))
            texts[0] = "being graded"
            heard.append(await anext(stream))
            assert feed.streams == {1: 1} and not feed.is_full(1)
            await stream.aclose()
            assert not feed.streams
        return heard

    one, quiet, lost, two = asyncio.run(asyncio.wait_for(listen(), 20))
    assert one == 'data: {"7": "place 1 of 1"}\n\n' and quiet == lost == ":\n\n" and two == 'data: {"7": "being graded"}\n\n'


def test_live_progress_comes_from_the_store(anywhere):
    anywhere.store.add(submission("ada"))
    anywhere.store.add(submission("bob"))
    taken, _ = anywhere.store.take()
    assert anywhere.store.keep(taken.id, "run 1 of 3: training, epoch 2, 41.00%")
    running, queued = anywhere.first.portal.call(anywhere.site.live.look)  # what an event is made of
    assert (running.id, running.pennkeys) == (1, ("ada",)) and running.text.endswith("epoch 2, 41.00%")
    assert (queued.id, queued.text) == (2, "place 1 of 1 in the queue")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--host", "0.0.0.0"), ("unencrypted", "--origin")),
        (("--origin", "http://grader.test"), ("https://NAME",)),
        (("--origin", "https://grader.test/x"), ("https://NAME",)),
        (("--deadline", "tomorrow"), ("2026-12-01T18:00",)),
        (("--deadline", "9999-12-31"), ("2026-12-01T18:00",)),  # to which no late days could be added
        (("--top", "-1"), ("--top",)),
        (("--port", "70000"), ("cannot listen on port 70000",)),
        (("--host", "no.such.name.invalid", "--origin", "https://x.test"), ("there is no address",)),
    ],
)
def test_the_command_says_what_is_wrong(tmp_path, options, words):
    assert_refused(run_main("course", "serve", "--store", tmp_path / "s.sqlite", *options), *words)


def test_the_script_writes_texts_and_no_html():
    script = (ROOT / "course" / "web" / "site.js").read_text()
    assert "innerHTML" not in script and "textContent" in script
