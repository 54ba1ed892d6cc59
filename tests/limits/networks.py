"""A small network that satisfies every constraint, and its parts."""

from __future__ import annotations

from torch import Tensor, nn


def dense(in_channels: int, out_channels: int, **options) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=options.get("dilation", 1), **options)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU())


def separable(channels: int, **options) -> nn.Sequential:
    return nn.Sequential(dense(channels, channels, groups=channels, **options), nn.Conv2d(channels, channels, 1))


class Good(nn.Module):
    """Satisfies everything. Receptive field: 1 + 3*2 in C1, 1 for its pooling, then 3*4, 2, 3*8, 4, (2 + 4 + 2)*8."""

    def __init__(self, num_channels: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        self.C1 = nn.Sequential(dense(num_channels, 8), dense(8, 8), dense(8, 8), nn.MaxPool2d(2))
        self.C2 = nn.Sequential(dense(8, 8), separable(8), dense(8, 8), nn.MaxPool2d(2))
        self.C3 = nn.Sequential(dense(8, 8), dense(8, 8), dense(8, 8), nn.MaxPool2d(2))
        self.C4 = nn.Sequential(dense(8, 8), dense(8, 8, dilation=2), dense(8, 8))
        self.O = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.O(self.C4(self.C3(self.C2(self.C1(x)))))


def changed(**blocks: nn.Module) -> Good:
    network = Good()
    for name, block in blocks.items():
        setattr(network, name, block)
    return network
