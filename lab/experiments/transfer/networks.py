"""Networks of trained features and a new linear layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn

from model import Net, WhiteningConv2d


class Transferred(nn.Module):
    """Trained `features`, which map images to (N, num_features), under a new linear layer.

    With `frozen` they stay as they are, the statistics of BatchNorm included. It has no method `whiten`: the filters of a
    whitening stem belong to what was learned.
    """

    def __init__(self, features: nn.Module, num_features: int, num_classes: int, frozen: bool) -> None:
        super().__init__()
        self.features, self.head, self.frozen = features, nn.Linear(num_features, num_classes), frozen
        if frozen:
            self.features.requires_grad_(False)

    def train(self, mode: bool = True) -> Transferred:
        super().train(mode)
        if self.frozen:
            self.features.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class FromScratch(Transferred):
    """The same network untrained; its stem, where it has a whitening one, is computed as it is in any training from scratch."""

    def __init__(self, features: nn.Module, num_features: int, num_classes: int) -> None:
        super().__init__(features, num_features, num_classes, frozen=False)

    def whiten(self, images: Tensor) -> None:
        for layer in self.features.modules():
            if isinstance(layer, WhiteningConv2d):
                layer.whiten(images)


def net_features(net: Net) -> tuple[nn.Module, int]:
    """`net` up to global average pooling, and the number of its features."""
    *pooling, linear = net.O
    return nn.Sequential(net.C1, net.C2, net.C3, net.C4, *pooling), cast(nn.Linear, linear).in_features


def net_name(name: str) -> str:
    """The name in a `Net` of a tensor of a `Transferred` with features of `net_features`."""
    part, _, rest = name.partition(".")
    if part == "head":
        return f"O.2.{rest}"
    block, _, rest = rest.partition(".")
    return f"{('C1', 'C2', 'C3', 'C4')[int(block)]}.{rest}"


def as_whole(rename: Callable[[str], str], card: dict[str, Any], model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State dict and card of a trained `Transferred` as the network from which its features are, with another last layer.

    `rename` gives a tensor's name there, `card` says how that network is built. So every command takes the weights.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())  # the frozen ones too
    return {rename(name): tensor for name, tensor in model.state_dict().items()}, card | {"parameters": parameters}
