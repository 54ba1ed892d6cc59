"""Image files of any kind and size, one by one: which files they are, and their pixels as a network wants them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
from PIL import ExifTags, Image, ImageOps

from config import InputError
from utils import demand_regular_file

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
LITTER_FOLDERS = ("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found")  # that systems leave behind
EXPLANATION = ".grad-cam.png"
"""Ending of the pictures that `predict --explain` writes beside images."""
NAMED = 10
"""Files that a message names, at most; of more it gives the number."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder of that name is the system's, or an explanation of ours, and no one's image or class."""
    return name.startswith(".") or name.lower() in LITTER_FOLDERS or name.endswith(EXPLANATION)


def is_image(name: str) -> bool:
    """Whether a file of that name is taken for an image."""
    return name.lower().endswith(IMAGE_ENDINGS) and not is_hidden(name)


def natural(name: str) -> tuple[list[int | str], str]:
    """A key that sorts names as people do: 2 before 10."""
    return [int(part) if part.isdecimal() else part.casefold() for part in re.split(r"(\d+)", name)], name


def walk_images(folder: Path | str, onerror: Callable[[OSError], object] | None = None) -> tuple[list[Path], list[Path]]:
    """The files with an image's ending in `folder` and the folders within, and all other files and hidden folders.

    Sorted by name within a folder. `onerror` is called with the error of a folder that cannot be entered.
    """
    images: list[Path] = []
    others: list[Path] = []
    for here, folders, files in os.walk(folder, onerror=onerror):
        others += [Path(here, name) for name in sorted(folders) if is_hidden(name)]
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        for name in sorted(files):
            (images if is_image(name) else others).append(Path(here, name))
    return images, others


def say_left_out(folder: Path | str, others: Sequence[Path]) -> None:
    """One line on stderr for the files and folders that are left out because they are hidden or have no image's ending."""
    if others:
        what = "files and folders" if len(others) > 1 else "folder" if others[0].is_dir() else "file"
        print(
            f"note: {len(others):,} {what} in {printable(folder)} left out, hidden or without the ending of an image, "
            f"as {printable(others[0])}",
            file=sys.stderr,
        )


def printable(path: Path | str) -> str:
    """`path` for one line of output: what is no printable character is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(path))


def some_of(names: Sequence[str]) -> str:
    """The first of `names`, and how many more there are."""
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED:,} more" if len(names) > NAMED else "")


class ReadImage(NamedTuple):
    """An image file as a network takes it."""

    pixels: np.ndarray
    """(height, width, channels) uint8, RGB or grey."""
    changes: list[str]
    """What was changed to get there, in words."""
    bits: int | None
    """Bits of a channel, where the file has more than 8."""


def read_image(path: Path, num_channels: int, height: int, width: int) -> tuple[np.ndarray, list[str]]:
    """The pixels and the changes of `decode`."""
    return decode(path, num_channels, height, width)[:2]


def decode(path: Path, num_channels: int, height: int, width: int, bits: int = 0) -> ReadImage:
    """An image file as (height, width, num_channels) uint8, RGB or grey.

    It is turned as its EXIF data say, transparency becomes white, of several frames the first is taken. Another size is scaled to
    cover the wanted one and its middle is taken. Pixels of more than 8 bits are scaled from as many as they use, 12, 16 or more,
    but `bits` at least: files do not say that their 16 bits hold the 12 of a camera. Raises InputError where it is not readable.
    """
    demand_regular_file(path)
    mode = "L" if num_channels == 1 else "RGB"
    changes, used = [], None
    try:
        with Image.open(path) as file:
            size, file_mode = file.size, file.mode
            if getattr(file, "is_animated", False):
                changes.append("took the first frame of several")
            is_deep_colour = file_mode in ("RGB", "RGBA") and any(";16" in str(tile) for tile in file.tile)
            orientation = file.getexif().get(ExifTags.Base.Orientation, 1)
            file.draft(mode, (2 * width, 2 * height))  # a large JPEG file is decoded at a half to an eighth of its size
            image: Image.Image = file
            if file_mode == "F":
                raise ValueError("its pixels are floating-point numbers of unknown scale: save it with 8 bits a channel")
            if file_mode.startswith("I") or is_deep_colour:
                image, used = _to_8_bits(_deep_colour(path) if is_deep_colour else np.asarray(file), bits)
                image.getexif()[ExifTags.Base.Orientation] = orientation
                if used > 8:
                    changes.append(f"scaled from {used} bits to 8")
            image = ImageOps.exif_transpose(image)  # reads all of it: a truncated file fails here
            if orientation != 1:
                changes.append("turned upright by its EXIF data")
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
    return ReadImage(_fit(image, num_channels, height, width), changes, used)


def prepare(image: Image.Image, num_channels: int, height: int, width: int) -> np.ndarray:
    """An image in memory as `decode` gives that of a file: (height, width, num_channels) uint8.

    Raises InputError where its pixels are numbers of unknown scale.
    """
    try:
        if image.mode == "F":
            raise ValueError("its pixels are floating-point numbers of unknown scale: convert it to 8 bits a channel")
        if image.mode.startswith("I"):
            image = _to_8_bits(np.asarray(image), 0)[0]
        image = ImageOps.exif_transpose(image)
        if image.has_transparency_data:
            image = _on_white(image, [])
        return _fit(image.convert("L" if num_channels == 1 else "RGB"), num_channels, height, width)
    except (ValueError, OSError) as error:
        raise InputError(f"an image of mode {image.mode} cannot be read: {error}") from error


def _fit(image: Image.Image, num_channels: int, height: int, width: int) -> np.ndarray:
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(height, width, num_channels)


def _to_8_bits(pixels: np.ndarray, bits: int) -> tuple[Image.Image, int]:
    """An array of integers as an image of 8 bits a channel, and the bits that it was scaled from."""
    if pixels.min() < 0:
        raise ValueError(f"its pixels go from {pixels.min()} to {pixels.max()}, an unknown scale: save it with 8 bits a channel")
    needed = int(pixels.max()).bit_length()
    bits = max(bits, next((usual for usual in (8, 12, 16) if needed <= usual), needed))
    scaled = pixels.astype(np.uint32 if bits <= 24 else np.uint64) * 255 // (2**bits - 1)  # of a photograph, this is a gigabyte
    return Image.fromarray(scaled.astype(np.uint8)), bits


def _deep_colour(path: Path) -> np.ndarray:
    # Pillow has no mode for it and would keep the upper 8 of the 16 bits.
    import cv2

    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim != 3:
        raise ValueError("its 16-bit colours cannot be decoded: save it with 8 bits a channel")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)


def _on_white(image: Image.Image, changes: list[str]) -> Image.Image:
    image = image.convert("RGBA")
    extrema = cast("tuple[tuple[int, int], ...]", image.getextrema())  # one pair for each of the four channels
    if extrema[3][0] < 255:  # some pixel shows what is behind
        changes.append("laid on white where it is transparent")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
