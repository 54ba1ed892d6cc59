"""Weights and images in, predictions out; the evaluation of a network on a split."""
from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from config import InputError
from data import ImageDataset, normalise
from model import Layer, Net
from own_images import read_image
from utils import load_weights, resolve_precision


@torch.inference_mode()
def predict_logits(model: nn.Module, images: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device,
                   precision: torch.dtype, batch_size: int = 500) -> Tensor:
    """Raw logits (N, num_classes), float32 on the CPU, of `images` (N, H, W, C) uint8. Leaves `model` in evaluation mode."""
    model.eval()
    pixels = torch.from_numpy(images)
    logits = []
    with torch.autocast(device.type, precision, enabled=precision != torch.float32):
        for first in range(0, len(pixels), batch_size):
            inputs = normalise(pixels[first : first + batch_size].to(device), mean, std)
            logits.append(model(inputs).float())  # read once at the end: each reading would wait for an accelerator
    return torch.cat(logits).cpu()


def for_inference(model: nn.Module, precision: torch.dtype) -> nn.Module:
    """A copy of a `Net` that only predicts, faster: BatchNorm is folded into the convolution before it (what it does to a channel
    is then fixed), and the weights are in `precision`, which its inputs must have too. Equal to `model` but for rounding."""
    model = copy.deepcopy(model).eval()
    for layer in model.modules():
        if isinstance(layer, Layer):
            layer.conv, layer.norm = fuse_conv_bn_eval(layer.conv, layer.norm), nn.Identity()
    return model.to(precision, memory_format=torch.channels_last)


def loss_and_accuracy(logits: Tensor, labels: np.ndarray) -> tuple[float, float]:
    """Mean cross-entropy in nats, and the share of images whose largest logit is their label's (0 to 1)."""
    targets = torch.from_numpy(labels)
    return F.cross_entropy(logits, targets).item(), (logits.argmax(1) == targets).double().mean().item()


@dataclass
class TrainedNetwork:
    """A network read from a weights file, with what must be known to use it."""

    model: nn.Module
    card: dict[str, Any]
    device: torch.device
    precision: torch.dtype

    @classmethod
    def load(cls, path: Path, device: torch.device) -> TrainedNetwork:
        """Read a .safetensors file or a checkpoint. Raises InputError where it is missing, damaged or of another network."""
        tensors, card = load_weights(path)
        try:
            model = Net(card["num_channels"], len(card["classes"]), **card["net"])
            model.load_state_dict(tensors)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise InputError(f"{path} holds the weights of another architecture than its card says: {reason}") from error
        return cls(model.to(device, memory_format=torch.channels_last), card, device, resolve_precision("auto", device))

    def logits(self, images: np.ndarray, precision: torch.dtype | None = None) -> Tensor:
        """Raw logits (N, num_classes), float32 on the CPU, of `images` (N, H, W, C) uint8; in the fastest precision where none is
        given."""
        return predict_logits(self.model, images, self.card["mean"], self.card["std"], self.device, precision or self.precision)

    def evaluate(self, dataset: ImageDataset) -> tuple[float, float]:
        """Mean cross-entropy in nats and accuracy on the test split, in the precision of the card's own accuracy.

        Raises InputError where classes or channels are others.
        """
        if list(dataset.classes) != self.card["classes"]:
            raise InputError(f"the weights know other classes ({', '.join(self.card['classes'])}) than {dataset.name} has "
                             f"({', '.join(dataset.classes)})")
        if dataset.num_channels != self.card["num_channels"]:
            raise InputError(f"the weights take {self.card['num_channels']} channels, the images of {dataset.name} have "
                             f"{dataset.num_channels}")
        precision = resolve_precision(self.card.get("precision", "fp32"), self.device)
        return loss_and_accuracy(self.logits(dataset.test.images, precision), dataset.test.labels)

    def predict_files(self, paths: Sequence[Path], top: int) -> list[list[tuple[str, float]]]:
        """For each image file its `top` most probable classes with their probabilities, the best first.

        Images of another size or mode are converted, which is said on stderr. Raises InputError where one is unreadable.
        """
        images = []
        for path in paths:
            image, changes = read_image(path, self.card["num_channels"], *self.card["image_size"])
            images.append(image)
            if changes:
                print(f"note: {path}: {', '.join(changes)}", file=sys.stderr)
        best = self.logits(np.stack(images)).softmax(1).topk(min(top, len(self.card["classes"])))
        return [[(self.card["classes"][i], p) for p, i in zip(*row, strict=True)]
                for row in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
