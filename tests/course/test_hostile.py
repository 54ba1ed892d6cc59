"""Hostile and broken submissions, graded as a teacher does: each ends in a clear failure, the grader unharmed."""

import os
import socket
from pathlib import Path

import pytest

from conftest import ROOT, run_main
from course.store import Store
from made_up import alive, files, submit, write_colours

pytestmark = pytest.mark.slow  # two dozen submissions, each with some seconds of its own; test_grading.py grades a few

SEED = 710_000 + os.getpid()  # by which the processes are found

# name -> (where, code, words that the reason must contain; of words in a tuple, one)
HOSTILE = {
    "loop_in_forward": ("forward", "while True: pass", ["not above 55% within 3 s: no epoch was finished"]),
    "loop_in_init": ("init", "while True: pass", ["still building its Model after 3 s"]),
    "loop_at_import": ("module", "while True: pass", ["still importing it after 3 s"]),
    "fork_bomb": (
        "module",
        """
while True:
    try:
        os.fork()
    except OSError:
        pass
""",
        # On a busy machine, time may be up before they are counted.
        [("processes at once while importing it; 64 are allowed", "it was still importing it after 3 s")],
    ),
    "many_processes": (
        "module",
        # Programs, which start at once: copies of this process would be slow to come up to 64 on a busy machine.
        """
others = [subprocess.Popen(["sleep", "60"]) for _ in range(70)]
time.sleep(60)
""",
        ["processes at once while importing it; 64 are allowed"],
    ),
    "thirty_gigabytes": ("forward", "torch.zeros(30 * 2**28)", ["RuntimeError", "can't allocate memory"]),
    "writes_outside": (
        "module",
        """
error = None
for path in {places!r}:
    try:
        open(path, "w").close()
        os._exit(77)
    except OSError as problem:
        error = problem
raise error
""",
        ["Error"],
    ),
    "reads_the_store": ("module", "open({store!r}, 'rb').read()", ["FileNotFoundError", "store.sqlite"]),
    "reads_the_labels": ("module", "open({npz!r}, 'rb').read()", ["FileNotFoundError", "colours.npz"]),
    "kills_its_parent": (
        "module",
        """
for pid in (os.getppid(), 1, {grader}, -1):
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        pass
raise ValueError("nobody else is left")
""",
        ["ValueError: nobody else is left"],
    ),
    "opens_a_socket": ("init", "socket.create_connection(('127.0.0.1', {port}), 5)", ["Error: [Errno"]),
    "prints_a_fake_score": (
        "forward",
        """
print('{"at": "mark", "accuracy": 0.99}\\nreached 55% in 0.01 s, test accuracy after each epoch: 99.00%', flush=True)
logits = torch.zeros_like(logits) + 0 * logits
""",
        ["not above 55% ", "epochs was 25.00%", "same prediction"],
    ),
    "replaces_the_time": ("forward", "time.time = lambda: 0.0", ["it replaced time.time"]),
    "patches_the_loss": ("module", "torch.nn.CrossEntropyLoss = torch.nn.MSELoss", ["it replaced torch.nn.CrossEntropyLoss"]),
    "patches_the_loader": (
        "init",
        "torch.utils.data.DataLoader.__iter__ = lambda self: iter(())",
        ["it replaced torch.utils.data.DataLoader.__iter__"],
    ),
    "patches_the_sampler_and_the_guard": (
        "module",
        """
import __main__
__main__.Guard.check = lambda self: None
torch.utils.data.RandomSampler.__iter__ = lambda self: iter(range(20))
""",
        ["an epoch of training had 20 instead of 200 images"],
    ),
    "patches_the_accuracy": (
        "module",
        "import harness\nharness.LocalExaminer.mark = lambda *_: True",
        ["it replaced harness.LocalExaminer.mark"],
    ),
    "writes_into_the_channel": (
        "module",
        """
for fd in range(3, 50):
    try:
        os.write(fd, b'\\x00\\x00\\x00\\x0e{"at": "done"}')
    except OSError:
        pass
""",
        ["it disturbed the messages"],
    ),
    "nan": ("forward", "logits = logits * float('nan')", ["not numbers (NaN) after epoch 1"]),
    "wrong_shape": ("forward", "logits = logits if self.training else logits[:, :2]", ["returned (80, 2)", "not (80, 4)"]),
    "constants": ("forward", "logits = 0 * logits", ["not above 55%", "every test image gets the same prediction"]),
    "exits_at_import": ("module", "sys.exit(0)", ["SystemExit: 0"]),
    "exits_at_once": ("init", "os._exit(0)", ["ended by itself (exit status 0) while building its Model"]),
    "crashes": ("forward", "import ctypes; ctypes.string_at(0)", ["ended by SIGSEGV while training, epoch 1"]),
    "a_long_log": ("init", "for _ in range(100_000): print('x' * 10_000)", ["printed more than 16 MB while building its Model"]),
    "a_long_file": (
        "init",
        "with open('log', 'wb') as log:\n    for _ in range(1000): log.write(bytes(1 << 20))",
        ["OSError", "File too large"],
    ),
    "commands_a_terminal": ("module", "raise ValueError('\\x1b[2Jgraded\\n#1 graded')", ["ValueError: \ufffd[2Jgraded #1 graded"]),
}


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """One grader after all of them, and a good one at the end: name -> its entry in the store, and what the grader printed."""
    folder = tmp_path_factory.mktemp("hostile")
    npz = write_colours(tmp_path_factory.mktemp("hidden") / "colours.npz")
    store = folder / "store.sqlite"
    places = [folder / "escaped", ROOT / "escaped", "/escaped", "/usr/escaped", "/etc/escaped", Path.home() / "escaped"]
    places = [str(path) for path in places]
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        known = {
            "{places!r}": repr(places),
            "{store!r}": repr(str(store)),
            "{npz!r}": repr(str(npz)),
            "{port}": str(server.getsockname()[1]),
            "{grader}": str(os.getpid()),
        }
        contents = {}
        for name, (place, code, _) in HOSTILE.items():
            for key, value in known.items():
                code = code.replace(key, value)
            contents[name] = files(place, code)
        submit(folder, store, {**contents, "good": files()})
        result = run_main(
            "grade",
            "--store",
            store,
            "--dataset",
            f"npz:{npz}",
            "--timeout",
            3,
            "--repeats",
            1,
            "--jobs",
            2,
            "--threads",
            1,
            "--seed",
            SEED,
        )
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
        assert any(one in entry.reason for one in ((word,) if isinstance(word, str) else word))
    assert f"#{entry.id} failed: {entry.reason}" in output


def test_the_grader_is_unharmed(graded):
    entries, output = graded
    good = entries["good"]
    assert good.state == "graded", good.reason
    (run,) = good.result["runs"]
    assert run["accuracies"][-1] > 0.55
    assert good.score == run["seconds"] < 3
    assert good.result["parameters"] == 16
    assert "Traceback" not in output
    assert alive(SEED) == []
