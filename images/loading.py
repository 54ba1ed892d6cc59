"""A data set's name -> images in memory. Needs no torch before a public data set is read, so that it can be read meanwhile."""

from __future__ import annotations

import difflib
import hashlib
import os
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from config import InputError
from images.arrays import load_npz
from images.own_images import load_folder
from images.sources import CIFAR10_FILES, PUBLIC, ImageDataset


def load(
    name: str,
    root: Path,
    image_size: int = 0,
    skip_unreadable: bool = False,
    class_order: Sequence[str] = (),
    only_test: bool = False,
) -> ImageDataset:
    """The data set of that name: one of PUBLIC, read from (or downloaded to) `root`, `folder:PATH` or `npz:FILE`.

    The other arguments are of a folder, as for `load_folder`. Images of the user's own that are in more than one split are counted
    on stderr. Raises InputError where there is no such data set or its files are missing or wrong.
    """
    kind, _, path = name.partition(":")
    if path and kind in ("folder", "npz"):
        if kind == "folder":
            dataset = load_folder(Path(path), image_size, skip_unreadable, class_order, only_test)
        else:
            dataset = load_npz(Path(path))
        say_copies(dataset)
        return dataset
    if name not in PUBLIC:
        own = [f"{'folder' if os.path.isdir(name) else 'npz'}:{name}"] if name and os.path.exists(name) else []
        close = own or difflib.get_close_matches(name, PUBLIC, 1)
        raise InputError(
            f"unknown data set '{name}'{f' (did you mean {close[0]}?)' if close else ''}: choose from "
            f"{', '.join(PUBLIC)}, folder:PATH, npz:FILE"
        )
    return PUBLIC[name](root)


def say_copies(dataset: ImageDataset) -> None:
    """Say on stderr how many test and validation images are, pixel for pixel, training images too."""
    known = {_digest(image) for image in dataset.train.images}
    for part, split in (("test", dataset.test), ("validation", dataset.val)):
        copies = sum(_digest(image) in known for image in split.images) if split and known else 0
        if split and copies:
            print(
                f"note: {copies:,} of the {len(split.labels):,} {part} images are exact copies of training images: the {part} "
                "accuracy is higher than on new images; leave them in one split only",
                file=sys.stderr,
            )


def _digest(image: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()


def resolve_auto(name: str, root: Path) -> str:
    """`name`; for `auto`, `cifar10` where it is in `root` or can be downloaded, else, with a notice on stderr, `shapes`."""
    if name != "auto":
        return name
    if has_cifar10(root):
        return "cifar10"
    print(
        f"note: CIFAR-10 is not in {root} and cannot be downloaded; running on 'shapes', which the project renders itself",
        file=sys.stderr,
    )
    return "shapes"


def has_cifar10(root: Path) -> bool:
    """Whether CIFAR-10 is in `root` or can be downloaded."""
    if all((root / "cifar-10-batches-py" / file).is_file() for file in CIFAR10_FILES):
        return True
    import torchvision

    try:
        urllib.request.urlopen(urllib.request.Request(torchvision.datasets.CIFAR10.url, method="HEAD"), timeout=3).close()
    except (OSError, ValueError):
        return False
    return True
