"""Graders on several machines: killed, stopped, cut off from the server, they lose no submission, no score, and count none twice.

Processes, server and connections are real; of the grader only the training itself is made up.
"""

import contextlib
import multiprocessing
import os
import random
import signal
import sys
import time
from types import SimpleNamespace

import pytest

from config import InputError
from conftest import assert_refused, run_main
from course import databases, grading, heartbeat
from course.examiner import Run
from course.grading import Grader, Rules
from course.store import Store
from course.workplace import alone
from made_up import submission
from processes import wait_for

CONTEXT = multiprocessing.get_context("fork")
# Every state that a submission has ever had, as the server itself saw it.
AUDIT = (
    "CREATE TABLE audit (number serial, id int, state text, score float, grader text)",
    "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS "
    "$$BEGIN INSERT INTO audit (id, state, score, grader) VALUES (NEW.id, NEW.state, NEW.score, OLD.grader); RETURN NEW; END$$",
    "CREATE TRIGGER note AFTER UPDATE OF state, score, result ON submissions FOR EACH ROW EXECUTE FUNCTION note()",
)


class Exam:
    """A training of some tenths of a second, which gives each submission one score and no other."""

    timeout = 60.0
    shortest = 3

    def run(self, files, seed, on_progress, inspect=False):
        run = Run(seed)
        for _ in range(random.randrange(self.shortest, self.shortest + 10)):
            time.sleep(0.03)
            on_progress(run, SimpleNamespace(doing="training", began=time.perf_counter()))
        score = float(files["model.py"].decode())
        return Run(seed, True, "target", "", score, [0.6], [score], 0.1, 0.1, 0.1), {}


def run_grader(address):
    """Ends with status 2 where it gives up."""
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (until this process ends)
    random.seed(os.getpid())
    try:
        Grader(address, Exam(), Rules(1, 0, False), {"count_init": False}).work(watch=True)
    except InputError:
        os._exit(2)


@pytest.fixture
def address(postgres, monkeypatch):
    monkeypatch.setattr(databases, "LEASE", 1.5)
    monkeypatch.setattr(heartbeat, "POLL", 0.2)
    monkeypatch.setattr(grading, "POLL", 0.05)
    address = postgres.schema()
    Store(address).close()
    postgres.execute(address, *AUDIT)
    return address


def add(address, count):
    with Store(address) as store:
        for number in range(count):
            store.add(submission(f"s{number}", files={"model.py": str(number + 1).encode()}))


def entries(address):
    with Store(address) as store:
        return store.entries()


def graded_once(postgres, address) -> int:
    """Checks that no score came twice, or changed; returns how many there are."""
    found = postgres.execute(address, "SELECT id, count(*), min(score), max(score) FROM audit WHERE state = 'graded' GROUP BY id")
    assert all((count, least, most) == (1, number, number) for number, count, least, most in found)
    after = "SELECT a.id FROM audit a JOIN audit b ON a.id = b.id AND a.number > b.number AND b.state IN ('graded', 'failed')"
    assert postgres.execute(address, after) == []  # what is done stays done
    return len(found)


@contextlib.contextmanager
def graders(address, count=3):
    """So many, and a function that makes one anew in a place."""
    running = []

    def start(place=None):
        grader = CONTEXT.Process(target=run_grader, args=(address,))
        grader.start()
        if place is None:
            running.append(grader)
        else:
            running[place] = grader

    for _ in range(count):
        start()
    try:
        yield running, start
    finally:
        for grader in running:
            grader.kill()
            grader.join()


@pytest.mark.parametrize("kills", [6, pytest.param(60, marks=pytest.mark.slow)])
def test_of_three_graders_and_their_connections_killed_nothing_is_lost(postgres, address, kills):
    """Every second time a grader is killed, and else the server's connections to all of them."""
    moments = random.Random(0)
    total = 2 * kills + 6
    add(address, total)
    dead = 0
    with graders(address) as (running, start):
        for kill in range(kills):
            time.sleep(moments.uniform(0.05, 0.8))
            if kill % 2:
                postgres.end_connections(address)
            else:
                place = moments.randrange(3)
                running[place].kill()
                running[place].join()
                dead += running[place].exitcode == -signal.SIGKILL
                start(place)
            graded_once(postgres, address)
        wait_for(lambda: not any(entry.state in ("queued", "running") for entry in entries(address)))
        assert all(grader.is_alive() for grader in running)  # none gave up for a lost connection
    assert dead == (kills + 1) // 2
    found = entries(address)
    failed = [entry for entry in found if entry.state == "failed"]
    assert all("the grader was killed while it graded this, 2 times" in entry.reason for entry in failed)
    assert len(failed) <= dead // 2
    assert graded_once(postgres, address) == total - len(failed) == sum(entry.state == "graded" for entry in found)
    assert all(entry.score == entry.id for entry in found if entry.state == "graded")
    crashes = postgres.execute(address, "SELECT sum(crashes) FROM submissions")[0][0]
    assert crashes <= dead  # a lost connection is no crash


def test_a_server_that_restarts_while_three_grade(postgres, address):
    add(address, 12)
    with graders(address) as (running, _):
        wait_for(lambda: graded_once(postgres, address) >= 2)
        postgres.stop()
        time.sleep(0.5)
        postgres.start()
        wait_for(lambda: graded_once(postgres, address) == 12)
        assert all(grader.is_alive() for grader in running)
    assert postgres.execute(address, "SELECT sum(crashes) FROM submissions")[0][0] == 0


def test_whose_lease_was_taken_away_writes_nothing(postgres, address, monkeypatch):
    """A machine that stood still for longer than its lease, as one that is suspended, comes back when another has graded it."""
    monkeypatch.setattr(Exam, "shortest", 50)
    add(address, 1)
    with graders(address, 1) as (running, start):
        wait_for(lambda: entries(address)[0].state == "running")
        os.kill(running[0].pid, signal.SIGSTOP)
        start()
        wait_for(lambda: entries(address)[0].state == "graded")
        before = entries(address)[0]
        os.kill(running[0].pid, signal.SIGCONT)
        time.sleep(2.5)  # more than it had still to do
        assert running[0].is_alive()
        assert entries(address)[0] == before
        assert graded_once(postgres, address) == 1
    assert postgres.execute(address, "SELECT state FROM audit ORDER BY number") == [
        ("running",),
        ("queued",),
        ("running",),
        ("graded",),
    ]


@pytest.mark.slow
def test_a_lease_is_renewed_for_as_long_as_the_training_takes(postgres, address):
    class Long(Exam):
        def run(self, files, seed, on_progress, inspect=False):
            end = time.monotonic() + 3 * databases.LEASE
            while time.monotonic() < end:
                time.sleep(0.05)
                with Store(address) as other:
                    assert other.take() is None
            return super().run(files, seed, on_progress)

    add(address, 1)
    Grader(address, Long(), Rules(1, 0, False), {"count_init": False}).work(watch=False)
    assert graded_once(postgres, address) == 1


def hold_the_machine(is_held):
    with alone():
        is_held.set()
        time.sleep(600)


def test_one_grader_works_on_a_machine_at_a_time(tmp_path):
    Store(tmp_path / "s").close()
    is_held = CONTEXT.Event()
    grader = CONTEXT.Process(target=hold_the_machine, args=(is_held,))
    grader.start()
    assert is_held.wait(60)
    assert_refused(run_main("grade", "--store", tmp_path / "s"), "another grader works on this machine", "--jobs")
    grader.kill()
    grader.join()
    with alone():  # the dead hold nothing
        pass
