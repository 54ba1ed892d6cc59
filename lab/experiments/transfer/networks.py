"""Networks of trained features and a new linear layer."""

from __future__ import annotations

from torch import Tensor, nn

from model import Net


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
            if hasattr(layer, "whiten"):
                layer.whiten(images)


def net_features(net: Net) -> tuple[nn.Module, int]:
    """`net` up to global average pooling, and the number of its features."""
    *pooling, linear = net.O
    return nn.Sequential(net.C1, net.C2, net.C3, net.C4, *pooling), linear.in_features
