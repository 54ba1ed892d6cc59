"""Images of the user's own: single files, folders of classes, .npz arrays, each fault named in one line."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from config import InputError
from images.sources import ImageDataset, Split, stratified_split

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
MIN_SIDE = 28  # pixels: the network takes no smaller images


def read_image(path: Path, num_channels: int, height: int, width: int) -> tuple[np.ndarray, list[str]]:
    """An image file as (height, width, num_channels) uint8, RGB or grey, and in words what was changed to get there.

    It is turned as its EXIF data say, transparency becomes white, 16 bits become 8, of several frames the first is taken. Another
    size is scaled to cover the wanted one and its middle is taken. Raises InputError where it is not readable.
    """
    mode = "L" if num_channels == 1 else "RGB"
    changes = []
    try:
        with Image.open(path) as file:
            size, file_mode = file.size, file.mode
            if getattr(file, "is_animated", False):
                changes.append("took the first frame of several")
            if file.mode.startswith("I") or any(";16" in str(tile) for tile in file.tile):
                changes.append("scaled from 16 bits to 8")
            file.draft(mode, (2 * width, 2 * height))  # a large JPEG file is decoded at a half to an eighth of its size
            image = ImageOps.exif_transpose(file)  # reads all of it: a truncated file fails here
            if file.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                changes.append("turned upright by its EXIF data")
            if image.mode == "F":
                raise ValueError("its pixels are floating-point numbers of unknown scale: save it with 8 bits a channel")
            if image.mode.startswith("I"):  # Pillow would cut them off at 255 instead of scaling
                image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
            if image.has_transparency_data:
                image = _on_white(image, changes)
            if file_mode != mode:
                changes.append(f"converted from {file_mode} to {mode}")
            image = image.convert(mode)
    except Exception as error:  # decoders meet damaged files with exceptions of any kind
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} is not a readable image: {reason}") from error
    if size != (width, height):
        changes.append(f"resized from {size[0]}x{size[1]} to {width}x{height}")
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(height, width, num_channels), changes


def _on_white(image: Image.Image, changes: list[str]) -> Image.Image:
    image = image.convert("RGBA")
    if image.getextrema()[3][0] < 255:  # some pixel shows what is behind
        changes.append("laid on white where it is transparent")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def load_folder(path: Path, side: int, skip_unreadable: bool = False) -> ImageDataset:
    """`path`/train/CLASS/* and `path`/test/CLASS/*, or `path`/CLASS/* of which a fifth of each class, always the same, is for test.

    RGB, `side` x `side` pixels. Raises InputError where a folder or class is missing or empty, there is only one class, or a
    file is not a readable image; with `skip_unreadable` such files are left out, and named in one line on stderr.
    """
    if not path.is_dir():
        raise InputError(f"there is no folder {path}")
    has_splits = (path / "train").is_dir()
    classes = _class_names(path / "train" if has_splits else path)
    if has_splits:
        if not (path / "test").is_dir():
            raise InputError(f"{path} has a train folder but no test folder: add one, or name the train folder itself")
        others = _class_names(path / "test")
        if others != classes:
            raise InputError(f"{path}: train and test have other classes: {', '.join(sorted(set(classes) ^ set(others)))}")
        train, test = (_read_classes(path / part, classes, side, skip_unreadable) for part in ("train", "test"))
    else:
        everything = _read_classes(path, classes, side, skip_unreadable)
        train, test = stratified_split(everything, max(len(classes), len(everything.labels) // 5), seed=0)
    return ImageDataset(f"folder:{path}", train, test, classes)


def _class_names(folder: Path) -> tuple[str, ...]:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if len(names) < 2:
        raise InputError(f"{folder} has {f'only the class {names[0]!r}' if names else 'no class folders'}: two or more are needed")
    return tuple(names)


def _read_classes(folder: Path, classes: tuple[str, ...], side: int, skip_unreadable: bool) -> Split:
    images, labels, changed, unreadable = [], [], 0, []
    for label, name in enumerate(classes):
        paths = sorted(path for path in (folder / name).iterdir() if not path.name.startswith("."))
        if not paths:
            raise InputError(f"{folder / name} is empty: a class needs images")
        for path in paths:
            try:
                if path.suffix.lower() not in IMAGE_ENDINGS:
                    raise InputError(f"{path} is not an image: only images may be in a class's folder")
                image, changes = read_image(path, 3, side, side)
            except InputError:
                if not skip_unreadable:
                    raise
                unreadable.append(f"{name}/{path.name}")
                continue
            images.append(image)
            labels.append(label)
            changed += bool(changes)
        if label not in labels:
            raise InputError(f"{folder / name} has no readable image: none of its {len(paths)} files can be read")
    if unreadable:
        print(
            f"note: {len(unreadable)} of {len(images) + len(unreadable)} files in {folder} are not readable images and are left "
            f"out: {', '.join(unreadable)}",
            file=sys.stderr,
        )
    if changed:
        print(f"note: {changed} of {len(images)} images in {folder} were brought to {side}x{side} RGB", file=sys.stderr)
    return Split(np.stack(images), np.array(labels, np.int64))


def load_npz(path: Path) -> ImageDataset:
    """`train_x`, `test_x` (N, H, W[, C]) uint8, `train_y`, `test_y` (N,) integers from 0, optionally `classes` (names).

    Raises InputError where an array is missing or has another type or shape than that.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: np.ascontiguousarray(file[name]) for name in file.files}
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or 'not an .npz file'}") from error
    except (ValueError, TypeError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is damaged or not an .npz file of plain arrays") from error
    missing = [name for name in ("train_x", "train_y", "test_x", "test_y") if name not in arrays]
    if missing:
        raise InputError(f"{path} has no array {' and no '.join(missing)}: it needs train_x, train_y, test_x, test_y")
    for name in ("train_y", "test_y"):
        if arrays[name].dtype.kind not in "iu" or arrays[name].ndim != 1 or not arrays[name].size:
            raise InputError(f"{path}: {name} is {arrays[name].dtype} of shape {arrays[name].shape}, not a list of integers")
    names = tuple(str(name) for name in arrays["classes"].ravel()) if "classes" in arrays else None
    count = len(names) if names else int(arrays["train_y"].max()) + 1
    if count > len(arrays["train_y"]):
        raise InputError(f"{path}: train_y has labels up to {count - 1}, more classes than images: they must count up from 0")
    train, test = (_check_arrays(path, part, arrays[f"{part}_x"], arrays[f"{part}_y"], count) for part in ("train", "test"))
    if train.images.shape[1:] != test.images.shape[1:]:
        raise InputError(f"{path}: the images of train_x and test_x differ in size or channels")
    if count < 2:
        raise InputError(f"{path} has only one class: two or more are needed")
    return ImageDataset(f"npz:{path}", train, test, names or tuple(map(str, range(count))))


def _check_arrays(path: Path, part: str, images: np.ndarray, labels: np.ndarray, num_classes: int) -> Split:
    if images.dtype != np.uint8:
        raise InputError(f"{path}: {part}_x is {images.dtype}, not uint8 (0 to 255)")
    if images.ndim not in (3, 4):
        raise InputError(f"{path}: {part}_x has {images.ndim} dimensions, not (N, H, W) or (N, H, W, C)")
    if not images.size or min(images.shape[1:3]) < MIN_SIDE:
        raise InputError(f"{path}: {part}_x has images of {images.shape[1]}x{images.shape[2]} pixels, {MIN_SIDE} is the least")
    if len(images) != len(labels):
        raise InputError(f"{path}: {part}_x has {len(images)} images, {part}_y {len(labels)} labels")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise InputError(f"{path}: {part}_y has labels from {labels.min()} to {labels.max()}, not from 0 to {num_classes - 1}")
    return Split(images if images.ndim == 4 else images[..., np.newaxis], labels.astype(np.int64))
