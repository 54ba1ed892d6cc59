"""Images in memory -> batches on the device."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from config import InputError, TrainConfig
from images.loading import has_cifar10, load, resolve_auto
from images.sources import ImageDataset, Split, file_name, stratified_split

if TYPE_CHECKING:
    from transform import BatchAugmentation

__all__ = [
    "AugmentedBatches",
    "ImageDataset",
    "Split",
    "VectorisedBatches",
    "balanced_subset",
    "file_name",
    "has_cifar10",
    "load",
    "normalise",
    "resolve_auto",
    "statistics",
    "stratified_split",
]


Channels = tuple[float, ...]
"""A number for each channel, of pixels from 0 to 1."""
Shard = tuple[int, int]
"""Rank and number of the processes that share a batch."""


def balanced_subset(split: Split, classes: Mapping[str, int], per_class: int | None, seed: int) -> Split:
    """Exactly `per_class` images (None for all there are) of each of `classes`, in random order, the same for the same seed.

    `classes` are names and their labels in `split`; in the subset they are numbered anew, in that order. With the same seed a
    smaller subset is a part of a larger one. Raises InputError, which says how many there are, where a class has fewer images.
    """
    order = np.random.default_rng(seed).permutation(len(split.labels))
    chosen = []
    for name, label in classes.items():
        indices = order[split.labels[order] == label]
        if per_class is not None and not 1 <= per_class <= len(indices):
            raise InputError(f"class '{name}': {per_class} images were asked for, and there are {len(indices)}")
        chosen.append(indices[:per_class])
    labels = np.repeat(np.arange(len(chosen)), [len(indices) for indices in chosen])
    mixed = np.random.default_rng(seed).permutation(len(labels))
    return Split(split.images[np.concatenate(chosen)[mixed]], labels[mixed])


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


def spread_classes(order: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """`order` (N,), numbers of images, so that every run of it has the classes in about the proportions of all (stratified
    sampling): the images of each class, in the order in which they come, are spread evenly. `labels` (N,) are those of all images.

    About 2 ms for 50,000 images: both arrays that are sorted consist of few rising runs or of small integers.
    """
    by_class = labels[order].astype(np.uint16).argsort(kind="stable")
    places = np.concatenate([(np.arange(count) + 0.5) / count for count in np.bincount(labels) if count])
    return order[by_class[places.argsort(kind="stable")]]


def demand_batch(batch_size: int, count: int, images_per_draw: int, processes: int) -> None:
    """Raise InputError where batches of `batch_size` cannot be made of `count` training images, or not be shared out."""
    if batch_size > count:
        raise InputError(
            f"a batch of {batch_size} is larger than the data: only {count} training images are left beside the validation images; "
            "choose a smaller batch_size"
        )
    if batch_size % (images_per_draw * processes):
        raise InputError(
            f"batch size {batch_size} must be a multiple of "
            f"{images_per_draw * processes} (images_per_draw {images_per_draw} x {processes} "
            f"process{'' if processes == 1 else 'es'})"
        )


class _Sampler:
    """Which images are in the batch of a global step, and which of them are this process's.

    The batches of an epoch are a new order of the images, cut into batches; what is left over is not used in it. With `shard`
    (rank, number of processes), `indices` gives the rank-th of that many equal, contiguous parts of the batch.
    """

    def __init__(self, labels: np.ndarray, config: TrainConfig, shard: Shard, images_per_draw: int = 1) -> None:
        self.rank, processes = shard
        self.labels, self.batch_size, self.seed = labels, config.batch_size, config.seed
        self.is_stratified = config.stratified
        demand_batch(self.batch_size, len(labels), images_per_draw, processes)
        self.share = self.batch_size // processes
        self.steps_per_epoch = len(labels) // self.batch_size
        self.latest: tuple[int, Tensor] = -1, torch.empty(0)  # the epoch last asked for, and its order

    def indices(self, step: int, device: torch.device) -> Tensor:
        """(share,) int64, on `device`."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        if self.latest[0] != epoch:
            self.latest = epoch, self._order(epoch).to(device)
        start = batch * self.batch_size + self.rank * self.share
        return self.latest[1][start : start + self.share]

    def _order(self, epoch: int) -> Tensor:
        """The order of the images in an epoch: a function of seed and epoch alone, so that a resumed run needs no state."""
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(self.seed * 1_000_003 + epoch))
        return torch.from_numpy(spread_classes(order.numpy(), self.labels)) if self.is_stratified else order


class VectorisedBatches:
    """Batches of images that are picked, moved, mirrored and normalised at once, as whole batches.

    Batch size, seed, shift and flips are those of `config`; all that is drawn comes from the seed and the step alone.

    `steps(steps)` yields (inputs, targets) of each of these global steps: (B, C, H, W) float32 in channels_last memory
    and (B,) int64, on `device`. Each epoch is a new order; what is left after its last whole batch is not used in it.

    The batch size is that of all processes together: with `shard` (rank, number of processes), B is one part of it, and the parts
    of all ranks, one after the other, are the batch of a single process. Raises InputError where it cannot be divided so.
    """

    def __init__(
        self, split: Split, config: TrainConfig, mean: Channels, std: Channels, device: torch.device, shard: Shard = (0, 1)
    ) -> None:
        self.sampler = _Sampler(split.labels, config, shard)
        self.steps_per_epoch = self.sampler.steps_per_epoch
        self.shift, side = config.shift, min(split.images.shape[1:3])
        if self.shift >= side:
            raise InputError(f"shift is {self.shift}: it must be less than the side of an image ({side} pixels)")
        # Which images the even epochs mirror; the odd ones mirror the others.
        coins = np.random.default_rng(config.seed).integers(2, size=len(split.labels)) if config.alternating_flip else None
        self.flips = None if coins is None else torch.from_numpy(coins).bool().to(device)
        self.mean, self.std, self.device = mean, std, device
        self.images = torch.from_numpy(split.images).to(device)
        self.labels = torch.from_numpy(split.labels).to(device)

    def steps(self, steps: Sequence[int]) -> Generator[tuple[Tensor, Tensor], None, None]:
        rows = self.images.view(len(self.images), -1)  # picking long rows is a few memory copies
        for step in steps:
            picked = self.sampler.indices(step, self.device)
            if self.shift or self.flips is not None:
                pixels = self._moved(picked, step)
            else:
                pixels = rows.index_select(0, picked).view(-1, *self.images.shape[1:])
            yield normalise(pixels, self.mean, self.std), self.labels.index_select(0, picked)

    def _moved(self, picked: Tensor, step: int) -> Tensor:
        """The images `picked` (B,) as (B, H, W, C) uint8, moved and mirrored as `step` says."""
        height, width = self.images.shape[1:3]
        sampler = self.sampler
        # Drawn for the batch of all processes, of which each takes its part.
        random = np.random.default_rng([sampler.seed, step])
        shifts = torch.from_numpy(random.integers(-self.shift, self.shift + 1, (sampler.batch_size, 2)))
        down, right = shifts[sampler.rank * sampler.share :][: sampler.share].to(self.device)[..., None].unbind(1)
        rows = _mirrored(torch.arange(height, device=self.device) + down, height)
        columns = _mirrored(torch.arange(width, device=self.device) + right, width)
        if self.flips is not None:
            flipped = self.flips[picked] ^ bool(step // self.steps_per_epoch % 2)
            columns = torch.where(flipped[:, None], width - 1 - columns, columns)
        return self.images[picked[:, None, None], rows[:, :, None], columns[:, None, :]]


def _mirrored(places: Tensor, size: int) -> Tensor:
    """Places up to size - 1 outside 0..size-1, mirrored at the first and the last one."""
    return size - 1 - (size - 1 - places.abs()).abs()


class AugmentedBatches:
    """Batches through the Albumentations pipeline of transform.py, made in worker processes.

    The same interface as `VectorisedBatches`. `config.images_per_draw` images that follow each other share one draw of random
    numbers, which comes from the seed, the step and their place in the batch of all processes alone: neither the number of
    workers or processes nor an interruption changes a batch. A worker makes whole batches, works on across the ends of epochs
    and, where processes are forked, reads the images in place.
    """

    def __init__(
        self, split: Split, config: TrainConfig, mean: Channels, std: Channels, device: torch.device, shard: Shard = (0, 1)
    ) -> None:
        from transform import BatchAugmentation

        side, size = min(split.images.shape[1:3]), config.images_per_draw
        if config.hole > side:
            raise InputError(f"hole is {config.hole}: it must be at most the side of an image ({side} pixels)")
        if split.images.shape[3] > 4 and size > 1:
            raise InputError(f"images_per_draw is {size}: for images of {split.images.shape[3]} channels it must be 1")
        sampler = _Sampler(split.labels, config, shard, size)
        self.steps_per_epoch = sampler.steps_per_epoch
        self.mean, self.std, self.workers, self.device = mean, std, config.workers, device
        augmentation = BatchAugmentation(mean, config.augment, size, config.augmentations, config.hole)
        self.batches = _AugmentedSteps(split, sampler, augmentation, size)

    def steps(self, steps: Sequence[int]) -> Generator[tuple[Tensor, Tensor], None, None]:
        from transform import load_albumentations

        if self.workers and multiprocessing.get_start_method() == "fork":
            load_albumentations()  # else each of the workers imports it
        # A generator of its own, lest starting the workers moves the global one and a resumed run draws other numbers.
        loader = torch.utils.data.DataLoader(
            self.batches,
            batch_size=None,
            sampler=steps,
            num_workers=self.workers,
            collate_fn=_as_it_is,
            generator=torch.Generator(),
            worker_init_fn=_prepare_worker,
            prefetch_factor=4 if self.workers else None,
        )
        for pixels, targets in loader:
            yield (
                normalise(torch.from_numpy(pixels).to(self.device), self.mean, self.std),
                torch.from_numpy(targets).to(self.device),
            )


@contextlib.contextmanager
def worker_ends_told() -> Iterator[None]:
    """What torch raises where a worker is killed, anywhere in this process, is an InputError in one line."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise InputError(
            "a worker that augments images was killed, perhaps for lack of memory: go on with --resume and fewer --workers"
        ) from error


class _AugmentedSteps(torch.utils.data.Dataset):
    """Global step -> this process's part of its batch: images (B, H, W, C) uint8 and labels (B,) int64, as arrays.

    Arrays of bytes, since sending a worker's tensors opens shared memory for each, and floats are four times as many.
    """

    def __init__(self, split: Split, sampler: _Sampler, augmentation: BatchAugmentation, images_per_draw: int) -> None:
        self.split, self.sampler, self.augmentation, self.images_per_draw = split, sampler, augmentation, images_per_draw

    def __getitem__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        picked = self.sampler.indices(step, torch.device("cpu")).numpy()
        images, size = self.split.images[picked], self.images_per_draw
        first_draw = self.sampler.rank * self.sampler.share // size
        for i, start in enumerate(range(0, len(images), size)):
            self.augmentation.set_random_seed([self.sampler.seed, step, first_draw + i])
            images[start : start + size] = self.augmentation(images[start : start + size])
        return images, self.split.labels[picked]


def _as_it_is(batch: Any) -> Any:  # of images and labels; torch's stubs want a list, which it is only where torch batches
    return batch


def _prepare_worker(worker: int) -> None:
    import cv2

    # Ctrl-C, and SIGTERM from torchrun, reach whole process groups; it is for the training process to end its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(0)


def _end_with_parent() -> None:
    # A worker whose parent was killed would wait for ever to send the batches that nobody reads any more.
    parent = multiprocessing.parent_process()
    assert parent is not None  # this runs in workers alone
    parent.join()
    os._exit(1)
