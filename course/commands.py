"""The commands submit, grade and leaderboard, filled in by tyro as in main.py; heavy libraries are imported where used."""

from __future__ import annotations

import dataclasses
import os
import platform
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from config import InputError
from utils import ASSIGNMENT, ROOT, STATED, demand_threads

if TYPE_CHECKING:
    from course.store import Entry
    from limits.assignments import Assignment

STORE = str(ROOT / "runs" / "submissions.sqlite")
LIMIT = 360.0  # seconds
MAX_LIMIT, MAX_REPEATS = 1e6, 1000  # the kernel, and Codabench, count with whole numbers
SEEDS = 2**32  # that NumPy takes
Place = Annotated[str, tyro.conf.arg(metavar="FILE|postgresql://USER@HOST/DATABASE")]


def demand_possible(timeout: float, repeats: int, threads: int) -> None:
    """Raise InputError where no run can have this time limit in seconds, so many repeats, or so many threads."""
    if not 0 < timeout <= MAX_LIMIT:
        raise InputError(f"--timeout, or seconds of the assignment, must be above 0 and at most {MAX_LIMIT:,.0f}")
    if not 1 <= repeats <= MAX_REPEATS:
        raise InputError(f"--repeats, or repeats of the assignment, must be 1 to {MAX_REPEATS:,}")
    demand_threads(threads)


@dataclasses.dataclass
class Submit:
    """Check folders with model.py, config.py and submission.json, copy these files into the store and queue them for grading.

    Nothing in them is run. A new submission cancels those of the same contributors that are not graded yet.
    """

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """One or more folders, a submission each."""
    store: Place = STORE
    """The store: an SQLite file, or a PostgreSQL database for several machines (docs/grading.md); made where it is missing."""
    strict: bool = False
    """Refuse what is otherwise a warning: missing annotations and docstrings."""

    def run(self) -> int:
        if not self.folders:
            raise InputError("no folder named: give one or more folders, each with model.py, config.py and submission.json")
        from course import submission
        from course.store import Store

        refused = 0
        with Store(self.store) as store:
            for folder in self.folders:
                try:
                    checked = submission.read(folder, self.strict)
                except InputError as error:
                    print(f"error: {error}", file=sys.stderr)
                    refused += 1
                    continue
                number, cancelled = store.add(checked)
                names = ", ".join(name for name, _ in checked.contributors)
                replaced = f"; cancelled: {', '.join(f'#{n}' for n in cancelled)}" if cancelled else ""
                print(f"#{number} queued: {checked.assignment} by {names}{replaced}")
                for warning in checked.warnings:
                    print(f"note: {warning}", file=sys.stderr)
        return 2 if refused else 0


@dataclasses.dataclass
class Grade:
    """Time the queued submissions to 55% test accuracy (or the assignment's), each in a sandbox; write their scores to the store.

    A score is the median wall time of training over the repeats, in seconds. Nothing of a submission is trusted:
    docs/grading.md explains what is measured and what the sandbox blocks. Exit status: 0 when the queue is empty, 130
    interrupted; what was being graded is then queued again.
    """

    store: Place = STORE
    """The store that submit wrote."""
    assignment: Annotated[str, ASSIGNMENT] = ""
    dataset: str = "auto"
    """The data set to train on and be tested on: as for sprint; preferably one that the students have not seen. auto is the
    assignment's, where one is named that has one."""
    data_dir: Path = ROOT / "data"
    """Folder that holds the data sets; missing public ones are downloaded to it."""
    timeout: Annotated[float | None, STATED] = None
    """Time limit in seconds for training; the same limit applies to set-up (default: the assignment's, or 360)."""
    repeats: Annotated[int | None, STATED] = None
    """Runs of each submission, each with its own seed (default: the assignment's, or 3)."""
    seed: int = 0
    """Seed of the first run; the others follow it."""
    jobs: int = 1
    """Submissions graded at the same time, each on its share of the cores. They slow each other down where memory is the limit."""
    watch: bool = False
    """Wait for more submissions when the queue is empty."""
    count_init: bool = False
    """Add the time before the clock to the score: imports, Model.__init__ and optimizer_factory."""
    threads: int = 0
    """Number of threads for torch, unless a submission sets another; 0 uses torch's default (one per core)."""
    memory: float = 0.0
    """GB that a submission may use; 0 is 8, or three quarters of this machine's where that is less."""
    sandbox: Literal["auto", "bwrap", "unshare", "none"] = "auto"
    """bwrap (bubblewrap), unshare (util-linux), none (limits only); auto takes the first of them that works here."""

    def run(self) -> int:
        from limits.assignments import Course, default, load

        rules = load(self.assignment) if self.assignment else default()
        course = (self.assignment and rules.course) or Course()
        repeats = course.repeats if self.repeats is None else self.repeats
        timeout = self.timeout if self.timeout is not None else (rules.seconds if self.assignment else None) or LIMIT
        demand_possible(timeout, repeats, self.threads)
        if self.jobs < 1:
            raise InputError("--jobs must be 1 or more")
        if not 0 <= self.seed <= SEEDS - repeats:
            raise InputError(f"--seed must be 0 to {SEEDS - repeats:,}")
        if not 0 <= self.memory <= 1e6:
            raise InputError("--memory must be 0 to 1,000,000 GB")
        if sys.platform != "linux":
            raise InputError("grading needs Linux, for limits and sealed shared memory; submit and leaderboard work here")
        cores = len(os.sched_getaffinity(0))
        if self.jobs > cores:
            raise InputError(f"--jobs is {self.jobs}, but there are {cores} cores: each job needs one of its own")
        from course.store import Store
        from course.workplace import alone, remove_leftovers

        signal.signal(signal.SIGTERM, signal.default_int_handler)  # to be ended in order is no crash over a submission
        Store(self.store, make=False).close()  # says what is wrong with it before anything slow is done
        with alone():
            remove_leftovers()
            self.grade(rules, timeout, repeats)
        return 0

    def grade(self, rules: Assignment, timeout: float, repeats: int) -> None:
        """Grade by these rules, with this machine to itself."""
        from course import sandbox

        box = sandbox.find(self.sandbox)
        for notice in box.notices():
            print(f"note: {notice}", file=sys.stderr)
        from course.examiner import Exam, above_target
        from course.grading import Grader, Rules, work_side_by_side
        from course.harness import TARGET
        from images import data
        from images.sources import CIFAR10_FILES
        from utils import hardware

        target = (self.assignment and rules.target_accuracy) or TARGET
        wanted = rules.dataset if self.assignment and rules.dataset and self.dataset == "auto" else self.dataset
        name = data.resolve_auto(wanted, self.data_dir)
        dataset = data.load(name, self.data_dir)
        physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        memory = int(self.memory * 1e9) or min(8_000_000_000, physical * 3 // 4)
        public = self.data_dir.resolve() / "cifar-10-batches-py"
        exam = Exam(
            dataset,
            box,
            timeout,
            memory,
            self.threads,
            self.hidden(),
            public if all((public / file).is_file() for file in CIFAR10_FILES) else None,
            rules,
            target,
            int(rules.max_epochs or 0) if self.assignment else 0,
        )
        tested = len(dataset.test.labels)
        if exam.needed > above_target(tested, target):
            print(
                f"note: guessing could reach {100 * target:.4g}% on {tested:,} test images of {dataset.num_classes} classes: "
                f"{exam.needed / tested:.2%} are required instead",
                file=sys.stderr,
            )
        settings = {
            "dataset": dataset.name,
            "timeout": timeout,
            "count_init": self.count_init,
            "jobs": self.jobs,
            "threads": self.threads,
            "sandbox": box.kind,
            "host": platform.node(),
            "hardware": hardware(),
        }
        if self.assignment:
            settings |= {"assignment": rules.name, "target": target}
        graders = [
            Grader(self.store, exam, Rules(repeats, self.seed, self.count_init), settings, line) for line in range(self.jobs)
        ]
        if self.jobs > 1:
            work_side_by_side(graders, self.watch)
        else:
            graders[0].work(self.watch)

    def hidden(self) -> tuple[Path, ...]:
        """What submissions must not see even where it lies among the system's files."""
        named = self.dataset.partition(":")[2]
        store = [] if "://" in self.store else [Path(self.store).parent]
        return (ROOT, self.data_dir, *store, *([Path(named)] if named else []))


@dataclasses.dataclass
class Leaderboard:
    """Print the best score of every contributor, the fastest first; with --assignment of what was graded with it alone.

    The deadline of an assignment closes its board, and its points are in csv, json and the feedback.
    """

    store: Place = STORE
    """The store that submit and grade wrote."""
    assignment: Annotated[str, ASSIGNMENT] = ""
    format: Literal["text", "csv", "json", "md", "html"] = "text"
    """How to print it. csv and json have one row a student, with those who failed, and numbers as numbers."""
    out: Path | None = None
    """Write it here, in that format, instead of printing it."""
    csv: Path | None = None
    """Write it here as comma-separated values, too."""
    html: Path | None = None
    """Write it here as one self-contained page, too."""
    feedback: Path | None = None
    """Write a Markdown file for every student to this folder: what was measured, why it failed, what to do."""
    all: bool = False
    """List every submission instead, with its state."""
    show: int | None = None
    """Show everything about the submission of that number: warnings, runs, and what it printed."""

    def run(self) -> int:
        if self.show is not None and (self.all or self.out or self.csv or self.html or self.feedback or self.format != "text"):
            raise InputError("--show prints one submission as text: leave out the options for the whole board")
        from course import leaderboard
        from course.store import Store

        rules = None
        if self.assignment:
            from limits.assignments import load

            rules = load(self.assignment)
        with Store(self.store, make=False) as store:
            if self.show is not None:
                print(leaderboard.details(store.get(self.show)))
                return 0
            entries = store.entries()
        if rules:  # what nothing was measured of may yet be graded with it
            entries = [entry for entry in entries if not entry.result or entry.result.get("assignment") == rules.name]
        self.show_board(entries, rules)
        return 0

    def show_board(self, entries: list[Entry], rules: Assignment | None) -> None:
        """Print and write what is asked for."""
        from course.feedback import write_feedback
        from course.points import in_time
        from course.tables import Board
        from utils import write_atomically

        board = Board(entries, self.all, rules)
        text, _ = board.formats[self.format]
        graded = [entry for entry in entries if entry.state == "graded"]
        if late := len(graded) - len(in_time(graded, rules)):
            are = "submission is" if late == 1 else "submissions are"
            print(f"note: {late} graded {are} after the deadline and without a place", file=sys.stderr)
        if not self.out:
            print(text(), end="")
        # What is printed for another program stays free of other lines.
        told = sys.stdout if self.out or self.format == "text" else sys.stderr
        for path, format in ((self.out, self.format), (self.csv, "csv"), (self.html, "html")):
            if path:
                text, count = board.formats[format]
                write_atomically(path, text().encode())
                print(f"{count} row{'' if count == 1 else 's'} written to {path}", file=told)
        if self.feedback:
            count = write_feedback(self.feedback, entries, rules)
            print(f"{count} file{'' if count == 1 else 's'} written to {self.feedback}", file=told)


COMMANDS = {"submit": Submit, "grade": Grade, "leaderboard": Leaderboard}
