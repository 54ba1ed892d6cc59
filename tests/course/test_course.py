"""The course's harness counts and stops as the course does; model.py and config.py alone win in it."""

import json
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import processes
from conftest import DATA, ROOT, assert_refused, needs_cifar10, run_main
from course import harness

CLASSES, TRAIN_IMAGES, TEST_IMAGES = 10, 30, 20


def run_harness(*arguments: object) -> subprocess.CompletedProcess:
    return processes.run(ROOT / "course" / "harness.py", *arguments)


def numbers(count: int) -> list[tuple[torch.Tensor, int]]:
    """A data set whose image i is the number i, and its label the last digit of i."""
    return [(torch.tensor([float(i)]), i % CLASSES) for i in range(count)]


class Scripted(nn.Module):
    """Classifies correctly the first correct[n] images of the n-th test pass, and remembers what it was given."""

    def __init__(self, correct: list[int], clock: SimpleNamespace | None = None) -> None:
        super().__init__()
        self.correct, self.clock = correct, clock
        self.scale = nn.Parameter(torch.ones(1))
        self.trained_on: list[int] = []
        self.tested_on: list[int] = []
        self.steps_before_tests: list[int] = []
        self.grad_modes: set[tuple[bool, bool]] = set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        images = x[:, 0].long()
        self.grad_modes.add((self.training, torch.is_grad_enabled()))
        if self.clock:
            self.clock.now += 1
        if self.training:
            self.trained_on += images.tolist()
            return self.scale * F.one_hot(images % CLASSES, CLASSES)
        if images[0] == 0:
            self.steps_before_tests.append(len(self.trained_on))
        self.tested_on += images.tolist()
        wrong = (images >= self.correct[len(self.steps_before_tests) - 1]).long()
        return F.one_hot((images + wrong) % CLASSES, CLASSES).float()


def run(model: Scripted, num_epochs: int = 5, limit: float = 360.0) -> dict:
    """Both splits in the harness's loop, on a clock that ticks once a batch where the model has one, and else stands still."""
    config = SimpleNamespace(
        batch_size=8, num_epochs=num_epochs, optimizer_factory=lambda model: torch.optim.SGD(model.parameters(), lr=0.1)
    )
    clock = model.clock or SimpleNamespace(now=0.0)
    return harness.run(model, config, numbers(TRAIN_IMAGES), numbers(TEST_IMAGES), limit, lambda: clock.now)


def test_exactly_the_target_does_not_stop():
    result = run(Scripted([11, 12, 20]))  # of 20: 55% exactly, then 60%
    assert result["accuracies"] == [0.55, 0.6]
    assert (result["reached"], result["stopped_by"], result["epochs"]) == (True, "target", 2)


def test_every_epoch_is_whole_and_shuffled_and_tested_on_everything():
    torch.manual_seed(0)
    model = Scripted([0, 0, 20])
    result = run(model)
    assert result["epochs"] == 3
    assert model.steps_before_tests == [TRAIN_IMAGES, 2 * TRAIN_IMAGES, 3 * TRAIN_IMAGES]
    first, second = model.trained_on[:TRAIN_IMAGES], model.trained_on[TRAIN_IMAGES : 2 * TRAIN_IMAGES]
    assert sorted(first) == sorted(second) == list(range(TRAIN_IMAGES))
    assert first != second
    assert sorted(model.tested_on) == sorted(3 * list(range(TEST_IMAGES)))


def test_modes():
    model = Scripted([0, 20])
    run(model)
    assert model.grad_modes == {(True, True), (False, False)}  # (training, gradients)
    assert model.scale.item() != 1  # the optimizer did step


def test_num_epochs_is_the_most():
    result = run(Scripted([0, 0, 20]), num_epochs=2)
    assert (result["reached"], result["stopped_by"], result["epochs"], result["accuracies"]) == (False, "epochs", 2, [0, 0])


# One epoch is 4 training batches and 3 test batches, each of which takes one second of this clock.
@pytest.mark.parametrize(
    ("limit", "seconds", "epochs", "reached"),
    [
        (2.5, 3, 0, False),  # cut in the first epoch's training
        (5.5, 6, 0, False),  # in its test pass
        (6.5, 7, 0, False),  # at the end of it: the accuracy came too late
        (7.0, 7, 1, True),  # the limit itself is in time
        (9.0, 7, 1, True),
    ],
)
def test_limit_is_compared_after_every_batch(limit, seconds, epochs, reached):
    result = run(Scripted([20], SimpleNamespace(now=100.0)), limit=limit)
    assert (result["seconds"], result["epochs"], result["reached"]) == (seconds, epochs, reached)
    assert result["stopped_by"] == ("target" if reached else "limit")
    assert result["epoch_seconds"] == ([7] if reached else [])


def test_the_clock_starts_after_the_optimizer_is_built():
    clock = SimpleNamespace(now=0.0)

    def factory(model: nn.Module) -> torch.optim.Optimizer:
        clock.now += 50
        return torch.optim.SGD(model.parameters(), lr=0.1)

    config = SimpleNamespace(batch_size=8, num_epochs=1, optimizer_factory=factory)
    result = harness.run(Scripted([20], clock), config, numbers(TRAIN_IMAGES), numbers(TEST_IMAGES), 360.0, lambda: clock.now)
    assert (result["optimizer_seconds"], result["seconds"]) == (50, 7)


@needs_cifar10
def test_both_splits_are_transformed():
    train, test = harness.cifar10(DATA, lambda image: image.size)
    assert (len(train), len(test)) == (50_000, 10_000)
    assert train[0][0] == test[0][0] == (32, 32)


SUBMISSION = """
import random, sys, numpy, torch
assert not [path for path in sys.path if path.rstrip("/") in {root!r}], sys.path
print("drawn", random.random(), numpy.random.rand(), torch.rand(1).item())
from torchvision.transforms import ToTensor
class Model(torch.nn.Sequential):
    def __init__(self, num_channels, num_classes):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(num_channels * 1024, num_classes))
class CONFIG:
    batch_size, num_epochs, transforms = 4, 1, ToTensor()
    optimizer_factory = staticmethod(lambda model: torch.optim.SGD(model.parameters(), 1e-3))
"""


def submission(folder, text=SUBMISSION):
    """A folder whose two files hold `text`: one that checks that this project is not on its path."""
    (folder / "model.py").write_text(text.replace("{root!r}", repr([str(ROOT), str(ROOT / "course")])))
    (folder / "config.py").write_text("from model import CONFIG")
    return folder


@pytest.mark.slow
@needs_cifar10
def test_a_submission_runs_seeded_and_without_this_project_on_its_path(tmp_path):
    results = [
        run_harness(
            submission(tmp_path),
            "--data-dir",
            DATA,
            "--seed",
            seed,
            "--limit",
            1e-6,
            "--threads",
            1,
            "--json",
            tmp_path / "result.json",
        )
        for seed in (1, 1, 2)
    ]
    assert [result.returncode for result in results] == [3, 3, 3], results[0].stderr
    first, again, other = (result.stdout.splitlines()[0].split()[1:] for result in results)
    assert first == again
    assert not set(first) & set(other)
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["seed"], result["stopped_by"], result["epochs"], result["threads"]) == (2, "limit", 0, 1)
    assert result["parameters"] == 30_730
    assert min(result["import_seconds"], result["init_seconds"], result["seconds"]) > 0


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["nothing"], "no model.py and no config.py"),
        ([".", "--seed", "x"], "--seed"),
        ([".", "--seed", "4294967296"], "--seed must be from 0 to 4,294,967,295"),
        ([".", "--limit", "nan"], "--limit"),
        ([], "folder"),
    ],
)
def test_bad_arguments_are_one_line(arguments, word, capsys):
    assert harness.main(arguments) == 2
    error = capsys.readouterr().err
    assert word in error
    assert error.count("\n") == 1


def test_a_failing_submission_is_one_line(tmp_path):
    assert_refused(run_harness(submission(tmp_path), "--data-dir", tmp_path), "no CIFAR-10", str(tmp_path))
    submission(tmp_path, SUBMISSION + "\nraise ValueError('two\\nlines')")
    assert_refused(run_harness(tmp_path), "model.py line 13", "ValueError: two lines")


@needs_cifar10
def test_a_submission_that_parses_its_arguments_gets_none(tmp_path):
    parses = "import argparse\nprint('given', vars(argparse.ArgumentParser().parse_args()))\n"
    submission(tmp_path, parses + SUBMISSION)
    result = run_harness(tmp_path, "--data-dir", DATA, "--limit", 1e-6, "--threads", 1)
    assert result.returncode == 3, result.stderr
    assert result.stdout.startswith("given {}")
    checked = run_main("check", f"{tmp_path / 'model.py'}:Model")
    assert "given {}" in checked.stdout, checked.stderr


@pytest.mark.slow
@needs_cifar10
def test_two_files_alone_pass_in_one_or_two_epochs(tmp_path):
    for name in harness.FILES:
        shutil.copy(ROOT / name, tmp_path)
    result = run_harness(tmp_path, "--data-dir", DATA, "--seed", 0, "--json", tmp_path / "result.json")
    assert result.returncode == 0, result.stderr
    outcome = json.loads((tmp_path / "result.json").read_text())
    assert outcome["accuracies"][-1] > 0.55
    assert outcome["epochs"] <= 2
