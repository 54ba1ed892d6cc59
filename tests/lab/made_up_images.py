"""Made-up images for the experiments, and how their commands are called."""

import functools
from pathlib import Path

import numpy as np
import pytest

import main
from conftest import random_split
from images.sources import ImageDataset, Split
from training import Trainer

NAMES = ("ant", "bee", "cat", "dog")


def numbered(count: int, first: int = 0) -> Split:
    """Images that tell which they are: each holds its own number, and its label is that number modulo 4."""
    numbers = np.arange(first, first + count)
    images = np.zeros((count, 28, 28, 1), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 1, 0] = numbers % 256, numbers // 256
    return Split(images, numbers % 4)


def numbers_of(split: Split) -> np.ndarray:
    return split.images[:, 0, 0, 0].astype(int) + 256 * split.images[:, 0, 1, 0].astype(int)


@functools.cache
def numbered_set() -> ImageDataset:
    """2,000 and 400 of them."""
    return ImageDataset("numbered", numbered(2000), numbered(400, first=4000), NAMES)


@functools.cache
def noise() -> ImageDataset:
    """Noise of 1 channel, of two classes one brighter than the other."""
    splits = [random_split(count, 2, 28, 28, 1) for count in (200, 60)]
    for split in splits:
        split.images[split.labels == 1] //= 2
    return ImageDataset("noise", *splits, ("ant", "bee"))


def write_noise(path: Path, count: int = 400) -> str:
    """`count` training and 100 test images of 3 channels in an .npz file; returns its name as a data set."""
    train, test = random_split(count), random_split(100)
    np.savez(path, train_x=train.images, train_y=train.labels, test_x=test.images, test_y=test.labels)
    return f"npz:{path}"


def count_fits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seed of every training that is really made from now on."""
    made, fit = [], Trainer.fit
    monkeypatch.setattr(Trainer, "fit", lambda self: made.append(self.config.seed) or fit(self))
    return made


def run_lab(*arguments: object) -> int:
    """The exit status of `lab ARGUMENTS`, in this process."""
    return main.main(["lab", *map(str, arguments)])


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The error line, which must be the only one."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]
