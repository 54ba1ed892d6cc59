"""Folders of the user's own images: which of them are splits and which classes, all images in memory, faults in one line each."""

from __future__ import annotations

import os
import re
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from config import InputError
from images.files import NAMED, ReadImage, decode, is_hidden, is_image, natural, printable, say_left_out, some_of, walk_images
from images.sources import SPLIT_NAMES, ImageDataset, Split, stratified_split
from utils import demand_regular_file

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Name of a folder, in lower case -> the split that it holds."""
LIKE_SPLIT = re.compile(r"(.*[\W_])?(train(ing)?|test(ing)?|val(id(ation)?)?)\d*([\W_].*)?")
"""Names, in lower case, that folders of splits have in the wild: test1, seg_train, train-images."""
SIDES = (32, 48, 64)
"""Sides in pixels from which that of a data set is chosen: up to what one unit of the network's last maps sees, 66 pixels."""
MEASURED = 200  # files whose size is looked at for that, at most


def load_folder(
    path: Path, side: int = 0, skip_unreadable: bool = False, class_order: Sequence[str] = (), only_test: bool = False
) -> ImageDataset:
    """`path`/train/CLASS/*, `path`/test/CLASS/* and perhaps `path`/val/CLASS/*, or `path`/CLASS/* of which a fifth of each class,
    always the same, is for test.

    Without a test folder val is the test split. RGB, `side` x `side` pixels, 0: chosen from the images. Classes are in natural
    order (2 before 10), or in `class_order` where that names the same ones. With `only_test` all images of `path`/CLASS/* are the
    test split, and the classes, among which there must be no others, are those of `class_order`.

    Raises InputError where a folder or class is missing or empty, there is only one class, or files are not readable images; with
    `skip_unreadable` those are left out. What is decided here is said on stderr, in one line each.
    """
    if not path.is_dir():
        raise InputError(f"there is no folder {path}")
    folders = find_splits(path)
    if only_test and "train" not in folders:
        folders = {"test": path}
        classes = tuple(class_order)
    else:
        classes = _class_names(folders.get("train", path))
        if set(class_order) == set(classes):
            classes = tuple(class_order)
    for folder in folders.values():
        others = sorted(set(_class_names(folder, least=1)) - set(classes), key=natural)
        if others:
            raise InputError(f"{folder} has classes that are unknown: {some_of(others)}; known are {some_of(classes)}")
    litter = [path for folder in dict.fromkeys([path, *folders.values()]) for path in _beside_classes(folder)]
    files = {part: _class_files(folder, classes, litter) for part, folder in (folders or {"all": path}).items()}
    say_left_out(path, litter)
    for part in ("train", "all"):
        empty = [name for name, paths in zip(classes, files.get(part, ()), strict=False) if not paths]
        if empty:
            raise InputError(f"{folders.get(part, path) / empty[0]} is empty: a class needs images")
    side = side or choose_side([paths for classes in files.values() for paths in classes])
    splits = _read_splits(path, files, side, skip_unreadable)
    for part in ("train", "all"):
        for label, name in enumerate(classes):
            if part in splits and label not in splits[part].labels:
                count = len(files[part][label])
                raise InputError(f"{folders.get(part, path) / name} has no readable image: none of its {count} files can be read")
    if "all" in splits:
        splits["train"], splits["test"] = cut_test_split(splits.pop("all"))
    empty_split = Split(np.empty((0, side, side, 3), np.uint8), np.empty(0, np.int64))
    flips = not all(len(name) == 1 for name in classes)
    if not flips and not only_test:
        print("note: the classes look like single characters: images are not mirrored; --flip does", file=sys.stderr)
    return ImageDataset(f"folder:{path}", splits.get("train", empty_split), splits["test"], classes, splits.get("val"), flips)


def cut_test_split(everything: Split) -> tuple[Split, Split]:
    """The training and the test images of a folder without splits: a fifth of each class, one at least, is for test.

    Raises InputError where no class has a second image.
    """
    counts = np.bincount(everything.labels)
    least, most = int(np.count_nonzero(counts > 1)), len(everything.labels) - int(np.count_nonzero(counts))
    return stratified_split(everything, max(1, min(most, max(least, len(everything.labels) // 5))), seed=0)


def _subfolders(folder: Path) -> list[Path]:
    return sorted(
        (entry for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name)), key=lambda p: natural(p.name)
    )


def _holds_images(folder: Path, deep: bool = True) -> bool:
    """Whether there are images in `folder` itself; with `deep`, in the folders within too."""
    for _, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if deep and not is_hidden(name)]
        if any(map(is_image, files)):
            return True
    return False


def find_splits(path: Path) -> dict[str, Path]:
    """Split -> its folder, "train" and "test" at least, or nothing where the folders in `path` are classes.

    A folder is a split by its name, in any capitalisation, if it has folders of images; not if there are images beside these and
    other folders of images beside it: then it is a class that happens to be called train. Raises InputError, with what was found
    and what to rename, where a split is missing.
    """
    folders = [folder for folder in _subfolders(path) if _holds_images(folder)]
    called = [folder for folder in folders if folder.name.casefold() in SPLITS]
    with_classes = [folder for folder in called if any(map(_holds_images, _subfolders(folder)))]
    found: dict[str, list[Path]] = {}
    for folder in with_classes:
        if len(with_classes) == len(folders) or not _holds_images(folder, deep=False):
            found.setdefault(SPLITS[folder.name.casefold()], []).append(folder)
    if not found:
        _demand_no_flat_splits(path, folders)
        _demand_no_other_splits(path, folders)
        return {}
    names = f"{path} has the folders {some_of([folder.name for folder in folders])}"
    for part, several in found.items():
        if len(several) > 1:
            raise InputError(
                f"{names}: {' and '.join(p.name for p in several)} both name the {SPLIT_NAMES[part]} split; rename one"
            )
    splits = {part: several[0] for part, several in found.items()}
    others = [folder.name for folder in folders if folder not in splits.values()]
    for folder in called:
        if folder not in with_classes and SPLITS[folder.name.casefold()] not in splits:
            raise InputError(
                f"the images in {folder} lie in no class folders: sort them into {folder}/CLASS, or move {folder} away"
            )
    if "train" not in splits:
        raise InputError(f"{names}, no train folder: rename the one with the training images to train")
    if "test" not in splits and "val" not in splits:
        raise InputError(f"{names}, no test folder: add one, rename another to test, or name {splits['train']} itself")
    if others:
        print(f"note: in {path}, {some_of(others)} left out: neither train, val nor test", file=sys.stderr)
    if "test" not in splits:
        splits["test"] = splits.pop("val")
        print(f"note: {path} has no test folder: {splits['test'].name} is the test split", file=sys.stderr)
    return splits


def _demand_no_flat_splits(path: Path, folders: list[Path]) -> None:
    """Raise InputError where all folders are called like splits and have images but no class folders: training on them would teach
    a network to tell "train" from "test"."""
    are_flat = bool(folders) and not any(map(_holds_images, (inner for folder in folders for inner in _subfolders(folder))))
    if are_flat and all(LIKE_SPLIT.fullmatch(folder.name.casefold()) for folder in folders):
        names = some_of([folder.name for folder in folders])
        raise InputError(
            f"{path}: the images in {names} lie in no class folders: sort them into {folders[0]}/CLASS and so on; if {names} "
            "are the classes, give them other names"
        )


def _demand_no_other_splits(path: Path, folders: list[Path]) -> None:
    """Raise InputError where folders that would be taken for classes are called like splits (seg_train) and have the same folders
    in them, which must be the classes."""
    if not all(any(word in folder.name.casefold() for word in ("train", "test", "val")) for folder in folders):
        return
    inside = [{folder.name for folder in _subfolders(folder)} for folder in folders]
    alike = len(inside) > 1 and len(inside[0]) > 1 and all(names == inside[0] for names in inside)
    if alike and not any(_holds_images(folder, deep=False) for folder in folders):
        raise InputError(
            f"{path}: {some_of([folder.name for folder in folders])} all have the folders "
            f"{some_of(sorted(inside[0], key=natural))}, so they look like splits: rename them to train and test (and val)"
        )


def _class_names(folder: Path, least: int = 2) -> tuple[str, ...]:
    names = [entry.name for entry in _subfolders(folder)]
    if len(names) < least:
        raise InputError(
            f"{folder} has {f'only the class {names[0]!r}' if names else 'no class folders'}: a data set requires two or more"
        )
    return tuple(names)


def _beside_classes(folder: Path) -> list[Path]:
    """The files beside the class or split folders in `folder`, and hidden folders, but no images, which are counted on stderr."""
    beside = [path for path in sorted(folder.iterdir()) if path.is_file() or is_hidden(path.name)]
    others = [path for path in beside if not (path.is_file() and is_image(path.name))]
    if len(beside) > len(others):
        print(f"note: {len(beside) - len(others):,} images in {folder} itself left out: they are of no class", file=sys.stderr)
    return others


def _class_files(folder: Path, classes: Sequence[str], litter: list[Path]) -> list[list[Path]]:
    """The image files of each class, those in folders within too; other files are added to `litter`."""
    found = []
    for name in classes:
        images, others = walk_images(folder / name)
        found.append(images)
        litter += others
    return found


def choose_side(paths: Sequence[Sequence[Path]]) -> int:
    """One of SIDES: the largest that the shorter side of half the images has, or the smallest of all; of a sample of them."""
    everything = [path for some in paths for path in some]
    shorter = []
    for path in everything[:: max(1, len(everything) // MEASURED)]:
        try:
            demand_regular_file(path)
            with Image.open(path) as image:
                shorter.append(min(image.size))
        except Exception:  # noqa: S112 (it is named when it is read)
            continue
    middle = statistics.median(shorter) if shorter else 0
    return max((side for side in SIDES if side <= middle), default=SIDES[0])


def _read_splits(path: Path, files: dict[str, list[list[Path]]], side: int, skip_unreadable: bool) -> dict[str, Split]:
    """The images of each split of class folders."""
    places = [(part, label, file) for part, some in files.items() for label, paths in enumerate(some) for file in paths]

    def read(place: tuple[str, int, Path], bits: int = 0) -> ReadImage | InputError:
        try:
            return decode(place[2], 3, side, side, bits)
        except InputError as error:
            return error

    images = np.empty((len(places), side, side, 3), np.uint8)
    unreadable, changed, deep = [], 0, {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for i, result in enumerate(pool.map(read, places)):
            if isinstance(result, InputError):
                unreadable.append((i, result))
                continue
            images[i] = result.pixels
            changed += bool(result.changes)
            if result.bits:
                deep[i] = result.bits
    most = max(deep.values(), default=0)
    for i, bits in deep.items():
        if bits < most:  # a dark image among others of the same camera
            images[i] = decode(places[i][2], 3, side, side, most).pixels
    if unreadable:
        _say_unreadable(path, len(places), [(places[i][2], error) for i, error in unreadable], skip_unreadable)
    if changed:
        print(
            f"note: the images in {path} are used with {side}x{side} pixels in RGB, to which {changed} of "
            f"{len(places) - len(unreadable)} were scaled or converted",
            file=sys.stderr,
        )
    is_gone = np.zeros(len(places), bool)
    is_gone[[i for i, _ in unreadable]] = True
    parts, labels = np.array([part for part, _, _ in places]), np.array([label for _, label, _ in places], np.int64)
    return {part: Split(images[chosen := (parts == part) & ~is_gone], labels[chosen]) for part in files}


def _say_unreadable(path: Path, count: int, unreadable: Sequence[tuple[Path, InputError]], skip: bool) -> None:
    if skip:
        print(
            f"note: {len(unreadable)} of {count} files in {path} are not readable images and are left out: "
            f"{_by_reason(path, unreadable)}",
            file=sys.stderr,
        )
    elif len(unreadable) == 1:
        raise InputError(f"{unreadable[0][1]}; repair or delete it, or leave it out with --skip-unreadable")
    else:
        raise InputError(
            f"{len(unreadable)} of {count} files in {path} are not readable images: {_by_reason(path, unreadable)}; repair, "
            "convert or delete them, or leave them out with --skip-unreadable"
        )


def _by_reason(path: Path, unreadable: Sequence[tuple[Path, InputError]]) -> str:
    """The files in `path`, each with why it cannot be read, or several with the reason they share."""
    names: dict[str, list[str]] = {}
    for file, error in unreadable:
        reason = (
            str(error).removeprefix(f"{file} is not a readable image: ").replace(f" {str(file)!r}", "").replace(str(file), "it")
        )
        names.setdefault(reason, []).append(printable(file.relative_to(path)))
    texts = [f"{some_of(files)} ({reason})" for reason, files in names.items()]
    rest = sum(map(len, [*names.values()][NAMED:]))  # truncated files each have a reason of their own
    return ", ".join(texts[:NAMED]) + (f" and {rest:,} more" if rest else "")
