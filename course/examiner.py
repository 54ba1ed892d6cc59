"""One run of a submission: the course's loop in the sandbox, the clock, the test labels and the accuracy here.

The clock starts before the training images are handed over and is read when the outputs for the whole test split have arrived and
their accuracy is known; between them is everything that the submission does to get there. What inside.py says is believed only of
the network's parameters and constraints, and that it failed.

Both splits come in a secret order, another one for each run, in memory that no run had before. How often the test split is looked
at is counted here and limited, in number and by the time that the data alone take, and mere luck does not reach the target in them.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from config import InputError
from course.harness import TARGET
from course.process import Failure, Limits, OutOfTime, Process
from course.sandbox import FILES, INSIDE, ROOMS, Sandbox
from course.text import printable
from course.workplace import workplace
from images.sources import CIFAR10_FILES, ImageDataset, Split
from limits.assignments import Assignment, default

STARTUP = 300.0  # seconds for Python and torch to be there, on however slow a machine
INSPECTION = 60.0  # seconds for the constraints
MAX_LOOKS = 200  # at the test split
CHANCE = 1e-3  # at most, that so many looks with random outputs reach the target
OF_A_PASS = 0.5  # an epoch takes at least this part of a pass over the images without transforms and network


@dataclass
class Run:
    """What was measured of one training; times in seconds of the grader's clock."""

    seed: int
    reached: bool = False
    """An accuracy on the whole test split was strictly above the target within the limit."""
    stopped_by: str = ""
    """target, epochs, limit, or failure."""
    reason: str = ""
    """Why it is of no use: it failed, or did not reach the target."""
    seconds: float = 0.0
    """From handing over the training images to the last accuracy, or to the end."""
    accuracies: list[float] = field(default_factory=list)
    """0 to 1, after each epoch."""
    epoch_seconds: list[float] = field(default_factory=list)
    """The clock when each of these was known."""
    import_seconds: float = 0.0
    init_seconds: float = 0.0
    optimizer_seconds: float = 0.0
    """Of importing its files, of Model.__init__ and of optimizer_factory, all before the clock starts."""
    processor_seconds: float = 0.0
    """Of all its processes and threads, in that time."""
    log: str = ""
    """The first and last that it printed."""

    @property
    def preparation_seconds(self) -> float:
        return self.import_seconds + self.init_seconds + self.optimizer_seconds

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Exam:
    """A data set as it is handed to submissions, and how they are run.

    Args:
        dataset: the training split is given away, of the test split only the images.
        sandbox: where they run.
        timeout: seconds for importing and building, and again for training.
        memory: bytes that a submission may use.
        threads: that torch computes with, unless the submission sets another number; 0 leaves it to torch.
        hidden: files and folders to keep from submissions.
        cifar10: the public CIFAR-10's folder, whose training split is there for submissions that download it in their code; None
            where it is not at hand.
        assignment: whose demands on the network are computed; None for the default one.
        target: test accuracy to exceed, 0 to 1.
        max_epochs: after which a run ends; 0 leaves it to the submission.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        sandbox: Sandbox,
        timeout: float,
        memory: int,
        threads: int = 0,
        hidden: tuple[Path, ...] = (),
        cifar10: Path | None = None,
        assignment: Assignment | None = None,
        target: float = TARGET,
        max_epochs: int = 0,
    ) -> None:
        self.dataset, self.sandbox, self.timeout, self.hidden, self.cifar10 = dataset, sandbox, timeout, hidden, cifar10
        self.readable = [cifar10 / name for name in CIFAR10_FILES if name != "test_batch"] if cifar10 else []
        self.limits = Limits(memory)
        self.environment = {"OMP_NUM_THREADS": str(threads)} if threads else {}
        self.assignment, self.target, self.max_looks = assignment or default(), target, min(max_epochs or MAX_LOOKS, MAX_LOOKS)
        self.needed = needed(dataset.test.labels, target)

    def run(
        self, files: dict[str, bytes], seed: int, on_progress: Callable[[Run, Process], None], inspect: bool = False
    ) -> tuple[Run, dict[str, Any]]:
        """Train a submission of these files once.

        `on_progress` gets the run so far and its process, about twice a second and after each epoch; it may raise to stop
        everything. Returns the run and, with `inspect`, "parameters" and "constraints" of the network (name, value, limit,
        passed of each), or the "problem" with them. Raises InputError where the sandbox itself does not work.
        """
        run = Run(seed)
        inspected: dict[str, Any] = {}
        does_not_start: str | None = None
        sandbox = self.sandbox.fresh()
        with workplace() as work:
            for name, data in files.items():
                (work / "submission" / name).write_bytes(data)
                os.chmod(work / "submission" / name, 0o644)
            with (
                Process(
                    sandbox,
                    work,
                    lambda fd: self._command(sandbox, work, seed, fd),
                    self.limits,
                    lambda: on_progress(run, process),
                    environment=self.environment,
                    hidden=self.hidden,
                    readable=self.readable,
                ) as process,
                Shuffled(self.dataset.train, True) as train,  # while it starts
                Shuffled(self.dataset.test, False) as test,
            ):
                process.begin("starting", STARTUP)
                try:
                    ready, _ = process.receive("ready")
                except (Failure, OutOfTime) as problem:
                    does_not_start = str(problem) or f"not ready after {STARTUP:g} s"
                else:
                    try:
                        self._prepare(process, run)
                        self._train(process, run, train, test, ready["seconds_an_image"], on_progress)
                        if inspect and run.stopped_by != "limit":  # at the limit it is still busy
                            inspected = self._inspect(process, run)
                    except Failure as failure:
                        run.stopped_by, run.reason, run.reached = "failure", str(failure), False
            run.log = process.log()
        if does_not_start is not None:
            raise InputError(f"the sandbox does not work ({does_not_start}): {printable(run.log)}")
        return run, inspected

    def _command(self, sandbox: Sandbox, work: Path, seed: int, fd: int) -> list[str]:
        dataset = self.dataset
        task = {
            "channel": fd,
            "files": FILES if sandbox.has_namespaces else str(work / "submission"),
            "folder": str(sandbox.folder(work)),
            "rooms": ROOMS if sandbox.has_namespaces else (),
            "seed": seed,
            "image_size": dataset.image_size,
            "network": [dataset.num_channels, dataset.num_classes],
            "cifar10": self.cifar10 and str(self.cifar10.parent),
            "assignment": self.assignment.without_course,
            "limits": self.limits.of_kernel(2 * self.timeout, sandbox.user is not None),
        }
        return [sys.executable, "-B", "-u", str(INSIDE), json.dumps(task)]  # -u: what it printed is seen though it is killed

    def _prepare(self, process: Process, run: Run) -> None:
        """Up to the moment when it is ready to train."""
        process.begin("loading it", self.timeout)
        processor = process.processor_seconds()
        process.send({})
        try:
            for stage, name, doing in (
                ("imported", "import_seconds", "importing it"),
                ("built", "init_seconds", "building its Model"),
                ("start", "optimizer_seconds", "building its optimizer"),
            ):
                process.doing = doing
                before = time.perf_counter()
                process.receive(stage)
                setattr(run, name, time.perf_counter() - before)
        except OutOfTime:
            raise Failure(f"it was still {process.doing} after {self.timeout:g} s") from None
        run.processor_seconds = process.processor_seconds() - processor

    def _train(
        self,
        process: Process,
        run: Run,
        train: Shuffled,
        test: Shuffled,
        seconds_an_image: float,
        on_progress: Callable[[Run, Process], None],
    ) -> None:
        labels, num_classes = test.labels, self.dataset.num_classes
        predictions = np.empty(0, int)
        least = OF_A_PASS * seconds_an_image * (len(train.labels) + len(labels))
        process.begin("training", self.timeout)
        started = process.began
        try:
            process.send({"shape": train.shape}, train.fd)
            while not run.reached and len(run.accuracies) < self.max_looks:
                epoch = len(run.accuracies) + 1
                process.doing = f"training, epoch {epoch}"
                message, _ = process.receive("trained", "done")
                if message["at"] == "done":
                    break
                process.doing = f"testing, epoch {epoch}"
                if epoch == 1:
                    process.send({"shape": test.shape}, test.fd)
                _, raw = process.receive("mark", raw=4 * len(labels) * num_classes)
                logits = np.frombuffer(raw, np.float32).reshape(-1, num_classes)
                if np.isnan(logits).any():
                    raise Failure(f"its outputs for the test images are not numbers (NaN) after epoch {epoch}")
                predictions = logits.argmax(1)
                correct = int((predictions == labels).sum())
                seconds = time.perf_counter() - started
                if seconds > self.timeout:
                    raise OutOfTime
                took = seconds - (run.epoch_seconds[-1] if run.epoch_seconds else 0)
                if took < least:
                    raise Failure(f"its epoch {epoch} took {took:.2g} s: a pass over the images takes {least / OF_A_PASS:.2g} s")
                run.accuracies.append(correct / len(labels))
                run.epoch_seconds.append(seconds)
                run.reached = correct >= self.needed
                process.send({"stop": run.reached})
                on_progress(run, process)
            run.stopped_by = "target" if run.reached else "epochs"
        except OutOfTime:
            run.stopped_by = "limit"
        run.seconds = run.epoch_seconds[-1] if run.reached else time.perf_counter() - started
        if not run.reached:
            run.reason = self._missed(run, predictions)

    def _missed(self, run: Run, predictions: np.ndarray) -> str:
        """Why the target was not reached, in words."""
        epochs = len(run.accuracies)
        best = f"the best of {epochs} epochs was {max(run.accuracies):.2%}" if epochs else "no epoch was finished"
        when = f"in {epochs} tests, which are the most" if epochs == self.max_looks else "in its num_epochs"
        when = f"within {self.timeout:g} s" if run.stopped_by == "limit" else when
        constant = "; every test image gets the same prediction" if epochs and np.ptp(predictions) == 0 else ""
        count = len(self.dataset.test.labels)
        is_target = self.needed == above_target(count, self.target)
        target = f"above {100 * self.target:.4g}%" if is_target else f"{self.needed / count:.2%}, beyond luck,"
        return f"not {target} {when}: {best}{constant}"

    def _inspect(self, process: Process, run: Run) -> dict[str, Any]:
        """Parameters and constraints, as far as the process says them in an orderly way; the run counts without them, too."""
        process.begin("computing its constraints", INSPECTION)
        try:
            if run.reached:  # else it is how its training has ended
                process.receive("done")
            process.send({"inspect": True})
            message, _ = process.receive("inspected")
            if type(message["parameters"]) is not int or not 0 <= message["parameters"] < 1 << 63:
                raise Failure("its number of parameters is none")
            found: dict[str, Any] = {"parameters": message["parameters"]}
            if "constraints" in message:
                found["constraints"] = [  # what is no text raises TypeError
                    [printable("" + name), printable("" + value), printable("" + limit), None if passed is None else passed is True]
                    for name, value, limit, passed in message["constraints"]
                ]
                if len(found["constraints"]) > self.assignment.num_constraints:
                    raise Failure("it claims constraints that there are not")
            else:
                found["problem"] = printable("" + message["problem"])
        except (Failure, OutOfTime, KeyError, TypeError, ValueError) as problem:
            return {"problem": printable(f"not computed: {str(problem) or f'more than {INSPECTION:g} s'}")}
        return found


class Shuffled:
    """A split in a secret order, each time another: its `labels`, and its images, with the labels where `labelled`, in the file
    `fd`, which is memory that can be shared but not be changed. To be closed.
    """

    def __init__(self, split: Split, labelled: bool) -> None:
        order = np.random.default_rng().permutation(len(split.labels))  # seeded by the system
        self.labels, self.shape = split.labels[order], split.images.shape
        self.fd = os.memfd_create("images", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with open(self.fd, "wb", closefd=False) as file:
            file.write(np.ascontiguousarray(split.images[order].transpose(0, 3, 1, 2)).data)
            file.write(self.labels.data if labelled else b"")
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)

    def __enter__(self) -> Shuffled:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def needed(labels: np.ndarray, target: float = TARGET) -> int:
    """How many test images must be classified correctly: more than the target, and on a test split so small, or of so few classes,
    that guessing could reach that, so many that `MAX_LOOKS` guesses do it with a probability of less than `CHANCE`.
    """
    count, share = len(labels), float(np.bincount(labels).max()) / len(labels)
    beyond_luck = count * share + NormalDist().inv_cdf(1 - CHANCE / MAX_LOOKS) * (count * share * (1 - share)) ** 0.5
    return min(count, max(above_target(count, target), math.ceil(beyond_luck)))


def above_target(count: int, target: float = TARGET) -> int:
    """The least number of `count` images that is strictly more than the target."""
    least = int(target * count)
    return least if least / count > target else least + 1
