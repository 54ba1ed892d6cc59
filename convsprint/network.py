"""Trained weights, to predict with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Union, cast

import numpy as np
import torch
from PIL import Image

from config import InputError
from images.arrays import MIN_SIDE
from images.files import prepare, read_image
from learning.inference import TrainedNetwork
from learning.weights import save_weights
from utils import resolve_device

__all__ = ["ImageLike", "InputError", "Network", "load"]

ImageLike = Union[str, Path, Image.Image, np.ndarray]  # noqa: UP007 (made at run time, also by Python 3.10 with PIL)


class Network:
    """A trained network. Made by `load` and `fit`.

    Images are paths, PIL images, or arrays (H, W) or (H, W, C) uint8 (0 to 255, RGB), of any size; or one array of N of them. They
    are turned upright, laid on white, scaled and cropped to the network's size exactly as on the command line.
    """

    def __init__(self, trained: TrainedNetwork) -> None:
        self._trained = trained

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of the probabilities."""
        return list(self._trained.card["classes"])

    @property
    def card(self) -> dict[str, Any]:
        """What is known of the network: where from, accuracy, normalisation, size of images, versions."""
        return dict(self._trained.card)

    @property
    def module(self) -> torch.nn.Module:
        """The network itself: from normalised images (N, C, H, W) to raw logits."""
        return self._trained.model

    def probabilities(self, images: ImageLike | Sequence[ImageLike]) -> np.ndarray:
        """The probability of each class for each image, (N, number of classes) float32. Raises InputError for what is no image."""
        pixels = self._pixels(images)
        if not len(pixels):
            return np.empty((0, len(self.classes)), np.float32)
        return self._trained.logits(pixels, torch.float32).softmax(1).numpy()

    def predict(self, images: ImageLike | Sequence[ImageLike]) -> list[str]:
        """The most probable class of each image, by name. Raises InputError for what is no image."""
        return [self.classes[i] for i in self.probabilities(images).argmax(1)]

    def evaluate(self, images: ImageLike | Sequence[ImageLike], labels: Sequence[int] | np.ndarray) -> float:
        """The share of the images, 0 to 1, whose most probable class is that of `labels` (numbers from 0).

        Raises InputError where a label is no number of a class.
        """
        numbers = np.asarray(labels)
        if numbers.dtype.kind not in "iu" or numbers.size and not 0 <= numbers.min() <= numbers.max() < len(self.classes):
            raise InputError(f"the labels must be whole numbers from 0 to {len(self.classes) - 1}, as `classes` has them in order")
        found = self.probabilities(images).argmax(1)
        if len(found) != len(labels):
            raise InputError(f"there are {len(found)} images and {len(labels)} labels")
        return float((found == numbers).mean())

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write a .safetensors file that `load` and the command line read, and its card beside it, as .json.

        Raises InputError where the name has another ending, one of the files exists and `overwrite` is False, or the folder is
        missing or cannot be written.
        """
        if Path(path).suffix != ".safetensors":
            raise InputError(f"{path}: the name of a file of weights ends in .safetensors")
        if not Path(path).parent.is_dir():
            raise InputError(f"cannot write {path}: there is no folder {Path(path).parent}")
        for file in (Path(path), Path(path).with_suffix(".json")):
            if file.exists() and not overwrite:
                raise InputError(f"{file} exists: pass overwrite=True to replace it, or another name")
        save_weights(Path(path), self.module.state_dict(), self.card)

    def _pixels(self, images: ImageLike | Sequence[ImageLike]) -> np.ndarray:
        """(N, H, W, C) uint8, as the network takes them."""
        (height, width), channels = self._trained.card["image_size"], self._trained.card["num_channels"]
        if isinstance(images, np.ndarray) and images.shape[1:] == (height, width, channels) and images.dtype == np.uint8:
            return images
        if isinstance(images, np.ndarray):
            _demand_channels_last(images, channels)
        is_one = isinstance(images, str | Path | Image.Image) or not hasattr(images, "__iter__")
        is_one = (
            is_one or isinstance(images, np.ndarray) and (images.ndim == 2 or images.ndim == 3 and images.shape[2] in (1, 3, 4))
        )
        if isinstance(images, np.ndarray) and images.ndim == 3 and not is_one and 0 < min(images.shape[1:]) < MIN_SIDE:
            raise InputError(
                f"an array of shape {images.shape} is no image, which has 1, 3 or 4 channels, and images (N, H, W) of it are "
                f"smaller than {MIN_SIDE} pixels: pass list(array) if they are meant so"
            )
        several = cast(Sequence[ImageLike], [images] if is_one else images)
        every = [self._image(image, channels, height, width) for image in several]
        return np.stack(every) if every else np.empty((0, height, width, channels), np.uint8)

    @staticmethod
    def _image(image: ImageLike, channels: int, height: int, width: int) -> np.ndarray:
        if isinstance(image, str | Path):
            return read_image(Path(image), channels, height, width)[0]
        if isinstance(image, np.ndarray):
            _demand_channels_last(image, channels)
            if image.shape == (height, width, channels) and image.dtype == np.uint8:
                return image
            if image.dtype != np.uint8 or not _is_image(image):
                raise InputError(
                    f"an array of shape {image.shape} and type {image.dtype} is no image: it must be (H, W) or (H, W, C), uint8"
                )
            image = Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)
        if not isinstance(image, Image.Image):
            raise InputError(f"a {type(image).__name__} is no image: pass a path, a PIL image or an array")
        return prepare(image, channels, height, width)


def _demand_channels_last(array: np.ndarray, channels: int) -> None:
    """Raise InputError where an array is (C, H, W) or (N, C, H, W), as torch has images, by its shape.

    (1, H, W) is not refused: it is one grey image either way.
    """
    is_asked = array.ndim == 4 or array.ndim == 3 and channels > 1
    if is_asked and array.shape[-3] == channels and array.shape[-1] not in (1, 3, 4, channels):
        axes = "1, 2, 0" if array.ndim == 3 else "0, 2, 3, 1"
        raise InputError(f"an array of shape {array.shape} has its channels first: pass array.transpose({axes})")


def _is_image(array: np.ndarray) -> bool:
    """Whether it has the shape of one image rather than of several."""
    return array.size > 0 and (array.ndim == 2 or array.ndim == 3 and array.shape[2] in (1, 3, 4))


def load(path: str | Path, device: str = "auto", model: str = "") -> Network:
    """The network in a .safetensors file or a checkpoint.

    `device` is auto, cpu, cuda, xpu or mps; `model` is FILE.py:CLASS, for weights of your own network whose file has moved. Raises
    InputError, in one line, where the file is missing, damaged or not of this project.
    """
    return Network(TrainedNetwork.load(Path(path), resolve_device(device), model))
