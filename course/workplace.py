"""The temporary folders in which submissions run, what killed graders have left of them, and that one grader has the machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from config import InputError

NAME = "convsprint-grade-"  # how their names begin
TURN = "convsprint-grade.lock"  # beside them; which user's it is does not matter


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """While it lasts, no other `grade` begins on this machine: each would disturb the other's clock. Raises InputError where one
    is at work.
    """
    path = Path(tempfile.gettempdir()) / TURN
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        try:
            lock = os.open(path, os.O_RDONLY | flags)
        except FileNotFoundError:
            lock = os.open(path, os.O_RDONLY | os.O_CREAT | flags, 0o444)
    except OSError as error:
        raise InputError(f"cannot open {path}, by which graders know of each other: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel drops it when the grader and its jobs die
    except BlockingIOError:
        os.close(lock)
        raise InputError(
            "another grader works on this machine, and two would disturb each other's clocks: end that one, or give it --jobs"
        ) from None
    try:
        yield
    finally:
        os.close(lock)


class workplace:  # noqa: N801 (used as a function)
    """A fresh temporary folder with what `Sandbox.start` needs; removed at the end, whatever a submission has made of it."""

    def __enter__(self) -> Path:
        path = Path(tempfile.mkdtemp(prefix="." + NAME)).resolve()
        self.lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self.lock, fcntl.LOCK_EX)  # the kernel drops it when the grader dies
        self.path = path.rename(path.with_name(path.name[1:]))  # locked before others take it for a leftover
        self.path.chmod(0o711)
        for name in ("submission", "tmp", "root"):
            (self.path / name).mkdir()
            (self.path / name).chmod(0o755)
        return self.path

    def __exit__(self, *_: object) -> None:
        remove(self.path)
        os.close(self.lock)


def remove(path: Path) -> None:
    """Remove a folder, whatever a submission has made of it."""
    # rm, since Python's own rmtree recurses, and so fails on folders nested deeply enough.
    subprocess.run(["rm", "-rf", "--", path], stderr=subprocess.DEVNULL, check=False)
    if path.exists():
        subprocess.run(["chmod", "-R", "u+rwx", "--", path], stderr=subprocess.DEVNULL, check=False)
        subprocess.run(["rm", "-rf", "--", path], stderr=subprocess.DEVNULL, check=False)


def remove_leftovers() -> None:
    """Remove the workplaces of graders that were killed."""
    for path in Path(tempfile.gettempdir()).glob(f"{NAME}*"):
        with contextlib.suppress(OSError):  # BlockingIOError: its grader lives
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(folder).st_uid == os.getuid():
                    remove(path)
            finally:
                os.close(folder)
