"""The grader: takes queued submissions one after the other, runs each several times, and writes to the store what came of it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import multiprocessing
import os
import signal
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from config import InputError
from course.examiner import Exam, Run
from course.heartbeat import POLL, Heartbeat
from course.process import Process
from course.store import Entry, Store
from course.text import printable

PR_SET_PDEATHSIG = 1
PATIENCE = 300.0  # seconds for which a grader calls a server that it has lost


class Cancelled(Exception):
    """The contributors have submitted again meanwhile, or another grader has it now."""


@dataclass(frozen=True)
class Rules:
    """How a score comes about."""

    repeats: int
    """Runs of each submission, with seeds that follow each other."""
    seed: int
    """The first of them."""
    count_init: bool
    """Whether the time before the clock (import, Model.__init__, optimizer_factory) counts."""

    def seconds(self, run: Run) -> float:
        """What a run counts; one that missed the target is slower than any that did not."""
        if not run.reached:
            return float("inf")
        return run.seconds + (run.preparation_seconds if self.count_init else 0)


class Grader:
    """One process that grades. `settings` are kept with every result; `line` is where on the screen its progress is shown."""

    def __init__(self, store: Path | str, exam: Exam, rules: Rules, settings: dict[str, Any], line: int = 0) -> None:
        self.path, self.exam, self.rules, self.settings, self.line = store, exam, rules, settings, line

    def work(self, watch: bool) -> None:
        """Grade until no submission is queued; with `watch`, for ever."""
        with Store(self.path, patience=PATIENCE) as store:
            is_idle = False
            while True:
                taken = store.take()
                if taken:
                    is_idle = False
                    self._grade_one(store, *taken)
                elif not watch:
                    return
                else:
                    if not is_idle and self.line == 0:
                        say("waiting for submissions; Ctrl-C ends")
                    is_idle = True
                    time.sleep(POLL)

    def _grade_one(self, store: Store, entry: Entry, files: dict[str, bytes]) -> None:
        say(f"#{entry.id} {printable(entry.names, 200)}: {entry.assignment}")
        try:
            state, reason, score, result = self.grade(entry, files, store)
            is_kept = store.finish(entry.id, state, reason, score, result | self.settings)
        except Cancelled:
            is_kept = False
            store.give_back(entry.id)
        except Exception as error:
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            if full or isinstance(error, InputError):  # the disk is full, or the sandbox does not work: not the submission's fault
                with contextlib.suppress(InputError):  # else it is queued by the next grader
                    store.give_back(entry.id)
                raise InputError(f"the disk is full: #{entry.id} is queued again" if full else str(error)) from error
            what = f"failed ({printable(f'{type(error).__name__}: {error}')})"
            say(f"#{entry.id} {store.crashed(entry.id, what)}: the grader {what} over it")
            return
        except BaseException:
            with contextlib.suppress(InputError):
                store.give_back(entry.id)  # what interrupted us is not the submission's fault
            raise
        if not is_kept and store.get(entry.id).state == "cancelled":
            say(f"#{entry.id} cancelled: its contributors have submitted again")
        elif not is_kept:
            say(f"#{entry.id} taken away: this grader had not been heard of, and it is queued again or with another")
        elif state == "graded":
            say(f"#{entry.id} graded: {score:.2f} s")
        else:
            say(f"#{entry.id} failed: {reason}")

    def grade(self, entry: Entry, files: dict[str, bytes], store: Store) -> tuple[str, str, float | None, dict[str, Any]]:
        """State, reason, score and result of a submission. Raises Cancelled."""
        runs: list[Run] = []
        inspected: dict[str, Any] = {}
        state, reason, score = "failed", "", None
        epochs_shown = 0
        with (
            Heartbeat(store, entry.id) as heartbeat,
            tqdm(
                total=self.exam.timeout,
                position=self.line,
                leave=False,
                disable=None,
                bar_format="{desc} {bar:20} {n:.0f} of {total:.0f} s",
            ) as bar,
        ):

            def show(run: Run, process: Process) -> None:
                nonlocal epochs_shown
                if heartbeat.lost.is_set():
                    raise Cancelled
                last = f", {run.accuracies[-1]:.2%}" if run.accuracies else ""
                heartbeat.progress = f"run {len(runs) + 1} of {self.rules.repeats}: {process.doing}{last}"
                bar.set_description_str(f"#{entry.id} {heartbeat.progress}", False)
                bar.n = min(time.perf_counter() - process.began, self.exam.timeout)
                bar.refresh()
                if bar.disable and len(run.accuracies) > epochs_shown:
                    say(f"  epoch {len(run.accuracies)}: {run.accuracies[-1]:.2%} after {run.epoch_seconds[-1]:.2f} s")
                epochs_shown = len(run.accuracies)

            for seed in range(self.rules.seed, self.rules.seed + self.rules.repeats):
                run, found = self.exam.run(files, seed, show, inspect="parameters" not in inspected)
                inspected = inspected | found
                runs.append(run)
                misses = sum(not run.reached for run in runs)
                say(f"  run {len(runs)} of {self.rules.repeats}, seed {seed}: {describe(run)}")
                if run.stopped_by == "failure":
                    reason = run.reason
                    break
                if 2 * misses >= self.rules.repeats:  # the median is a miss, whatever comes
                    reason = run.reason + (f" ({misses} of {self.rules.repeats} runs missed it)" if self.rules.repeats > 1 else "")
                    break
            else:
                state, score = "graded", statistics.median(map(self.rules.seconds, runs))
        return state, reason, score, {"runs": [run.as_dict() for run in runs], **inspected}


def describe(run: Run) -> str:
    """A run in a line."""
    if run.stopped_by == "failure":
        return run.reason
    after = f", {run.accuracies[-1]:.2%} after epoch {len(run.accuracies)}" if run.accuracies else ""
    return (
        f"{run.seconds:.2f} s{after}{'' if run.reached else ', NOT reached'}; before the clock: import "
        f"{run.import_seconds:.2f} s, __init__ {run.init_seconds:.2f} s, optimizer {run.optimizer_seconds:.2f} s"
    )


def say(text: str) -> None:
    """Print a line at once, above the progress bars where there are some."""
    tqdm.write(text)
    sys.stdout.flush()


def work_side_by_side(graders: list[Grader], watch: bool) -> None:
    """Let each grader work in a process of its own, on its share of the cores, of which there must be enough.

    Raises InputError where one of them ended with an error, whose line it has printed.
    """
    cores = sorted(os.sched_getaffinity(0))
    context = multiprocessing.get_context("fork")  # they share the images in memory
    workers = [context.Process(target=_work, args=(grader, cores[i :: len(graders)], watch)) for i, grader in enumerate(graders)]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join()
    except KeyboardInterrupt:
        for worker in workers:
            worker.join(10)  # Ctrl-C in a terminal reaches them, too; what an ended one leaves running is queued at the next look
            worker.terminate()
        raise
    if any(worker.exitcode for worker in workers):
        raise InputError("a job ended before the queue did; what it was grading is queued again")


def _work(grader: Grader, cores: list[int], watch: bool) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.sched_setaffinity(0, cores)
    try:
        grader.work(watch)
    except InputError as error:
        say(f"error: {error}")
        os._exit(2)
    except KeyboardInterrupt:
        os._exit(0)
