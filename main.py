"""Train small networks against the clock and use them. Without a command, `sprint` runs. `COMMAND --help` lists the options."""

from commands import STARTED  # noqa: F401 (the first import of all: the clock of the whole process starts there)

# isort: split
import contextlib
import dataclasses
import io
import os
import re
import signal
import sys
from collections.abc import Mapping
from typing import Annotated, Any, Union

# Until the command runs, Ctrl-C ends the process at once: main() has a line to say for it, an import under way only a traceback.
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import tyro

from commands.check import COMMANDS as LIMITS_COMMANDS
from commands.fit import COMMANDS as FIT_COMMANDS
from commands.lr_find import COMMANDS as RATE_COMMANDS
from commands.sprint import Sprint
from commands.train import Train, train_defaults, without_auto
from config import InputError
from course.commands import COMMANDS as COURSE_COMMANDS
from results.commands import COMMANDS as RESULTS_COMMANDS
from utils import limit_spinning


@dataclasses.dataclass
class Lab:
    """Run an experiment of the course: `./run.sh lab --help` lists them."""


@dataclasses.dataclass
class Course:
    """Run a course's website, its roster, its exports and the copy of its store: `./run.sh course --help` lists the commands."""


COMMANDS = {
    "sprint": Sprint,
    "train": Train,
    **FIT_COMMANDS,
    **RATE_COMMANDS,
    **RESULTS_COMMANDS,
    **LIMITS_COMMANDS,
    **COURSE_COMMANDS,
    "course": Course,
    "lab": Lab,
}


def parse(arguments: list[str]) -> Any:
    """The command of `arguments`, filled in. Raises InputError, in one line, where they are wrong."""
    if any(re.fullmatch("(--[^=]+=)?", argument) for argument in arguments):
        raise InputError("an argument is empty: give it a value, or leave it out")
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments = ["sprint", *arguments]
    if arguments[0] == "lab":  # which has commands of its own: COMMANDS has it for the lists alone
        import lab.commands

        return parse_one_of(lab.commands.COMMANDS, arguments[1:] or ["--help"], "./run.sh lab", lab.commands.__doc__)
    if arguments[0] == "course":  # as well
        from course import group

        if arguments[1:2] == ["roster"]:
            return parse_one_of(group.ROSTER, arguments[2:] or ["--help"], "./run.sh course roster", group.Roster.__doc__)
        return parse_one_of(group.COMMANDS, arguments[1:] or ["--help"], "./run.sh course", group.__doc__)
    # The defaults that `train --help` shows, and that the other fields override, are the chosen preset's.
    defaults = {}
    if arguments[0] == "train":
        arguments, is_auto = without_auto(arguments)
        defaults = {"train": dataclasses.replace(train_defaults(arguments), finds_max_lr=is_auto)}
    return parse_one_of(COMMANDS, arguments, "./run.sh", __doc__, defaults)


def parse_one_of(
    commands: Mapping[str, type],
    arguments: list[str],
    program: str,
    description: str | None,
    defaults: Mapping[str, object] | None = None,
) -> Any:
    """The command among `commands` that `arguments` begin with, filled in; `defaults` of some of them may come ready-made."""
    if arguments[0] not in (*commands, "-h", "--help"):
        import difflib

        near = difflib.get_close_matches(arguments[0], commands, 1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise InputError(f"unknown command '{arguments[0]}'{meant}: choose from {', '.join(commands)}")
    defaults = defaults or {}
    choices: Any = tuple(
        Annotated[command, tyro.conf.subcommand(name, default=defaults.get(name, tyro.MISSING_NONPROP))]
        for name, command in commands.items()
    )
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            command: Any = Union[choices]  # noqa: UP007 (made at run time)
            return tyro.cli(command, args=arguments, prog=program, description=description)
    except SystemExit as stop:
        if stop.code:  # tyro frames its complaint, on a console of ASCII by "-": up to the first rule it says what is wrong
            text = [line.strip("│ ") for line in complaint.getvalue().splitlines()[1:]]
            is_text = [bool(set(line) - set("─╰╯-")) for line in text]
            start = is_text.index(True)
            end = is_text.index(False, start)
            raise InputError(_said_once(" ".join(text[start:end]))) from None
        raise


def _said_once(complaint: str) -> str:
    """A complaint of tyro about several options, each with the command that it was given to, which is then named once."""
    programs = re.findall(r" \(applied to [^()]+\)", complaint)
    if len(set(programs)) != 1:
        return complaint
    return complaint.replace(programs[0], "") + programs[0].replace("applied to", "given to")


def main(arguments: list[str]) -> int:
    """Run a command; returns the exit status."""
    limit_spinning()
    # In a group of processes, what torch's C++ side would write of a lost or missing one in pages, distributed.py says in a line.
    if "WORLD_SIZE" in os.environ:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        command = parse(arguments)
        if os.environ.get("WORLD_SIZE", "1") != "1" and not isinstance(command, Train):
            raise InputError("only train runs in several processes: start the other commands without torchrun")
        status = command.run()
        sys.stdout.flush()
        return status
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # as by `| head`, which has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # of a path that cannot be one, as a name of 300 characters: wherever it is first looked at
        if error.filename is None:
            raise
        print(f"error: {error.strerror}: {error.filename}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"interrupted{f': {error}' if str(error) else ''}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
