"""The receptive field of networks for which it is known by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from networks import Good
from torch import Tensor, nn

from limits.receptive_field import ReceptiveField, layer_fields, receptive_field
from model import Model, Net

pytestmark = pytest.mark.usefixtures("one_thread")


class Classifier(nn.Module):
    """Whatever makes a feature map of 8 channels, then global average pooling and a linear layer."""

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.linear = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x).mean((2, 3)))


def conv(kernel_size: int, in_channels: int = 8, **options) -> nn.Conv2d:
    return nn.Conv2d(in_channels, 8, kernel_size, **options)


def stem(kernel_size: int = 3, **options) -> nn.Conv2d:
    return conv(kernel_size, 3, **options)


class Residual(nn.Module):
    def __init__(self, main: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.main, self.shortcut = main, shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.main(x)
        y += self.shortcut(x)
        return F.relu(y)


class Concatenated(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.main(x), self.shortcut(x)], 1)[:, ::2]


class Gate(nn.Module):
    """Squeeze-and-excitation (Hu et al. 2018), by linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.linear(x.mean((2, 3))))[:, :, None, None]


class ConvGate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(1), nn.ReLU(), conv(1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class Functional(nn.Module):
    """5x5 with stride 2, 3x3 with dilation 2 (in pixels: 5 + 2*4), 2x2 max-pooling (+ 2), 3x3 (+ 2*4)."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(8, 3, 5, 5), torch.randn(8, 1, 3, 3), torch.randn(8, 8, 3, 3)])

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.weights[0], None, 2, 2), inplace=True)
        x = F.conv2d(F.pad(x, (2, 2, 2, 2)), self.weights[1], dilation=2, groups=8)
        x = F.dropout(F.max_pool2d(x, 2))
        return F.conv2d(x, self.weights[2], padding="same")


class Phases(nn.Conv2d):
    """A dilated convolution as an undilated one on each of the dilation**2 phases."""

    def forward(self, x: Tensor) -> Tensor:
        d = self.dilation[0]
        result = torch.zeros_like(x)
        for row in range(d):
            for column in range(d):
                result[:, :, row::d, column::d] = F.conv2d(x[:, :, row::d, column::d], self.weight, padding=1)
        return result


class SpaceToDepth(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :, ::2, ::2], x[:, :, 1::2, 1::2]], 1)


class Sign(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sign(x)


NETWORKS = {
    "one 3x3": (stem(3), 3),
    "1x1": (stem(1), 1),
    "strides": (nn.Sequential(stem(3, stride=2, padding=1), conv(3, stride=2, padding=1), conv(3)), 3 + 4 + 8),
    "no padding": (nn.Sequential(stem(5), conv(5), conv(5)), 13),
    "a stride that skips pixels": (nn.Sequential(stem(2, stride=4), conv(3)), 2 + 8),
    "dilation": (nn.Sequential(stem(3), conv(3, dilation=4, padding=4)), 3 + 8),
    "dilation by phases": (nn.Sequential(stem(3), Phases(8, 8, 3, dilation=3)), 3 + 6),
    "the smaller of height and width": (nn.Sequential(stem((3, 5)), conv((3, 9), padding="same")), 5),
    "max pooling": (nn.Sequential(stem(3), nn.ReLU(), nn.MaxPool2d(3, 2, 1), conv(3)), 3 + 2 + 4),
    "average pooling": (nn.Sequential(stem(3), nn.BatchNorm2d(8), nn.AvgPool2d(2), conv(3)), 3 + 1 + 4),
    "functions": (Functional(), 5 + 8 + 2 + 8),
    "identity shortcut": (
        nn.Sequential(stem(3), Residual(nn.Sequential(conv(3, padding=1), conv(3, padding=1)), nn.Identity())),
        7,
    ),
    "the shortcut sees more": (nn.Sequential(stem(1), Residual(conv(3, padding=1), conv(7, padding=3))), 7),
    "branches that look aside": (
        nn.Sequential(
            stem(1),
            Residual(nn.Sequential(nn.ZeroPad2d((2, 0, 2, 0)), conv(3)), nn.Sequential(nn.ZeroPad2d((0, 2, 0, 2)), conv(3))),
        ),
        5,
    ),
    "branches padded differently": (
        nn.Sequential(stem(1), Residual(conv(3, padding=1), nn.Sequential(nn.ZeroPad2d((1, 0, 1, 0)), conv(2)))),
        3,
    ),
    "concatenation": (nn.Sequential(stem(3), Concatenated(conv(1), conv(5, padding=2))), 7),
    "space to depth by slices": (nn.Sequential(SpaceToDepth(), conv(3, 6)), 6),
    "pixel unshuffle": (nn.Sequential(nn.PixelUnshuffle(2), conv(3, 12)), 6),
    "up and down": (nn.Sequential(stem(4, stride=4), nn.Upsample(scale_factor=2), conv(3, padding=1)), 8),
    "pixel shuffle": (nn.Sequential(nn.Conv2d(3, 32, 4, 4), nn.PixelShuffle(2), conv(3, padding=1)), 8),
    "gate by linear layers": (nn.Sequential(stem(3), Gate()), math.inf),
    "gate by convolutions": (nn.Sequential(stem(3), ConvGate(), conv(3)), math.inf),
    "softmax over the channels": (nn.Sequential(*(stem(3) if i == 0 else conv(3) for i in range(6)), nn.Softmax(1)), 13),
    "signs": (nn.Sequential(stem(3), Sign(), conv(3)), 5),
    "group normalisation": (nn.Sequential(stem(3), nn.GroupNorm(2, 8), nn.Hardtanh(), conv(3)), 5),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_both_ways_give_what_is_known_by_hand(name: str) -> None:
    features, expected = NETWORKS[name]
    assert receptive_field(Classifier(features)) == ReceptiveField(expected, expected)


@pytest.mark.parametrize("pooling", [nn.AdaptiveAvgPool2d(1), nn.AvgPool2d(8), nn.AdaptiveMaxPool2d(1), nn.Identity()])
def test_what_comes_after_the_last_feature_map_does_not_count(pooling: nn.Module) -> None:
    network = nn.Sequential(stem(3, stride=4, padding=1), pooling, nn.Flatten(), nn.LazyLinear(10))
    network(torch.zeros(1, 3, 32, 32))
    assert receptive_field(network) == ReceptiveField(3, 3)


def test_class_maps_before_pooling_count() -> None:
    assert receptive_field(nn.Sequential(stem(3), conv(3), nn.AdaptiveAvgPool2d(1), nn.Flatten())).arithmetic == 5


def test_layers_that_start_as_zero_are_seen() -> None:
    branch = nn.Sequential(conv(3, padding=1), nn.BatchNorm2d(8))
    nn.init.zeros_(branch[0].weight)
    nn.init.zeros_(branch[1].weight)
    assert receptive_field(Classifier(nn.Sequential(stem(3), Residual(branch, nn.Identity())))) == ReceptiveField(5, 5)


class DataDependent(nn.Module):
    """Decides by the values of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(stem(3), nn.ReLU(), nn.MaxPool2d(2), conv(3, padding=1), nn.ReLU())
        self.O = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.O(x + 1 if x.mean() > 0 else x)


class DataDependentAtTheEnd(DataDependent):
    def __init__(self) -> None:
        super().__init__()
        self.O = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x).mean((2, 3))
        return self.O(x if x.mean() > 0 else -x)


@pytest.mark.parametrize("network", [DataDependent(), DataDependentAtTheEnd()])
def test_a_network_that_decides_by_values_is_followed(network: nn.Module) -> None:
    assert receptive_field(network) == ReceptiveField(3 + 1 + 4, 3 + 1 + 4)


def test_an_operation_of_unknown_reach_leaves_the_gradient() -> None:
    class Transposed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.transpose(2, 3)

    network = Classifier(nn.Sequential(stem((3, 5)), Transposed(), conv((3, 1))))
    assert receptive_field(network) == ReceptiveField(None, 3)


def test_a_network_for_one_image_size() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.ones(1, 8, 30, 30)

    assert receptive_field(Classifier(nn.Sequential(stem(3), Fixed()))) == ReceptiveField(3, 3)


def test_the_network_is_left_as_it_is() -> None:
    network = Classifier(nn.Sequential(stem(3), nn.BatchNorm2d(8), nn.Dropout(), conv(3))).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    random_state = torch.get_rng_state()
    receptive_field(network)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pools": (1, 1, 2, 2)},
        {"pools": (1, 2, 1, 1), "widths": (8, 8, 12, 16)},
        {"stem_kernel": 3, "stem_stride": 1, "widths": (8, 12, 12, 16)},
        {
            "kinds": (
                ("whitening", "separable", "separable_dilated"),
                ("separable_dilated",) * 3,
                ("dense",) * 3,
                ("dense_dilated", "separable", "dense"),
            )
        },
    ],
)
def test_arithmetic_and_gradient_agree_on_the_project_s_network(options: dict) -> None:
    seen = receptive_field(Net(3, 10, **options))
    assert seen.arithmetic == seen.gradient < math.inf


def test_arithmetic_and_gradient_agree_on_the_course_s_model() -> None:
    assert receptive_field(Model(3, 10)) == ReceptiveField(49, 49)
    assert receptive_field(Net(3, 10)) == receptive_field(Net(1, 10), (28, 28), 1) == ReceptiveField(66, 66)


def test_layer_by_layer() -> None:
    fields = layer_fields(Good())
    assert [field.pixels for field in fields if "pool" not in field.operation] == [3, 5, 7, 12, 16, 16, 20, 30, 38, 46, 66, 98, 114]
    first, *_, last = fields
    assert (first.path, first.operation, first.size) == ("C1.0.0", "3x3 convolution", (32, 32))
    assert (last.path, last.pixels) == ("C4.2.0", 114)


def test_layers_are_described() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, (3, 5), stride=2, dilation=2),
        nn.MaxPool2d(3, stride=1),
        nn.AvgPool2d(2),
        nn.Conv2d(8, 8, 3, groups=8, stride=(1, 2)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    assert [field.operation for field in layer_fields(network)] == [
        "3x5 convolution, stride 2, dilation 2",
        "3x3 max-pooling, stride 1",
        "2x2 average pooling",
        "3x3 depthwise convolution, stride 1x2",
    ]
