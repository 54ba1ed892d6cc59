"""The temporary folders in which submissions run, and what killed graders have left of them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import tempfile
from pathlib import Path

NAME = "convsprint-grade-"  # how their names begin


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
