"""The networks of the experiments. All take (N, C, H, W) floats and return raw logits (N, num_classes)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from config import InputError

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "softplus": nn.Softplus,
    "hardswish": nn.Hardswish,
    "mish": nn.Mish,
}


def activation_layer(name: str) -> nn.Module:
    """The activation of that name. Raises InputError, which lists the names, where there is none."""
    if name not in ACTIVATIONS:
        raise InputError(f"unknown activation '{name}': there are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


class FC_only(nn.Sequential):  # noqa: N801 (the course's name)
    """Fully connected layers only: all pixels -> `hidden` units -> logits."""

    def __init__(self, num_channels: int, image_size: tuple[int, int], num_classes: int, hidden: int = 24) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(num_channels * image_size[0] * image_size[1], hidden)
        self.activation = nn.ReLU()
        self.fc2 = nn.Linear(hidden, num_classes)


class Grayscale1Convolution(nn.Sequential):
    """One convolution without padding, one 2x2 max-pool, which halves height and width, one linear layer; for grey images."""

    def __init__(
        self, num_channels: int, image_size: tuple[int, int], num_classes: int, filters: int = 8, kernel_size: int = 5
    ) -> None:
        if num_channels != 1:
            raise InputError(
                f"Grayscale1Convolution takes grey images of 1 channel, these have {num_channels}: choose mnist, "
                "fashion_mnist or digits"
            )
        super().__init__()
        self.conv = nn.Conv2d(1, filters, kernel_size)
        self.activation = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        height, width = ((side - kernel_size + 1) // 2 for side in image_size)
        self.fc = nn.Linear(filters * height * width, num_classes)


class Convolution1(nn.Sequential):
    """The same for colour images: one convolution, one 2x2 max-pool, one linear layer."""

    def __init__(self, num_channels: int, image_size: tuple[int, int], num_classes: int, filters: int = 32) -> None:
        super().__init__(
            nn.Conv2d(num_channels, filters, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(filters * (image_size[0] // 2) * (image_size[1] // 2), num_classes),
        )


class Convolution3(nn.Sequential):
    """Three convolutions, each with an activation and a 2x2 max-pool, a hidden linear layer and the last one."""

    def __init__(
        self,
        num_channels: int,
        image_size: tuple[int, int],
        num_classes: int,
        activation: str = "relu",
        widths: tuple[int, int, int] = (16, 32, 64),
        hidden: int = 64,
    ) -> None:
        layers: list[nn.Module] = []
        for channels, filters in zip((num_channels, *widths), widths, strict=False):
            layers += [nn.Conv2d(channels, filters, 3, padding=1), activation_layer(activation), nn.MaxPool2d(2)]
        area = (image_size[0] // 8) * (image_size[1] // 8)
        super().__init__(
            *layers,
            nn.Flatten(),
            nn.Linear(widths[-1] * area, hidden),
            activation_layer(activation),
            nn.Linear(hidden, num_classes),
        )


class Convolution6NormDropout(nn.Sequential):
    """Six convolutions in three pairs, each with BatchNorm, a 2x2 max-pool and dropout after each pair, and two linear layers.

    BatchNorm: Ioffe & Szegedy 2015. Dropout: Srivastava et al. 2014, of single numbers here.
    """

    def __init__(
        self,
        num_channels: int,
        image_size: tuple[int, int],
        num_classes: int,
        widths: tuple[int, int, int] = (32, 64, 96),
        hidden: int = 128,
        dropout: float = 0.2,
    ) -> None:
        layers: list[nn.Module] = []
        for channels, filters in zip((num_channels, *widths), widths, strict=False):
            for inputs in (channels, filters):
                layers += [nn.Conv2d(inputs, filters, 3, padding=1, bias=False), nn.BatchNorm2d(filters), nn.ReLU()]
            layers += [nn.MaxPool2d(2), nn.Dropout(dropout)]
        area = (image_size[0] // 8) * (image_size[1] // 8)
        super().__init__(
            *layers,
            nn.Flatten(),
            nn.Linear(widths[-1] * area, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )


def weight_layers(model: nn.Module) -> Iterator[tuple[str, nn.Conv2d | nn.Linear]]:
    """Convolutions and linear layers, in order, under the names that a page gives them: "conv 1", "linear 5"."""
    layers = [layer for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    for number, layer in enumerate(layers, 1):
        yield f"{'conv' if isinstance(layer, nn.Conv2d) else 'linear'} {number}", layer


def gradient_norms(model: nn.Module, inputs: Tensor, targets: Tensor) -> dict[str, float]:
    """L2 norm of the gradient of the mean cross-entropy for the weights of each layer, in training mode, dropout off."""
    model.train()
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.eval()
    loss = nn.functional.cross_entropy(model(inputs), targets)
    layers = dict(weight_layers(model))
    gradients = torch.autograd.grad(loss, [layer.weight for layer in layers.values()])
    return {name: gradient.norm().item() for name, gradient in zip(layers, gradients, strict=True)}


def dead_units(model: nn.Module, inputs: Tensor, slope: float = 0.01) -> list[tuple[int, int]]:
    """(dead units, units) of each activation layer of `model`, in order.

    A unit is a channel or a hidden number. It is dead where the activation's derivative is below `slope` in size at every place of
    every one of `inputs`: nothing is learned through it from these images. That holds for a ReLU which is never on as for a
    sigmoid or tanh which is always saturated.
    """
    counts, kinds = [], tuple(ACTIVATIONS.values())

    def look(layer: nn.Module, arguments: tuple[Tensor], _: Tensor) -> None:
        with torch.enable_grad():
            before = arguments[0].detach().float().requires_grad_()
            if isinstance(layer, (nn.ReLU, nn.SiLU, nn.LeakyReLU, nn.ELU, nn.Hardswish, nn.Mish)):
                layer.inplace = False
            (derivative,) = torch.autograd.grad(type(layer).forward(layer, before).sum(), before)
        largest = derivative.abs().transpose(0, 1).flatten(1).amax(1)
        counts.append((int((largest < slope).sum()), len(largest)))

    handles = [layer.register_forward_hook(look) for layer in model.modules() if isinstance(layer, kinds)]
    try:
        with torch.no_grad():
            model.eval()(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return counts
