"""Tables and sentences that are written into documents, and what their numbers were measured on."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

from config import InputError
from utils import machine, provenance, write_atomically


def replace_between(path: Path, markers: tuple[str, str], text: str) -> None:
    """Put `text` between two markers of a file. Raises InputError where they are not there."""
    start, end = markers
    document = path.read_text(encoding="utf-8")
    replaced, found = re.subn(f"{start}.*?{end}", lambda _: f"{start}\n{text}\n{end}", document, flags=re.DOTALL)
    if found != 1:
        raise InputError(f"{path} must have {start} and {end} once, for the table to stand between")
    write_atomically(path, replaced.encode())


def measured_on() -> str:
    """What a page says under its numbers: date, machine, torch, and the command that is running."""
    here = provenance()
    return f"{datetime.date.today()}, {machine(here)}: `{here['command']}`."
