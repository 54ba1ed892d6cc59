"""Hostile, broken and messy submissions, graded as a teacher does: each ends in what it deserves, the grader unharmed."""
import contextlib
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from config import InputError
from conftest import DATA, ROOT, assert_refused, needs_cifar10, run_main
from course import sandbox
from course.examiner import Exam, Run
from course.grading import Grader, Rules
from course.store import Store
from course.submission import Submission
from data import load

CLASSES = 4
MODEL = '''
import os, signal, socket, subprocess, sys, threading, time
import torch

class Model(torch.nn.Module):
    """A linear classifier of mean colours."""

    def __init__(self, num_channels: int, num_classes: int) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(num_channels, num_classes)
        self.passes = 0
        {init}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> logits (N, num_classes)."""
        self.passes += 1
        logits = self.layer(x.mean((2, 3)))
        {forward}
        return logits

{module}
'''
CONFIG = """
import torch
from torchvision.transforms import ToTensor

class CONFIG:
    batch_size = 20
    num_epochs = 8
    transforms = ToTensor()

    @staticmethod
    def optimizer_factory(model):
        return torch.optim.Adam(model.parameters(), lr=0.3)
"""


def files(place: str = "module", code: str = "", model: str = MODEL, config: str = CONFIG) -> dict[str, bytes]:
    """A good submission with `code` in Model.__init__ (init), in forward, or at the end of model.py (module)."""
    indent = {"init": 8, "forward": 8, "module": 0}[place]
    for name in ("init", "forward", "module"):
        text = code.strip().replace("\n", "\n" + " " * indent) if name == place else ""
        model = model.replace("{" + name + "}", text)
    return {"model.py": model.encode(), "config.py": config.encode()}


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    """Four colours with noise: 200 training and 80 test images of 28x28 pixels."""
    rng = np.random.default_rng(0)
    colours = np.array([[220, 30, 30], [30, 220, 30], [30, 30, 220], [200, 200, 200]])

    def split(count):
        labels = np.arange(count) % CLASSES
        return (colours[labels, None, None] + rng.integers(-20, 21, (count, 28, 28, 3))).astype(np.uint8), labels

    (train_x, train_y), (test_x, test_y) = split(200), split(80)
    path = tmp_path_factory.mktemp("hidden") / "colours.npz"
    np.savez(path, train_x=train_x, train_y=train_y, test_x=test_x, test_y=test_y)
    return path


def submit(folder: Path, store: Path, contents: dict[str, dict[str, bytes]], **fields: object) -> None:
    """Make a folder of each and submit them all with one command."""
    for name, content in contents.items():
        (folder / name).mkdir(parents=True)
        for file, data in content.items():
            (folder / name / file).write_bytes(data)
        (folder / name / "submission.json").write_text(json.dumps(
            {"assignment_name": "hw", "contributors": [{"name": name.title(), "pennkey": name}], "sources": ["none"], **fields}))
    result = run_main("submit", *(folder / name for name in contents), "--store", store)
    assert result.returncode == 0, result.stderr


def alive(seed: int) -> list[int]:
    """Processes that run, or are copies of one that runs, a submission with that seed."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f'"seed": {seed}'.encode() in (path / "cmdline").read_bytes():
                found.append(int(path.name))
    return found


HOSTILE_SEED = 710_000 + os.getpid()

# name -> (where, code, words that the reason must contain)
HOSTILE = {
    "loop_in_forward": ("forward", "while True: pass", ["not above 55% within 5 s: no epoch was finished"]),
    "loop_in_init": ("init", "while True: pass", ["still building its Model after 5 s"]),
    "loop_at_import": ("module", "while True: pass", ["still importing it after 5 s"]),
    "fork_bomb": ("module", """
while True:
    try:
        os.fork()
    except OSError:
        pass
""", ["processes at once while importing it; 64 are allowed"]),
    "survivor": ("forward", """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(1000)
raise ValueError("the child lives on")
""", ["ValueError: the child lives on in model.py line"]),
    "thirty_gigabytes": ("forward", "torch.zeros(30 * 2**28)", ["RuntimeError", "can't allocate memory"]),
    "thirty_gigabytes_of_python": ("module", "x = bytearray(30 << 30)", ["MemoryError"]),
    "writes_outside": ("module", """
error = None
for path in {places!r}:
    try:
        open(path, "w").close()
        os._exit(77)
    except OSError as problem:
        error = problem
raise error
""", ["Error"]),
    "reads_the_store": ("module", "open({store!r}, 'rb').read()", ["FileNotFoundError", "store.sqlite"]),
    "reads_the_labels": ("module", "open({npz!r}, 'rb').read()", ["FileNotFoundError", "colours.npz"]),
    "kills_its_parent": ("module", """
for pid in (os.getppid(), 1, {grader}, -1):
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        pass
raise ValueError("nobody else is left")
""", ["ValueError: nobody else is left"]),
    "opens_a_socket": ("init", "socket.create_connection(('127.0.0.1', {port}), 5)", ["OSError", "unreachable"]),
    "prints_a_fake_score": ("forward", """
print('{"at": "mark", "accuracy": 0.99}\\nreached 55% in 0.01 s, test accuracy after each epoch: 99.00%', flush=True)
logits = torch.zeros_like(logits) + 0 * logits
""", ["not above 55% in its num_epochs: the best of 8 epochs was 25.00%", "same prediction"]),
    "replaces_the_time": ("module", "time.time = lambda: 0.0", ["it replaced time.time"]),
    "replaces_the_clock_later": ("forward", "time.perf_counter = lambda: 0.0", ["it replaced time.perf_counter"]),
    "patches_the_loss": ("module", "torch.nn.CrossEntropyLoss = torch.nn.MSELoss", ["it replaced torch.nn.CrossEntropyLoss"]),
    "patches_the_losss_forward": ("init", "torch.nn.CrossEntropyLoss.forward = lambda self, logits, labels: logits.sum()",
                                  ["it replaced torch.nn.CrossEntropyLoss.forward"]),
    "patches_the_loader": ("init", "torch.utils.data.DataLoader.__iter__ = lambda self: iter(())",
                           ["it replaced torch.utils.data.DataLoader.__iter__"]),
    "patches_the_sampler_and_the_guard": ("module", """
import __main__
__main__.Guard.check = lambda self: None
torch.utils.data.RandomSampler.__iter__ = lambda self: iter(range(20))
""", ["an epoch of training had 20 instead of 200 images"]),
    "patches_the_accuracy": ("module", "import harness\nharness.LocalExaminer.mark = lambda *_: True",
                             ["it replaced harness.LocalExaminer.mark"]),
    "writes_into_the_channel": ("module", """
for fd in range(3, 50):
    try:
        os.write(fd, b'\\x00\\x00\\x00\\x0e{"at": "done"}')
    except OSError:
        pass
""", ["it disturbed the messages"]),
    "nan": ("forward", "logits = logits * float('nan')", ["not numbers (NaN) after epoch 1"]),
    "wrong_shape": ("forward", "logits = logits if self.training else logits[:, :2]", ["returned (80, 2)", "not (80, 4)"]),
    "wrong_shape_in_training": ("forward", "logits = logits[:, :2]", ["IndexError", "out of bounds"]),
    "constants": ("forward", "logits = 0 * logits", ["not above 55%", "every test image gets the same prediction"]),
    "exits_at_import": ("module", "sys.exit(0)", ["SystemExit: 0"]),
    "exits_at_once": ("init", "os._exit(0)", ["ended by itself (exit status 0) while building its Model"]),
    "crashes": ("forward", "import ctypes; ctypes.string_at(0)", ["ended by SIGSEGV while training, epoch 1"]),
    "a_long_log": ("init", "for _ in range(100_000): print('x' * 10_000)", ["printed more than 16 MB while building its Model"]),
    "a_long_file": ("init", "with open('log', 'wb') as log:\n    for _ in range(1000): log.write(bytes(1 << 20))",
                    ["OSError", "File too large"]),
    "commands_a_terminal": ("module", "raise ValueError('\\x1b[2Jgraded\\n#1 graded')", ["ValueError: \ufffd[2Jgraded #1 graded"]),
}


@pytest.fixture(scope="module")
def graded(npz, tmp_path_factory):
    """One grader after all of them, and a good one at the end: name -> its entry in the store, and what the grader printed."""
    folder = tmp_path_factory.mktemp("hostile")
    store = folder / "store.sqlite"
    places = [folder / "escaped", ROOT / "escaped", "/escaped", "/usr/escaped", "/etc/escaped", Path.home() / "escaped"]
    places = [str(path) for path in places]
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        known = {"{places!r}": repr(places), "{store!r}": repr(str(store)), "{npz!r}": repr(str(npz)),
                 "{port}": str(server.getsockname()[1]), "{grader}": str(os.getpid())}
        contents = {}
        for name, (place, code, _) in HOSTILE.items():
            for key, value in known.items():
                code = code.replace(key, value)
            contents[name] = files(place, code)
        submit(folder, store, {**contents, "good": files()})
        result = run_main("grade", "--store", store, "--dataset", f"npz:{npz}", "--timeout", 5, "--repeats", 1, "--jobs", 2,
                          "--threads", 1, "--seed", HOSTILE_SEED)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert not [path for path in places if os.path.exists(path)]
    assert result.returncode == 0, result.stderr
    with Store(store) as opened:
        return {entry.contributors[0][1]: entry for entry in opened.entries()}, result.stdout


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(graded, name):
    entries, output = graded
    entry = entries[name]
    assert (entry.state, entry.score) == ("failed", None)
    for word in HOSTILE[name][2]:
        assert word in entry.reason
    assert f"#{entry.id} failed: {entry.reason}" in output


def test_the_grader_is_unharmed(graded):
    entries, output = graded
    good = entries["good"]
    assert good.state == "graded", good.reason
    (run,) = good.result["runs"]
    assert run["accuracies"][-1] > 0.55
    assert good.score == run["seconds"] < 5
    assert good.result["parameters"] == 16
    assert "Traceback" not in output
    assert alive(HOSTILE_SEED) == []


MESSY = {
    "chatty": files("init", """
import logging, random, warnings
import numpy as np
from tqdm import tqdm
torch.manual_seed(1); np.random.seed(1); random.seed(1); torch.set_num_threads(2)
logging.basicConfig(level=logging.DEBUG)
logging.debug("caf\\u00e9 \\x1b[31m")
warnings.warn("careful")
for _ in tqdm(range(3)): print("building")
torch.save({}, "weights.pt"); open("/tmp/notes", "w").write("x")
"""),
    "scripted": files("init", """
self.layer = torch.jit.script(self.layer)
torch.jit.script(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()))(torch.zeros(1, 3, 28, 28))
""", config="""
import torch
from torchvision import transforms as T
class CONFIG:
    batch_size, num_epochs = 64, 50
    transforms = T.Compose([T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize([0.5] * 3, [0.5] * 3)])
    optimizer_factory = lambda model: torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9, nesterov=True)
"""),
    "log_probabilities": files("forward", "logits = torch.log_softmax(logits, 1)",
                               MODEL.replace(": torch.Tensor) -> torch.Tensor", ")")),
    "warmed_up": files("init", """
loss = torch.nn.CrossEntropyLoss()(self.layer(torch.rand(8, 3)), torch.arange(8) % 4)
loss.backward()
time.sleep(0.3)
"""),
}


def test_messy_ones_are_graded(npz, tmp_path):
    store = tmp_path / "store.sqlite"
    submit(tmp_path, store, MESSY, sources="the lecture's notes")
    result = run_main("grade", "--store", store, "--dataset", f"npz:{npz}", "--timeout", 120, "--repeats", 1, "--jobs", 2,
                      "--count-init")
    assert result.returncode == 0, result.stderr
    with Store(store) as opened:
        entries = {entry.contributors[0][1]: entry for entry in opened.entries()}
    assert {name: entry.state for name, entry in entries.items()} == dict.fromkeys(MESSY, "graded"), result.stdout
    assert entries["log_probabilities"].warnings != []
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
    with contextlib.ExitStack() as stack:
        def make(box: sandbox.Sandbox, timeout: float = 60, memory: int = 4_000_000_000, cifar10: Path | None = None) -> Exam:
            exam = Exam(load(f"npz:{npz}", DATA), box, timeout, memory, threads=1, cifar10=cifar10)
            stack.callback(exam.close)
            return exam
        yield make


@needs_cifar10
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


def test_every_kind_of_sandbox_ends_all_that_was_started(exam_for):
    code = """
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(1000)
        os._exit(0)
os._exit(3)
"""
    assert boxes()
    for i, box in enumerate(boxes()):
        seed = HOSTILE_SEED + 10_000_000 * (i + 1)
        run, _ = exam_for(box).run(files("forward", code), seed, lambda *_: None)
        assert "ended by itself (exit status 3) while training" in run.reason
        assert alive(seed) == [], box


def test_every_kind_of_sandbox_limits_memory_of_all_processes_together(exam_for):
    code = """
import mmap
blocks = [mmap.mmap(-1, 1 << 28, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS) for _ in range(4)]
for block in blocks:
    for page in range(0, 1 << 28, 4096): block[page] = 1
time.sleep(1000)
"""
    for box in boxes():
        run, _ = exam_for(box, memory=1_200_000_000).run(files("init", code), 0, lambda *_: None)
        assert "used more than 1.2 GB of memory while building its Model" in run.reason, box


def test_namespaces_work_here():
    """On Linux as root, or where the kernel lets users have them; without, hostile submissions would be less than contained."""
    box = sandbox.find()
    assert box.has_namespaces
    assert box.notices() == []
    assert "no namespaces here" in sandbox.Sandbox("none", None).notices()[0]


def test_what_is_hidden_among_the_systems_files(monkeypatch):
    """Even where Python itself, or the project's files, lie within."""
    monkeypatch.setattr(sandbox, "SYSTEM", (*sandbox.SYSTEM, str(Path(sys.prefix).parent), str(ROOT)))
    script = (f"import os, tqdm; print(os.listdir({str(ROOT)!r}), os.listdir('/usr/share'), "
              f"os.access({str(sandbox.INSIDE)!r}, os.R_OK))")
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
    monkeypatch.setenv("PATH", "/nowhere")
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
    exam.close()


def run_grader(store: Path, exam: Exam, seed: int) -> None:
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        Grader(store, exam, Rules(1, seed, False), {"count_init": False}).work(watch=False)


def test_killed_graders_lose_nothing(npz, exam_for, tmp_path):
    """20 graders are killed at random moments, the last one may finish; what was graded stays as it was."""
    store, seed = tmp_path / "store.sqlite", HOSTILE_SEED + 1
    submit(tmp_path, store, dict.fromkeys(("ada", "bob", "eve", "joe"), files()))
    exam = exam_for(sandbox.find())
    moments = random.Random(0)
    graded: dict[int, tuple] = {}
    context = multiprocessing.get_context("fork")
    for kill in [*[True] * 20, False]:
        grader = context.Process(target=run_grader, args=(store, exam, seed))
        grader.start()
        if kill:
            grader.join(moments.uniform(0, 4))
            os.kill(grader.pid, signal.SIGKILL)
        grader.join()
        assert grader.exitcode in (0, -signal.SIGKILL)
        with Store(store) as opened:
            entries = opened.entries()
        assert [entry.id for entry in entries] == [1, 2, 3, 4]
        assert {entry.state for entry in entries} <= {"queued", "graded"}
        now = {entry.id: (entry.score, entry.finished, entry.result) for entry in entries if entry.state == "graded"}
        assert now.items() >= graded.items()
        graded = now
    assert len(graded) == 4
    until = time.monotonic() + 60
    while alive(seed) and time.monotonic() < until:
        time.sleep(0.05)
    assert alive(seed) == []


def test_an_interrupted_grader_that_watched_queues_what_it_was_grading(npz, tmp_path):
    store = tmp_path / "store.sqlite"
    submit(tmp_path, store, {"ada": files()})
    process = subprocess.Popen([sys.executable, ROOT / "main.py", "grade", "--store", store, "--dataset", f"npz:{npz}",
                                "--watch", "--repeats", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)
    lines = iter(process.stdout.readline, "")
    assert next(lines) == "#1 Ada (ada): hw\n"
    assert any(line.startswith("waiting for submissions") for line in lines)
    submit(tmp_path, store, {"bob": files("forward", "time.sleep(1000)")})
    assert next(lines) == "#2 Bob (bob): hw\n"
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "interrupted"
    with Store(store) as opened:
        assert [entry.state for entry in opened.entries()] == ["graded", "queued"]


def test_a_new_submission_stops_the_old_one_under_way(npz, tmp_path):
    store = tmp_path / "store.sqlite"
    submit(tmp_path, store, {"ada": files("forward", "time.sleep(1000)")})
    process = subprocess.Popen([sys.executable, ROOT / "main.py", "grade", "--store", store, "--dataset", f"npz:{npz}", "--repeats",
                                "1"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "#1 Ada (ada): hw\n"
    submit(tmp_path / "again", store, {"ada": files()})
    output, _ = process.communicate(timeout=120)
    assert "#1 cancelled" in output
    assert "#2 graded" in output


@pytest.mark.parametrize(("arguments", "word"), [
    (["--timeout", "0"], "--timeout"), (["--repeats", "0"], "--repeats"), (["--jobs", "1000"], "cores"),
    (["--dataset", "x"], "data set"), (["--sandbox", "docker"], "--sandbox"), (["--memory", "0.01"], "sandbox does not work")])
def test_bad_arguments(arguments, word, tmp_path):
    submit(tmp_path, tmp_path / "s", {"ada": files()})
    assert_refused(run_main("grade", "--store", tmp_path / "s", "--dataset", "digits", *arguments), word)
