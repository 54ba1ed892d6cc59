"""Grade one folder within another system: what `course export` packs runs this, beside its settings in export.json.

    grade.py gradescope FOLDER results.json         writes the tests and the leaderboard's values
    grade.py codabench FOLDER OUTPUT [--data FILE]  writes scores.json and detailed_results.html into the folder OUTPUT
    grade.py classroom FOLDER SUMMARY               appends the feedback to SUMMARY and prints the points
    grade.py fetch                                  downloads or renders the data set where it is missing

Everything is graded by the commands `submit` and `grade` themselves, with a store that is thrown away.
Exit status: 0 graded, 1 it failed (codabench) or lacks points (classroom), 2 the grader itself cannot work here.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from config import InputError
from course import sandbox
from course.commands import Grade
from course.store import Entry, Store
from course.submission import FILES, read
from limits.assignments import Course
from utils import ROOT, write_atomically

PR_SET_DUMPABLE = 4
SETTINGS = ROOT / "export.json"


def grade_folder(folder: Path, options: dict[str, Any], target: float) -> Entry:
    """Check and grade the submission in `folder` with these options of `grade`; `target` is the accuracy that they demand.

    Returns it as the store has it at the end; state "refused" and number 0 where it was not accepted. Raises InputError where
    the grader does not work.
    """
    try:
        submission = read(_folder_of(folder))
    except InputError as error:
        demanded = {"target": target, "timeout": options["timeout"]}
        return Entry(0, "refused", str(error), "", [], [], [], time.time(), None, None, "", None, demanded)
    with tempfile.TemporaryDirectory() as place:
        path = f"{place}/store.sqlite"
        with Store(path) as store:
            number, _ = store.add(submission)
        Grade(store=path, **options).run()
        with Store(path) as store:
            return store.get(number)


def _folder_of(folder: Path) -> Path:
    """`folder`, or the only folder in it with a model.py where a zip had the files in one; macOS adds another to the zip."""
    inner = [path for path in folder.iterdir() if (path / FILES[0]).is_file()] if folder.is_dir() else []
    is_wrapped = len(inner) == 1 and not any((folder / name).exists() for name in FILES)
    return inner[0] if is_wrapped else folder


def main(arguments: list[str]) -> int:
    """Do what the arguments say; returns the exit status."""
    parser = argparse.ArgumentParser(prog="grade.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("format", choices=("gradescope", "codabench", "classroom", "fetch"))
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("output", type=Path, nargs="?")
    parser.add_argument("--data", type=Path, help="the data set's .npz file, where it is not beside export.json")
    given = parser.parse_args(arguments)
    if given.format != "fetch" and not given.output:
        parser.error("FOLDER and OUTPUT are missing")
    if given.format == "codabench" and not given.data:
        parser.error("codabench requires --data")
    try:
        return _run(given, json.loads(SETTINGS.read_text()))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _out_of_reach(path: Path, options: dict[str, Any]) -> str:
    """The name of the data set in the file `path`, which a submission that runs as this very user does not find.

    In Codabench's containers nobody can become another user or make namespaces. So the file, a copy for this submission alone, is
    removed while it is open here; and the kernel keeps this process's files and memory from others of its user.
    """
    box = sandbox.find(options.get("sandbox", "auto"))
    if box.has_namespaces or box.user is not None:
        return f"npz:{path}"
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0)
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        path.unlink()
    except OSError as error:
        raise InputError(f"cannot keep {path} from the submission: {error.strerror}") from error
    return f"npz:/proc/self/fd/{file}"


def _run(given: argparse.Namespace, settings: dict[str, Any]) -> int:
    options = dict(settings["grade"], data_dir=ROOT / "data")
    if options["dataset"].startswith("npz:"):
        options["dataset"] = f"npz:{given.data or ROOT / options['dataset'].removeprefix('npz:')}"
        if given.format == "codabench":
            options["dataset"] = _out_of_reach(given.data, options)
    if given.format == "fetch":
        from images import data

        data.load(options["dataset"], options["data_dir"])
        return 0
    from course import formats

    course = Course(**settings["course"])
    started = time.monotonic()
    entry = grade_folder(given.folder.resolve(), options, settings["target"])
    took = time.monotonic() - started
    if given.format == "gradescope":
        results = formats.gradescope(entry, course, took)
        write_atomically(given.output, (json.dumps(results, indent=2, allow_nan=False) + "\n").encode())
        return 0
    if given.format == "codabench":
        if formats.codabench(entry, course, given.output):
            return 0
        print(f"error: {entry.reason}", file=sys.stderr)
        return 1
    with open(given.output, "a") as file:
        file.write(formats.feedback(entry, points=formats.earned(entry, course)))
    commands, has_all = formats.classroom(entry, course)
    print(*commands, sep="\n")
    return int(not has_all)
