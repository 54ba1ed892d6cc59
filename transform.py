"""The augmentation: Albumentations pipelines, as objects that torchvision data sets take as `transform=`.

Training: horizontal flip; shift, scale and rotation; one square hole filled with the mean colour (Cutout, DeVries and
Taylor 2017, arXiv:1708.04552); normalisation; tensor. Evaluation: normalisation; tensor.
"""
import functools
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

# What strength 1.0 means: usual values for 32x32 photographs.
SHIFT_LIMIT = 0.1  # of the image's width and height, either way
SCALE_LIMIT = 0.1  # zoom between 0.9 and 1.1
ROTATE_LIMIT = 10.0  # degrees, either way
HOLE_FRACTION = 0.25  # the hole's side as a fraction of the image's: 8 pixels of 32
MAX_HOLE_FRACTION = 0.75  # whatever the strength, some of the image stays to be seen


def _albumentations() -> Any:
    # Without this the import asks the network for the newest version.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations

    return albumentations


def _eval_pipeline(mean: tuple[float, ...], std: tuple[float, ...]) -> Any:
    A = _albumentations()
    from albumentations.pytorch import ToTensorV2

    return A.Compose([A.Normalize(mean=mean, std=std), ToTensorV2()])


def _train_pipeline(mean: tuple[float, ...], std: tuple[float, ...], strength: float) -> Any:
    A = _albumentations()
    import cv2

    # The holes are cut from bytes, before the normalisation that turns the mean colour into zero.
    mean_color = tuple(round(255 * channel) for channel in mean)
    hole = min(HOLE_FRACTION * strength, MAX_HOLE_FRACTION)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ShiftScaleRotate always warns that Affine exists
        geometry = A.ShiftScaleRotate(
            shift_limit=min(SHIFT_LIMIT * strength, 1.0), scale_limit=min(SCALE_LIMIT * strength, 0.9),
            rotate_limit=min(ROTATE_LIMIT * strength, 180.0), border_mode=cv2.BORDER_REFLECT_101, p=1.0)
    dropout = A.CoarseDropout(
        num_holes_range=(1, 1), hole_height_range=(hole, hole), hole_width_range=(hole, hole), fill=mean_color, p=1.0)
    return A.Compose([A.HorizontalFlip(p=0.5), geometry, dropout, *_eval_pipeline(mean, std).transforms])


class ImageTransform:
    """A picklable transform of one image; its Albumentations pipeline is built when first used in a process.

    Called with a PIL image or a uint8 array of shape (H, W, C) or (H, W) (grey), returns a float32 tensor (C, H, W).
    """

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
        """Restart the random numbers from `seed`: one or more integers from 0 up."""
        self._ensure_pipeline()
        # Albumentations gives every step the same seed: the flip and the hole would then depend on each other.
        steps = self._pipeline.transforms
        for step, step_seed in zip(steps, np.random.SeedSequence(seed).generate_state(len(steps)), strict=True):
            step.set_random_seed(int(step_seed))

    def __call__(self, image: Any) -> torch.Tensor:
        self._ensure_pipeline()
        pixels = np.asarray(image)
        if pixels.ndim == 2:
            pixels = pixels[..., np.newaxis]
        return self._pipeline(image=pixels)["image"].contiguous()


def train_transform(
    mean: Sequence[float], std: Sequence[float], strength: float = 1.0, seed: int | None = None
) -> ImageTransform:
    """The random transform of training images.

    mean, std: per channel, of pixels scaled to 0..1. strength: above 0; multiplies the limits of the shift (1.0: 10% of
    the side), the zoom (10%) and the rotation (10 degrees), and the side of the hole (25% of the image's; never above 75%).
    seed: makes the sequence of transforms repeatable; None draws a fresh one. Raises ValueError for a strength of 0 or less.
    """
    if not strength > 0:
        raise ValueError(f"strength must be above 0, not {strength}")
    return ImageTransform(functools.partial(_train_pipeline, tuple(mean), tuple(std), strength), seed)


def eval_transform(mean: Sequence[float], std: Sequence[float]) -> ImageTransform:
    """The transform of images to evaluate: (pixels / 255 - mean) / std, nothing random. mean, std: per channel, 0..1."""
    return ImageTransform(functools.partial(_eval_pipeline, tuple(mean), tuple(std)))
