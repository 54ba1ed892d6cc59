"""Where images come from: public data sets, drawn and shipped ones, folders and arrays, read into memory as uint8.

Files of public sets are read here once they are there; torchvision, whose import alone takes longer than that, downloads them.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from config import InputError
from utils import write_atomically


class Split(NamedTuple):
    """Images (N, H, W, C) uint8 and their labels (N,) int64."""

    images: np.ndarray
    labels: np.ndarray


def file_name(dataset_name: str) -> str:
    """The name of a data set as a part of file names."""
    kind, colon, path = dataset_name.partition(":")
    return Path(os.path.abspath(path)).stem if colon else kind


SPLIT_NAMES = {"train": "training", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class ImageDataset:
    """A data set in memory; all splits have the same image size, channels and classes."""

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    val: Split | None = None
    """The validation split, where the data set has one of its own; else it is cut from `train`."""
    flips: bool = True
    """Whether the mirror image of an image is one of the same class, as of photographs and not of digits."""

    @property
    def num_channels(self) -> int:
        return self.train.images.shape[3]

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.train.images.shape[1:3]

    @property
    def file_name(self) -> str:
        """The name as a part of file names: that of the folder or file for a set of the user's own."""
        return file_name(self.name)

    def content(self) -> dict[str, Any]:
        """What tells this data from others, wherever they lie: images of each split, hashes of all labels and of all pixels."""
        splits = {"train": self.train, "val": self.val, "test": self.test}
        found: dict[str, Any] = {name: len(split.labels) if split else 0 for name, split in splits.items()}
        for what, arrays in zip(("pixels", "labels"), zip(*filter(None, splits.values()), strict=True), strict=True):
            digest = hashlib.blake2b(digest_size=16)
            for array in arrays:
                digest.update(np.ascontiguousarray(array).data)
            found[what] = digest.hexdigest()
        return found


def demand_splittable(labels: np.ndarray, count: int) -> None:
    """Raise InputError where `stratified_split` cannot split off `count` images with these labels."""
    classes, counts = np.unique(labels, return_counts=True)
    least, most = int((counts > 1).sum()), len(labels) - len(classes)
    if not max(1, least) <= count <= most:
        raise InputError(
            f"cannot split off {count:,} images: only {len(labels):,} are available, and each of the {len(classes)} classes "
            + (f"needs some on both sides; choose from {least:,} to {most:,}" if most else "has a single one")
        )


def stratified_split(split: Split, count: int, seed: int) -> tuple[Split, Split]:
    """(the rest, `count` images) of `split`, each with the class proportions of the whole; the same for the same seed.

    No class gives its last image. Raises InputError where `count` is less than one image for each class that can give one, or
    more than can be given.
    """
    demand_splittable(split.labels, count)
    classes, counts = np.unique(split.labels, return_counts=True)
    # Each class gives its share rounded down; the classes that lose most by that give one more.
    shares = counts * count / len(split.labels)
    quotas = shares.astype(int)
    quotas[np.argsort(quotas - shares, kind="stable")[: count - quotas.sum()]] += 1
    quotas = np.minimum(quotas, counts - 1)
    while (missing := count - quotas.sum()) > 0:  # what classes of few images cannot give, the others do
        givers = np.flatnonzero(quotas < counts - 1)
        quotas[givers[np.argsort((quotas - shares)[givers], kind="stable")[:missing]]] += 1
    order = np.random.default_rng(seed).permutation(len(split.labels))
    is_taken = np.zeros(len(order), bool)
    for name, quota in zip(classes, quotas, strict=True):
        is_taken[order[split.labels[order] == name][:quota]] = True
    return Split(split.images[~is_taken], split.labels[~is_taken]), Split(split.images[is_taken], split.labels[is_taken])


# File -> MD5, as published with the data sets (torchvision checks the same ones).
CIFAR10_FILES = {
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
CIFAR100_FILES = {
    "meta": "7973b15100ade9c7d40fb424638fde48",
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
}
MNIST_FILES = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
FASHION_MNIST_FILES = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}


def cifar10(root: Path) -> ImageDataset:
    """CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 RGB photographs of 32x32 pixels, 10 classes."""
    return _cifar("cifar10", "CIFAR10", root, "cifar-10-batches-py", CIFAR10_FILES, b"labels", b"label_names")


def cifar100(root: Path) -> ImageDataset:
    """CIFAR-100 (Krizhevsky 2009): the same with 100 (fine) classes."""
    return _cifar("cifar100", "CIFAR100", root, "cifar-100-python", CIFAR100_FILES, b"fine_labels", b"fine_label_names")


def cifar100_coarse(root: Path) -> ImageDataset:
    """CIFAR-100's images in the same order with their 20 coarse classes, of five fine ones each."""
    return _cifar("cifar100", "CIFAR100", root, "cifar-100-python", CIFAR100_FILES, b"coarse_labels", b"coarse_label_names")


def _cifar(
    name: str, torchvision_name: str, root: Path, folder: str, md5: dict[str, str], label_key: bytes, names_key: bytes
) -> ImageDataset:
    _download_missing(torchvision_name, root, root / folder, list(md5))

    def read(file: str) -> dict[bytes, Any]:
        return pickle.loads(_read_checked(root / folder / file, md5[file]), encoding="bytes")  # noqa: S301 (its MD5 is known)

    meta, *files = md5
    classes = tuple(text.decode() for text in read(meta)[names_key])
    with ThreadPoolExecutor(2) as pool:  # hashing and reading leave the interpreter free
        parts = [Split(part[b"data"].reshape(-1, 3, 32, 32), np.array(part[label_key], np.int64)) for part in pool.map(read, files)]
    return ImageDataset(name, _interleaved(parts[:-1]), _interleaved(parts[-1:]), classes)


def _interleaved(parts: list[Split]) -> Split:
    """Parts whose images are (N, C, H, W), colour plane after plane, as one Split."""
    import torch

    count = sum(len(part.labels) for part in parts)
    images = torch.empty(count, *(parts[0].images.shape[i] for i in (2, 3, 1)), dtype=torch.uint8)
    first = 0
    for planes, labels in parts:
        images[first : first + len(labels)] = torch.from_numpy(planes).permute(0, 2, 3, 1)  # torch copies on all cores
        first += len(labels)
    return Split(images.numpy(), np.concatenate([part.labels for part in parts]))


def mnist(root: Path) -> ImageDataset:
    """MNIST (LeCun et al. 1998): 60,000 + 10,000 grey handwritten digits of 28x28 pixels."""
    return _mnist("mnist", "MNIST", root, MNIST_FILES, tuple("0123456789"))


def fashion_mnist(root: Path) -> ImageDataset:
    """Fashion-MNIST (Xiao et al. 2017): 60,000 + 10,000 grey pictures of clothes of 28x28 pixels, 10 classes."""
    return _mnist(
        "fashion_mnist",
        "FashionMNIST",
        root,
        FASHION_MNIST_FILES,
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )


def _mnist(name: str, torchvision_name: str, root: Path, md5: dict[str, str], classes: tuple[str, ...]) -> ImageDataset:
    folder = root / torchvision_name / "raw"
    _download_missing(torchvision_name, root, folder, list(md5))
    files = [_read_checked(folder / file, md5[file]) for file in md5]
    contents = [gzip.decompress(data) if file.endswith(".gz") else data for file, data in zip(md5, files, strict=True)]
    train_x, train_y, test_x, test_y = (
        np.frombuffer(data, np.uint8, offset=16 if i % 2 == 0 else 8) for i, data in enumerate(contents)
    )
    return ImageDataset(
        name,
        Split(train_x.reshape(-1, 28, 28, 1).copy(), train_y.astype(np.int64)),
        Split(test_x.reshape(-1, 28, 28, 1).copy(), test_y.astype(np.int64)),
        classes,
        flips=name != "mnist",
    )


def _read_checked(path: Path, md5: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != md5:
        raise InputError(f"{path} is not the published file (its MD5 is wrong): delete it, and it is downloaded again")
    return data


def _download_missing(torchvision_name: str, root: Path, folder: Path, files: list[str]) -> None:
    """Have torchvision download (or unpack) a public data set unless all its files are there."""
    if all((folder / file).is_file() for file in files):
        return
    import torchvision

    print(f"note: downloading {torchvision_name} to {root}", file=sys.stderr)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            getattr(torchvision.datasets, torchvision_name)(root, download=True)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"{torchvision_name} is not in {root} and cannot be downloaded ({str(error).splitlines()[0]}): "
            f"put its files in {folder}, or choose another data set (shapes and digits need no download)"
        ) from error


def digits(root: Path) -> ImageDataset:
    """1,797 grey handwritten digits (Alpaydin & Kaynak 1998, scikit-learn's copy), enlarged from 8x8 to 32x32 pixels.

    A fifth of each class, the same ones always, is the test split.
    """
    from PIL import Image
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    small = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    images = np.stack([np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR)) for image in small])
    train_x, test_x, train_y, test_y = train_test_split(
        images[..., np.newaxis], bunch.target.astype(np.int64), test_size=0.2, stratify=bunch.target, random_state=0
    )
    return ImageDataset("digits", Split(train_x, train_y), Split(test_x, test_y), tuple("0123456789"), flips=False)


def shapes(root: Path) -> ImageDataset:
    """20,000 + 4,000 drawn RGB shapes of 32x32 pixels, 10 classes; rendered once, then read from `root`/shapes/."""
    from images import shapes as renderer

    cache = root / "shapes" / f"shapes-v{renderer.VERSION}.npz"
    try:
        with np.load(cache) as arrays:
            splits = [Split(arrays[f"{part}_x"], arrays[f"{part}_y"]) for part in ("train", "test")]
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):  # not there yet, or damaged
        splits = [Split(*renderer.render(seed=0, count=20_000)), Split(*renderer.render(seed=1, count=4_000))]
        buffer = io.BytesIO()
        np.savez(buffer, train_x=splits[0].images, train_y=splits[0].labels, test_x=splits[1].images, test_y=splits[1].labels)
        write_atomically(cache, buffer.getvalue())
    return ImageDataset("shapes", splits[0], splits[1], renderer.CLASSES)


PUBLIC: dict[str, Callable[[Path], ImageDataset]] = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "digits": digits,
    "shapes": shapes,
}
