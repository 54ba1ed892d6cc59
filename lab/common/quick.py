"""Quick runs: what they measure on, and that they do not get into the documents."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from config import InputError

if TYPE_CHECKING:
    from images.sources import ImageDataset


def demand_whole(quick: bool, docs: bool) -> None:
    """Raise InputError where a part of a measurement would be put into the documents."""
    if quick and docs:
        raise InputError("--quick measures a part only: leave it out for --docs")


def load(name: str, quick: bool, root: Path) -> ImageDataset:
    """The data set of that name; for auto `shapes` where `quick`, which need no download, else what there is."""
    from images import data

    return data.load("shapes" if quick and name == "auto" else data.resolve_auto(name, root), root)
