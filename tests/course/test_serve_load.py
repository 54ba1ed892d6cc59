"""`course serve` as a process of its own, which all students of a course use at once, and which Ctrl-C ends."""

from __future__ import annotations

import http.client
import signal
import subprocess
import sys
import time

import pytest

from conftest import ROOT

pytest.importorskip("fastapi", reason="requirements-serve.txt is not installed")
import httpx2

from benchmarks import deadline
from course.roster import Roster
from course.store import Store
from processes import wait_for


@pytest.mark.parametrize("students", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_all_students_at_once(tmp_path, students):
    """Each logs in, uploads twice and follows the events; the store has each upload exactly once."""
    record = deadline.simulate(tmp_path, students, rounds=2)
    assert record["losses"] == []
    assert {step: len(values) for step, values in record["seconds"].items()} == {
        "log in": students,
        "page": students,
        "upload and check": 2 * students,
        "page after it": 2 * students,
        "place by event": 2 * students,
        "board": 2 * students,
    }
    assert record["peak_bytes"] < 500e6


def test_a_loss_is_noticed(tmp_path, monkeypatch):
    archive = deadline._archive
    monkeypatch.setattr(deadline, "_archive", lambda number: b"no archive" if number == "s0001" else archive(number))
    losses = deadline.simulate(tmp_path, 2, rounds=1)["losses"]
    assert len(losses) == 2 and all(loss.startswith("s0001: ") for loss in losses)


@pytest.mark.slow
def test_it_ends_with_ctrl_c_while_pages_are_open(tmp_path):
    """And until then it keeps idle connections, which clients give up after 5 s: an upload on one that is ending would be lost."""
    with Store(tmp_path / "s.sqlite") as store:
        token = Roster(store).add_teacher("T")
        session = Roster(store).login(token)
    command = [sys.executable, ROOT / "main.py", "course", "serve", "--store", tmp_path / "s.sqlite", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    address = process.stdout.readline().split(" on ")[1].split("/ until")[0]
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=30)
    for pause in (0, 5.5):
        time.sleep(pause)
        connection.request("GET", "/login")
        assert connection.getresponse().read()
        connection.auto_open = 0  # the second on the same one
    with httpx2.stream("GET", f"{address}/events", headers={"Cookie": f"session={session}"}, timeout=30) as stream:
        assert next(stream.iter_text()) == "data: {}\n\n"
        process.send_signal(signal.SIGINT)
        wait_for(lambda: process.poll() is not None, 30)
    assert process.returncode == 0 and process.communicate()[1] == ""
