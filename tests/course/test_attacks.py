"""Ways to a false score, round a limit, or to stop the grader: what comes of each is a true score or a failure."""

import os
import platform
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from conftest import DATA, ROOT, run_main
from course import examiner, sandbox, workplace
from course.examiner import Exam, Shuffled, needed
from course.store import Store
from course.usage import BUFFER, keeps_to_our_cores, kept_by_descriptors
from images.data import load
from images.sources import Split
from made_up import CONFIG, alive, files, submit, write_colours

pytestmark = pytest.mark.slow  # as test_hostile.py

SEED = 740_000 + os.getpid()  # by which the processes are found
# System calls by their numbers on x86-64: what they would leave behind or go round.
FORBIDDEN = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
allowed = {
    "keyring": (248, b"user", b"weights", b"1234", 4, -4),
    "nested namespace": (272, 0x10000000),
    "page cache": (27, id(libc) & ~4095, 4096, ctypes.create_string_buffer(8)),
    "kernel log": (103, 10, 0, 0),
    "hidden descriptors": (157, 4, 0, 0, 0, 0),
    "shared memory": (29, 0, 4096, 0o1600),
    "memory in a file": (319, b"x", 0),
    "clone3": (435, 0, 0),
    "the host of a virtual machine": (41, 40, 1, 0),
    "the buffers of TCP": (41, 2, 1, 0),
    "datagrams": (53, 1, 2, 0, ctypes.create_string_buffer(8)),
    "a process in a namespace": (56, 0x10000000 | 17, 0, 0, 0, 0),
}
for name, arguments in list(allowed.items()):
    returned = libc.syscall(*arguments)
    if returned == 0 and arguments[0] == 56: os._exit(0)
    if returned < 0 and ctypes.get_errno() in (1, 38, 94, 97): del allowed[name]
before = os.stat("/dev/null").st_mtime_ns
for number in (132, 235): libc.syscall(number, b"/dev/null", 0)
for number in (261, 280): libc.syscall(number, -100, b"/dev/null", 0, 0)
if os.stat("/dev/null").st_mtime_ns != before: allowed["times of devices"] = ()
raise ValueError(list(allowed))
"""
# The harness's examiner, from within forward.
EXAMINER = (
    "frame = sys._getframe()\nwhile 'examiner' not in frame.f_locals: frame = frame.f_back\nexaminer = frame.f_locals['examiner']\n"
)

SENDS_INFINITY = """
import __main__
__main__.Guard.check = lambda self: None
__main__.inspect = lambda *_: {"parameters": float("inf"), "problem": ""}
"""

# name -> (where, code, state, what the reason matches)
ATTACKS = {
    "counts_infinity": (
        "forward",
        "if not self.training: self.parameters = lambda: [type('P', (), {'numel': lambda self: float('inf')})()]",
        "graded",
        "",
    ),
    "sends_infinity": ("module", SENDS_INFINITY, "graded", ""),
    "answers_by_index": (
        "forward",
        """
if not self.training:
    first, self.seen = getattr(self, "seen", 0), getattr(self, "seen", 0) + len(x)
    logits = torch.nn.functional.one_hot(torch.arange(first, first + len(x)) % 4, 4).float()
""",
        "failed",
        "not above 55% in its num_epochs",
    ),
    "forbidden_calls": ("module", FORBIDDEN, "failed", r"^ValueError: \[\] in"),
    "unlinked_files": (
        "init",
        """
kept = []
for i in range(6):
    kept.append(open(f"/tmp/{i}", "wb"))
    os.unlink(f"/tmp/{i}")
    for _ in range(200): kept[-1].write(bytes(1 << 20))
time.sleep(60)
""",
        "failed",
        "No space left|wrote more than 1 GB",
    ),
    "deep_folders": (
        "init",
        """
for i in range(1100):
    os.mkdir("d"); os.chdir("d")
for i in range(6):
    with open(f"{i}", "wb") as file:
        for _ in range(200): file.write(bytes(1 << 20))
time.sleep(60)
""",
        "failed",
        "No space left|wrote more than 1 GB",
    ),
    "sockets_without_a_descriptor": (
        "init",
        """
listeners = []
for i in range(60):
    listeners.append(socket.socket(socket.AF_UNIX))
    listeners[-1].bind(f"\\0{i}")
    listeners[-1].listen(100)
    for _ in range(100):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"\\0{i}")
            client.send(b"x")
time.sleep(60)
""",
        "failed",
        "wrote more than 1 GB",
    ),
    "reads_the_labels_of_digits": (
        "module",
        "from sklearn.datasets import load_digits\nload_digits()",
        "failed",
        "FileNotFoundError: .*digits.csv.gz",
    ),
    "parses_its_arguments": (
        "module",
        "import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument('--lr', default=0.3)\nparser.parse_args()",
        "graded",
        "",
    ),
    "says_much": ("module", "raise ValueError('x' * 200_000)", "failed", "^ValueError: xxx.*…$"),
    "forks_at_import": (
        "module",
        """
pid = os.fork()
if pid:
    os.waitpid(pid, 0)
    os._exit(0)
""",
        "graded",
        "",
    ),
    "is_busy_before_the_clock": (
        "module",
        """
def burn():
    end = time.process_time() + 0.5
    while time.process_time() < end: pass
thread = threading.Thread(target=burn)
thread.start()
pid = os.fork()
if pid == 0:
    burn()
    os._exit(0)
thread.join()
os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
""",
        "graded",
        "",
    ),
}


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    return write_colours(tmp_path_factory.mktemp("hidden") / "colours.npz")


@pytest.fixture(scope="module")
def graded(tmp_path_factory, npz):
    """One grader after all of them: name -> its entry in the store."""
    folder = tmp_path_factory.mktemp("attacks")
    store = folder / "store.sqlite"
    submit(folder, store, {name: files(place, code) for name, (place, code, *_) in ATTACKS.items()})
    arguments = ["--timeout", 20, "--repeats", 1, "--jobs", 2, "--threads", 1, "--seed", SEED]
    result = run_main("grade", "--store", store, "--dataset", f"npz:{npz}", *arguments)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert alive(SEED) == []
    with Store(store) as opened:
        return {entry.contributors[0][1]: entry for entry in opened.entries()}


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(graded, name):
    _, code, state, reason = ATTACKS[name]
    if code == FORBIDDEN and platform.machine() != "x86_64":
        pytest.skip("the numbers of the system calls are those of x86-64")
    entry = graded[name]
    assert entry.state == state, entry.reason
    assert re.search(reason, entry.reason)
    assert len(entry.reason) <= 300


def test_what_is_told_of_the_graded(graded):
    assert graded["counts_infinity"].result["parameters"] == 16
    assert "parameters" not in graded["sends_infinity"].result
    assert graded["sends_infinity"].result["problem"]
    assert graded["is_busy_before_the_clock"].result["runs"][0]["processor_seconds"] > 0.9


@pytest.fixture(scope="module")
def exam_for(npz):
    return lambda box, memory=4_000_000_000, data=npz, timeout=60: Exam(load(f"npz:{data}", DATA), box, timeout, memory, threads=1)


def guess(before: str) -> dict[str, bytes]:
    """Claims the end of an epoch with random outputs, again and again."""
    code = EXAMINER + (
        f"{before}\n"
        "generator = torch.Generator()\n"
        "while True:\n"
        "    images = examiner.test_set()\n"
        "    if examiner.mark(torch.rand(len(images), 2, generator=generator), images.labels): break\n"
    )
    return files("forward", code, config=CONFIG.replace("num_epochs = 8", "num_epochs = 10**6"))


def test_guessing_until_the_target_is_reached(exam_for, tmp_path):
    """With two classes and a hundred images a guess in seven is above 55%."""
    rng, labels = np.random.default_rng(0), np.arange(100) % 2
    images = rng.integers(0, 256, (100, 28, 28, 3), dtype=np.uint8)
    np.savez(tmp_path / "two.npz", train_x=images, train_y=labels, test_x=images, test_y=labels)
    exam = exam_for(sandbox.find(), data=tmp_path / "two.npz")
    run, _ = exam.run(guess("examiner.guard.check = lambda: None"), 0, lambda *_: None)
    assert not run.reached
    assert re.search(r"its epoch \d+ took .* s: a pass over the images takes", run.reason)
    run, _ = exam.run(guess(""), 0, lambda *_: None)
    assert not run.reached
    assert len(run.accuracies) == examiner.MAX_LOOKS == 200
    assert max(run.accuracies) > 0.55  # none of 200 guesses is once in 10^12 times
    assert re.match(r"not 7\d\.\d\d%, beyond luck, in 200 tests, which are the most: the best of 200", run.reason)


def test_what_is_needed_is_beyond_luck():
    def evenly(count, classes):
        return needed(np.arange(count) % classes)

    assert [evenly(10_000, 10), evenly(10_000, 100), evenly(80, 4), evenly(20, 10), evenly(100, 20)] == [5501, 5501, 45, 12, 56]
    two = evenly(300, 2)
    best = np.random.default_rng(0).binomial(300, 0.5, (1000, 200)).max(1)
    assert two < 200
    assert (best >= two).mean() < 0.01


def test_each_run_has_an_order_of_its_own_and_memory_of_its_own():
    split = Split(np.arange(50, dtype=np.uint8)[:, None, None, None].repeat(3, 3), np.arange(50))
    with Shuffled(split, True) as one, Shuffled(split, True) as other, Shuffled(split, False) as test:
        assert one.labels.tolist() != other.labels.tolist() != sorted(other.labels)
        for shuffled in (one, other):
            content = os.pread(shuffled.fd, 10_000, 0)
            assert np.frombuffer(content[:150], np.uint8).reshape(50, 3)[:, 1].tolist() == shuffled.labels.tolist()
            assert np.frombuffer(content[150:], np.int64).tolist() == shuffled.labels.tolist()
        assert os.fstat(one.fd).st_ino != os.fstat(other.fd).st_ino
        assert os.fstat(test.fd).st_size == 150  # no labels
        with pytest.raises(OSError, match="not permitted"):
            os.pwrite(one.fd, b"x", 0)


def test_each_run_has_a_user_of_its_own():
    box = sandbox.Sandbox("bwrap", 1)
    assert len({box.fresh().user for _ in range(10)}) == 10
    assert sandbox.Sandbox("bwrap", None).fresh().user is None


def test_why_there_are_no_namespaces():
    """Whether nothing else works, or nothing else was wanted."""
    *_, asked = sandbox.find("none").notices()
    assert asked.startswith("no namespaces as you asked with --sandbox none:")
    *_, found = sandbox.Sandbox("none", None).notices()
    assert found.startswith("no namespaces here (neither bubblewrap nor unshare works):")


def test_without_namespaces_there_is_no_network_and_what_cannot_be_counted_is_a_failure(exam_for):
    box = sandbox.find("none")
    run, _ = exam_for(box).run(files("module", "socket.create_server(('127.0.0.1', 0))"), SEED, lambda *_: None)
    assert "Address family not supported" in run.reason
    for name, reason in (
        ("unlinked_files", "wrote more than 1 GB"),
        ("deep_folders", "folders that cannot be counted|more than 1 GB"),
    ):
        run, _ = exam_for(box).run(files(*ATTACKS[name][:2]), SEED, lambda *_: None)
        assert re.search(reason, run.reason)
    assert alive(SEED) == []


def test_what_is_counted_by_descriptors(tmp_path):
    """Memory without a name, however many descriptors of it there are, files that are unlinked, pipes and sockets."""
    script = f"""
import os, socket, time
memory = os.memfd_create("x")
os.write(memory, bytes(1 << 20))
other = os.dup(memory)
file = open({str(tmp_path / "file")!r}, "wb", 0)
file.write(bytes(1 << 20))
os.unlink(file.name)
named = open({str(tmp_path / "named")!r}, "wb", 0)
named.write(bytes(1 << 20))
pipe, pair = os.pipe(), socket.socketpair()
print("there", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"there\n"
        kept, is_all = kept_by_descriptors({process.pid}, set(), set())
        process.kill()
    assert is_all
    # Both ends of a pipe are one; its output is another one.
    assert abs(kept - (2 << 20) - 4 * BUFFER) < 1 << 16


needs_cores = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")


@needs_cores
def test_a_neighbours_core_is_not_to_be_had(exam_for):
    """Neither by asking for it, nor, where the filter is missing, unnoticed."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        code = f"os.sched_setaffinity(0, {cores})\nraise ValueError(os.sched_getaffinity(0))"
        run, _ = exam_for(sandbox.find()).run(files("module", code), 0, lambda *_: None)
        assert f"ValueError: {{{min(cores)}}}" in run.reason
        with subprocess.Popen(["sleep", "60"]) as process:
            assert keeps_to_our_cores(process.pid)
            os.sched_setaffinity(process.pid, cores)
            assert not keeps_to_our_cores(process.pid)
            process.kill()
    finally:
        os.sched_setaffinity(0, cores)


def test_workplaces_of_killed_graders_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(workplace.tempfile, "tempdir", str(tmp_path))
    (tmp_path / f"{workplace.NAME}left" / "tmp").mkdir(parents=True)
    (tmp_path / f"{workplace.NAME}left" / "tmp" / "log").write_bytes(bytes(1000))
    (tmp_path / "other").mkdir()
    (tmp_path / f"{workplace.NAME}link").symlink_to(tmp_path / "other")
    with workplace.workplace() as work:
        workplace.remove_leftovers()
        assert {path.name for path in tmp_path.iterdir()} == {work.name, "other", f"{workplace.NAME}link"}


def test_a_control_group_where_systemd_makes_them(tmp_path, monkeypatch):
    """With a stand-in for systemd-run that notes its arguments: the command runs in it, with no variable of the grader's."""
    stand_in = tmp_path / "systemd-run"
    stand_in.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$*" >> {tmp_path}/asked\nwhile [ "$1" != sh ] && [ "$1" != env ]; do shift; done\n'
        f'if [ "$1" = sh ]; then echo 4000000000; else exec "$@"; fi\n'
    )
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SECRET_OF_THE_GRADER", "1")
    sandbox.control_group.cache_clear()
    try:
        group = sandbox.control_group(4_000_000_000, 320)
        script = "import os; print(sorted(os.environ))"
        with workplace.workplace() as work:
            process = sandbox.find().start([sys.executable, "-c", script], work, group=group)
            output = process.communicate(timeout=60)[0].decode()
    finally:
        sandbox.control_group.cache_clear()
    assert "GOMP_SPINCOUNT" in output
    assert "SECRET" not in output
    asked = (tmp_path / "asked").read_text()
    for limit in ("MemoryMax=4000000000", "TasksMax=320", "AllowedCPUs="):
        assert limit in asked


# The first process of the namespaces has no filter: who writes to its memory has none, either.
FIRST_PROCESS = """
for name in ("mem", "fd/0"):
    try: os.open(f"/proc/1/{name}", os.O_RDWR)
    except PermissionError: continue
    raise ValueError(f"{name} of process 1 can be opened")
"""


# The descriptors of a program that nobody may read are closed to a grader of the same user.
UNREADABLE = """
shutil.copy("/bin/sleep", "unreadable")
os.chmod("unreadable", 0o111)
subprocess.run(["./unreadable", "10"])
"""


@pytest.mark.parametrize("kind", ["bwrap", "unshare", "none"])
def test_a_grader_that_is_not_root(tmp_path, npz, kind):
    """In a user namespace, where this user is another one and has no rights."""
    if kind != "none" and not shutil.which(kind):
        pytest.skip(f"no {kind}")
    enter = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]
    if subprocess.run([*enter, "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    store = tmp_path / "store.sqlite"
    if kind == "none":
        contents = {"ada": files(), "hides": files("init", f"import shutil{UNREADABLE}")}
    else:
        code = f"{FIRST_PROCESS}assert not os.path.exists({str(store)!r})"
        contents = {"ada": files("module", code), "deep": files(*ATTACKS["deep_folders"][:2])}
    submit(tmp_path, store, contents)
    command = [
        sys.executable,
        ROOT / "main.py",
        "grade",
        "--store",
        store,
        "--dataset",
        f"npz:{npz}",
        "--repeats",
        "1",
        "--seed",
        str(SEED),
        "--sandbox",
        kind,
    ]
    result = subprocess.run([*enter, *command], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    with Store(store) as opened:
        ada, other = opened.entries()
    assert ada.state == "graded", ada.reason
    assert ada.result["sandbox"] == kind
    assert re.search("No space left|wrote more than 1 GB|ran a program whose files cannot be counted", other.reason)
    assert alive(SEED) == []
