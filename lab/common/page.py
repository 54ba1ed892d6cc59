"""What an experiment hands in: one page as HTML that needs nothing else, and the same as Markdown with its figures beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from results.canvas import data_uri
from results.documents import escape, table
from results.report import render
from utils import ROOT, command_line, hardware, machine, versions, write_atomically

DOCS = ROOT / "docs" / "lab"
OWN_IMAGES = ("digits", "shapes")  # data sets whose images one may publish


@dataclass
class Figure:
    """A picture with what it shows."""

    name: str
    png: bytes
    caption: str
    shows_images: bool = False
    """Whether images of the data set are to be seen in it, which not every data set's licence lets one publish."""


@dataclass
class Table:
    """Rows of cells as text; the first column names the row."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass
class Page:
    """The question, the set-up, the results as sections of text, tables and figures, and what they show."""

    name: str
    title: str
    question: str
    dataset: str
    setup: Sequence[tuple[str, str]]
    seconds: float
    """Of all its trainings, with their evaluations of validation and test images, in this run or an earlier one."""
    observations: Sequence[str] = ()
    sections: list[tuple[str, list[str | Table | Figure]]] = field(default_factory=list)

    def add(self, heading: str, *contents: str | Table | Figure) -> None:
        """One more section."""
        self.sections.append((heading, list(contents)))

    def environment(self) -> list[tuple[str, str]]:
        """Command, time and hardware."""
        minutes = f"{self.seconds:.0f} s" if self.seconds < 120 else f"{self.seconds / 60:.1f} min"
        return [
            ("command", command_line()),
            ("time of all trainings", minutes),
            ("hardware", machine({"hardware": hardware()})),
            ("versions", ", ".join(f"{name} {number}" for name, number in versions().items())),
        ]

    def write(self, folder: Path) -> Path:
        """Write NAME.html and its figures to `folder`; returns the path of the page. Raises InputError where that fails."""
        text = render(
            Path(__file__).with_name("page.html.jinja"), page=self, kind=lambda item: type(item).__name__, data_uri=data_uri
        )
        write_atomically(folder / f"{self.name}.html", text.encode("utf-8", "replace"))
        self._write_figures(folder, self._contents(Figure))
        return folder / f"{self.name}.html"

    def write_docs(self) -> Path:
        """Write the page as Markdown, and its figures, to docs/lab/; without those that show images which others own."""
        figures = [figure for figure in self._contents(Figure) if self.dataset in OWN_IMAGES or not figure.shows_images]
        self._write_figures(DOCS, figures)
        write_atomically(DOCS / f"{self.name}.md", self.markdown({figure.name for figure in figures}).encode("utf-8", "replace"))
        return DOCS / f"{self.name}.md"

    def markdown(self, figures: set[str]) -> str:
        """The page as GitHub shows it, with those of its figures."""
        parts = [f"# {escape(self.title)}", escape(self.question), table(("set-up", ""), self.setup)]
        if self.observations:
            parts += ["## What it shows", "\n".join(f"- {escape(line)}" for line in self.observations)]
        for heading, contents in self.sections:
            parts.append(f"## {escape(heading)}")
            for item in contents:
                if isinstance(item, Table):
                    parts += [table(item.header, item.rows), *([escape(item.caption)] if item.caption else [])]
                elif isinstance(item, str):
                    parts.append(escape(item))
                elif item.name in figures:
                    parts += [f"![{escape(item.caption)}]({self.name}-{item.name}.png)", escape(item.caption)]
        command, *others = self.environment()
        parts += ["## To repeat it", f"```\n{command[1]}\n```", table(("", ""), others)]
        return "\n\n".join(parts) + "\n"

    def _contents(self, kind: type) -> Iterable:
        return [item for _, contents in self.sections for item in contents if isinstance(item, kind)]

    def _write_figures(self, folder: Path, figures: Iterable[Figure]) -> None:
        for figure in figures:
            write_atomically(folder / f"{self.name}-{figure.name}.png", figure.png)
