"""A submission's process seen from the grader: its messages, its output, what it uses, and its end with all that it started."""

from __future__ import annotations

import array
import contextlib
import ctypes
import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from course import usage
from course.sandbox import ROOMS, Sandbox, control_group
from course.text import printable

PR_SET_CHILD_SUBREAPER = 36
TICK = 0.5  # seconds between two looks at what the processes use
MAX_MESSAGE = 100_000  # bytes
HEAD, TAIL = 4_000, 16_000  # bytes of the output that are kept


class Failure(Exception):
    """The submission failed; the text says why."""


class OutOfTime(Exception):
    """The deadline came."""


@dataclass(frozen=True)
class Limits:
    """What a submission may use. Threads, open files and the size of a single file are limited by the kernel."""

    memory: int
    """Bytes, of each process (kernel) and of all together, with what they write in namespaces (control group, or watched)."""
    processes: int = 64
    output: int = 16_000_000
    """Bytes printed."""
    disk: int = 1_000_000_000
    """Bytes in its folder, /tmp and /dev/shm, together."""
    files: int = 10_000

    def of_kernel(self, seconds: float, own_user: bool) -> dict[str, int]:
        """For inside.confine, for a submission that may run for about so many seconds, as a user of its own or the grader's."""
        threads = 256 + (0 if own_user else usage.threads_of_user())  # the kernel may count all that the user runs
        return {
            "RLIMIT_CPU": int(seconds * (os.cpu_count() or 1)) + 600,
            "RLIMIT_DATA": self.memory,
            "RLIMIT_FSIZE": 256_000_000,
            "RLIMIT_NOFILE": 1024,
            "RLIMIT_NPROC": threads,
            "RLIMIT_CORE": 0,
        }


class Process:
    """A running sandbox.

    Args:
        sandbox, work: see `Sandbox.start`, which gets `command` with the number of the channel's file appended by `arguments`.
        arguments: channel's file -> the command.
        limits: of all its processes together.
        on_tick: called several times a second while a message is waited for; may raise to stop.
        start_options: more for `Sandbox.start`.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        work: Path,
        arguments: Callable[[int], Sequence[str]],
        limits: Limits,
        on_tick: Callable[[], None],
        **start_options: Any,
    ) -> None:
        self.work, self.limits, self.on_tick, self.sandbox = work, limits, on_tick, sandbox
        self.begin("starting", float("inf"))
        self.inbox, self.room = bytearray(), 0
        self.is_ready = False
        self.rooms: list[int] = []
        self.given: set[tuple[int, int]] = set()
        self.head, self.tail, self.printed = bytearray(), bytearray(), 0
        self.others: set[int] = set()
        if not sandbox.has_namespaces:  # so that what loses its parent becomes ours, and is found
            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
            self.others = usage.descendants(os.getpid())
        self.channel, theirs = socket.socketpair()
        try:
            group = control_group(limits.memory, limits.processes + 256)
            self.popen = sandbox.start(arguments(theirs.fileno()), work, [theirs.fileno()], group=group, **start_options)
        finally:
            theirs.close()
        self.channel.setblocking(False)
        assert self.popen.stdout is not None  # a pipe
        self.pipe = self.popen.stdout
        os.set_blocking(self.pipe.fileno(), False)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.channel, selectors.EVENT_READ, self._read_channel)
        self.selector.register(self.pipe, selectors.EVENT_READ, self._read_output)
        self.next_tick = time.perf_counter() + TICK

    def begin(self, doing: str, limit: float) -> None:
        """What it is to do now, and in how many seconds: `receive` raises OutOfTime after them."""
        self.doing, self.began = doing, time.perf_counter()
        self.deadline = self.began + limit

    def send(self, message: dict[str, Any], fd: int | None = None) -> None:
        text = json.dumps(message).encode()
        ancillary = []
        if fd is not None:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
            self.given.add((os.fstat(fd).st_dev, os.fstat(fd).st_ino))
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):  # what is wrong shows when we receive
            self.channel.sendmsg([struct.pack("!I", len(text)) + text], ancillary)

    def receive(self, *stages: str, raw: int = 0) -> tuple[dict[str, Any], bytes]:
        """The next message, which must be of one of these stages and followed by `raw` bytes.

        Raises Failure where it is another, or the process ended or used too much; OutOfTime at the deadline.
        """
        self.room = 4 + MAX_MESSAGE + raw
        while (message := self._parse(stages, raw)) is None:
            self._wait()
        return message

    def _parse(self, stages: tuple[str, ...], raw: int) -> tuple[dict[str, Any], bytes] | None:
        """The first message in the inbox, once it is whole."""
        if len(self.inbox) < 4:
            return None
        length = struct.unpack("!I", self.inbox[:4])[0]
        if length > MAX_MESSAGE:
            raise Failure("it disturbed the messages to the grader")
        if len(self.inbox) < 4 + length:
            return None
        try:
            message = json.loads(self.inbox[4 : 4 + length])
            if message["at"] == "failed":
                raise Failure(printable(str(message["reason"])))
            if message["at"] not in stages:
                raise ValueError
            self.is_ready = True
        except (ValueError, TypeError, KeyError, RecursionError):
            raise Failure("it disturbed the messages to the grader") from None
        if len(self.inbox) < 4 + length + raw:
            return None
        payload = bytes(self.inbox[4 + length : 4 + length + raw])
        del self.inbox[: 4 + length + raw]
        return message, payload

    def _wait(self) -> None:
        """Until something comes, for a tick at most."""
        now = time.perf_counter()
        if now >= self.next_tick or now > self.deadline:  # what it used says more than that time is up
            self.next_tick = now + TICK
            if self.popen.poll() is not None and not self.selector.select(0):  # what it started may still hold the channel
                raise Failure(f"its process {self._how_it_ended()} while {self.doing}")
            self._check_use()
            self.on_tick()
        if now > self.deadline:
            raise OutOfTime
        for key, _ in self.selector.select(max(0, min(self.next_tick, self.deadline) - now)):
            key.data()

    def _read_channel(self) -> None:
        try:
            if self.is_ready:
                data = self.channel.recv(1 << 20)  # files that a submission sends are dropped
            else:
                data, folders, *_ = socket.recv_fds(self.channel, 1 << 20, len(ROOMS))
                self.rooms += folders
        except ConnectionResetError:
            data = b""
        self.inbox += data
        if not data:
            raise Failure(f"its process {self._how_it_ended()} while {self.doing}")
        if len(self.inbox) > self.room + (1 << 20):
            raise Failure("it disturbed the messages to the grader")

    def _read_output(self) -> None:
        try:
            data = os.read(self.pipe.fileno(), 1 << 16)
        except BlockingIOError:  # the submission, which may open its end for reading too, was faster
            return
        if not data:
            self.selector.unregister(self.pipe)
            return
        self.printed += len(data)
        room = HEAD - len(self.head)
        self.head += data[:room]
        self.tail = (self.tail + data[max(room, 0) :])[-TAIL:]
        if self.printed > self.limits.output:
            raise Failure(f"it printed more than {self.limits.output / 1e6:g} MB while {self.doing}")

    def _how_it_ended(self) -> str:
        try:
            status = self.popen.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "closed its channel to the grader"
        number = -status if status < 0 else status - 128
        if number == signal.SIGXCPU:
            return "used up its processor time"
        if number == signal.SIGKILL:
            return "was ended by SIGKILL (perhaps it used more memory than allowed)"
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(number).name}"
        return f"ended by itself (exit status {status})"

    def _check_use(self) -> None:
        processes = self._members()
        written, count = self._written()
        rooms = {os.fstat(fd).st_dev for fd in self.rooms}
        if len(processes) <= self.limits.processes:
            kept, is_all = usage.kept_by_descriptors(processes, self.given, rooms)
            if not is_all and not self.rooms and self.sandbox.user is None:  # else they are in the rooms, or always closed to us
                raise Failure(f"it ran a program whose files cannot be counted while {self.doing}")
            kept += written  # in memory, or on a disk that has as much
            if kept > self.limits.disk or count > self.limits.files:
                raise Failure(f"it wrote more than {self.limits.disk / 1e9:g} GB or {self.limits.files:,} files while {self.doing}")
            memory = self.limits.memory - (kept if self.rooms else kept - written)
            if sum(map(usage.resident, processes)) > memory:
                # Perhaps they share much of it. To find out takes long, during which they must not multiply.
                processes = self._freeze()
                if len(processes) <= self.limits.processes and sum(map(usage.proportional, processes)) > memory:
                    raise Failure(f"it used more than {self.limits.memory / 1e9:.3g} GB of memory while {self.doing}")
                for pid in processes:
                    usage.send_signal(pid, signal.SIGCONT)
        if len(processes) > self.limits.processes:
            raise Failure(f"it ran {len(processes)} processes at once while {self.doing}; {self.limits.processes} are allowed")
        if not all(map(usage.keeps_to_our_cores, processes)):
            raise Failure(f"it took more cores than it was given while {self.doing}")

    def _written(self) -> tuple[int, int]:
        """Bytes and number of all files that it has written; Failure where that cannot be told."""
        if self.rooms:  # file systems of its own, which know it, also of files without a name
            rooms = list(map(os.statvfs, self.rooms))
            return sum((r.f_blocks - r.f_bfree) * r.f_frsize for r in rooms), sum(r.f_files - r.f_ffree for r in rooms)
        try:
            return usage.files_below(self.work, self.limits.files)
        except (OSError, RecursionError) as error:
            raise Failure(f"it made folders that cannot be counted while {self.doing} ({type(error).__name__})") from None

    def _members(self, ended: bool = False) -> set[int]:
        """The process and all that it started; `ended` ones, too, that nobody has waited for."""
        if self.sandbox.has_namespaces:
            return usage.descendants(self.popen.pid, ended)
        return usage.descendants(os.getpid(), ended) - self.others  # what has lost its parent is ours

    def processor_seconds(self) -> float:
        """What its processes have used so far, with those that have ended."""
        return usage.processor_seconds(self._members(ended=True))

    def log(self) -> str:
        """The first and last of what it printed."""
        left_out = self.printed - len(self.head) - len(self.tail)
        between = f"\n[... {left_out:,} bytes ...]\n".encode() if left_out else b""
        return printable((bytes(self.head) + between + bytes(self.tail)).decode(errors="replace"), 1 << 20, lines=True)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        """End the process and all that it started, and wait until they are gone."""
        if not self.sandbox.has_namespaces:
            self._kill_members()
        # With namespaces their first process dies with this one, and with that the kernel kills all the others.
        self.popen.kill()
        self.popen.wait()
        until = time.perf_counter() + 10
        with contextlib.suppress(Failure, KeyError):  # its last words, up to the end, which unregisters it: nobody is left to write
            while self.selector.get_key(self.pipe) and time.perf_counter() < until:
                printed = self.printed
                self._read_output()
                if self.printed == printed:
                    time.sleep(0.002)
        if not self.sandbox.has_namespaces:
            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0)
        self.selector.close()
        self.channel.close()
        self.pipe.close()
        for folder in self.rooms:
            os.close(folder)

    def _freeze(self) -> set[int]:
        """Stop it and all that it started; returns them all."""
        known: set[int] = set()
        while new := self._members() - known:
            for pid in new:  # who is stopped starts no other
                usage.send_signal(pid, signal.SIGSTOP)
            known |= new
        return known

    def _kill_members(self) -> None:
        """Kill what it started one by one."""
        known = self._freeze()
        for pid in known:
            usage.send_signal(pid, signal.SIGKILL)
        until = time.perf_counter() + 10
        while any(map(usage.is_alive, known)) and time.perf_counter() < until:
            time.sleep(0.002)
        for pid in known - {self.popen.pid}:
            with contextlib.suppress(ChildProcessError):  # what has lost its parent is ours
                os.waitpid(pid, os.WNOHANG)
