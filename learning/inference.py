"""Weights and images in, predictions out; the evaluation of a network on a split."""

from __future__ import annotations

import collections
import copy
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from config import InputError
from images.data import ImageDataset, normalise
from images.files import read_image
from learning import own
from learning.weights import load_weights
from model import Layer, Net, ResidualPointwiseConv2d
from utils import hardware, resolve_precision

BATCH_SIZE = 128
"""Image files that are predicted together, at most."""


@torch.inference_mode()
def predict_logits(
    model: nn.Module,
    images: np.ndarray,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device,
    precision: torch.dtype,
    batch_size: int = 500,
) -> Tensor:
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
    """A copy of a `Net` that only predicts, faster. Equal to `model` but for rounding.

    BatchNorm is folded into the convolution before it (what it does to a channel is then fixed), and the weights are in
    `precision`, which its inputs must have too. It stays where max-pooling stands between and a channel's factor is negative, with
    which a maximum does not commute. The sum of a residual 1x1 convolution becomes part of its weights.
    """
    model = copy.deepcopy(model).eval()
    for name, layer in list(model.named_modules()):
        if isinstance(layer, ResidualPointwiseConv2d):
            model.set_submodule(name, _without_sum(layer))
        elif (
            isinstance(layer, Layer)
            and isinstance(layer.norm, nn.BatchNorm2d)
            and (isinstance(layer.pool, nn.Identity) or bool((layer.norm.weight > 0).all()))
        ):
            layer.conv = fuse_conv_bn_eval(layer.conv, layer.norm)
            layer.register_module("norm", nn.Identity())
    return model.to(precision).to(memory_format=torch.channels_last)


@torch.no_grad()
def _without_sum(layer: ResidualPointwiseConv2d) -> nn.Module:
    """The layer as an ordinary 1x1 convolution and ReLU, which a backend computes in one operation."""
    channels = layer.in_channels
    conv = nn.Conv2d(channels, channels, 1, bias=False, device=layer.weight.device)
    conv.weight.copy_(layer.matrix().view_as(layer.weight))
    return nn.Sequential(conv, nn.ReLU(inplace=True))


def loss_and_accuracy(logits: Tensor, labels: np.ndarray) -> tuple[float, float]:
    """Mean cross-entropy in nats, and the share of images whose largest logit is their label's (0 to 1)."""
    targets = torch.from_numpy(labels)
    return F.cross_entropy(logits, targets).item(), (logits.argmax(1) == targets).double().mean().item()


def seconds_a_call(predict: Callable[[], Tensor], device: torch.device) -> float:
    """The mean over as many calls as fill a quarter of a second."""
    calls, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < 0.25:
        predict()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        calls += 1
    return spent / calls


@dataclass
class Prediction:
    """What a network says of an image file."""

    path: Path
    image: np.ndarray | None = None
    """(H, W, C) uint8, as it was given to the network."""
    changes: list[str] = field(default_factory=list)
    """What was done to the file's image to get there, in words."""
    top: list[tuple[str, float]] = field(default_factory=list)
    """The most probable classes with their probabilities, the best first."""
    fault: str = ""
    """Why there is no prediction, in one line that names the file."""


@dataclass
class TrainedNetwork:
    """A network read from a weights file, with what must be known to use it."""

    model: nn.Module
    card: dict[str, Any]
    device: torch.device
    precision: torch.dtype

    @classmethod
    def load(cls, path: Path, device: torch.device, spec: str = "") -> TrainedNetwork:
        """Read a .safetensors file or a checkpoint; `spec` says where a network of the user's own is now, as FILE.py:CLASS.

        Raises InputError where it is missing, damaged or of another network, or the file with the user's class is missing.
        """
        tensors, card = load_weights(path)
        spec = spec or card.get("model") or ""
        model = own.load(spec, card, path) if spec else _net(path, card, tensors)
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            raise InputError(f"{path} does not fit {spec or 'the network of its card'}: {_last_line(error)}") from error
        return cls(model.to(device).to(memory_format=torch.channels_last), card, device, resolve_precision("auto", device))

    def logits(self, images: np.ndarray, precision: torch.dtype | None = None) -> Tensor:
        """Raw logits (N, num_classes), float32 on the CPU, of `images` (N, H, W, C) uint8; in the fastest precision where none is
        given.

        Raises InputError where the images are of another type, size or number of channels than the network was trained on: it
        would answer, and wrongly.
        """
        wanted = (*self.card["image_size"], self.card["num_channels"])
        if images.ndim != 4 or images.shape[1:] != wanted or images.dtype != np.uint8:
            raise InputError(
                f"the network takes images of shape (N, {', '.join(map(str, wanted))}) and type uint8, not {images.shape} "
                f"{images.dtype}: resize them first"
            )
        return predict_logits(self.model, images, self.card["mean"], self.card["std"], self.device, precision or self.precision)

    def demand_fits(self, dataset: ImageDataset) -> None:
        """Raise InputError where `dataset` has other classes or channels than the network was trained on."""
        if list(dataset.classes) != self.card["classes"]:
            raise InputError(
                f"classes differ: the weights have {', '.join(self.card['classes'])}; {dataset.name} has "
                f"{', '.join(dataset.classes)}"
            )
        if dataset.num_channels != self.card["num_channels"]:
            raise InputError(
                f"the weights take {self.card['num_channels']} channels, the images of {dataset.name} have {dataset.num_channels}"
            )

    def evaluate(self, dataset: ImageDataset) -> tuple[float, float]:
        """Mean cross-entropy in nats and accuracy on the test split, in the precision of the card's own accuracy.

        Raises InputError where classes, channels or the size of the images are others.
        """
        self.demand_fits(dataset)
        precision = resolve_precision(self.card.get("precision", "fp32"), self.device)
        return loss_and_accuracy(self.logits(dataset.test.images, precision), dataset.test.labels)

    def most_probable(self, logits: Tensor, top: int) -> list[list[tuple[str, float]]]:
        """For each row of `logits` (N, num_classes) its `top` most probable classes with their probabilities, the best first."""
        classes = self.card["classes"]
        best = logits.softmax(1).topk(min(top, len(classes)))
        return [
            [(classes[i], p) for p, i in zip(*row, strict=True)]
            for row in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def predictor(self) -> nn.Module:
        """The module that predicts image files, for `predict_logits` in this network's precision: a faster copy of a `Net`."""
        is_net = isinstance(self.model, Net)  # of others it is not known whether their weights may be in another precision
        return for_inference(self.model, self.precision) if is_net else self.model

    def demand_takes_files(self) -> int:
        """The number of channels, 1 or 3. Raises InputError where it is another: image files have no such."""
        channels = self.card["num_channels"]
        if channels not in (1, 3):
            raise InputError(f"the weights take images of {channels} channels: image files have 1 or 3")
        return channels

    def predict_files(self, paths: Sequence[Path], top: int) -> Iterator[Prediction]:
        """What the network says of each image file, in the order of `paths`: its `top` most probable classes, the best first.

        Files are read in threads, some batches ahead of the network; however many they are, memory holds no more than those.
        """
        channels = self.demand_takes_files()
        network = self.predictor()
        for batch in _read_ahead(paths, channels, *self.card["image_size"]):
            readable = [prediction for prediction in batch if not prediction.fault]
            if readable:
                images = np.stack([cast(np.ndarray, prediction.image) for prediction in readable])
                logits = predict_logits(network, images, self.card["mean"], self.card["std"], self.device, self.precision)
                for prediction, best in zip(readable, self.most_probable(logits, top), strict=True):
                    prediction.top = best
            yield from batch


def _net(path: Path, card: dict[str, Any], tensors: dict[str, Tensor]) -> Net:
    """The Net that `card` describes, with new weights, once it is known that those in the file fit: no memory is used before."""
    try:
        arguments = (card["num_channels"], len(card["classes"]))
        with torch.device("meta"):
            Net(*arguments, **card["net"]).load_state_dict({name: tensor.to("meta") for name, tensor in tensors.items()})
        model = Net(*arguments, **card["net"])
        with torch.inference_mode():  # strides and the like leave no trace in the weights
            model.eval()(torch.zeros(1, card["num_channels"], *card["image_size"]))
        return model.train()
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, AssertionError, RuntimeError) as error:
        raise InputError(f"{path} holds the weights of another architecture than its card says: {_last_line(error)}") from error


def _last_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1].strip()[:200]


def _read_ahead(paths: Sequence[Path], num_channels: int, height: int, width: int) -> Iterator[list[Prediction]]:
    """The files of `paths` in batches, read and not yet predicted."""
    cores = hardware()["cores"]
    size = max(1, min(BATCH_SIZE, len(paths) // (2 * cores)))  # of a few large photographs, each thread gets some

    def read(first: int) -> list[Prediction]:
        return [_read(path, num_channels, height, width) for path in paths[first : first + size]]

    waiting: collections.deque = collections.deque()
    with ThreadPoolExecutor(cores) as pool:
        for first in range(0, len(paths), size):
            waiting.append(pool.submit(read, first))
            if len(waiting) > 2 * cores:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _read(path: Path, num_channels: int, height: int, width: int) -> Prediction:
    try:
        image, changes = read_image(path, num_channels, height, width)
    except InputError as error:
        return Prediction(path, fault=str(error))
    return Prediction(path, image, changes)
