"""The store of submissions, in SQLite and in PostgreSQL alike: its states, several processes at once, any of them killed."""

import multiprocessing
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import pytest
from sqlalchemy import event

from config import InputError
from conftest import ROOT, assert_refused, run_main
from course import databases
from course.store import Store
from made_up import submission
from processes import wait_for

PROCESSES = multiprocessing.get_context("fork")


def states(store: Store) -> list[str]:
    return [entry.state for entry in store.entries()]


def recovered(place: str) -> list[str]:
    """The states that the next process finds."""
    with Store(place) as store:
        return states(store)


@pytest.fixture
def short_lease(monkeypatch):
    monkeypatch.setattr(databases, "LEASE", 2.0)


def test_from_queue_to_result(place):
    with Store(place) as store:
        assert store.take() is None
        assert [store.add(submission(key)) for key in "abc"] == [(1, []), (2, []), (3, [])]
        entry, files = store.take()
        assert (entry.id, entry.state, entry.contributors) == (1, "running", [("A", "a")])
        assert files == {"model.py": b"# \xc3\xa9"}
        assert abs(entry.started - time.time()) < 60
        assert store.take()[0].id == 2  # not the one that it has already
        assert store.finish(1, "graded", "", 2.5, {"runs": [1]})
        assert store.finish(2, "failed", "why", None, {})
    with Store(place) as store:
        assert states(store) == ["graded", "failed", "queued"]
        assert (store.get(1).score, store.get(1).result, store.get(2).reason) == (2.5, {"runs": [1]}, "why")
        assert store.get(1).submitted <= store.get(1).started <= store.get(1).finished
        assert not store.finish(1, "failed", "later", None, {})  # what is done stays done
        assert states(store) == ["graded", "failed", "queued"]


def test_a_new_submission_cancels_the_same_contributors(place):
    with Store(place) as store:
        for keys in ("a", "ab", "b", "a"):
            store.add(submission(*keys))
        assert states(store) == ["cancelled", "queued", "queued", "queued"]
        assert store.take()[0].id == 2
        assert store.keep(2)
        assert store.add(submission("b", "a")) == (5, [2])  # the same two, in another order, the old one running
        assert not store.keep(2)
        assert not store.finish(2, "graded", "", 1.0, {})
        assert states(store) == ["cancelled", "cancelled", "queued", "queued", "queued"]
        store.finish(store.take()[0].id, "graded", "", 1.0, {})
        store.add(submission("b"))
        assert store.get(3).state == "graded"  # what is graded is not cancelled


def test_given_back(place):
    with Store(place) as store:
        store.add(submission("a"))
        store.give_back(store.take()[0].id)
        assert states(store) == ["queued"]
        assert store.take()[0].id == 1


def test_what_a_student_may_write_is_stored(place):
    """No character is one that the database refuses, or that comes back as another."""
    odd = "Zoë \N{SNOWMAN} \N{GRINNING FACE} '; -- %s \\ \x00"
    with Store(place) as store:
        store.add(submission("a", assignment=odd, sources=(odd + "\ud800",)))
        store.take()
        store.finish(1, "failed", odd, None, {"log": odd + "\ud800"})
        entry = store.get(1)
    assert entry.assignment == entry.reason == odd.replace("\x00", "\N{REPLACEMENT CHARACTER}")
    assert entry.result == {"log": odd + "\ud800"}


def take_and_wait(place, taken):
    with Store(place) as store:
        taken.put(store.take()[0].id)
        time.sleep(600)


def test_running_when_its_grader_dies_is_queued_again(place, short_lease):
    with Store(place) as store:
        store.add(submission("a"))
        store.add(submission("b"))
    taken = PROCESSES.Queue()
    grader = PROCESSES.Process(target=take_and_wait, args=(place, taken))
    grader.start()
    assert taken.get(timeout=60) == 1
    with Store(place) as store:
        assert states(store) == ["running", "queued"]
        assert store.take()[0].id == 2  # the other one is being graded
    os.kill(grader.pid, signal.SIGKILL)
    grader.join()
    if "://" not in place:
        assert recovered(place) == ["queued", "queued"]  # at once
    wait_for(lambda: recovered(place) == ["queued", "queued"], 30)
    with Store(place) as store:
        assert store.take()[0].id == 1


def test_over_which_two_graders_died_fails_and_the_queue_goes_on(place, short_lease):
    with Store(place) as store:
        store.add(submission("a"))
        store.add(submission("b"))
    for expected in (["queued", "queued"], ["failed", "graded"]):
        taken = PROCESSES.Queue()
        grader = PROCESSES.Process(target=take_and_wait, args=(place, taken))
        grader.start()
        assert taken.get(timeout=60) == 1
        os.kill(grader.pid, signal.SIGKILL)
        grader.join()
        wait_for(lambda: recovered(place) == expected, 30)  # noqa: B023 (called at once)
        with Store(place) as store:
            if expected[0] == "queued":
                assert store.take()[0].id == 2  # not again first the one that a grader died over
                store.finish(2, "graded", "", 1.0, {})
                assert store.take()[0].id == 1
                store.give_back(1)  # to be interrupted is no crash
            else:
                assert "the grader was killed while it graded this, 2 times" in store.get(1).reason
                assert store.take() is None


def test_over_which_a_grader_failed_twice_fails(place):
    with Store(place) as store:
        store.add(submission("a"))
        assert store.crashed(store.take()[0].id, "failed (why)") == "queued"
        assert store.crashed(store.take()[0].id, "failed (why)") == "failed"
        assert "the grader failed (why) while it graded this, 2 times" in store.get(1).reason
        assert store.take() is None


def grade_all(place, graded):
    with Store(place) as store:
        while taken := store.take():
            assert store.finish(taken[0].id, "graded", "", float(os.getpid()), {})
            graded.put(taken[0].id)


def add_all(place, keys):
    with Store(place) as store:
        for key in keys:
            store.add(submission(key))


def test_several_processes_at_once(place):
    """Also at making it: none sees a half-made store, none takes what another has."""
    adders = [PROCESSES.Process(target=add_all, args=(place, [f"{who}{i}" for i in range(15)])) for who in range(4)]
    for process in adders:
        process.start()
    for process in adders:
        process.join()
    graded = PROCESSES.Queue()
    graders = [PROCESSES.Process(target=grade_all, args=(place, graded)) for _ in range(4)]
    for process in graders:
        process.start()
    assert sorted(graded.get(timeout=60) for _ in range(60)) == list(range(1, 61))
    for process in (*adders, *graders):
        process.join()
        assert process.exitcode == 0
    with Store(place) as store:
        assert states(store) == ["graded"] * 60


def test_of_the_same_contributors_at_the_same_moment_one_stays_queued(place):
    """The second comes when the first is all but written."""
    second = threading.Thread(target=add_all, args=(place, ["ada"]))
    with Store(place) as store:

        @event.listens_for(store.database.engine, "commit")
        def before_commit(connection):
            if second.ident is None:
                second.start()
                second.join(1)

        store.add(submission("ada"))
        second.join()
        assert states(store) == ["cancelled", "queued"]


def test_no_store(place, tmp_path):
    for command in ("leaderboard", "grade"):
        assert_refused(run_main(command, "--store", place), "there is no store", "submit")
    with Store(place) as store:
        for number in (7, -1, 2**31, 10**20):  # neither database has room for the last
            with pytest.raises(InputError, match=f"no submission {number} in"):
                store.get(number)


def test_what_is_no_store(tmp_path):
    (tmp_path / "text").write_text("no database " * 100)
    assert_refused(run_main("leaderboard", "--store", tmp_path / "text"), "not a store")
    sqlite3.connect(tmp_path / "other").execute("CREATE TABLE t (x)").connection.close()
    with pytest.raises(InputError, match="not a store of submissions"):
        Store(tmp_path / "other")
    with pytest.raises(InputError, match="cannot open"):
        Store(tmp_path)
    assert_refused(run_main("leaderboard", "--store", "mysql://ada:secret@host/db"), "a file or postgresql://")


def test_a_thousand_are_listed_in_less_than_a_second(tmp_path):
    """Of processor time, the imports included, of which torch would be too slow: once in five times, since a busy machine slows
    it down by half; and always nearly as fast as one."""
    columns = "assignment, contributors, pennkeys, sources, warnings, files, submitted"
    for name in ("one", "thousand"):
        with Store(tmp_path / name) as store:
            store.add(submission("ada"))
    with sqlite3.connect(tmp_path / "thousand") as database:
        database.execute(
            f"INSERT INTO submissions ({columns}) WITH RECURSIVE n (i) AS (SELECT 2 UNION ALL "
            f"SELECT i + 1 FROM n WHERE i < 1000) SELECT {columns} FROM submissions, n"
        )
    seconds: dict[str, list[float]] = {"one": [], "thousand": []}
    for name in ("one", "thousand") * 5:
        if seconds["thousand"] and min(seconds["thousand"]) < 1.3:
            break
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-X", "importtime", ROOT / "main.py", "leaderboard", "--store", tmp_path / name, "--all"]
        result = subprocess.run(command, text=True, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds[name].append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    lines = result.stdout.splitlines()
    assert lines[-1] == "1000 submissions: 1000 queued"
    assert lines[1000].startswith("#1000  queued")
    assert "| torch" not in result.stderr
    assert "| alembic" not in result.stderr  # for what is up to date
    assert min(seconds["thousand"]) < 1.3
    assert min(seconds["thousand"]) < 2 * min(seconds["one"])
