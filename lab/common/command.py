"""What every experiment can be told, and what its command does; an experiment is one file with a subclass of `Experiment`."""

from __future__ import annotations

import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, TypeVar

from config import InputError
from lab.common.quick import demand_whole
from utils import ROOT, STATED, demand_writable, set_threads

if TYPE_CHECKING:
    from images.sources import ImageDataset
    from lab.common.page import Page

Value = TypeVar("Value")


@dataclass
class Experiment:
    """What all experiments can be told."""

    quick: bool = False
    """A small version on data that need no download, in under a minute. It does not overwrite the page of a full run."""
    out: Annotated[Path | None, STATED] = None
    """Folder of the page, its figures and the finished trainings, which a later run reuses (default: runs/lab-NAME)."""
    docs: bool = False
    """Also write the page as Markdown to docs/lab/; not with --quick. Only images of digits and shapes are copied."""
    data_dir: Path = ROOT / "data"
    """Folder that holds the data sets; missing public ones are downloaded to it."""
    first_seed: int = 0
    """Seed of the first training; the others follow."""
    threads: int = 0
    """Number of threads for torch; 0 uses torch's default (one per core)."""
    device: str = "auto"
    """auto, cpu, cuda, xpu or mps."""

    NAME: ClassVar[str]
    """Of the command."""
    DATASETS: ClassVar[tuple[str, str]]
    """The default data sets of a full and of a quick run."""

    def make(self, folder: Path) -> Page:
        """Train what is missing in `folder` and make the page."""
        raise NotImplementedError

    def choose(self, given: Value | None, full: Value, quick: Value) -> Value:
        """What an option is: as `given`, or its default for a full or a quick run."""
        return given if given is not None else quick if self.quick else full

    def seed_range(self, given: int | None, full: int, quick: int) -> range:
        """One seed for each training of the same kind, of which there are as many as `choose` says."""
        return range(self.first_seed, self.first_seed + self.choose(given, full, quick))

    def load(self, name: str) -> ImageDataset:
        """The data set of that name."""
        from images import data

        return data.load(name, self.data_dir)

    def page_name(self, dataset: str) -> str:
        """Of the files of a page on that data set, which neither a quick run nor one on other data may overwrite."""
        usual = self.DATASETS[self.quick]
        return "-".join(filter(None, [self.NAME, "" if dataset == usual else _short(dataset), "quick" if self.quick else ""]))

    def run(self) -> int:
        for field, least in {"seeds": 1, "steps": 1, "first_seed": 0, "threads": 0}.items():
            number = getattr(self, field, None)
            if number is not None and number < least:
                raise InputError(f"--{field.replace('_', '-')} is {number}: it must be {least} or more")
        demand_whole(self.quick, self.docs)
        folder = self.out or ROOT / "runs" / f"lab-{self.NAME}{'-quick' if self.quick else ''}"
        demand_writable(folder)
        set_threads(self.threads)
        page = self.make(folder)
        path = page.write(folder)
        for line in page.observations:
            print(f"- {line}")
        print(f"page in {path}")
        if self.docs:
            print(f"Markdown in {page.write_docs()}")
        return 0


def _short(dataset: str) -> str:
    """The name of a data set for a file; of the user's own with a hash of the whole path, as two folders may be called alike."""
    kind, colon, place = dataset.partition(":")
    if not colon:
        return kind
    path = os.path.realpath(place)
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '-', Path(path).stem).strip('-') or kind}-{zlib.crc32(os.fsencode(path)):08x}"
