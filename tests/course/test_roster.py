"""The roster: what its file may be, tokens that are kept as hashes alone, who is logged in; and what teachers do to the queue."""

import csv
import io
import stat
from pathlib import Path

import pytest
from sqlalchemy import select, update

from config import InputError
from conftest import assert_refused, run_main
from course import progress, roster
from course.roster import Listed, Roster
from course.schema import people, sessions
from course.store import Store
from made_up import submission

ADA, BOB = Listed("Ada Lovelace", "ada", "ada@example.org"), Listed("Bob", "b7", "")


@pytest.mark.parametrize(
    ("text", "students"),
    [
        ("Ada Lovelace,ADA,ada@example.org\nBob,b7\n", [ADA, BOB]),
        ("\ufeffName;Student number;E-Mail\r\nAda  Lovelace;ada;ada@example.org\r\n\r\nBob;b7;\r\n", [ADA, BOB]),
        ("pennkey\temail\tname\nada\tada@example.org\tAda Lovelace\n", [ADA]),
        ('"Lovelace, Ada",ada', [Listed("Lovelace, Ada", "ada", "")]),
        ("Ada Lovelace,ada,ada@example.org,,\nBob,b7,,,\n", [ADA, BOB]),  # as Excel fills up what is empty
        ("group,name,number\nred,Bob,b7\n", [BOB]),
    ],
)
def test_a_file_of_students(tmp_path, text, students):
    (tmp_path / "r.csv").write_text(text, encoding="utf-8", newline="")
    assert roster.read_csv(tmp_path / "r.csv") == students


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "has no student"),
        (b"Ada\n", "line 1 has no number"),
        (b"Ada,a\nBob,A\n", "line 2: the number a is there twice"),
        (b"name,e-mail\nAda,a@b\n", "line 1: the headings must have name and number"),
        (b"Ada,a,here\n", "line 1: here is no e-mail address"),
        (b"name,number\nLovelace, Ada,1\n", "line 2 has more cells than name, number"),
        (b"Ada,a,a@b,red\n", "line 1 has more cells than name, number, email"),
        (b"Student,ID,PennKey\nAda,1,ada\n", "line 1: ID and PennKey are both headings for the number"),
        (b"Ada,a\nJos\xe9,j\n", "line 2 is not UTF-8"),
        (b"Ada\x1b[31m,a\n", "cannot be printed"),
        (b"A" * 201 + b",a\n", "more than 200 characters"),
    ],
)
def test_a_file_that_is_none(tmp_path, data, words):
    (tmp_path / "r.csv").write_bytes(data)
    with pytest.raises(InputError, match="r.csv") as error:
        roster.read_csv(tmp_path / "r.csv")
    assert words in str(error.value)


def test_of_a_file_without_end_no_more_is_read_than_a_roster_may_have():
    with pytest.raises(InputError, match="/dev/zero has more than 10,000,000 bytes"):
        roster.read_csv(Path("/dev/zero"))


def test_tokens_and_sessions(place):
    with Store(place) as store:
        known = Roster(store)
        (ada, token), (bob, other) = known.add([ADA, BOB])
        assert (ada, bob) == (ADA, BOB) and len(token) == 22 and token != other
        assert known.login("x" * 22) is None
        session = known.login(token)
        assert known.logged_in(session).name == "Ada Lovelace"
        assert known.logged_in(token) is None and known.login(session) is None  # the one is not the other
        with store.database.engine.connect() as connection:
            kept = str([connection.execute(select(table)).all() for table in (people, sessions)])
        assert token not in kept and other not in kept and session not in kept

        assert known.add([Listed("Ada King", "ada", "")]) == []  # corrected, with the old token
        assert known.logged_in(session).name == "Ada King"
        ((_, renewed),) = known.add([ADA], renew=True)
        assert known.logged_in(session) is None and known.login(token) is None
        session = known.login(renewed)
        known.logout(session)
        assert known.logged_in(session) is None

        session = known.login(renewed)
        with store.database.engine.begin() as connection:
            connection.execute(update(sessions).values(expires=1.0))
        assert known.logged_in(session) is None
        again = known.login(renewed)  # which also removes what has ended
        with store.database.engine.connect() as connection:
            assert len(connection.execute(select(sessions)).all()) == 1
        known.remove(["ADA"])
        assert known.logged_in(again) is None and known.login(renewed) is None
        with pytest.raises(InputError, match="no student ada"):
            known.remove(["ada"])
        assert known.unknown(["ada", "b7"]) == ["ada"]


def test_teachers_and_nicknames(place):
    with Store(place) as store:
        known = Roster(store)
        first = known.add_teacher(" T. Cher ")
        teacher = known.logged_in(known.login(first))
        assert teacher.is_teacher and teacher.number == ""
        second = known.add_teacher("T. Cher")
        assert known.login(first) is None and known.login(second)
        known.add_teacher("Another")
        known.add([ADA, BOB])
        ada, bob = known.people()[-2:]
        known.set_nickname(ada, " the  first ")
        assert known.people()[-2].nickname == "the first"
        with pytest.raises(InputError, match="somebody else"):
            known.set_nickname(bob, "the first")
        with pytest.raises(InputError, match="30 characters"):
            known.set_nickname(bob, "x" * 31)
        known.set_nickname(ada, "")
        known.set_nickname(bob, "")  # any number may have none


def test_places_in_the_queue_and_what_a_teacher_does(place):
    with Store(place) as store:
        for keys in ("a", "bc", "d"):
            store.add(submission(*keys))
        assert [each.text for each in progress.waiting(store)] == [f"place {i} of 3 in the queue" for i in (1, 2, 3)]
        store.take()
        assert store.keep(1, "run 1 of 3: training, epoch 2, 41.00%")
        running, *queued = progress.waiting(store)
        assert running.text.endswith("UTC: run 1 of 3: training, epoch 2, 41.00%") and running.pennkeys == ("a",)
        assert [(each.id, each.text) for each in queued] == [(2, "place 1 of 2 in the queue"), (3, "place 2 of 2 in the queue")]
        assert [entry.id for entry in store.entries(progress.is_of("c"))] == [2]
        assert [entry.id for entry in store.entries(progress.is_of('b", "c'))] == []
        assert [entry.id for entry in store.entries(progress.is_of("_"))] == []
        assert [entry.id for entry in progress.page(store, 3, 1)] == [2]

        progress.cancel(store, 1)
        assert not store.keep(1) and not store.finish(1, "graded", "", 1.0, {})
        assert store.get(1).reason == "cancelled by a teacher"
        with pytest.raises(InputError, match="#1 is cancelled"):
            progress.cancel(store, 1)
        assert progress.graded_at(store) == (0, 0.0)
        assert store.take()[0].id == 2
        assert store.finish(2, "graded", "", 2.5, {"runs": []})
        before = progress.graded_at(store)
        assert before[0] == 1
        with pytest.raises(InputError, match="#3 is queued"):
            progress.grade_again(store, 3)
        progress.grade_again(store, 2)
        assert (store.get(2).state, store.get(2).score, store.get(2).result) == ("queued", None, {})
        taken = store.take()[0].id
        assert taken == 2 and store.finish(2, "graded", "", 2.0, {"runs": []})
        assert progress.graded_at(store) != before
        with pytest.raises(InputError, match="no submission 9"):
            progress.cancel(store, 9)


def test_the_commands(tmp_path):
    (tmp_path / "r.csv").write_text("=Ada,ada\nBob,b7,b@example.org\n")
    store, tokens = tmp_path / "store.sqlite", tmp_path / "tokens.csv"
    made = run_main("course", "roster", "add", tmp_path / "r.csv", "--store", store, "--tokens", tokens)
    assert made.returncode == 0 and made.stdout == f"2 students, 2 new tokens, in {tokens}\n"
    assert stat.S_IMODE(tokens.stat().st_mode) == 0o600
    headings, ada, bob = csv.reader(io.StringIO(tokens.read_text()))
    assert headings == ["name", "number", "e-mail", "token"]
    assert ada[:3] == ["'=Ada", "ada", ""] and bob[:3] == ["Bob", "b7", "b@example.org"]
    again = ("course", "roster", "add", tmp_path / "r.csv", "--store", store)
    assert_refused(run_main(*again, "--tokens", tokens, "--renew"), "tokens.csv", "exists")
    with Store(store) as opened:
        assert Roster(opened).login(ada[3])  # what could not be written has not been made
    assert run_main(*again).stdout == "name,number,e-mail,token\n"
    assert len(run_main("course", "roster", "teacher", "T", "--store", store).stdout.strip()) == 22
    listed = run_main("course", "roster", "list", "--store", store)
    assert listed.stdout == "student  ada  =Ada\nstudent  b7  Bob  b@example.org\nteacher  T\n"
    assert run_main("course", "roster", "remove", "b7", "--store", store).returncode == 0
    assert "b7" not in run_main("course", "roster", "list", "--store", store).stdout
    assert_refused(run_main("course", "roster", "list", "--store", tmp_path / "none"), "there is no store")
    assert_refused(run_main("course", "rooster"), "unknown command 'rooster'", "roster")
    assert_refused(run_main("course", "roster", "ad"), "unknown command 'ad'", "add")
    for group in ((), ("roster",)):
        assert run_main("course", *group).returncode == 0
