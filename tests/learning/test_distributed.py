"""Several processes, really started: the same training as in one, and what becomes of it when one is missing, killed or stopped."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.run
from torch import nn

import processes
from config import InputError
from conftest import ROOT, assert_refused, random_split, run_main
from images import data
from learning import distributed
from learning.weights import load_checkpoint
from processes import wait_for
from test_training import SMALL, make_trainer, outcome

TORCHRUN = [torch.distributed.run.__file__, "--standalone", "--nproc_per_node"]
# The learning rate is small because training amplifies differences in rounding, on some processors a hundredfold in 60 steps.
TRAIN = (
    "--batch-size 16 --val-images 101 --augment 0 --precision fp32 --optimizer sgd --max-lr 0.003 --steps 60 --eval-every 6 "
    "--checkpoint-every 4 --ema-decay 0.9"
)


def environment(**changes: object) -> dict[str, str]:
    """That of the first process of two, by the names that torchrun gives."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1], "WORLD_SIZE": 2, "RANK": 0}
    return os.environ | {name: str(value) for name, value in (group | changes).items()}


def run_group(size: int, script: Path, *arguments: object) -> list[subprocess.CompletedProcess]:
    """`script` in a group of `size` processes, without torchrun."""
    first = environment(WORLD_SIZE=size, PYTHONPATH=ROOT)
    group = [processes.Process(script, *arguments, env=first | {"RANK": str(rank)}) for rank in range(size)]
    results = []
    for process in group:
        output, errors = process.communicate(timeout=300)
        results.append(subprocess.CompletedProcess(process.command, process.returncode, output, errors))
    assert not any(result.returncode for result in results), results
    return results


def train_arguments(shapes_npz: Path, out: Path, *more: object) -> list[object]:
    return ["train", "--dataset", f"npz:{shapes_npz}", "--out", out, *TRAIN.split(), *more]


@pytest.fixture(scope="module")
def whole(shapes_npz, tmp_path_factory) -> tuple[Path, str]:
    """The folder and the output of the run in one process that the others are compared with."""
    out = tmp_path_factory.mktemp("whole")
    return out, processes.run(ROOT / "main.py", *train_arguments(shapes_npz, out), check=True).stdout


def our_lines(stderr: str) -> list[str]:
    """What main.py itself wrote on stderr: torchrun writes a summary of its own."""
    return [line for line in stderr.splitlines() if line.startswith(("error:", "interrupted"))]


def assert_same_run(one: Path, other: Path) -> None:
    (one_state, one_history), (other_state, other_history) = outcome(one), outcome(other)
    assert len(one_history.evaluations) == len(other_history.evaluations)
    for a, b in zip(one_history.evaluations, other_history.evaluations, strict=True):
        assert (a.step, a.images_seen, a.epoch, a.learning_rate) == (b.step, b.images_seen, b.epoch, b.learning_rate)
        assert a.train_loss == pytest.approx(b.train_loss, abs=1e-5)
        assert a.val_loss == pytest.approx(b.val_loss, abs=1e-5)
        assert a.train_accuracy == pytest.approx(b.train_accuracy, abs=1.5 / 16)  # an image may lie on the boundary
        assert a.val_accuracy == pytest.approx(b.val_accuracy, abs=1.5 / 101)
    for part in ("model", "trained"):
        torch.testing.assert_close(one_state[part], other_state[part], atol=1e-4, rtol=1e-3)  # the same names, too


BATCH_NORM = """
import sys, torch
from learning import distributed
from torch import nn
from utils import seed_everything

with distributed.group(torch.device("cpu")):
    given = torch.load(sys.argv[1])
    layer = nn.Sequential(nn.BatchNorm2d(6, momentum=0.3))
    layer.load_state_dict(given["state"])
    network = distributed.wrap(layer, compiled=False)
    mine = distributed.part(8)
    outputs = []
    for x, weights in zip(given["inputs"], given["weights"]):
        x = x[mine].clone().requires_grad_()
        y = network(x)
        (y * weights[mine]).mean().backward()
        outputs.append((y.detach(), x.grad / distributed.size()))  # the loss is the mean of the processes' losses
    gradients = [p.grad for p in layer.parameters()]
    layer.eval()
    alone = layer(given["inputs"][0][:3])  # evaluation waits for nobody: the other process does not come here
    torch.save((outputs, gradients, layer.state_dict(), alone), f"{sys.argv[2]}/{distributed.rank()}.pt")
"""


@pytest.mark.slow
def test_batch_norm_is_that_of_the_whole_batch(tmp_path):
    torch.manual_seed(0)
    layer = nn.BatchNorm2d(6, momentum=0.3)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    layer.weight.data[0] = 0  # as at the start of a residual layer
    # Different means in the two halves, and a channel whose mean is large beside its deviation
    inputs = [
        torch.randn(8, 6, 5, 4) * 2 + torch.arange(8.0).view(8, 1, 1, 1) + 4 * torch.arange(6.0).view(6, 1, 1) for _ in range(2)
    ]
    inputs[1] = inputs[1].to(memory_format=torch.channels_last)
    weights = [torch.randn_like(x) for x in inputs]
    torch.save({"state": nn.Sequential(layer).state_dict(), "inputs": inputs, "weights": weights}, tmp_path / "given.pt")
    (tmp_path / "script.py").write_text(BATCH_NORM)
    run_group(2, tmp_path / "script.py", tmp_path / "given.pt", tmp_path)

    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for i, (x, weight) in enumerate(zip(inputs, weights, strict=True)):
        x.requires_grad_()
        y = layer(x)
        (y * weight).mean().backward()
        for part, expected in ((0, y), (1, x.grad)):
            torch.testing.assert_close(torch.cat([outputs[i][part] for outputs, *_ in found]), expected, atol=1e-5, rtol=1e-5)
    layer.eval()
    for _, gradients, state, alone in found:
        torch.testing.assert_close(gradients, [layer.weight.grad, layer.bias.grad], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(state, nn.Sequential(layer).state_dict(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(alone, layer(inputs[0][:3]), atol=1e-5, rtol=1e-5)


SEEN = """
import sys, torch
from pathlib import Path
from config import TrainConfig
from images import data
from learning import distributed
from training import Trainer

class Recorder(torch.nn.Sequential):
    seen = []
    def forward(self, x):
        if self.training:
            self.seen.append(x.clone())
        return super().forward(x)

with distributed.group(torch.device("cpu")):
    model = Recorder(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 10))
    config = TrainConfig(epochs=2, batch_size=20, val_images=50, workers=0, device="cpu", precision="fp32")
    trainer = Trainer(model, data.load(f"npz:{sys.argv[1]}", Path()), config)
    trainer.fit()
    images = data.normalise(torch.from_numpy(trainer.train_split.images), trainer.mean, trainer.std)
    torch.save((Recorder.seen, images, trainer.model.state_dict()), f"{sys.argv[2]}/{distributed.rank()}.pt")
"""


@pytest.mark.slow
def test_each_image_is_seen_by_one_process_once_an_epoch(tmp_path):
    train_split, test_split = random_split(450), random_split(50)
    np.savez(
        tmp_path / "data.npz",
        train_x=train_split.images,
        train_y=train_split.labels,
        test_x=test_split.images,
        test_y=test_split.labels,
    )
    (tmp_path / "script.py").write_text(SEEN)
    run_group(2, tmp_path / "script.py", tmp_path / "data.npz", tmp_path)
    (seen, images, state), (other_seen, _, other_state) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert [len(x) for x in seen] == [len(x) for x in other_seen] == [10] * 2 * 20
    index = {image.numpy().tobytes(): i for i, image in enumerate(images)}
    for epoch in range(2):
        of_epoch = [index[image.numpy().tobytes()] for x in (seen, other_seen) for batch in x[20 * epoch :][:20] for image in batch]
        assert sorted(of_epoch) == list(range(400))
    assert all(torch.equal(state[name], other_state[name]) for name in state)  # the same weights, to the bit


def test_two_processes_train_as_one(shapes_npz, whole, tmp_path):
    out, stdout = whole
    first, second = run_group(2, ROOT / "main.py", *train_arguments(shapes_npz, tmp_path))
    assert_same_run(out, tmp_path)
    assert first.stdout.count("Trainable params") == first.stdout.count("test accuracy") == 1
    figures = [re.search(r"test accuracy (\S+)% .*validation accuracy (\S+)%", text).groups() for text in (stdout, first.stdout)]
    assert np.abs(np.diff(np.array(figures, float), axis=0)).max() < 1.5
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint.pt",
        "log.csv",
        "model.json",
        "model.safetensors",
        "run.json",
    ]
    assert "Warning" not in first.stderr
    assert second.stdout == second.stderr == ""  # one process speaks


def begun(shapes_npz: Path, out: Path) -> tuple[processes.Process, dict[int, int]]:
    """torchrun with two processes that have written their first checkpoint, and their ranks and process ids."""
    process = processes.Process(*TORCHRUN, 2, ROOT / "main.py", *train_arguments(shapes_npz, out))
    wait_for(lambda: process.poll() is not None or (out / "checkpoint.pt").exists(), seconds=300)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = {pid: re.search(rb"\0RANK=(\d)", Path(f"/proc/{pid}/environ").read_bytes()) for pid in children}
    return process, {int(match[1]): int(pid) for pid, match in ranks.items() if match}


needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the processes in Linux's /proc")


@needs_proc
@pytest.mark.parametrize(("victim", "size_after"), [(0, 2), (1, 1)])
@pytest.mark.slow
def test_killed_process_ends_the_job_in_a_line_and_the_run_goes_on(shapes_npz, whole, tmp_path, victim, size_after):
    process, workers = begun(shapes_npz, tmp_path)
    os.kill(workers[victim], signal.SIGKILL)
    _, errors = process.communicate(timeout=300)
    assert process.returncode != 0
    (line,) = our_lines(errors)
    assert re.match(
        r"error: another of the 2 processes was lost after step \d+ of 60; the last good checkpoint is "
        r".*/checkpoint\.pt: the same command with --resume",
        line,
    ), errors
    assert 'main.py", line' not in errors  # no traceback of ours
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers.values())
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] >= 4
    run_group(size_after, ROOT / "main.py", *train_arguments(shapes_npz, tmp_path, "--resume"))
    assert_same_run(whole[0], tmp_path)


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_stopped_group_saves(shapes_npz, tmp_path, signum):
    process, workers = begun(shapes_npz, tmp_path)
    process.send_signal(signum)  # torchrun's workers have sessions of their own: it passes the signal on to them
    _, errors = process.communicate(timeout=300)
    assert process.returncode != 0
    (line,) = our_lines(errors)
    step = int(re.match(r"interrupted: after step (\d+) of 60, saved in .*--resume", line)[1])
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == step
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers.values())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"RANK": 0}, ["process 0 could not join the 2 processes", "at 127.0.0.1:", "within 2 s", "CONVSPRINT_JOIN_SECONDS"]),
        pytest.param(
            {"RANK": 1},
            ["process 1 could not join the 2 processes", "at 127.0.0.1:", "within 2 s", "torchrun"],
            marks=pytest.mark.slow,
        ),
        ({"RANK": 2}, ["RANK is 2 and WORLD_SIZE 2"]),
        ({"RANK": "first"}, ["RANK is 'first'", "torchrun"]),
        ({"MASTER_PORT": ""}, ["MASTER_PORT", "torchrun"]),
    ],
)
def test_group_that_does_not_come_together(shapes_npz, tmp_path, changes, words):
    command = [ROOT / "main.py", "train", "--dataset", f"npz:{shapes_npz}", "--out", tmp_path / "out"]
    env = environment(CONVSPRINT_JOIN_SECONDS=2, **changes)
    if changes == {"RANK": 1}:  # torch's own messages are turned off before it is imported
        result = subprocess.run([sys.executable, *map(str, command)], env=env, text=True, capture_output=True)
    else:
        result = processes.run(*command, env=env)
    assert_refused(result, *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(["--batch-size", 65], "batch size 65 must be a multiple of", marks=pytest.mark.slow),
        pytest.param(["--max-lr", 1e30], "try a lower max_lr", marks=pytest.mark.slow),
        # Found by process 0 while the other waits.
        pytest.param(["--dataset", "npz:nothing.npz"], "nothing.npz", marks=pytest.mark.slow),
    ],
)
def test_error_is_said_once(shapes_npz, tmp_path, arguments, words):
    result = processes.run(*TORCHRUN, 2, ROOT / "main.py", *train_arguments(shapes_npz, tmp_path, *arguments))
    assert result.returncode != 0
    (line,) = our_lines(result.stderr)
    assert words in line
    assert "exitcode  : 2" in result.stderr
    assert 'main.py", line' not in result.stderr


def test_losses_read_rarely_are_the_same(shapes_npz):
    """As on an accelerator, where each reading waits for it."""
    dataset = data.load(f"npz:{shapes_npz}", ROOT)
    each, rare = (make_trainer(dataset, replace(SMALL, eval_every=15)) for _ in range(2))
    rare.read_every = 10
    assert rare.fit().evaluations == each.fit().evaluations

    failing = make_trainer(dataset, SMALL)
    failing.read_every = 10
    original = failing.model.forward
    failing.model.forward = lambda x: original(x) * (float("nan") if failing.step == 7 else 1)
    with pytest.raises(InputError, match=r"the loss became nan at step 8 of 38"):
        failing.fit()
    assert failing.step == 9  # when it was noticed


def test_parts_are_disjoint_and_complete(monkeypatch):
    for count in (1, 2, 3, 7):
        parts = []
        for rank in range(count):
            monkeypatch.setattr(distributed, "size", lambda: count)  # noqa: B023 (called at once)
            monkeypatch.setattr(distributed, "rank", lambda: rank)  # noqa: B023
            parts += list(range(5))[distributed.part(5)]
        assert parts == list(range(5))


COMPILED = """
import dataclasses, sys, torch
from images import data
from learning import distributed
from pathlib import Path
from config import TrainConfig
from training import Trainer
from utils import seed_everything

with distributed.group(torch.device("cpu")):
    dataset = data.load(f"npz:{sys.argv[1]}", Path())
    states = []
    for compiled in (False, True):
        seed_everything(0)
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 5, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(),
                                    torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 10))
        trainer = Trainer(model, dataset, TrainConfig(steps=3, batch_size=20, val_images=50, whiten_images=50, optimizer="sgd",
                          ema_decay=0.5, device="cpu", precision="fp32", compile=compiled))
        trainer.fit()
        states.append((model.state_dict(), trainer.trained_model.state_dict()))
    assert list(states[1][0]) == ["0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var",
                                  "1.num_batches_tracked", "5.weight", "5.bias"]
    torch.testing.assert_close(*states)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
"""


@pytest.mark.slow  # compiles for half a minute
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("size", [1, 2])
def test_compiled_training_is_the_same(shapes_npz, tmp_path, size):
    (tmp_path / "script.py").write_text(COMPILED)
    run_group(size, tmp_path / "script.py", shapes_npz)


def test_compiling_needs_a_compiler(shapes_npz, tmp_path):
    (tmp_path / "bin").mkdir()
    result = run_main(
        "train",
        "--dataset",
        f"npz:{shapes_npz}",
        "--compile",
        "--out",
        tmp_path / "out",
        env=os.environ | {"PATH": str(tmp_path / "bin"), "CXX": "none"},
    )
    assert_refused(result, "C++ compiler")
