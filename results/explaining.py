"""Which parts of an image are the evidence for a class: Grad-CAM (Selvaraju et al. 2017), by the package grad-cam."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from config import InputError
from images.data import normalise
from limits.copying import copy_of

MIN_MAPS = 5
"""Pixels on a side of a layer's maps, at least: of fewer, an explanation says nothing about places."""
BATCH = 32
"""Images that are explained together: gradients take several times the memory of a prediction."""
PICTURE = 256
"""Pixels on the shorter side of a picture, about."""
INSTALL = "pip install -r requirements-serve.txt"


class Explainer:
    """Grad-CAM of one network, at its deepest layer with maps of 5x5 pixels or more.

    Works on a copy in fp32: the network itself, its weights, mode and hooks stay as they are.

    Args:
        model: from normalised images (N, C, H, W) to logits.
        card: of the network: mean, std, num_channels and image_size count.
        device: where to compute.

    Raises InputError where the package grad-cam is missing, or the network has no such layer or gives no gradients.
    """

    def __init__(self, model: nn.Module, card: dict[str, Any], device: torch.device) -> None:
        try:
            import pytorch_grad_cam  # noqa: F401 (asks whether it is there)
        except ImportError as error:
            raise InputError(f"Grad-CAM needs {error.name}, which is not installed: {INSTALL}") from error
        self.card, self.device = card, device
        try:
            self.model = copy_of(model).to(device).float().eval().requires_grad_(False)
            layer = deepest_layer(self.model, torch.zeros(1, card["num_channels"], *card["image_size"], device=device))
        except Exception as error:  # the code may be the user's
            raise _not_explained(error) from error
        if layer is None:
            raise InputError(
                f"the network has no convolution layer with maps of {MIN_MAPS}x{MIN_MAPS} pixels or more, which Grad-CAM needs"
            )
        self.layer = layer
        # What fails, fails here and not after the first predictions.
        self.heat(np.zeros((1, *card["image_size"], card["num_channels"]), np.uint8), [0])

    def heat(self, images: np.ndarray, classes: Sequence[int] | np.ndarray) -> np.ndarray:
        """How much evidence for the class each pixel is: (N, H, W) float32, 0 to 1 within an image, all 0 where there is none.

        `images` are (N, H, W, C) uint8 of the network's size, `classes` the index of one class for each. Raises InputError where
        the network fails.
        """
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        heat = [np.empty((0, *images.shape[1:3]), np.float32)]
        grad_cam = GradCAM(self.model, [self.model.get_submodule(self.layer)])
        try:
            with torch.enable_grad():
                for first in range(0, len(images), BATCH):
                    pixels = torch.tensor(images[first : first + BATCH], device=self.device)
                    inputs = normalise(pixels, self.card["mean"], self.card["std"]).requires_grad_()
                    targets = [ClassifierOutputTarget(int(index)) for index in classes[first : first + BATCH]]
                    heat.append(grad_cam(inputs.clone(), targets))  # a clone: networks may change their input in place
        except Exception as error:
            raise _not_explained(error) from error
        finally:
            grad_cam.activations_and_grads.release()
        return np.nan_to_num(np.concatenate(heat))

    def pictures(self, images: np.ndarray, classes: Sequence[int] | np.ndarray, side: int = PICTURE) -> list[np.ndarray]:
        """`overlays` of the images with their heat."""
        return overlays(images, self.heat(images, classes), side)


def deepest_layer(model: nn.Module, inputs: Tensor) -> str | None:
    """The name of the last module of `model` to give maps of MIN_MAPS x MIN_MAPS pixels or more, of `inputs` (N, C, H, W).

    Modules before the first convolution do not count, nor those that run more than once (which run would be explained?). A
    convolution inside a block is passed over where anything else is left: evidence shows only after the block's normalisation and
    activation, whose maps were too small here.
    """
    runs: Counter[str] = Counter()
    found: list[str] = []
    convolved = False

    def note(name: str, module: nn.Module, output: Any) -> None:
        nonlocal convolved
        convolved = convolved or isinstance(module, _ConvNd)
        runs[name] += 1
        if isinstance(module, nn.Identity):
            return
        if convolved and isinstance(output, Tensor) and output.ndim == 4 and min(output.shape[2:]) >= MIN_MAPS:
            found.append(name)

    hooks = [
        module.register_forward_hook(lambda module, _, output, name=name: note(name, module, output))
        for name, module in model.named_modules()
        if name
    ]
    try:
        with torch.no_grad():
            model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    once = [name for name in found if runs[name] == 1]
    whole = [name for name in once if "." not in name or not isinstance(model.get_submodule(name), _ConvNd)]
    return (whole or once)[-1] if once else None


def overlays(images: np.ndarray, heat: np.ndarray, side: int = PICTURE) -> list[np.ndarray]:
    """Enlarged images with their explanation laid over them, (H, W, 3) uint8 each: yellow is most evidence, violet least.

    `images` are (N, H, W, C) uint8, `heat` (N, H, W) as `Explainer.heat` gives it; `side` as for `enlarged`.
    """
    import cv2
    from pytorch_grad_cam.utils.image import show_cam_on_image

    pictures = []
    for image, places in zip(enlarged(images, side), heat, strict=True):
        smooth = cv2.resize(places, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_LINEAR)
        colours = show_cam_on_image(np.float32(image) / 255, smooth, True, cv2.COLORMAP_VIRIDIS, image_weight=0.5)
        pictures.append(colours)
    return pictures


def enlarged(images: np.ndarray, side: int = PICTURE) -> list[np.ndarray]:
    """Images (N, H, W, C) uint8, C 1 or 3, in colour, each pixel as many times as fit into `side` on the shorter side."""
    scale = max(1, side // min(images.shape[1:3]))
    colour = np.broadcast_to(images, (*images.shape[:3], 3))
    return [image.repeat(scale, 0).repeat(scale, 1) for image in colour]


def png(picture: np.ndarray) -> bytes:
    """A picture (H, W, 3) uint8 as a PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def _not_explained(error: Exception) -> InputError:
    lines = str(error).strip().splitlines() or [""]
    return InputError(f"Grad-CAM cannot explain this network: {type(error).__name__}: {lines[0][:200]}")
