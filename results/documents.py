"""Tables and sentences that are written into documents, and what their numbers were measured on."""

from __future__ import annotations

import datetime
import html
import re
from collections.abc import Iterable, Sequence
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


def escape(text: str) -> str:
    """`text` on one line of Markdown, in which nothing of it is markup: neither tags nor cells may begin in a name."""
    text = html.escape(" ".join(text.split()), quote=False)
    for character in "|[]*_`":
        text = text.replace(character, "\\" + character)
    return text


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown; every cell is escaped."""
    lines = [[escape(cell) for cell in header], ["---"] * len(header), *([escape(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
