"""What every experiment can be told, and what its command does; an experiment is one file with a subclass of `Experiment`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from config import InputError
from utils import ROOT, STATED, demand_writable, set_threads

if TYPE_CHECKING:
    from images.sources import ImageDataset
    from lab.common.page import Page


@dataclass
class Experiment:
    """What all experiments can be told."""

    quick: bool = False
    """A small version on data that need no download, in under a minute."""
    out: Annotated[Path | None, STATED] = None
    """Folder of the page, its figures and the trainings, which a second run uses again (default: runs/lab-NAME)."""
    docs: bool = False
    """Also write the page as Markdown to docs/lab/. Only images of digits and shapes are copied."""
    data_dir: Path = ROOT / "data"
    """Folder that holds the data sets; missing public ones are downloaded to it."""
    first_seed: int = 0
    """Seed of the first training; the others follow."""
    threads: int = 0
    """Number of threads for torch; 0 uses torch's default (one per core)."""
    device: str = "auto"
    """auto, cpu, cuda, xpu or mps."""

    NAME: ClassVar[str]
    """Of the command and of its page."""
    DEFAULTS: ClassVar[dict[str, tuple[object, object]]]
    """Option that a user may leave open -> what it then is, and what it is with --quick."""

    def make(self, folder: Path) -> Page:
        """Train what is missing in `folder` and make the page."""
        raise NotImplementedError

    def load(self, name: str) -> ImageDataset:
        """The data set of that name."""
        from images import data

        return data.load(name, self.data_dir)

    @property
    def all_seeds(self) -> range:
        """One for each training of the same kind."""
        return range(self.first_seed, self.first_seed + self.seeds)

    def run(self) -> int:
        for field, least in {"seeds": 1, "steps": 1, "first_seed": 0, "threads": 0}.items():
            number = getattr(self, field, None)
            if number is not None and number < least:
                raise InputError(f"--{field.replace('_', '-')} is {number}: it must be {least} or more")
        for field, values in self.DEFAULTS.items():
            if getattr(self, field) in (None, ()):
                setattr(self, field, values[self.quick])
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
