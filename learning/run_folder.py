"""The folder of a training: no other run's, and written by one training at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from config import InputError
from learning.history import Observer, Training

REPORT = ("report.html", "report.md", "augmented.png", "curves.png", "confusion.png", "mistakes.png", "run.png")
PAGES = (*REPORT, "comparison.html", "validation-accuracy.png")
"""What shows a run, of its weights at the time."""
RUN = ("checkpoint.pt", "run.json", "model.safetensors", "report.html")
"""Any of these makes a folder a run's."""
OF_FIT = ("study.sqlite", "limits.json", "preset.txt")
ALL = (*RUN, *PAGES, "model.json", "log.csv", "last-epochs.pt", "tensorboard", "lr-find.png", *OF_FIT)
EXPORTED = (".onnx", ".pt2")
"""Endings of files that `export` makes of weights: the user's, never removed."""


@contextlib.contextmanager
def run_folder(
    default: Path,
    named: Path | None,
    dataset: str,
    resume: bool,
    overwrite: bool,
    inputs: Sequence[Path] = (),
    instead: str = "--resume, --overwrite or another --out",
) -> Iterator[Path]:
    """The folder to write a training on `dataset` to, which no other training writes to inside the block.

    A folder that the user `named` must hold no run, unless it is resumed or overwritten. `default` gets another name, `-2` and so
    on, where it holds one; of these, resuming and overwriting take the latest run on `dataset`. A run to overwrite is still there:
    `Overwrite` removes it once the new one starts. `instead` is what the user may pass where a folder is not free; of a run that
    nobody can overwrite it is empty.

    Raises InputError where a named folder holds a run, another training writes to it, there is nothing to resume, a folder cannot
    be made, or a file of `inputs`, from which the training is to start, would be removed.
    """
    if resume and overwrite:
        raise InputError("--resume goes on with a run, and --overwrite removes it: pass one of them")
    folder = named or _of_earlier_run(default, dataset, resume, overwrite)
    if resume and not (folder and (folder / "checkpoint.pt").exists()):
        raise InputError(f"nothing to resume: there is no {(folder or default) / 'checkpoint.pt'}")
    with contextlib.ExitStack() as stack:
        if folder:
            if not stack.enter_context(_lock(folder)):
                raise InputError(f"another training is writing to {folder}: wait for its end, or pass another --out")
            if holds_run(folder) and not (resume or overwrite):
                raise InputError(f"{folder} holds a run: pass {instead}")
        else:
            folder = stack.enter_context(_free(default, " (--overwrite replaces a run)" if "--overwrite" in instead else ""))
        if overwrite:
            for path in inputs:
                if path.resolve().parent == folder.resolve():
                    raise InputError(f"{path} lies in the folder whose run --overwrite removes: pass another --out")
        yield folder


class Overwrite(Observer):
    """Removes the earlier run in `folder` when a training starts there: by then, all that it was given is known to be right."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def started(self, trainer: Training) -> None:
        remove(self.folder, ALL)
        say_exported(self.folder)


def holds_run(folder: Path) -> bool:
    """Whether a training or a sprint left something in `folder`."""
    return any((folder / name).exists() for name in RUN)


def remove(folder: Path, names: Sequence[str]) -> list[str]:
    """Remove these files and folders, where they are, from `folder`; returns those that were there. Raises InputError where that
    fails."""
    there = [name for name in dict.fromkeys(names) if os.path.lexists(folder / name)]
    for name in there:
        path = folder / name
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        except OSError as error:
            raise InputError(f"cannot remove {path}: {error.strerror or error}") from error
    return there


def remove_pages(folder: Path, is_shown_anew: bool) -> None:
    """Remove the pages and plots of a run whose weights are about to be replaced, and say so on stderr; of what the user exported
    it is said only. Nothing is said of a report that is written anew."""
    gone = [name for name in remove(folder, PAGES) if not (is_shown_anew and name in REPORT)]
    if gone:
        again = "" if is_shown_anew else "; --report writes a new report"
        print(f"note: {', '.join(gone)} removed from {folder}: they showed the weights before --resume{again}", file=sys.stderr)
    say_exported(folder)


def say_exported(folder: Path, pattern: str = "*") -> None:
    """Say on stderr which exported files of such names in `folder` are of replaced weights: they are the user's and stay."""
    exported = sorted(path.name for path in folder.glob(pattern) if path.suffix in EXPORTED)
    if exported:
        print(f"note: {', '.join(exported)} in {folder} are exports of the earlier weights: export again", file=sys.stderr)


@contextlib.contextmanager
def _free(default: Path, advice: str) -> Iterator[Path]:
    """The first of `default`, `default-2`, ... that holds no run and that no training writes to, locked; `advice` ends the note
    that says where the run goes."""
    number = 1
    while True:
        folder = _numbered(default, number)
        with _lock(folder) as is_ours:
            if is_ours and not holds_run(folder):
                if number > 1:
                    print(f"note: {default} holds another run: this one is written to {folder}{advice}", file=sys.stderr)
                yield folder
                return
        number += 1


def _numbered(default: Path, number: int) -> Path:
    return default if number == 1 else default.with_name(f"{default.name}-{number}")


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Make `folder` and lock it, until the block or this process ends; yields False where another process has locked it.

    A folder that is still empty in the end is removed.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}") from error
    is_ours = True
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            is_ours = False
        except OSError:  # a file system without locks: the user has to know
            print(f"note: {folder} cannot be locked: start no other training that writes there", file=sys.stderr)
        yield is_ours
    finally:
        if is_ours:
            with contextlib.suppress(OSError):
                folder.rmdir()
        os.close(descriptor)


def _of_earlier_run(default: Path, dataset: str, resume: bool, overwrite: bool) -> Path | None:
    """The latest of `default`, `default-2`, ... with a run on `dataset`, to resume or overwrite; None where there is none.

    To resume, a run on data of another path will do where there is no other: the folder of images may have moved.
    """
    if not (resume or overwrite):
        return None
    number, there = 1, []
    while (folder := _numbered(default, number)).exists():
        if holds_run(folder):
            there.append(folder)
        number += 1
    same = [folder for folder in there if data_place(_dataset_of(folder)) == data_place(dataset)]
    found = (same or there if resume else same)[-1:]
    if found and len(there) > 1:
        print(f"note: this is about {found[0]}, the latest run; name another with --out", file=sys.stderr)
    return found[0] if found else None


def _dataset_of(folder: Path) -> str:
    """The data set that the card of a run names; empty where it cannot be known."""
    from learning.weights import load_checkpoint

    try:
        if (folder / "run.json").exists():
            return str(json.loads((folder / "run.json").read_text(encoding="utf-8"))["card"]["dataset"])
        return str(load_checkpoint(folder / "checkpoint.pt")["card"]["dataset"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError, InputError):
        return ""


def data_place(dataset: str) -> str:
    """The name of a data set, with the whole path of the user's own."""
    kind, colon, path = dataset.partition(":")
    return f"{kind}:{os.path.realpath(path)}" if colon else kind
