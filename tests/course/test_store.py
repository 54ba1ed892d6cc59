"""The store of submissions: its states, several processes at once, any of them killed."""

import multiprocessing
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from config import InputError
from conftest import ROOT, assert_refused, run_main
from course.store import Store
from course.submission import Submission

PROCESSES = multiprocessing.get_context("fork")


def made_up(*pennkeys: str) -> Submission:
    return Submission({"model.py": b"# \xc3\xa9"}, "hw", tuple((key.title(), key) for key in pennkeys), ("none",), ())


def states(store: Store) -> list[str]:
    return [entry.state for entry in store.entries()]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "store.sqlite"


def test_from_queue_to_result(path):
    with Store(path) as store:
        assert store.take() is None
        assert [store.add(made_up(key)) for key in "abc"] == [(1, []), (2, []), (3, [])]
        entry, files = store.take()
        assert (entry.id, entry.state, entry.contributors) == (1, "running", [("A", "a")])
        assert files == {"model.py": b"# \xc3\xa9"}
        assert store.take()[0].id == 2  # not the one that it has already
        assert store.finish(1, "graded", "", 2.5, {"runs": [1]})
        assert store.finish(2, "failed", "why", None, {})
    with Store(path) as store:
        assert states(store) == ["graded", "failed", "queued"]
        assert (store.get(1).score, store.get(1).result, store.get(2).reason) == (2.5, {"runs": [1]}, "why")
        assert not store.finish(1, "failed", "later", None, {})  # what is done stays done
        assert states(store) == ["graded", "failed", "queued"]
    assert os.stat(path).st_mode & 0o077 == 0  # nobody else reads everybody's work


def test_a_new_submission_cancels_the_same_contributors(path):
    with Store(path) as store:
        for keys in ("a", "ab", "b", "a"):
            store.add(made_up(*keys))
        assert states(store) == ["cancelled", "queued", "queued", "queued"]
        assert store.take()[0].id == 2
        assert store.add(made_up("b", "a")) == (5, [2])  # the same two, in another order, the old one running
        assert not store.is_running(2)
        assert not store.finish(2, "graded", "", 1.0, {})
        assert states(store) == ["cancelled", "cancelled", "queued", "queued", "queued"]
        store.finish(store.take()[0].id, "graded", "", 1.0, {})
        store.add(made_up("b"))
        assert store.get(3).state == "graded"  # what is graded is not cancelled


def test_given_back(path):
    with Store(path) as store:
        store.add(made_up("a"))
        store.give_back(store.take()[0].id)
        assert states(store) == ["queued"]


def take_and_wait(path, taken):
    with Store(path) as store:
        taken.put(store.take()[0].id)
        time.sleep(600)


def test_running_when_its_grader_dies_is_queued_again(path):
    with Store(path) as store:
        store.add(made_up("a"))
        store.add(made_up("b"))
    taken = PROCESSES.Queue()
    grader = PROCESSES.Process(target=take_and_wait, args=(path, taken))
    grader.start()
    assert taken.get(timeout=60) == 1
    with Store(path) as store:
        assert states(store) == ["running", "queued"]
        assert store.take()[0].id == 2  # the other one is being graded
    os.kill(grader.pid, signal.SIGKILL)
    grader.join()
    with Store(path) as store:
        assert states(store) == ["queued", "queued"]
        assert store.take()[0].id == 1


def test_over_which_two_graders_died_fails_and_the_queue_goes_on(path):
    with Store(path) as store:
        store.add(made_up("a"))
        store.add(made_up("b"))
    for expected in (["queued", "queued"], ["failed", "graded"]):
        taken = PROCESSES.Queue()
        grader = PROCESSES.Process(target=take_and_wait, args=(path, taken))
        grader.start()
        assert taken.get(timeout=60) == 1
        os.kill(grader.pid, signal.SIGKILL)
        grader.join()
        with Store(path) as store:
            if expected[0] == "queued":
                assert store.take()[0].id == 2  # not again first the one that a grader died over
                store.finish(2, "graded", "", 1.0, {})
                assert store.take()[0].id == 1
                store.give_back(1)  # to be interrupted is no crash
            else:
                assert states(store) == expected
                assert "the grader was killed while it graded this, 2 times" in store.get(1).reason
                assert store.take() is None


def test_a_full_disk_is_one_line_and_loses_nothing(path):
    with Store(path) as store:
        store.add(made_up("a"))
        store.take()
        pages = store.database.execute("PRAGMA page_count").fetchone()[0]
        store.database.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(InputError, match="the disk is full") as caught:
            store.finish(1, "graded", "", 1.0, {"log": "x" * 1_000_000})
        assert "\n" not in str(caught.value)
        assert states(store) == ["running"]
        store.database.execute("PRAGMA max_page_count = 1000000")
        assert store.finish(1, "graded", "", 1.0, {"log": "x" * 1_000_000})
        assert states(store) == ["graded"]


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


def grade_all(path, graded):
    with Store(path) as store:
        while taken := store.take():
            assert store.finish(taken[0].id, "graded", "", float(os.getpid()), {})
            graded.put(taken[0].id)


def add_all(path, keys):
    with Store(path) as store:
        for key in keys:
            store.add(made_up(key))


def test_several_processes_at_once(path):
    """Also at making it: none sees a half-made store, none takes what another has."""
    adders = [PROCESSES.Process(target=add_all, args=(path, [f"{who}{i}" for i in range(15)])) for who in range(4)]
    for process in adders:
        process.start()
    for process in adders:
        process.join()
    graded = PROCESSES.Queue()
    graders = [PROCESSES.Process(target=grade_all, args=(path, graded)) for _ in range(4)]
    for process in graders:
        process.start()
    assert sorted(graded.get(timeout=60) for _ in range(60)) == list(range(1, 61))
    for process in (*adders, *graders):
        process.join()
        assert process.exitcode == 0
    with Store(path) as store:
        assert states(store) == ["graded"] * 60


def test_no_store(path, tmp_path):
    for command in ("leaderboard", "grade"):
        assert_refused(run_main(command, "--store", path), "there is no store", "submit")
    (tmp_path / "text").write_text("no database " * 100)
    assert_refused(run_main("leaderboard", "--store", tmp_path / "text"), "not a store")
    sqlite3.connect(tmp_path / "other").execute("CREATE TABLE t (x)").connection.close()
    with pytest.raises(InputError, match="not a store of submissions"):
        Store(tmp_path / "other")
    with pytest.raises(InputError, match="cannot open"):
        Store(tmp_path)
    with Store(path) as store, pytest.raises(InputError, match="no submission 7"):
        store.get(7)


def test_a_thousand_are_listed_in_less_than_a_second(path):
    """Of processor time, so that a busy machine does not matter; the imports included, of which torch would be too slow."""
    columns = "assignment, contributors, pennkeys, sources, warnings, files, submitted"
    with Store(path) as store:
        store.add(made_up("ada"))
        store.database.execute(
            f"INSERT INTO submissions ({columns}) WITH RECURSIVE n (i) AS (SELECT 2 UNION ALL "
            f"SELECT i + 1 FROM n WHERE i < 1000) SELECT {columns} FROM submissions, n"
        )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(
        [sys.executable, "-X", "importtime", ROOT / "main.py", "leaderboard", "--store", path, "--all"],
        text=True,
        capture_output=True,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = result.stdout.splitlines()
    assert lines[-1] == "1000 submissions: 1000 queued"
    assert lines[1000].startswith("#1000  queued")
    assert "| torch" not in result.stderr
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 1
