"""Images of the user's own in an .npz file: each fault named in one line, with the line of NumPy that fixes it."""

from __future__ import annotations

import math
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np

from config import InputError
from images.files import natural, some_of
from images.sources import ImageDataset, Split
from utils import demand_regular_file, memory

MIN_SIDE = 28  # pixels: the network takes no smaller images
NEEDED = ("train_x", "train_y", "test_x", "test_y")
KNOWN = (*NEEDED, "val_x", "val_y", "classes")


def load_npz(path: Path) -> ImageDataset:
    """`train_x`, `test_x` (N, H, W[, C]) uint8, `train_y`, `test_y` (N,) integers from 0, optionally `val_x`, `val_y`, `classes`.

    What can mean one thing only is taken, and said on stderr: labels that are one-hot rows, (N, 1) or strings, and images (N, C, H,
    W). Raises InputError where an array is missing or has another type or shape than that.
    """
    arrays = _read(path)
    parts = ["train", "val", "test"] if "val_x" in arrays else ["train", "test"]
    for part in parts:
        arrays[f"{part}_y"] = _one_label_each(path, f"{part}_y", arrays[f"{part}_y"])
        arrays[f"{part}_x"] = _channels_last(path, f"{part}_x", arrays[f"{part}_x"])
    names = tuple(str(name) for name in arrays["classes"].ravel()) if "classes" in arrays else None
    if twice := sorted({name for name in names or () if names and names.count(name) > 1}, key=natural):
        raise InputError(f"{path}: two classes have the same name: {some_of(twice)}; give each in `classes` a name of its own")
    if arrays["train_y"].dtype.kind in "US":
        names = _number_strings(path, arrays, parts, names)
    for part in parts:
        labels = arrays[f"{part}_y"]
        if labels.dtype.kind not in "iu":
            whole = labels.dtype.kind == "f" and labels.size and (labels % 1 == 0).all()
            mend = f"; fix it with {part}_y = {part}_y.astype(np.int64)" if whole else ""
            raise InputError(f"{path}: {part}_y is {labels.dtype} of shape {labels.shape}, not a list of integers{mend}")
    count = len(names) if names else _count_classes(path, arrays["train_y"], parts)
    splits = {part: _check_arrays(path, part, arrays[f"{part}_x"], arrays[f"{part}_y"], count, parts) for part in parts}
    for part in parts[1:]:
        if splits[part].images.shape[1:] != splits["train"].images.shape[1:]:
            raise InputError(f"{path}: the images of train_x and {part}_x differ in size or channels")
    if count < 2 or len(np.unique(splits["train"].labels)) < 2:
        raise InputError(f"{path} has only one class: a data set requires two or more")
    names = names or tuple(map(str, range(count)))
    return ImageDataset(f"npz:{path}", splits["train"], splits["test"], names, splits.get("val"))


def _read(path: Path) -> dict[str, np.ndarray]:
    demand_regular_file(path)
    try:
        _demand_honest_sizes(path)
        with np.load(path, allow_pickle=False) as file:
            there = file.files
            arrays = {name: np.ascontiguousarray(file[name]) for name in there if name in KNOWN}
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or 'not an .npz file'}") from error
    except (ValueError, TypeError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise InputError(f"{path} is damaged or not an .npz file of plain arrays") from error
    missing = [name for name in NEEDED if name not in arrays]
    found = f" (there are {some_of(sorted(there))})" if there else ""
    if missing:
        raise InputError(f"{path} has no array {' and no '.join(missing)}: it needs {', '.join(NEEDED)}{found}")
    for name, other in (("val_x", "val_y"), ("val_y", "val_x")):
        if name in arrays and other not in arrays:
            raise InputError(f"{path} has an array {name} and no {other}: the validation split needs both, or neither{found}")
    if unknown := sorted(set(there) - set(KNOWN), key=natural):
        _note(path, f"not used: {some_of(unknown)}; known arrays are {', '.join(KNOWN)}")
    return arrays


def _demand_honest_sizes(path: Path) -> None:
    """Raise InputError where the arrays of an .npz file would not fit into memory, or are not as large as their headers say.

    NumPy allocates what a header says before it reads.
    """
    with zipfile.ZipFile(path) as archive:
        total = 0
        for member in archive.infolist():
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read_header(file)
                name = member.filename.removesuffix(".npy")
                if dtype.hasobject and name in KNOWN:
                    raise InputError(
                        f"{path}: {name} is an array of Python objects, which cannot be read without running what is in the file: "
                        f"fix it with {name} = np.array({name}.tolist())"
                    )
                size = math.prod(shape) * dtype.itemsize
                if size + file.tell() != member.file_size and not dtype.hasobject:
                    raise InputError(f"{path} is damaged: {member.filename} does not have the {size:,} bytes that it claims")
            total += size
        if total > memory():
            raise InputError(f"{path} has arrays of {total / 2**30:,.0f} GiB: more than the memory of this machine")


def _note(path: Path, text: str) -> None:
    print(f"note: {path}: {text}", file=sys.stderr)


def _one_label_each(path: Path, name: str, labels: np.ndarray) -> np.ndarray:
    if labels.ndim == 2 and labels.shape[1] == 1:
        _note(path, f"{name} has shape {labels.shape}: its one column was taken")
        return labels[:, 0]
    if labels.ndim == 2 and labels.dtype.kind in "biuf" and labels.size:
        if np.isin(labels, (0, 1)).all() and (labels.sum(1) == 1).all():
            _note(path, f"{name} has shape {labels.shape}: its one-hot rows were taken as labels from 0 to {labels.shape[1] - 1}")
            return labels.argmax(1)
        raise InputError(
            f"{path}: {name} is {labels.dtype} of shape {labels.shape}, a row for each image; if the largest number of a row "
            f"marks its class, fix it with {name} = {name}.argmax(1)"
        )
    if labels.ndim == 1 and not labels.size:
        raise InputError(f"{path}: {name} is empty: training and test images are both required")
    if labels.ndim != 1:
        raise InputError(f"{path}: {name} is {labels.dtype} of shape {labels.shape}, not a list of integers")
    return labels


def _channels_last(path: Path, name: str, images: np.ndarray) -> np.ndarray:
    # A height of 1, 3 or 4 pixels is none that the network takes: there is no doubt.
    if images.ndim == 4 and images.shape[1] in (1, 3, 4) and min(images.shape[2:]) >= MIN_SIDE:
        _note(path, f"{name} has shape {images.shape}: taken as (N, C, H, W)")
        return np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    return images


def _number_strings(path: Path, arrays: dict, parts: list[str], names: tuple[str, ...] | None) -> tuple[str, ...]:
    """Replace labels that are class names by numbers; returns the names in the order of the numbers."""
    found = {part: [str(label) for label in arrays[f"{part}_y"]] for part in parts}
    names = names or tuple(sorted(set(found["train"]), key=natural))
    for part, labels in found.items():
        unknown = sorted(set(labels) - set(names))
        if unknown:
            raise InputError(f"{path}: {part}_y names classes that are not among the others: {some_of(unknown)}")
        arrays[f"{part}_y"] = np.array([names.index(label) for label in labels], np.int64)
    _note(path, f"the labels are names; the classes are {some_of(names)}")
    return names


def _count_classes(path: Path, labels: np.ndarray, parts: list[str]) -> int:
    """The number of classes that have no names. Raises InputError where the labels do not count up from 0 without a gap."""
    values = np.unique(labels)
    lowest, highest = int(values[0]), int(values[-1])
    if (lowest, highest) == (0, len(values) - 1):
        return len(values)
    others = "".join(f"; {part}_y = np.searchsorted(classes, {part}_y)" for part in parts[1:])
    raise InputError(
        f"{path}: train_y has {len(values)} different labels from {lowest} to {highest}, not 0 to {len(values) - 1}"
        f"{', more classes than images' * (highest >= len(labels))}: fix them with "
        + (
            f"classes, train_y = np.unique(train_y, return_inverse=True){others}"
            if lowest == 0 or highest - lowest + 1 > len(values)
            else _shifted(lowest, parts)
        )
        + ", or add an array `classes` with the names of all" * (lowest >= 0)
    )


def _shifted(lowest: int, parts: list[str]) -> str:
    """The line of NumPy after which the labels of all splits begin at 0."""
    names = [f"{part}_y" for part in parts]
    shift = f"- {lowest}" if lowest > 0 else f"+ {-lowest}"
    return f"{', '.join(names)} = {', '.join(f'{name} {shift}' for name in names)}"


def _check_arrays(path: Path, part: str, images: np.ndarray, labels: np.ndarray, num_classes: int, parts: list[str]) -> Split:
    if images.dtype != np.uint8:
        raise InputError(f"{path}: {part}_x is {images.dtype}, not uint8 (0 to 255){_how_to_scale(f'{part}_x', images)}")
    if images.ndim not in (3, 4):
        raise InputError(f"{path}: {part}_x has {images.ndim} dimensions, not (N, H, W) or (N, H, W, C)")
    height, width = images.shape[1:3]
    if not images.size or min(height, width) < MIN_SIDE:
        mend = ""
        if images.size:
            times = -(-MIN_SIDE // min(height, width))
            mend = f"; enlarge them with {part}_x = {part}_x.repeat({times}, 1).repeat({times}, 2)"
        raise InputError(f"{path}: {part}_x has images of {height}x{width} pixels, {MIN_SIDE} is the least{mend}")
    if len(images) != len(labels):
        raise InputError(f"{path}: {part}_x has {len(images)} images, {part}_y {len(labels)} labels")
    if labels.min() < 0 or labels.max() >= num_classes:
        lowest, highest = int(labels.min()), int(labels.max())
        mend = f"; fix them with {_shifted(lowest, parts)}" if part == "train" and highest - lowest == num_classes - 1 else ""
        raise InputError(f"{path}: {part}_y has labels from {lowest} to {highest}, not from 0 to {num_classes - 1}{mend}")
    return Split(images if images.ndim == 4 else images[..., np.newaxis], labels.astype(np.int64))


def _how_to_scale(name: str, images: np.ndarray) -> str:
    """The line of NumPy that brings numbers of another type to uint8, as the end of a sentence."""
    if images.dtype.kind not in "biuf" or not images.size:
        return ""
    lowest, highest = images.min(), images.max()
    if not np.isfinite((lowest, highest)).all():
        return "; some of its numbers are NaN or infinite: leave these images out"
    if lowest < 0:
        line = f"({name} - {name}.min()) * (255.0 / ({name}.max() - {name}.min()))"
    elif highest <= 1:
        line = f"{name} * 255.0"
    elif highest <= 255:
        line = name
    else:
        line = f"{name} * (255.0 / {2 ** next((b for b in (12, 16) if highest < 2**b), int(highest).bit_length()) - 1})"
    rounded = f"np.rint({line})" if line != name or images.dtype.kind == "f" else line
    return f"; its numbers go from {lowest:g} to {highest:g}: fix it with {name} = {rounded}.astype(np.uint8)"
