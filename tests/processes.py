"""Processes of their own that begin with torch and other libraries imported: children of multiprocessing's fork server.

Importing them takes seconds, which each `python main.py` of the tests would spend anew. All else is as there: a process id,
signals, an exit status, an environment, a folder, and the project's modules not yet imported. What is about the imports, or about
OpenMP, uses subprocess.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.preloaded"])
ROOT = Path(__file__).resolve().parent.parent


def is_ours(path: str) -> bool:
    """Whether it lies in the project, not in the environment of its libraries."""
    return Path(path).absolute().is_relative_to(ROOT) and "site-packages" not in path


def become(command: list[str], cwd: str, environment: dict[str, str], outputs: list[str], before: Callable[[], object]) -> None:
    """What such a process runs: `python COMMAND...`, a session of its own, its output in the files `outputs`."""
    os.setsid()
    for number, path in enumerate(outputs, 1):
        descriptor = os.open(path, os.O_WRONLY)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    tempfile.tempdir = None  # of another environment
    multiprocessing.set_start_method(None, force=True)  # what a new process has
    for name in [name for name, module in sys.modules.items() if is_ours(getattr(module, "__file__", None) or "/")]:
        del sys.modules[name]  # the libraries alone stay
    more = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = [str(Path(command[0]).parent), *filter(None, more), *(path for path in sys.path if not is_ours(path))]
    sys.argv = command
    before()
    runpy.run_path(command[0], run_name="__main__")


class Process:
    """`python SCRIPT ARGUMENTS`, as subprocess.Popen has it; `before` is called in it first (a function that pickle knows)."""

    def __init__(
        self,
        script: str | Path,
        *arguments: object,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        before: Callable[[], object] = dict,
    ) -> None:
        self.command = [str(script), *map(str, arguments)]
        self.outputs: list[Path] = []
        for _ in range(2):
            descriptor, name = tempfile.mkstemp()
            os.close(descriptor)
            self.outputs.append(Path(name))
        environment = dict(os.environ if env is None else env)
        self.process = SERVER.Process(
            target=become, args=(self.command, str(cwd or os.getcwd()), environment, list(map(str, self.outputs)), before)
        )
        self.process.start()
        self.pid = self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    returncode = property(poll)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired(self.command, timeout or 0)
        return self.process.exitcode

    def output(self) -> str:
        """What it wrote on stdout so far."""
        return self.outputs[0].read_text()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it wrote on stdout and stderr, once it has ended."""
        self.wait(timeout)
        texts = [path.read_text() for path in self.outputs]
        for path in self.outputs:
            path.unlink()
        return texts[0], texts[1]


def run(script: str | Path, *arguments: object, check: bool = False, **options: object) -> subprocess.CompletedProcess:
    """Such a process from its start to its end."""
    process = Process(script, *arguments, **options)
    result = subprocess.CompletedProcess(process.command, process.wait(), *process.communicate())
    if check:
        result.check_returncode()
    return result


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
