"""The panel: data sets of the shape of CIFAR-10 that nobody tuned on, made from CIFAR-100's classes by a seed, and easier ones.

A name of a set is KIND or KIND-SEED. Of CIFAR-100's 20 coarse classes of five fine ones each, in an order drawn by the seed:

- `pairs-SEED`: ten classes of two coarse ones each, 50,000 + 10,000 images;
- `coarse-SEED`: ten coarse classes, 25,000 + 5,000;
- `fine-SEED`: ten fine classes, one of each of ten coarse ones, 5,000 + 1,000;
- `three-SEED`: three coarse classes, 7,500 + 1,500;
- `hundred`: CIFAR-100's fine classes as they are;
- `cifar10`, `mnist` (one channel, 28x28), `mnist32` (three channels, 32x32), `shapes`.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np

from config import InputError
from images import data
from images.sources import ImageDataset, Split

KINDS = ("pairs", "coarse", "fine", "three")
TUNED_ON, REPORTED_ON = range(5), range(100, 110)  # the seeds of the groupings
TARGETS = {"hundred": 0.30}  # where it is not 55%


def cifar100(root: Path, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images (N, 32, 32, 3) uint8, fine labels 0..99 and coarse labels 0..19 (N,) int64 of the split "train" or "test"."""
    try:
        content = pickle.loads((root / "cifar-100-python" / split).read_bytes(), encoding="latin1")
    except FileNotFoundError:
        raise InputError(f"no CIFAR-100 in {root}: `./run.sh train --dataset cifar100` downloads it to data/") from None
    images = content["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), np.array(content["fine_labels"]), np.array(content["coarse_labels"])


def classes_of(kind: str, seed: int, fine_of: list[np.ndarray]) -> list[np.ndarray]:
    """The fine classes of each class of a set; `fine_of` are those of each coarse one."""
    rng = np.random.default_rng(seed)
    order = [fine_of[coarse] for coarse in rng.permutation(len(fine_of))]
    if kind == "pairs":
        return [np.concatenate(order[i : i + 2]) for i in range(0, 20, 2)]
    if kind == "fine":
        return [rng.choice(fine, 1) for fine in order[:10]]
    return order[: {"coarse": 10, "three": 3}[kind]]


def load(name: str, root: Path) -> ImageDataset:
    """The set of that name. Raises InputError where there is none, or its source is not in `root`."""
    kind, _, seed = name.partition("-")
    if name in ("cifar10", "mnist", "shapes"):
        return data.load(name, root)
    if name == "hundred":
        return data.load("cifar100", root)
    if name == "mnist32":
        mnist = data.load("mnist", root)
        pad = ((0, 0), (2, 2), (2, 2), (0, 0))
        train, test = (Split(np.pad(s.images, pad).repeat(3, axis=3), s.labels) for s in (mnist.train, mnist.test))
        return ImageDataset(name, train, test, mnist.classes, flips=False)
    if kind not in KINDS or not seed.isdecimal():
        raise InputError(
            f"unknown set '{name}' of the panel: choose from {', '.join(f'{k}-SEED' for k in KINDS)}, hundred, "
            "cifar10, mnist, mnist32, shapes"
        )
    splits = []
    for split in ("train", "test"):
        images, fine, coarse = cifar100(root, split)
        fine_of = [np.unique(fine[coarse == i]) for i in range(20)]
        classes = classes_of(kind, int(seed), fine_of)
        label_of = np.full(100, -1)
        for label, members in enumerate(classes):
            label_of[members] = label
        labels = label_of[fine]
        splits.append(Split(images[labels >= 0], labels[labels >= 0]))
    return ImageDataset(name, *splits, tuple(f"class {i}" for i in range(len(classes))))
