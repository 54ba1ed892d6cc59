"""Graders that are killed at random moments lose no submission and no score."""

import contextlib
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from conftest import DATA
from course import sandbox
from course.examiner import Exam
from course.grading import Grader, Rules
from course.store import Store
from course.submission import Submission
from images.data import load
from made_up import alive, files, write_colours


def run_grader(store: Path, exam: Exam, seed: int) -> None:
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        Grader(store, exam, Rules(1, seed, False), {"count_init": False}).work(watch=False)


@pytest.mark.slow
def test_killed_graders_lose_nothing(tmp_path):
    """A hundred graders are killed at random moments of their work, the last one may finish; what was graded stays as it was.

    A submission over which two of them died has failed, and says so.
    """
    store, seed = tmp_path / "store.sqlite", 730_000 + os.getpid()
    npz = write_colours(tmp_path / "colours.npz")
    exam = Exam(load(f"npz:{npz}", DATA), sandbox.find(), 60, 4_000_000_000, threads=1)
    moments = random.Random(0)
    context = multiprocessing.get_context("fork")
    submitted = kills = 0
    done: dict[int, tuple] = {}
    while kills < 100 or len(done) < submitted:
        with Store(store) as opened:
            for _ in range(2 if kills < 100 and len(done) == submitted else 0):
                submitted, _ = opened.add(Submission(files(), "hw", ((f"S{submitted}", f"s{submitted}"),), ("none",), ()))
        grader = context.Process(target=run_grader, args=(store, exam, seed))
        grader.start()
        # Most while it starts, some while it trains or writes the result.
        grader.join(moments.uniform(0, 0.8 if kills % 3 else 3.2) if kills < 100 and submitted > 2 else None)
        grader.kill()
        grader.join()
        kills += grader.exitcode == -signal.SIGKILL
        assert grader.exitcode in (0, -signal.SIGKILL)
        with Store(store) as opened:
            entries = opened.entries()
        assert [entry.id for entry in entries] == list(range(1, submitted + 1))
        assert {entry.state for entry in entries} <= {"queued", "graded", "failed"}
        assert all("the grader was killed while it graded this, 2 times" in e.reason for e in entries if e.state == "failed")
        now = {e.id: (e.state, e.score, e.finished, e.result) for e in entries if e.state != "queued"}
        assert all(now[number] == what for number, what in done.items())
        done = now
    assert "graded" in {state for state, *_ in done.values()}
    until = time.monotonic() + 60
    while alive(seed) and time.monotonic() < until:
        time.sleep(0.05)
    assert alive(seed) == []
