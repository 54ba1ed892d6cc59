"""The course's own training loop, for any folder that holds a model.py and a config.py.

    python course/harness.py FOLDER [--data-dir data] [--seed 0] [--limit 360] [--threads N] [--json FILE]

Needs torch and torchvision and nothing of this project, so that it can run alone beside a stranger's code. It runs that code:
start it in a process of its own.

What it does: seeds everything; imports `Model` from model.py and `CONFIG` from config.py; builds
``Model(num_channels=3, num_classes=10)`` and ``CONFIG.optimizer_factory(model)``; reads both splits of torchvision's CIFAR10 with
``transform=CONFIG.transforms``; trains with CrossEntropyLoss on ``DataLoader(train, CONFIG.batch_size, shuffle=True)``, without
workers, for at most `CONFIG.num_epochs` epochs; computes after each whole epoch the accuracy on the whole test split and stops
when it is strictly above 55%.

The clock is wall time around that loop: every epoch and every test pass, but not the imports, `Model.__init__`, the optimizer
factory and the reading of the files, which are timed apart. It is compared with the limit after every batch, of training and of
testing, so that an epoch without end is cut too; an accuracy counts only if its test pass ended within the limit. One batch without
end is not cut: whoever grades strangers also limits the process.

Exit status: 0 reached, 3 not reached, 2 bad input or a submission that fails, in one line.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

TARGET = 0.55  # test accuracy to exceed
FILES = ("model.py", "config.py")
MAX_REASON = 2000  # characters of an error that are told


class BadInput(Exception):
    """Its text is the one line that the user gets."""


class OutOfTime(Exception):
    """The limit came before the loop's own end."""


class Pairs(Protocol):
    """What torch calls a map-style data set, of whatever class: item i is a tensor and its label."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Any, Any]: ...


class Examiner(Protocol):
    """Who has the clock and the labels of the test split: `LocalExaminer`, or for strangers' code the grader (inside.py)."""

    def start(self) -> Pairs:
        """Start the clock and hand out the training split: pairs of a tensor and a label, already transformed."""

    def tick(self) -> None:
        """Called after every batch; raises OutOfTime when the clock is over the limit."""

    def test_set(self) -> Pairs:
        """The test split, asked for when an epoch of training is over."""

    def mark(self, logits: Tensor, labels: Tensor) -> bool:
        """Take the outputs for the whole test split, in its order, and the labels that it came with; True to stop."""


def train(model: nn.Module, config: Any, optimizer: Any, examiner: Examiner) -> None:
    """The course's loop. Raises what the submission raises, and what the examiner does."""
    criterion = nn.CrossEntropyLoss()
    train_set = examiner.start()
    train_loader: DataLoader[Any] = DataLoader(
        train_set,  # type: ignore[arg-type]  # torch names its own class, and takes whatever has a length and items
        batch_size=config.batch_size,
        shuffle=True,
    )
    for _ in range(config.num_epochs):
        model.train()
        trained_on = 0
        for images, labels in train_loader:
            optimizer.zero_grad()
            criterion(model(images), labels).backward()
            optimizer.step()
            trained_on += len(labels)
            examiner.tick()
        if trained_on != len(train_set):
            raise BadInput(f"an epoch of training had {trained_on} instead of {len(train_set)} images")
        model.eval()
        outputs: list[tuple[Tensor, Tensor]] = []
        with torch.no_grad():
            test_set = examiner.test_set()
            for images, labels in DataLoader(test_set, batch_size=config.batch_size):  # type: ignore[arg-type]  # as above
                outputs.append((model(images), labels))
                examiner.tick()
        logits, labels = map(torch.cat, zip(*outputs, strict=True))
        if examiner.mark(logits, labels):
            break


class LocalExaminer:
    """Holds everything in this process: for code that one trusts.

    Args:
        train_set, test_set: pairs of a tensor and a label, already transformed.
        limit: seconds of the clock after which the loop is cut.
        clock: the present time in seconds.
        target: test accuracy (0 to 1) to exceed.
    """

    def __init__(self, train_set: Pairs, test_set: Pairs, limit: float, clock: Callable[[], float], target: float = TARGET) -> None:
        self.splits, self.limit, self.clock, self.target = (train_set, test_set), limit, clock, target
        self.accuracies: list[float] = []
        self.epoch_seconds: list[float] = []

    def start(self) -> Pairs:
        self.started = self.clock()
        return self.splits[0]

    def tick(self) -> None:
        if self.clock() - self.started > self.limit:
            raise OutOfTime

    def test_set(self) -> Pairs:
        return self.splits[1]

    def mark(self, logits: Tensor, labels: Tensor) -> bool:
        self.accuracies.append(int((logits.argmax(1) == labels).sum()) / len(self.splits[1]))
        self.epoch_seconds.append(self.clock() - self.started)
        return self.accuracies[-1] > self.target


def run(
    model: nn.Module,
    config: Any,
    train_set: Pairs,
    test_set: Pairs,
    limit: float,
    clock: Callable[[], float],
    target: float = TARGET,
) -> dict[str, Any]:
    """Train `model` as the course does, in this process.

    Args:
        model: maps a batch of what the data sets hold to raw logits.
        config: has batch_size, num_epochs and optimizer_factory.
        train_set, test_set, limit, clock, target: see `LocalExaminer`.

    Returns:
        reached: whether an accuracy was strictly above `target` within the limit; stopped_by: "target", "epochs" or "limit";
        seconds: the clock around the loop; epochs: whole ones that were also tested; accuracies and epoch_seconds: for each of
        these the test accuracy (0 to 1) and the clock when it was known; optimizer_seconds: what the factory took, before the
        clock; parameters: all of the model's, trained or not.
    """
    before = clock()
    optimizer = config.optimizer_factory(model)
    optimizer_seconds = clock() - before
    examiner = LocalExaminer(train_set, test_set, limit, clock, target)
    out_of_time = False
    try:
        train(model, config, optimizer, examiner)
    except OutOfTime:
        out_of_time = True
    accuracies = examiner.accuracies
    reached = bool(accuracies) and accuracies[-1] > target
    return {
        "reached": reached,
        "stopped_by": "limit" if out_of_time else "target" if reached else "epochs",
        "seconds": clock() - examiner.started,
        "epochs": len(accuracies),
        "accuracies": accuracies,
        "epoch_seconds": examiner.epoch_seconds,
        "optimizer_seconds": optimizer_seconds,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def cifar10(data_dir: Path, transforms: Callable[[Any], Tensor]) -> tuple[Pairs, Pairs]:
    """The training and the test split, both with `transforms`. Raises BadInput where they are not in `data_dir`."""
    from torchvision.datasets import CIFAR10

    try:
        return (CIFAR10(data_dir, train=True, transform=transforms), CIFAR10(data_dir, train=False, transform=transforms))
    except RuntimeError as error:
        raise BadInput(f"no CIFAR-10 in {data_dir}: `./run.sh sprint --dataset cifar10` downloads it to data/") from error


def load(folder: Path, num_channels: int, num_classes: int, seed: int, reached: Callable[[str], None]) -> tuple[nn.Module, Any]:
    """Seed everything, import the submission in `folder` and build its network.

    `reached` is called with "imported" and "built" when it is so. Returns the network and CONFIG.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    sys.argv[:] = ["main.py"]  # as in the course: a submission that parses its arguments finds none
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(folder), *(entry for entry in sys.path if Path(entry).resolve() not in (here, here.parent))]
    model_class = importlib.import_module("model").Model
    config = importlib.import_module("config").CONFIG
    reached("imported")
    model = model_class(num_channels=num_channels, num_classes=num_classes)
    reached("built")
    return model, config


def grade(folder: Path, data_dir: Path, seed: int, limit: float) -> dict[str, Any]:
    """Import the submission in `folder`, train it, and return what `run` returns with seed, limit and the other times.

    Raises BadInput where a file is missing or the submission fails, with its error and the place in one line.
    """
    clock = time.perf_counter  # a name of our own: the submission may replace that of the module
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise BadInput(f"there is no {' and no '.join(missing)} in {folder}")
    import torchvision.datasets  # noqa: F401 (before the submission, which may import it too, is timed)

    times: dict[str, float] = {}
    started = clock()
    try:
        model, config = load(folder, 3, 10, seed, lambda what: times.update({what: clock()}))
        train_set, test_set = cifar10(data_dir, config.transforms)
        result = run(model, config, train_set, test_set, limit, clock)
    except BadInput:
        raise
    except (Exception, SystemExit) as error:
        raise BadInput(f"the submission fails{place(error, folder)}: {one_line(error)}") from error
    return {
        "seed": seed,
        "limit": limit,
        "threads": torch.get_num_threads(),
        "import_seconds": times["imported"] - started,
        "init_seconds": times["built"] - times["imported"],
        **result,
    }


def one_line(error: BaseException) -> str:
    """Type and text of an error, without what could command a terminal."""
    text = " ".join(f"{type(error).__name__}: {error}"[:MAX_REASON].split())
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def place(error: BaseException, folder: Path) -> str:
    """Where in the submission `error` came from, as " in FILE line N"; nothing where it came from none of its files."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(folder)]
    return f" in {Path(frames[-1].filename).name} line {frames[-1].lineno}" if frames else ""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadInput(message)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line, checked. Raises BadInput."""
    parser = Parser(prog="harness.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="holds model.py and config.py")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="holds cifar-10-batches-py")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=360.0, help="seconds")
    parser.add_argument("--threads", type=int, default=0, help="number of threads for torch; 0 uses torch's default (one per core)")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args(arguments)
    if not 0 <= options.seed < 2**32:
        raise BadInput("--seed must be from 0 to 4,294,967,295, which is what NumPy takes")
    if options.threads < 0 or not options.limit > 0:
        raise BadInput("--threads must be 0 or more, --limit above 0")
    if options.json and not options.json.parent.is_dir():
        raise BadInput(f"there is no folder {options.json.parent} for the result")
    return options


def main(arguments: list[str]) -> int:
    """Grade one submission and print the result; returns the exit status."""
    try:
        options = parse(arguments)
        if options.threads:
            torch.set_num_threads(options.threads)
        result = grade(options.folder.resolve(), options.data_dir.resolve(), options.seed, options.limit)
        if options.json:
            options.json.write_text(json.dumps(result, indent=2) + "\n")
    except (BadInput, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    accuracies = ", ".join(f"{accuracy:.2%}" for accuracy in result["accuracies"]) or "none"
    print(
        f"{'reached' if result['reached'] else 'NOT reached'} {TARGET:.0%} in {result['seconds']:.2f} s (stopped by: "
        f"{result['stopped_by']}), test accuracy after each epoch: {accuracies}"
    )
    return 0 if result["reached"] else 3


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
