"""What SQLite and PostgreSQL do each in their own way: who may read, a full disk, a server that is wrong, lost, or restarted."""

import multiprocessing
import os
import subprocess
import sys
import threading
import time

import pytest

from config import InputError
from conftest import ROOT, assert_refused, run_main
from course import databases
from course.store import Store
from made_up import files, submission, submit, write_colours
from processes import wait_for

PASSWORD = "p@ss:w/rd?#%"


@pytest.fixture
def address(postgres):
    return postgres.schema()


def test_nobody_else_reads_the_file(tmp_path):
    with Store(tmp_path / "deep" / "store.sqlite") as opened:
        opened.add(submission("a"))
        found = list((tmp_path / "deep").iterdir())
        assert len(found) == 4  # with its journal and the locks
        assert [path.name for path in found if path.stat().st_mode & 0o077] == []


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path):
    with Store(tmp_path / "s") as opened:
        opened.add(submission("a"))
        opened.take()
        with opened.database.engine.connect() as connection:  # the same one is used again
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(InputError, match="the disk is full") as caught:
            opened.finish(1, "graded", "", 1.0, {"log": "x" * 1_000_000})
        assert "\n" not in str(caught.value)
        assert opened.get(1).state == "running"
        with opened.database.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
        assert opened.finish(1, "graded", "", 1.0, {"log": "x" * 1_000_000})
        assert opened.get(1).state == "graded"


@pytest.mark.slow
def test_a_disk_that_is_really_full(tmp_path):
    """A file system of 1 MB, full but for some pages: submit and leaderboard say so, and later the store is whole."""
    enter = ["unshare", "--mount", *(["--user", "--map-root-user"] if os.getuid() else [])]
    if subprocess.run([*enter, "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    (tmp_path / "ada").mkdir()
    (tmp_path / "ada" / "model.py").write_text(
        "class Model:\n    def __init__(self, num_channels, num_classes): pass\n    def forward(self, x): return x\n"
    )
    (tmp_path / "ada" / "config.py").write_text("CONFIG = 1\n" + "#" * 200_000)
    (tmp_path / "ada" / "submission.json").write_text(
        '{"assignment_name": "hw", "contributors": [{"name": "Ada", "pennkey": "ada"}], "sources": ["none"]}'
    )
    script = f"""
mkdir {tmp_path}/disk && mount -t tmpfs -o size=1m tmpfs {tmp_path}/disk && cd {tmp_path}/disk || exit 9
main="{sys.executable} {ROOT}/main.py"
$main submit ../ada --store s; echo "made $?" >&2
dd if=/dev/zero of=filler bs=1k 2> /dev/null
$main submit ../ada --store s; echo "full $?" >&2
$main leaderboard --store s; echo "read $?" >&2
rm filler
$main leaderboard --all --store s; echo "later $?" >&2
"""
    result = subprocess.run([*enter, "sh", "-c", script], text=True, capture_output=True)
    assert "Traceback" not in result.stderr, result.stderr
    lines = [line for line in result.stderr.splitlines() if not line.startswith("note:")]
    assert lines[0] == "made 0"
    assert lines[1].startswith("error: the disk is full")
    assert lines[2] == "full 2"
    assert lines[3] in ("read 0", lines[1])  # to read it may need no room
    assert lines[-1] == "later 0"
    assert result.stdout.splitlines()[-1] == "1 submission: 1 queued"


def test_a_full_disk_of_the_server_is_one_line(postgres, address):
    with Store(address) as opened:
        opened.add(submission("a"))
        raising = "BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END"
        postgres.execute(
            address,
            f"CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS $${raising}$$",
            "CREATE TRIGGER filled BEFORE UPDATE ON submissions EXECUTE FUNCTION fill()",
        )
        with pytest.raises(InputError, match="the disk is full on the server of postgresql://owner@/postgres"):
            opened.take()
        postgres.execute(address, "DROP TRIGGER filled ON submissions")
        assert opened.take()[0].id == 1


def test_wrong_addresses_are_one_line_without_the_password(postgres):
    postgres.execute("postgres", f"CREATE ROLE ada LOGIN PASSWORD '{PASSWORD}'", "CREATE DATABASE course")
    encoded = "p%40ss%3Aw%2Frd%3F%23%25"
    host = f"127.0.0.1:{postgres.port}"
    for place, words in (
        (f"postgresql://ada:{encoded}wrong@{host}/course", ["password authentication failed"]),
        (f"postgresql://ada:{PASSWORD}@{host}/course", ["cannot read the store's address", "%40"]),
        (f"postgresql://ada:p@ss:w/rd@{host}/course", ["cannot read the store's address"]),  # or "ss" would be the host
        (f"postgresql://ada:p@w/rd@{host}/course", ["cannot read the store's address"]),
        (f"postgresql://ada:{encoded}@{host}/nothing", ['database "nothing" does not exist']),
        (f"postgresql://ada:{encoded}@127.0.0.1:1/course", ["Connection refused"]),
        (f"postgresql://ada:{encoded}@127.0.0.1:port/course", ["cannot read the store's address"]),
        (f"postgresql://ada:{encoded}@{host}/course?password={encoded}&nonsense=1", ["nonsense"]),
    ):
        with pytest.raises(InputError) as caught:
            Store(place)
        assert all(word in str(caught.value) for word in words)
        assert not any(part in str(caught.value) for part in (PASSWORD, encoded, "w/rd", "w%2Frd", "\n"))
    place = f"postgres://ada:{encoded}@{host}/course"
    assert_refused(run_main("submit", ROOT, "--store", place), "permission denied", "postgresql://ada:***@")
    assert_refused(run_main("grade", "--store", place), "there is no store postgresql://ada:***@")
    postgres.execute("course", "GRANT CREATE ON SCHEMA public TO ada")
    assert run_main("submit", ROOT, "--store", place).returncode == 0
    assert "1 queued" in run_main("leaderboard", "--store", place).stdout


def test_a_database_of_others_is_left_alone(postgres, address):
    postgres.execute(address, "CREATE TABLE alembic_version (version_num text)")
    assert_refused(run_main("leaderboard", "--store", address), "a database, but not a store of submissions")
    with pytest.raises(InputError, match="give it a database of its own"):
        Store(address)
    assert postgres.execute(address, "SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema()") == [
        ("alembic_version",)
    ]


def test_a_database_that_cannot_hold_all_characters_is_refused(postgres):
    postgres.execute("postgres", "CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    with pytest.raises(InputError, match="is LATIN1: make it with `createdb --encoding UTF8"):
        Store(postgres.address("latin"))


def test_without_psycopg(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert_refused(run_main("leaderboard", "--store", "postgresql://ada@host/db"), "pip install -r requirements-postgres.txt")


@pytest.mark.slow
def test_from_submission_to_board(postgres, address, tmp_path):
    """The commands themselves, with a sandbox; what was ended in order is no crash."""
    npz = write_colours(tmp_path / "colours.npz")
    submit(tmp_path, address, {"ada": files(), "bob": files("init", "raise ValueError('no')")})
    result = run_main("grade", "--store", address, "--dataset", f"npz:{npz}", "--repeats", 1)
    assert result.returncode == 0, result.stderr
    assert "#1 graded" in result.stdout and "#2 failed" in result.stdout
    board = run_main("leaderboard", "--store", address).stdout
    assert "Ada (ada)" in board and "1 graded, 1 failed" in board
    assert "ValueError: no" in run_main("leaderboard", "--store", address, "--show", 2).stdout


def test_a_result_is_written_only_under_the_own_lease(postgres, address, monkeypatch):
    monkeypatch.setattr(databases, "LEASE", 0.5)
    with Store(address) as slow, Store(address) as quick:
        slow.add(submission("a"))
        slow.take()
        time.sleep(1)
        assert slow.keep(1)  # the lease has ended, but nobody has taken it away
        assert quick.take() is None
        time.sleep(1)
        assert quick.take()[0].id == 1
        assert not slow.keep(1)
        assert slow.crashed(1, "failed (why)") == "running"
        assert not slow.finish(1, "graded", "", 1.0, {})
        slow.give_back(1)
        assert quick.finish(1, "graded", "", 2.0, {})
        assert (quick.get(1).state, quick.get(1).score) == ("graded", 2.0)
        assert not slow.finish(1, "graded", "", 1.0, {})
    assert postgres.execute(address, "SELECT score, crashes FROM submissions") == [(2.0, 1)]


def test_ended_connections_are_made_anew(postgres, address):
    with Store(address) as opened:
        for key in "ab":
            opened.add(submission(key))
        for _ in range(2):
            assert postgres.end_connections(address)
            entry, _ = opened.take()
            assert postgres.end_connections(address)
            assert opened.keep(entry.id)
            assert postgres.end_connections(address)
            assert opened.finish(entry.id, "graded", "", 1.0, {})
        assert [entry.state for entry in opened.entries()] == ["graded", "graded"]


@pytest.mark.parametrize("call", ["take", "finish", "crashed"])
def test_where_the_reply_to_a_commit_is_lost_it_is_not_done_twice(postgres, address, call, monkeypatch):
    """The server has done it, and its answer never came: the grader asks again, and gets what it had already."""
    from sqlalchemy import event

    with Store(address, patience=60) as opened:
        opened.add(submission("a"))
        opened.add(submission("b"))
        if call != "take":
            opened.take()
        lost = []

        @event.listens_for(opened.database.engine, "commit")
        def lose(connection):
            if not lost:
                lost.append(True)
                connection.exec_driver_sql("COMMIT")
                connection.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")

        if call == "take":
            assert opened.take()[0].id == 1
            assert [entry.state for entry in opened.entries()] == ["running", "queued"]
        elif call == "finish":
            assert opened.finish(1, "graded", "", 1.0, {})
        else:
            assert opened.crashed(1, "failed (why)") == "queued"
        assert lost
    assert postgres.execute(address, "SELECT crashes FROM submissions WHERE id = 1") == [(int(call == "crashed"),)]


def test_a_server_that_restarts_is_waited_for(postgres, address, monkeypatch, capsys):
    monkeypatch.setattr(databases, "LEASE", 1.0)
    with Store(address, patience=60) as opened:
        opened.add(submission("a"))
        opened.take()
        postgres.stop()
        threading.Timer(2.0, postgres.start).start()
        assert opened.finish(1, "graded", "", 1.0, {})
        assert opened.get(1).state == "graded"
    assert "is lost, trying again for 60 s" in capsys.readouterr().err


def test_a_server_that_was_down_has_killed_nobody(postgres, address, monkeypatch):
    """While it was down no grader could renew its lease."""
    monkeypatch.setattr(databases, "LEASE", 5.0)
    with Store(address) as opened:
        opened.add(submission("a"))
        opened.take()
        postgres.execute(address, "UPDATE submissions SET lease = lease - 1000")
        postgres.stop()
        postgres.start()
        with Store(address) as other:
            assert other.take() is None
        assert opened.keep(1)
        postgres.execute(address, "UPDATE submissions SET lease = lease - 1000")
        time.sleep(5)
        with Store(address) as other:
            assert other.take()[0].id == 1


def give_up(address, said):
    with Store(address, patience=1.0) as opened:
        opened.take()
        said.put("taken")
        time.sleep(1)
        try:
            opened.finish(1, "graded", "", 1.0, {})
        except InputError as error:
            said.put(str(error))


def test_a_server_that_does_not_come_back_is_one_line_and_nothing_is_lost(postgres, address, monkeypatch):
    monkeypatch.setattr(databases, "LEASE", 1.0)
    context = multiprocessing.get_context("fork")
    with Store(address) as opened:
        opened.add(submission("a"))
    said = context.Queue()
    grader = context.Process(target=give_up, args=(address, said))
    grader.start()
    assert said.get(timeout=60) == "taken"
    postgres.stop()
    message = said.get(timeout=60)
    grader.join()
    postgres.start()
    assert message.startswith("cannot use the store postgresql://owner@/postgres") and "\n" not in message

    def is_queued():
        with Store(address) as opened:
            return opened.get(1).state == "queued"

    wait_for(is_queued, 30)
