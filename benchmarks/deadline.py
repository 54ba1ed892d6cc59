"""The last minute before a deadline: all students of a course use `./run.sh course serve` at once, on this machine.

    python benchmarks/deadline.py                           # 200 students, two uploads each
    python benchmarks/deadline.py --students 20 --rounds 1 --json docs/records/deadline.json

A server of its own is started on a new store. All students begin at the same moment: each logs in, opens the page, keeps its stream
of events open, uploads a zip archive of the project's own files, loads the page with the place in the queue, waits until the stream
tells that place, and looks at the board; then uploads again, which cancels the first. Nothing is graded. At the end the store must
hold each upload exactly once. The times are those of the client, which shares the cores with the server.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import asyncio
import contextlib
import io
import json
import re
import signal
import statistics
import subprocess
import tempfile
import time
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks import run_command
from config import InputError
from course.roster import Listed, Roster
from course.store import Store
from utils import ROOT, demand_writable, provenance, write_json

PATIENCE = 300.0  # seconds for any answer; a later one is a loss
STEPS = ("log in", "page", "upload and check", "page after it", "place by event", "board")


class Student:
    """A browser of one student. `seconds` gets the time of each step, `losses` what was not answered as it should be."""

    def __init__(self, client: Any, number: str, token: str, seconds: dict[str, list[float]], losses: list[str]) -> None:
        self.client, self.number, self.token, self.seconds, self.losses = client, number, token, seconds, losses
        self.cookie = ""
        self.heard: dict[str, asyncio.Event] = defaultdict(asyncio.Event)  # number of a submission -> an event has told of it

    async def ask(self, method: str, path: str, wanted: int, **body: Any) -> Any:
        answer = await self.client.request(method, path, headers={"Cookie": self.cookie}, **body)
        if answer.status_code != wanted:
            raise InputError(f"{method} {path} of {self.number}: {answer.status_code} instead of {wanted}: {answer.text[-300:]}")
        return answer

    async def log_in(self) -> None:
        page = await self.ask("GET", "/login", 200)
        self.cookie = page.headers["set-cookie"].partition(";")[0]  # by hand, since no client sends a Secure one over http
        answer = await self.ask("POST", "/login", 303, data={"csrf": _csrf(page.text), "token": self.token})
        self.cookie = answer.headers["set-cookie"].partition(";")[0]

    async def listen(self) -> None:
        async with self.client.stream("GET", "/events", headers={"Cookie": self.cookie}) as stream:
            async for line in stream.aiter_lines():
                if line.startswith("data: "):
                    for number in json.loads(line.removeprefix("data: ")):
                        self.heard[number].set()

    @contextlib.contextmanager
    def timed(self, step: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[step].append(time.perf_counter() - started)

    async def work(self, rounds: int) -> None:
        """Never raises: what goes wrong is a loss."""
        listening = None
        try:
            with self.timed("log in"):
                await self.log_in()
            with self.timed("page"):
                page = await self.ask("GET", "/", 200)
            listening = asyncio.create_task(self.listen())
            for _ in range(rounds):
                form = {"data": {"csrf": _csrf(page.text)}, "files": {"files": ("hw.zip", _archive(self.number))}}
                with self.timed("upload and check"):
                    answer = await self.ask("POST", "/upload", 303, **form)
                number = answer.headers["location"].removeprefix("/#s")
                with self.timed("place by event"):
                    with self.timed("page after it"):
                        page = await self.ask("GET", "/", 200)
                    await asyncio.wait_for(self.heard[number].wait(), PATIENCE)
                if f'data-waiting="{number}"' not in page.text:
                    raise InputError(f"the page of {self.number} does not show #{number}")
                with self.timed("board"):
                    await self.ask("GET", "/board", 200)
        except Exception as error:
            self.losses.append(f"{self.number}: {type(error).__name__}: {error}")
        finally:
            if listening:
                listening.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await listening


def _csrf(page: str) -> str:
    found = re.search(r'name="csrf" value="(\w+)"', page)
    if not found:
        raise InputError("there is no form on the page")
    return found[1]


def _archive(number: str) -> bytes:
    people = [{"name": f"Student {number}", "pennkey": number}]
    described = {"assignment_name": "A compact CNN", "contributors": people, "sources": ["none"]}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("model.py", "config.py"):
            archive.write(ROOT / name, name)
        archive.writestr("submission.json", json.dumps(described))
    return buffer.getvalue()


def simulate(folder: Path, students: int, rounds: int, place: str = "") -> dict[str, Any]:
    """What the students of a new course waited, in seconds by step, and what was lost; `place` is the store's, else in `folder`.

    Raises InputError where the server does not start or does not end in order.
    """
    place = place or str(folder / "store.sqlite")
    numbers = [f"s{i:04}" for i in range(students)]
    with Store(place) as store:
        made = Roster(store).add([Listed(f"Student {number}", number, "") for number in numbers])
    tokens = {student.number: token for student, token in made}
    command = [sys.executable, str(ROOT / "main.py"), "course", "serve", "--store", place, "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None  # it is a pipe
        found = re.search(r"on (http://127\.0\.0\.1:\d+)/", server.stdout.readline())
        if not found:
            raise InputError(f"the server does not start: {server.communicate()[1]}")
        started = time.perf_counter()
        seconds, losses = asyncio.run(_all_at_once(found[1], tokens, rounds))
        total = time.perf_counter() - started
        peak = _peak_bytes(server.pid)
    finally:
        server.send_signal(signal.SIGINT)
        try:
            _, errors = server.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            server.kill()
            raise InputError("the server does not end") from None
    if server.returncode or errors:
        raise InputError(f"the server ended with {server.returncode}: {errors}")
    with Store(place) as store:
        states = defaultdict(list)
        for entry in store.entries():
            states[entry.contributors[0][1]].append(entry.state)
    wanted = ["cancelled"] * (rounds - 1) + ["queued"]
    losses += [f"{number}: the store has {states[number]}" for number in numbers if states[number] != wanted]
    return {"students": students, "rounds": rounds, "total": total, "seconds": seconds, "losses": losses, "peak_bytes": peak}


async def _all_at_once(address: str, tokens: dict[str, str], rounds: int) -> tuple[dict[str, list[float]], list[str]]:
    import httpx2

    seconds: dict[str, list[float]] = {step: [] for step in STEPS}
    losses: list[str] = []
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx2.AsyncClient(base_url=address, timeout=PATIENCE, limits=limits) as client:
        await asyncio.gather(*(Student(client, *each, seconds, losses).work(rounds) for each in tokens.items()))
    return seconds, losses


def _peak_bytes(pid: int) -> int:
    """The most memory that the server's process has held; 0 where the system does not tell."""
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        return int(found[1]) * 1024 if found else 0
    return 0


@dataclass
class Benchmark:
    """Time a course's website while all students use it at once."""

    students: int = 200
    """Students, all at the same moment."""
    rounds: int = 2
    """Uploads of each."""
    json: Path | None = None
    """Write the record here."""

    def run(self) -> int:
        if self.students < 1 or not 1 <= self.rounds <= 12:
            raise InputError("--students must be 1 or more, and --rounds 1 to 12, which are the most uploads in ten minutes")
        if self.json:
            demand_writable(self.json.parent)
        with tempfile.TemporaryDirectory(prefix="convsprint-deadline-") as folder:
            record = simulate(Path(folder), self.students, self.rounds)
        print("| step | times | median | 95% within | max |\n|---|---|---|---|---|")
        for step, values in record["seconds"].items():
            ordered = sorted(values)
            last = f"{ordered[-1 - len(ordered) // 20]:.2f} s | {ordered[-1]:.2f} s"
            print(f"| {step} | {len(ordered)} | {statistics.median(ordered):.2f} s | {last} |")
        print(
            f"\n{self.students} students, {self.rounds} uploads each: {record['total']:.1f} s; the server held at most "
            f"{record['peak_bytes'] / 1e6:.0f} MB; losses: {len(record['losses'])}"
        )
        for loss in record["losses"]:
            print(f"lost: {loss}", file=sys.stderr)
        if self.json:
            write_json(self.json, record | provenance())
        return 1 if record["losses"] else 0


if __name__ == "__main__":
    sys.exit(run_command(Benchmark, __doc__))
