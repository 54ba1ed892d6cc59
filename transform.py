"""The augmentation: Albumentations pipelines, as objects that torchvision data sets take as `transform=`.

Training: horizontal flip; shift, scale and rotation; one square hole filled with the mean colour (Cutout, DeVries and
Taylor 2017, arXiv:1708.04552), each with probability 0.5; normalisation; tensor. Evaluation: normalisation; tensor.

Nearly all that it costs is Python's work on one draw of random numbers. `BatchAugmentation` therefore gives one draw to several
images: with 4, 8, 16 and 32 of them, each takes a third, a sixth, a tenth and a fifteenth of the time of one that has its own.
"""

import functools
import os
import random
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import torch

# What strength 1.0 means: usual values for 32x32 photographs.
SHIFT_LIMIT = 0.1  # of the image's width and height, either way
SCALE_LIMIT = 0.1  # zoom between 0.9 and 1.1
ROTATE_LIMIT = 10.0  # degrees, either way
HOLE_FRACTION = 0.25  # the hole's side as a fraction of the image's: 8 pixels of 32
MAX_HOLE_FRACTION = 0.75  # whatever the strength, some of the image stays to be seen
PARTS = ("flip", "shift_scale_rotate", "dropout")


def load_albumentations() -> Any:
    """The module. It takes a second to import, so this is done where images are transformed, and before workers are forked."""
    # Without this the import asks the network for the newest version.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations

    return albumentations


def _eval_pipeline(mean: tuple[float, ...], std: tuple[float, ...]) -> Any:
    A = load_albumentations()
    from albumentations.pytorch import ToTensorV2

    return A.Compose([A.Normalize(mean=mean, std=std), ToTensorV2()])


def _augmentations(mean: Sequence[float], strength: float, parts: Collection[str], hole: int, count: int = 1) -> list[Any]:
    """The random steps among `parts` for `count` images, the channels of all of them being those of one image."""
    A = load_albumentations()
    import cv2

    stock: Any = A.ShiftScaleRotate

    class ShiftScaleRotate(stock):
        # The stock method compares the matrix with the identity, which takes 20 us, and cuts more than 4 channels into fours.
        def apply(self, img: np.ndarray, matrix: np.ndarray, **params: Any) -> np.ndarray:
            warped = cv2.warpAffine(img, matrix[:2], img.shape[1::-1], flags=self.interpolation, borderMode=self.border_mode)
            return warped.reshape(img.shape)  # OpenCV drops a single channel

    # The holes are cut from bytes, before the normalisation that turns the mean colour into zero.
    mean_color = tuple(round(255 * channel) for channel in mean) * count
    side: float = hole or min(HOLE_FRACTION * strength, MAX_HOLE_FRACTION)  # pixels are integers to Albumentations
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ShiftScaleRotate always warns that Affine exists
        geometry = ShiftScaleRotate(
            shift_limit=min(SHIFT_LIMIT * strength, 1.0),
            scale_limit=min(SCALE_LIMIT * strength, 0.9),
            rotate_limit=min(ROTATE_LIMIT * strength, 180.0),
            border_mode=cv2.BORDER_REFLECT_101,
            interpolation=cv2.INTER_NEAREST,
            p=0.5,
        )
    dropout = A.CoarseDropout(
        num_holes_range=(1, 1), hole_height_range=(side, side), hole_width_range=(side, side), fill=mean_color, p=0.5
    )
    steps = dict(zip(PARTS, (A.HorizontalFlip(p=0.5), geometry, dropout), strict=True))
    return [step for name, step in steps.items() if name in parts]


def _train_pipeline(mean: tuple[float, ...], std: tuple[float, ...], strength: float, parts: Collection[str], hole: int) -> Any:
    return load_albumentations().Compose([*_augmentations(mean, strength, parts, hole), *_eval_pipeline(mean, std).transforms])


def _batch_pipeline(mean: tuple[float, ...], strength: float, count: int, parts: Collection[str], hole: int) -> Any:
    return load_albumentations().Compose(_augmentations(mean, strength, parts, hole, count))


class _Transform:
    """Picklable; its Albumentations pipeline is built when first used in a process."""

    def __init__(self, build_pipeline: Callable[[], Any], seed: int | None = None) -> None:
        self._build_pipeline = build_pipeline
        self._seed = seed
        self._pipeline: Any = None
        self._process: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pipeline": None, "_process": None}

    def _ensure_pipeline(self) -> None:
        if self._process == os.getpid():
            return
        self._process, self._pipeline = os.getpid(), self._build_pipeline()
        # A DataLoader's forked workers would otherwise all draw the parent's numbers, the same in every epoch.
        worker = torch.utils.data.get_worker_info()
        worker_seed = [] if worker is None else [worker.seed]
        if self._seed is not None or worker_seed:
            self.set_random_seed([self._seed or 0, *worker_seed])

    def set_random_seed(self, seed: int | Sequence[int]) -> None:
        """Restart the random numbers from `seed`: one or more integers from 0 up. Takes about 15 us."""
        self._ensure_pipeline()
        # With Albumentations' own set_random_seed every step draws the same numbers: the flip and the hole would then depend on
        # each other. Here all steps draw from one stream, in turn.
        generator = np.random.default_rng(seed)
        self._pipeline.set_random_state(generator, random.Random(generator.bit_generator.random_raw()))


class ImageTransform(_Transform):
    """A picklable transform of one image.

    Called with a PIL image or a uint8 array of shape (H, W, C) or (H, W) (grey), returns a float32 tensor (C, H, W).
    """

    def __call__(self, image: Any) -> torch.Tensor:
        self._ensure_pipeline()
        pixels = np.asarray(image)
        if pixels.ndim == 2:
            pixels = pixels[..., np.newaxis]
        return self._pipeline(image=pixels)["image"].contiguous()


class BatchAugmentation(_Transform):
    """The random part of `train_transform`, for `count` images at once that share one draw.

    Called with a uint8 array (count, H, W, C), returns another: all images are flipped, shifted, scaled, rotated and holed alike.
    mean, strength, parts, hole: as for `train_transform`. OpenCV takes up to 128 channels: with 1 to 4 of an image, count is 32 at
    most.
    """

    def __init__(self, mean: Sequence[float], strength: float, count: int, parts: Collection[str] = PARTS, hole: int = 0) -> None:
        _demand_positive(strength)
        super().__init__(functools.partial(_batch_pipeline, tuple(mean), strength, count, tuple(parts), hole))

    def __call__(self, images: np.ndarray) -> np.ndarray:
        import cv2

        self._ensure_pipeline()
        count, height, width, channels = images.shape
        if count == 1:
            return self._pipeline(image=images[0])["image"][np.newaxis]
        # As the channels of one image they cost a single call a step. Albumentations' own target `images` takes 25 us an image
        # more: it moves the axes through NumPy, which copies three bytes at a time.
        together = cv2.transpose(images.reshape(count, height * width, channels)).reshape(height, width, count * channels)
        together = self._pipeline(image=together)["image"]
        return cv2.transpose(together.reshape(height * width, count, channels)).reshape(images.shape)


def _demand_positive(strength: float) -> None:
    if not strength > 0:
        raise ValueError(f"strength must be above 0, not {strength}")


def train_transform(
    mean: Sequence[float],
    std: Sequence[float],
    strength: float = 1.0,
    seed: int | None = None,
    parts: Collection[str] = PARTS,
    hole: int = 0,
) -> ImageTransform:
    """The random transform of training images.

    mean, std: per channel, of pixels scaled to 0..1. strength: above 0; multiplies the limits of the shift (1.0: 10% of
    the side), the zoom (10%) and the rotation (10 degrees), and the side of the hole (25% of the image's; never above 75%).
    seed: makes the sequence of transforms repeatable; None draws a fresh one. parts: those of PARTS that are done. hole:
    side of the hole in pixels, whatever the strength; 0 leaves it to the strength. Raises ValueError for a strength of 0 or less.
    """
    _demand_positive(strength)
    return ImageTransform(functools.partial(_train_pipeline, tuple(mean), tuple(std), strength, tuple(parts), hole), seed)


def eval_transform(mean: Sequence[float], std: Sequence[float]) -> ImageTransform:
    """The transform of images to evaluate: (pixels / 255 - mean) / std, nothing random. mean, std: per channel, 0..1."""
    return ImageTransform(functools.partial(_eval_pipeline, tuple(mean), tuple(std)))
