"""What the numbers of the README come from: each script runs alone and writes its record."""

from __future__ import annotations

import datetime
import re
import sys
from pathlib import Path
from typing import Any

import tyro

from config import InputError
from utils import provenance, write_atomically


def replace_between(path: Path, markers: tuple[str, str], text: str) -> None:
    """Put `text` between two markers of a file. Raises InputError where they are not there."""
    start, end = markers
    document = path.read_text(encoding="utf-8")
    replaced, found = re.subn(f"{start}.*?{end}", lambda _: f"{start}\n{text}\n{end}", document, flags=re.DOTALL)
    if found != 1:
        raise InputError(f"{path} must have {start} and {end} once, for the table to stand between")
    write_atomically(path, replaced.encode())


def machine(record: dict[str, Any]) -> str:
    """What a card or a record was measured on, in words: its `hardware` and its version of torch."""
    hardware = record["hardware"]
    bf16 = f" ({hardware['bf16']})" if hardware.get("bf16") else ""  # older records do not say
    threads = f"{hardware['threads']} thread{'' if hardware['threads'] == 1 else 's'}"
    return f"{hardware['processor']}{bf16}, {hardware['cores']} cores, {threads}, torch {record['versions']['torch']}"


def measured_on() -> str:
    """What a page says under its numbers: date, machine, torch, and the command that is running."""
    here = provenance()
    return f"{datetime.date.today()}, {machine(here)}: `{here['command']}`."


def run_command(benchmark: type[Any], description: str | None) -> int:
    """Run the dataclass `benchmark` (its method `run`) as the command line says; returns the exit status."""
    try:
        return tyro.cli(benchmark, description=description).run()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
