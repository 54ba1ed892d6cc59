"""The grader: messy submissions, every kind of sandbox, the median, and interruptions."""

import contextlib
import errno
import os
import signal
import sys
from pathlib import Path

import pytest

import processes
from config import InputError
from conftest import DATA, ROOT, assert_refused, needs_cifar10, run_main
from course import sandbox
from course.examiner import Exam, Run
from course.grading import Grader, Rules
from course.process import Process
from course.store import Store
from course.submission import Submission
from images.data import load
from made_up import MODEL, alive, files, submit, write_colours
from processes import wait_for

GRADE = (ROOT / "main.py", "grade", "--store")

SEED = 720_000 + os.getpid()  # by which the processes are found


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    return write_colours(tmp_path_factory.mktemp("hidden") / "colours.npz")


MESSY = {
    "chatty": files(
        "init",
        """
import logging, random, warnings
import numpy as np
from tqdm import tqdm
torch.manual_seed(1); np.random.seed(1); random.seed(1); torch.set_num_threads(2)
logging.basicConfig(level=logging.DEBUG)
logging.debug("caf\\u00e9 \\x1b[31m")
warnings.warn("careful")
for _ in tqdm(range(3)): print("building")
torch.save({}, "weights.pt"); open("/tmp/notes", "w").write("x")
""",
    ),
    "scripted": files(
        "init",
        """
self.layer = torch.jit.script(self.layer)
torch.jit.script(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()))(torch.zeros(1, 3, 28, 28))
""",
        MODEL.replace(": torch.Tensor) -> torch.Tensor", ")").replace("{forward}", "logits = torch.log_softmax(logits, 1)"),
        """
import torch
from torchvision import transforms as T
class CONFIG:
    batch_size, num_epochs = 64, 50
    transforms = T.Compose([T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize([0.5] * 3, [0.5] * 3)])
    optimizer_factory = lambda model: torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9, nesterov=True)
""",
    ),
    "warmed_up": files(
        "init",
        """
loss = torch.nn.CrossEntropyLoss()(self.layer(torch.rand(8, 3)), torch.arange(8) % 4)
loss.backward()
time.sleep(0.3)
""",
    ),
}


@pytest.mark.slow
def test_messy_ones_are_graded(npz, tmp_path):
    store = tmp_path / "store.sqlite"
    submit(tmp_path, store, MESSY, sources="the lecture's notes")
    result = run_main(
        "grade", "--store", store, "--dataset", f"npz:{npz}", "--timeout", 120, "--repeats", 1, "--jobs", 2, "--count-init"
    )
    assert result.returncode == 0, result.stderr
    with Store(store) as opened:
        entries = {entry.contributors[0][1]: entry for entry in opened.entries()}
    assert {name: entry.state for name, entry in entries.items()} == dict.fromkeys(MESSY, "graded"), result.stdout
    assert "annotation" in entries["scripted"].warnings[0]
    assert entries["warmed_up"].result["runs"][0]["init_seconds"] > 0.3
    assert entries["warmed_up"].score > 0.3
    log = entries["chatty"].result["runs"][0]["log"]
    assert "building" in log
    assert "\x1b" not in log
    table = run_main("leaderboard", "--store", store).stdout
    assert all(name.title() in table for name in MESSY)


@pytest.fixture(scope="module")
def exam_for(npz):
    """Sandbox -> an exam in it."""

    def make(box: sandbox.Sandbox, timeout: float = 60, memory: int = 4_000_000_000, cifar10: Path | None = None) -> Exam:
        return Exam(load(f"npz:{npz}", DATA), box, timeout, memory, threads=1, cifar10=cifar10)

    return make


@needs_cifar10
@pytest.mark.slow
def test_cifar10_downloaded_in_init(exam_for):
    """Its public training split is there, its test split is not."""
    code = """
from torchvision import datasets
from torchvision.datasets import CIFAR10
seen = datasets.CIFAR10(root="./data", train=True, download=True)
self.register_buffer("mean", torch.tensor(seen.data.mean((0, 1, 2)) / 255))
assert len(CIFAR10("/anywhere", download=True)[0]) == 2
try:
    CIFAR10("./data", train=False, download=True)
    os._exit(77)
except RuntimeError:
    pass
assert "data_batch_1" in os.listdir({folder!r}) and "test_batch" not in os.listdir({folder!r})
"""
    code = code.replace("{folder!r}", repr(str(DATA.resolve() / "cifar-10-batches-py")))
    exam = exam_for(sandbox.find(), cifar10=DATA.resolve() / "cifar-10-batches-py")
    run, _ = exam.run(files("init", code), 0, lambda *_: None)
    assert run.reached, run.reason


def boxes() -> list[sandbox.Sandbox]:
    """Every kind of sandbox that works here."""
    found = []
    for kind in sandbox.KINDS:
        with contextlib.suppress(InputError):
            found.append(sandbox.find(kind))
    return found


@pytest.mark.parametrize("kind", ["auto", *(pytest.param(kind, marks=pytest.mark.slow) for kind in sandbox.KINDS)])
def test_every_kind_of_sandbox_limits_memory_of_all_together_and_ends_all_that_was_started(exam_for, kind):
    code = """
import mmap
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(1000)
        os._exit(0)
blocks = [mmap.mmap(-1, 1 << 28, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS) for _ in range(4)]
for block in blocks: block[:] = bytes(1 << 28)
time.sleep(1000)
"""
    try:
        box = sandbox.find(kind)
    except InputError as error:
        pytest.skip(str(error))
    seed = SEED + 10_000_000
    run, _ = exam_for(box, memory=1_200_000_000).run(files("init", code), seed, lambda *_: None)
    assert "used more than 1.2 GB of memory while building its Model" in run.reason, box
    assert alive(seed) == [], box


def test_namespaces_work_here():
    """On Linux as root, or where the kernel lets users have them; without, hostile submissions would be less than contained."""
    box = sandbox.find()
    assert box.has_namespaces
    # Control groups need systemd, which containers seldom have; all else can be had.
    assert [notice[:16] for notice in box.notices()] == ([] if sandbox.control_group(1 << 30, 64) else ["no control group"])
    assert "no namespaces here" in sandbox.Sandbox("none", None).notices()[-1]


def test_what_is_hidden_among_the_systems_files(monkeypatch):
    """Even where Python itself, or the project's files, lie within."""
    monkeypatch.setattr(sandbox, "SYSTEM", (*sandbox.SYSTEM, str(Path(sys.prefix).parent), str(ROOT)))
    script = (
        f"import os, tqdm; print(os.listdir({str(ROOT)!r}), os.listdir('/usr/share'), os.access({str(sandbox.INSIDE)!r}, os.R_OK))"
    )
    for box in boxes():
        if box.has_namespaces:
            with sandbox.workplace() as work:
                hidden = [Path(sys.prefix).parent, ROOT, Path("/usr/share")]
                process = box.start([sys.executable, "-c", script], work, hidden=hidden)
                output = process.communicate(timeout=60)[0].decode()
            assert "README.md" not in output, box
            assert "'course'" in output
            assert output.endswith("[] True\n")


def test_a_sandbox_that_is_named_must_work(monkeypatch):
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    sandbox.find.cache_clear()
    with pytest.raises(InputError, match="bwrap is not installed"):
        sandbox.find("bwrap")
    assert sandbox.find().kind == "none"
    sandbox.find.cache_clear()


def test_the_median_counts(npz, tmp_path, monkeypatch):
    """Of three seeds: one miss is slower than any, two fail it; a failure ends it at once."""
    exam = Exam(load(f"npz:{npz}", DATA), sandbox.find(), 60, 4_000_000_000)
    plan = []

    def run(content, seed, on_progress, inspect=False):
        assert seed == 5 + len(used)
        result = plan[len(used)]
        used.append(seed)
        stop = "failure" if result == "error" else "target" if result else "epochs"
        return Run(seed, stop == "target", stop, "" if result else "missed", result or 9.0, [0.6], [1.0], 1.0, 2.0, 4.0), {}

    monkeypatch.setattr(exam, "run", run)
    for plan[:], count_init, expected in (
        ([3.0, 1.0, 2.0], False, ("graded", "", 2.0, 3)),
        ([3.0, None, 2.0], False, ("graded", "", 3.0, 3)),
        ([3.0, 1.0, 2.0], True, ("graded", "", 9.0, 3)),
        ([None, 1.0, None], False, ("failed", "missed (2 of 3 runs missed it)", None, 3)),
        ([None, None, 2.0], False, ("failed", "missed (2 of 3 runs missed it)", None, 2)),
    ):
        used = []
        with Store(tmp_path / "s") as store:
            store.add(Submission(files(), "hw", (("A", "a"),), ("none",), ()))
            entry, content = store.take()
            grader = Grader(tmp_path / "s", exam, Rules(3, 5, count_init), {})
            state, reason, score, result = grader.grade(entry, content, store)
        assert (state, reason, score, len(result["runs"])) == expected


@pytest.mark.slow
def test_an_interrupted_grader_that_watched_queues_what_it_was_grading(npz, tmp_path):
    store = tmp_path / "store.sqlite"
    submit(tmp_path, store, {"ada": files()})
    process = processes.Process(*GRADE, store, "--dataset", f"npz:{npz}", "--watch", "--repeats", 1)
    wait_for(lambda: "\nwaiting for submissions" in process.output())
    assert process.output().startswith("#1 Ada (ada): hw\n")
    submit(tmp_path, store, {"bob": files("forward", "time.sleep(1000)")})
    wait_for(lambda: process.output().endswith("#2 Bob (bob): hw\n"))
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "interrupted"
    with Store(store) as opened:
        assert [entry.state for entry in opened.entries()] == ["graded", "queued"]


@pytest.mark.slow
def test_a_new_submission_stops_the_old_one_under_way(npz, tmp_path):
    store = tmp_path / "store.sqlite"
    submit(tmp_path, store, {"ada": files("forward", "time.sleep(1000)")})
    process = processes.Process(*GRADE, store, "--dataset", f"npz:{npz}", "--repeats", 1)
    wait_for(lambda: process.output() == "#1 Ada (ada): hw\n")
    submit(tmp_path / "again", store, {"ada": files()})
    output, _ = process.communicate(timeout=120)
    assert "#1 cancelled" in output
    assert "#2 graded" in output


def test_whatever_goes_wrong_in_the_grader_is_the_submissions_failure(npz, tmp_path, monkeypatch, capsys):
    """It is tried once more, behind the others; the queue goes on."""
    exam = Exam(load(f"npz:{npz}", DATA), sandbox.find(), 60, 4_000_000_000)
    seen = []

    def run(content, seed, on_progress, inspect=False):
        seen.append(content["model.py"][-3:])
        if seen[-1] == b"bad":
            raise OverflowError("cannot convert float infinity to integer")
        return Run(seed, True, "target", "", 2.0, [0.6], [1.0], 1.0, 2.0, 4.0), {}

    monkeypatch.setattr(exam, "run", run)
    with Store(tmp_path / "s") as store:
        for name in ("bad", "one", "two"):
            content = {"model.py": name.encode(), "config.py": b""}
            store.add(Submission(content, "hw", ((name, name),), ("none",), ()))
    Grader(tmp_path / "s", exam, Rules(1, 0, False), {"count_init": False}).work(watch=False)
    assert seen == [b"bad", b"one", b"two", b"bad"]
    with Store(tmp_path / "s") as store:
        bad, one, two = store.entries()
    assert (bad.state, one.state, two.state) == ("failed", "graded", "graded")
    assert "the grader failed (OverflowError: cannot convert float infinity to integer)" in bad.reason
    assert "Traceback" not in capsys.readouterr().err


def test_where_the_sandbox_or_the_disk_is_at_fault_the_submission_is_queued_again(npz, tmp_path, monkeypatch):
    exam = Exam(load(f"npz:{npz}", DATA), sandbox.find(), 60, 4_000_000_000)
    submit(tmp_path, tmp_path / "s", {"ada": files()})
    for error, word in (
        (InputError("the sandbox does not work"), "sandbox"),
        (OSError(errno.ENOSPC, "No space"), "the disk is full"),
    ):

        def run(*_, **__):
            raise error  # noqa: B023 (called before the loop goes on)

        monkeypatch.setattr(exam, "run", run)
        with pytest.raises(InputError, match=word):
            Grader(tmp_path / "s", exam, Rules(1, 0, False), {}).work(watch=False)
        with Store(tmp_path / "s") as store:
            assert store.get(1).state == "queued"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--timeout", "0"], "--timeout"),
        (["--timeout", "inf"], "--timeout"),
        (["--repeats", "0"], "--repeats"),
        (["--repeats", "1001"], "--repeats"),
        (["--seed", str(2**32 - 2)], "--seed"),  # the third run's would be one too many
        (["--threads", "99999999999"], "--threads"),
        (["--memory", "nan"], "--memory"),
        (["--jobs", "1000"], "cores"),
        (["--dataset", "x"], "data set"),
        (["--sandbox", "docker"], "--sandbox"),
        (["--memory", "0.01"], "sandbox does not work"),
    ],
)
def test_bad_arguments(arguments, word, tmp_path):
    submit(tmp_path, tmp_path / "s", {"ada": files()})
    assert_refused(run_main("grade", "--store", tmp_path / "s", "--dataset", "digits", *arguments), word)


def test_output_that_the_submission_has_read_itself_is_nothing_to_read():
    """It may open its own end of the pipe for reading too, and be faster than the grader."""
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)
    with open(ours, "rb") as stdout, open(theirs, "wb"):
        watched = Process.__new__(Process)
        watched.pipe, watched.printed = stdout, 0
        watched._read_output()
        assert watched.printed == 0
