"""What several test files share: the command line as a user runs it, and small data sets of real files."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from utils import no_garbage_collection

# On networks this small a second thread gains little, and on a busy machine the two wait for each other most of the time.
# The tests that are about speed or exact repetition take it back.
os.environ.setdefault("OMP_NUM_THREADS", "1")
ALL_THREADS = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}

importing = contextlib.ExitStack()  # closed when the tests have been imported too
importing.enter_context(no_garbage_collection())

# Where a shell started pytest in the background, Ctrl-C is ignored, and so it would be by what the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

import torch  # reads the setting above

import main
import processes
from images import shapes
from images.sources import Split

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytest_plugins = ["postgres"]
ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("CONVSPRINT_DATA", ROOT / "data"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the slow tests too, which repeat at length what others show")


# The long files come first: none is left for the end, when it would run alone.
LONG = frozenset(
    str.split(
        "attacks benchmarks distributed export exporting fit grading hostile kills main report runtimes scripts serving_page "
        "training weights"
    )
)


def pytest_xdist_auto_num_workers() -> int:
    """Processes for `-n auto`: two more than there are cores, since many tests wait for processes that they have started."""
    return len(os.sched_getaffinity(0)) + 2


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long files first. Leave out what is marked slow, unless --all is given or the tests are named one by one."""
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONG)  # stable: else the order stays
    if config.getoption("--all") or any("::" in argument for argument in config.args):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    importing.close()  # in the process that has the others run the tests, too


needs_cifar10 = pytest.mark.skipif(not (DATA / "cifar-10-batches-py").is_dir(), reason=f"no CIFAR-10 in {DATA}")


RNG = np.random.default_rng(0)


def random_split(count: int, classes: int = 10, height: int = 32, width: int = 32, channels: int = 3) -> Split:
    """`count` images of noise with balanced labels."""
    return Split(RNG.integers(0, 256, (count, height, width, channels), dtype=np.uint8), np.arange(count) % classes)


def run_main(*arguments: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """`main.py ARGUMENTS` with its output as text: in this process, which has torch imported.

    In a process of its own with `env`, and for `grade`, which forks and whose jobs print.
    """
    if env is not None or arguments[0] == "grade":
        return processes.run(ROOT / "main.py", *arguments, cwd=cwd, env=env)
    command = [str(ROOT / "main.py"), *map(str, arguments)]
    output, errors = io.StringIO(), io.StringIO()
    before = os.getcwd(), torch.get_num_threads(), sys.argv
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors), warnings.catch_warnings():
        os.chdir(cwd or before[0])
        sys.argv = command
        try:
            status = main.main(command[1:])
        except SystemExit as stop:  # of --help
            status = stop.code or 0
        finally:
            os.chdir(before[0])
            torch.set_num_threads(before[1])
            sys.argv = before[2]
    return subprocess.CompletedProcess(command, status, output.getvalue(), errors.getvalue())


def assert_refused(result: subprocess.CompletedProcess, *words: str) -> None:
    """Exit status 2, exactly one error line on stderr, which contains `words`, and no traceback."""
    assert result.returncode == 2, result.stderr
    errors = [line for line in result.stderr.splitlines() if not line.startswith("note:")]
    assert len(errors) == 1, result.stderr
    for word in words:
        assert word in errors[0]


@pytest.fixture(scope="session")
def shapes_npz(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """5,000 training and 500 test images of the `shapes` renderer in an .npz file, which loads in no time.

    The first of pytest's processes that asks for it renders it for all.
    """
    mine = tmp_path_factory.getbasetemp()
    path = (mine if worker_id == "master" else mine.parent) / "shapes.npz"
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            (train_x, train_y), (test_x, test_y) = shapes.render(1, 5000), shapes.render(2, 500)
            np.savez(path, train_x=train_x, train_y=train_y, test_x=test_x, test_y=test_y)
    return path


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For networks that are too small for several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium; without it, the test is skipped."""
    playwright_api = pytest.importorskip("playwright.sync_api", reason="requirements-dev.txt is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        if os.environ.get("CI") and not os.environ.get("CONVSPRINT_WITHOUT_BROWSER"):
            pytest.fail("no Chromium: .ci/run installs it where it can (apt-get install chromium)")
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])  # as root it has none
        yield browser
        browser.close()


class Tags(HTMLParser):
    """The start tags of a page, which must all be closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
