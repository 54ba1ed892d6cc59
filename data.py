"""A data set's name -> images in memory -> batches on the device."""
from __future__ import annotations

import difflib
import functools
import signal
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from config import InputError
from own_images import load_folder, load_npz
from sources import CIFAR10_FILES, PUBLIC, ImageDataset, Split, stratified_split

__all__ = ["AugmentedBatches", "ImageDataset", "Split", "VectorisedBatches", "load", "normalise", "resolve_auto", "statistics",
           "stratified_split"]


def load(name: str, root: Path, image_size: int = 32) -> ImageDataset:
    """The data set of that name: one of PUBLIC, read from (or downloaded to) `root`, `folder:PATH` or `npz:FILE`.

    `image_size` (pixels) is the side of the squares to which the images of a folder are brought. Raises InputError where there
    is no such data set or its files are missing or wrong.
    """
    kind, _, path = name.partition(":")
    if path and kind == "folder":
        return load_folder(Path(path), image_size)
    if path and kind == "npz":
        return load_npz(Path(path))
    if name not in PUBLIC:
        close = difflib.get_close_matches(name, PUBLIC, 1)
        raise InputError(f"unknown data set '{name}'{f' (did you mean {close[0]}?)' if close else ''}: there are "
                         f"{', '.join(PUBLIC)}, folder:PATH and npz:FILE")
    return PUBLIC[name](root)


def resolve_auto(root: Path) -> str:
    """`cifar10` where it is in `root` or can be downloaded, else, with a notice on stderr, `shapes`."""
    if all((root / "cifar-10-batches-py" / file).is_file() for file in CIFAR10_FILES):
        return "cifar10"
    import torchvision

    try:
        urllib.request.urlopen(urllib.request.Request(torchvision.datasets.CIFAR10.url, method="HEAD"), timeout=3).close()
    except (OSError, ValueError):
        print(f"note: CIFAR-10 is not in {root} and cannot be downloaded; running on 'shapes', which the project draws itself",
              file=sys.stderr)
        return "shapes"
    return "cifar10"


def statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of `images` (N, H, W, C) uint8, of pixels scaled to 0..1."""
    rows = torch.from_numpy(images).view(len(images), -1)
    sums = torch.zeros(2, rows.shape[1], dtype=torch.float64)
    for part in rows.split(256):  # 256 * 255**2 < 2**24: float32 holds these sums of integers exactly
        pixels = part.float()
        sums += torch.stack([pixels.sum(0), pixels.square_().sum(0)])
    sums = sums.view(2, -1, images.shape[3]).sum(1)
    mean, square = sums / (255 * images[..., 0].size)
    std = (square / 255 - mean.square()).clamp_min(0).sqrt().clamp_min(1 / 255)  # a channel of one value has no deviation
    return tuple(mean.tolist()), tuple(std.tolist())


def normalise(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(N, H, W, C) uint8 -> (N, C, H, W) float32 in channels_last memory: (pixels / 255 - mean) / std."""
    scale, shift = _scale_and_shift(tuple(mean), tuple(std), pixels.shape[1] * pixels.shape[2], pixels.device)
    rows = pixels.reshape(len(pixels), -1).float()
    return rows.mul_(scale).add_(shift).view(pixels.shape).permute(0, 3, 1, 2)


@functools.lru_cache(maxsize=8)
def _scale_and_shift(mean: tuple[float, ...], std: tuple[float, ...], area: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """What to multiply and add to each number of an image laid out as one row (area * C).

    Whole rows are why `normalise` is fast: over the last dimension of (N, H, W, 3) the same arithmetic takes seven times longer.
    """
    scale = 1 / (255 * torch.tensor(std, device=device))
    return scale.repeat(area), (torch.tensor(mean, device=device) * (-255 * scale)).repeat(area)


def _order(count: int, seed: int, epoch: int) -> Tensor:
    """The order of the images in an epoch: a function of seed and epoch alone, so that a resumed run needs no state."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


def _steps_per_epoch(split: Split, batch_size: int) -> int:
    if batch_size > len(split.labels):
        raise InputError(f"a batch of {batch_size} is larger than the data: {len(split.labels)} training images are left beside "
                         "the held-out ones; choose a smaller batch_size")
    return len(split.labels) // batch_size


class VectorisedBatches:
    """Batches of images with which nothing random is done: whole batches are picked and normalised at once.

    `steps(first, last)` yields (inputs, targets) of the global steps first..last-1: (B, C, H, W) float32 in channels_last memory
    and (B,) int64, on `device`. Each epoch is a new order; what is left after its last whole batch is not used in it.
    """

    def __init__(self, split: Split, batch_size: int, mean: tuple[float, ...], std: tuple[float, ...], seed: int,
                 device: torch.device) -> None:
        self.steps_per_epoch = _steps_per_epoch(split, batch_size)
        self.batch_size, self.mean, self.std, self.seed, self.device = batch_size, mean, std, seed, device
        self.images = torch.from_numpy(split.images).to(device)
        self.labels = torch.from_numpy(split.labels).to(device)

    def steps(self, first: int, last: int) -> Iterator[tuple[Tensor, Tensor]]:
        rows = self.images.view(len(self.images), -1)  # picking long rows is a few memory copies
        epoch = -1
        for step in range(first, last):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = _order(len(rows), self.seed, epoch).to(self.device)
            start = step % self.steps_per_epoch * self.batch_size
            picked = order[start : start + self.batch_size]
            pixels = rows.index_select(0, picked).view(-1, *self.images.shape[1:])
            yield normalise(pixels, self.mean, self.std), self.labels.index_select(0, picked)


class AugmentedBatches:
    """Batches through the Albumentations pipeline of transform.py, made in worker processes.

    The same interface as `VectorisedBatches`. The random numbers of a batch come from the seed and its step alone: neither the
    number of workers nor an interruption changes them. A worker makes whole batches, which saves a message an image, and works
    on across the ends of epochs.
    """

    def __init__(self, split: Split, batch_size: int, mean: tuple[float, ...], std: tuple[float, ...], strength: float,
                 seed: int, workers: int, device: torch.device) -> None:
        from transform import train_transform

        self.steps_per_epoch = _steps_per_epoch(split, batch_size)
        self.workers, self.device = workers, device
        self.batches = _AugmentedSteps(split, batch_size, self.steps_per_epoch, train_transform(mean, std, strength), seed)

    def steps(self, first: int, last: int) -> Iterator[tuple[Tensor, Tensor]]:
        # A generator of its own, lest starting the workers moves the global one and a resumed run draws other numbers.
        loader = torch.utils.data.DataLoader(self.batches, batch_size=None, sampler=range(first, last), num_workers=self.workers,
                                             generator=torch.Generator(),
                                             worker_init_fn=_prepare_worker, prefetch_factor=4 if self.workers else None)
        for inputs, targets in loader:
            yield (inputs.to(self.device, memory_format=torch.channels_last, non_blocking=True),
                   targets.to(self.device, non_blocking=True))


class _AugmentedSteps(torch.utils.data.Dataset):
    """Global step -> its batch."""

    def __init__(self, split: Split, batch_size: int, steps_per_epoch: int, transform, seed: int) -> None:
        self.split, self.batch_size, self.steps_per_epoch = split, batch_size, steps_per_epoch
        self.transform, self.seed = transform, seed

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        epoch, index = divmod(step, self.steps_per_epoch)
        order = _order(len(self.split.labels), self.seed, epoch)
        picked = order[index * self.batch_size : (index + 1) * self.batch_size].numpy()
        self.transform.set_random_seed([self.seed, step])
        inputs = torch.stack([self.transform(image) for image in self.split.images[picked]])
        return inputs, torch.from_numpy(self.split.labels[picked])


def _prepare_worker(worker: int) -> None:
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the training process ends its workers
    cv2.setNumThreads(0)
