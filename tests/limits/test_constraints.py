"""Each constraint on a network that satisfies all, on networks made to break just that one, and on the project's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from networks import Good, changed, dense, separable
from torch import Tensor, nn

from config import InputError
from learning.presets import PRESETS
from limits.constraints import Constraint, check, format_table
from model import Model, Net

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ["parameters", "C1 C2 C3 C4 O", "GAP", "depthwise separable", "dilated", "receptive field"]


def of(constraints: list[Constraint], name: str) -> Constraint:
    return next(constraint for constraint in constraints if constraint.name == name)


def failed(network: nn.Module, **size) -> list[str]:
    return [constraint.name for constraint in check(network, **size) if not constraint.passed]


def blocks_of(network: nn.Module) -> str:
    return of(check(network), "C1 C2 C3 C4 O").value


def test_a_network_that_satisfies_all() -> None:
    constraints = check(Good())
    assert [constraint.name for constraint in constraints] == NAMES
    assert all(constraint.passed for constraint in constraints)
    assert of(constraints, "C1 C2 C3 C4 O").value == "3 3 3 3"
    assert of(constraints, "receptive field").value == "114 px"


@pytest.mark.parametrize(
    "network, num_channels, image_size",
    [
        (Net(3, 10), 3, (32, 32)),
        (Net(1, 10), 1, (28, 28)),
        (Net(1, 10), 1, (32, 32)),
        (Net(3, 100), 3, (64, 48)),
        (Model(3, 10), 3, (32, 32)),
        (Model(1, 10), 1, (28, 28)),
    ],
)
def test_the_project_s_networks_satisfy_all(network: nn.Module, num_channels: int, image_size: tuple[int, int]) -> None:
    assert failed(network, num_channels=num_channels, image_size=image_size) == []


# Parameters


def test_parameters_below_200_000() -> None:
    network = Good()
    network.padding = nn.Parameter(torch.zeros(199_999 - sum(p.numel() for p in network.parameters())))
    assert of(check(network), "parameters") == Constraint("parameters", "199,999", "< 200,000", True)
    network.one_more = nn.Parameter(torch.zeros(1))
    assert failed(network) == ["parameters"]
    network.one_more.requires_grad_(False)
    assert of(check(network), "parameters").value == "199,999 (and 1 not trained)"
    assert failed(network) == []


# Blocks and layers


@pytest.mark.parametrize(
    "layers, count",
    [
        (nn.Sequential(dense(8, 8, dilation=2), dense(8, 8)), 2),
        (nn.Sequential(dense(8, 8, dilation=2), separable(8), separable(8), dense(8, 8)), 4),
        (nn.Sequential(dense(8, 8, dilation=2), nn.Conv2d(8, 8, 1)), 2),
        (nn.Sequential(dense(8, 8, dilation=2), dense(8, 8, groups=8), nn.MaxPool2d(2), nn.Conv2d(8, 8, 1), dense(8, 8)), 4),
    ],
)
def test_three_layers_a_block(layers: nn.Module, count: int) -> None:
    network = changed(C4=layers)
    assert failed(network) == ["C1 C2 C3 C4 O"]
    assert blocks_of(network) == f"3 3 3 {count}"


class Sum(nn.Module):
    def __init__(self, main: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.main, self.shortcut = main, shortcut

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.main(x).add_(self.shortcut(x)))


class Concatenation(Sum):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.main(x), self.shortcut(x)], dim=1)


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 2, 1), nn.ReLU(), nn.Conv2d(2, 8, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.layers(x)


def projection() -> nn.Sequential:
    return nn.Sequential(nn.AvgPool2d(1), nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8))


THREE = nn.Sequential(dense(8, 8, dilation=2), separable(8), dense(8, 8))


@pytest.mark.parametrize(
    "block",
    [
        Sum(THREE, projection()),
        Sum(projection(), THREE),
        nn.Sequential(Sum(nn.Sequential(dense(8, 8), dense(8, 8, dilation=2)), projection()), dense(8, 8)),
        nn.Sequential(Sum(separable(8), nn.Identity()), Sum(separable(8), projection()), dense(8, 8)),
        nn.Sequential(dense(8, 8), nn.Conv2d(8, 8, 1), Sum(dense(8, 8), nn.Identity())),  # 1x1, then a residual layer
        nn.Sequential(dense(8, 8), dense(8, 8), Sum(nn.Conv2d(8, 8, 1), nn.Identity())),  # a residual 1x1 layer
        nn.Sequential(dense(8, 8), Sum(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)), dense(8, 8)),
        nn.Sequential(dense(8, 8), Concatenation(nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1))),  # nothing is summed
        nn.Sequential(nn.Conv2d(8, 8, 1), separable(8), nn.Conv2d(8, 8, 1)),  # an inverted residual's three parts
        nn.Sequential(dense(8, 8), Gate(), dense(8, 8), dense(8, 8)),
        nn.Sequential(dense(8, 8, groups=8), Gate(), nn.Conv2d(8, 8, 1), dense(8, 8), dense(8, 8)),
    ],
)
def test_shortcut_projections_and_gates_are_not_layers(block: nn.Module) -> None:
    assert blocks_of(changed(C3=block)) == "3 3 3 3"


def test_blocks_missing_misnamed_or_out_of_order() -> None:
    class Misnamed(Good):
        def __init__(self) -> None:
            super().__init__()
            self.stage4 = self.C4
            del self.C4

        def forward(self, x: Tensor) -> Tensor:
            return self.O(self.stage4(self.C3(self.C2(self.C1(x)))))

    class Swapped(Good):
        def forward(self, x: Tensor) -> Tensor:
            return self.O(self.C4(self.C2(self.C3(self.C1(x)))))

    class Skipping(Good):
        def forward(self, x: Tensor) -> Tensor:
            return self.O(self.C4(self.C2(self.C1(x))))

    assert blocks_of(Misnamed()) == "3 3 3 0, no C4, 3 outside the blocks"
    assert failed(Misnamed()) == ["C1 C2 C3 C4 O"]
    assert blocks_of(Swapped()) == "3 3 3 3, in the order C1 C3 C2 C4 O"
    assert failed(Swapped()) == ["C1 C2 C3 C4 O"]
    assert blocks_of(Skipping()) == "3 3 0 3, no C3"
    assert failed(Skipping()) == ["C1 C2 C3 C4 O"]


def test_the_blocks_may_lie_in_a_module_of_the_network() -> None:
    assert failed(nn.Sequential(nn.Identity(), Good())) == []


# Global average pooling


class Head(nn.Module):
    def __init__(self, pool, features: int = 8) -> None:
        super().__init__()
        self.pool, self.linear = pool, nn.Linear(features, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.flatten(self.pool(x), 1))


@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool2d(4),
        lambda x: F.adaptive_avg_pool2d(x, 1),
        lambda x: F.adaptive_avg_pool2d(x, output_size=(1, 1)),
        lambda x: F.avg_pool2d(x, x.shape[2:]),
        lambda x: x.mean((2, 3)),
        lambda x: x.mean(dim=[-2, -1], keepdim=True),
        lambda x: torch.mean(x, (-1, -2)),
        lambda x: x.flatten(2).mean(-1),
        lambda x: x.view(x.size(0), x.size(1), -1).mean(dim=2),
        lambda x: F.relu(x).mean(3).mean(2),
    ],
)
def test_ways_to_average(pool) -> None:
    assert failed(changed(O=Head(pool))) == []


@pytest.mark.parametrize(
    "head",
    [
        Head(nn.AdaptiveMaxPool2d(1)),
        Head(nn.MaxPool2d(4)),
        Head(lambda x: x.amax((2, 3))),
        Head(lambda x: x.flatten(2).max(-1)[0]),
        Head(lambda x: x[:, :, 0, 0]),
        Head(nn.Conv2d(8, 8, 4)),
        Head(nn.AdaptiveAvgPool2d(2), 32),
        Head(nn.AvgPool2d(3)),  # leaves out a row and a column
        Head(lambda x: torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1), 16),
        Head(lambda x: x.mean((1, 2)), 4),
        Head(nn.Identity(), 128),
    ],
    ids=str,
)
def test_anything_but_an_average_fails(head: nn.Module) -> None:
    assert failed(changed(O=head)) == ["GAP"]


def test_an_average_in_forward_behind_the_blocks_is_one() -> None:
    class Outside(Good):
        def __init__(self) -> None:
            super().__init__()
            self.O = nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.O(self.C4(self.C3(self.C2(self.C1(x)))).mean((2, 3)))

    assert of(check(Outside()), "GAP") == Constraint("GAP", "mean in forward", "global average after C4", True)
    assert failed(Outside()) == []


def test_an_average_inside_of_a_convolution_block_is_none_of_the_head_s() -> None:
    network = changed(C4=nn.Sequential(Good().C4, nn.AdaptiveAvgPool2d(1)), O=nn.Sequential(nn.Flatten(), nn.Linear(8, 10)))
    assert failed(network) == ["GAP"]


def test_an_average_in_a_gate_is_not_the_head_s() -> None:
    network = changed(O=nn.Sequential(Gate(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 10)))
    assert failed(network) == ["GAP"]
    assert of(check(network), "receptive field").value == "whole image"


# Depthwise separable, dilated


@pytest.mark.parametrize("layer", [dense(8, 8), dense(8, 8, groups=4), dense(8, 8, groups=8)])
def test_no_depthwise_separable_convolution(layer: nn.Module) -> None:
    network = changed(C2=nn.Sequential(dense(8, 8), layer, dense(8, 8), nn.MaxPool2d(2)))
    assert failed(network) == ["depthwise separable"]


class Phases(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        d = self.dilation[0]
        n, c, h, w = x.shape
        phases = x.view(n, c, h // d, d, w // d, d).permute(3, 5, 0, 1, 2, 4).reshape(d * d * n, c, h // d, w // d)
        phases = F.conv2d(phases, self.weight, padding=1).view(d, d, n, c, h // d, w // d)
        return phases.permute(2, 3, 4, 0, 5, 1).reshape(n, c, h, w)


class FunctionalDilation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, padding=2, dilation=2)


@pytest.mark.parametrize(
    "layer", [Phases(8, 8, 3, padding=2, dilation=2), FunctionalDilation(), nn.Conv2d(8, 8, (1, 3), padding="same", dilation=2)]
)
def test_ways_to_dilate(layer: nn.Module) -> None:
    assert failed(changed(C4=nn.Sequential(dense(8, 8), layer, dense(8, 8)))) == []


@pytest.mark.parametrize(
    "layer", [dense(8, 8), nn.Conv2d(8, 8, 1, dilation=2), nn.Conv2d(8, 8, (3, 1), padding="same", dilation=(1, 2))]
)
def test_no_dilated_convolution(layer: nn.Module) -> None:
    assert failed(changed(C4=nn.Sequential(dense(8, 8), layer, dense(8, 8)))) == ["dilated"]


class WithUnused(nn.Module):
    """Registers `unused`, and even calls it, but returns what does not depend on it."""

    def __init__(self, used: nn.Module, unused: nn.Module, call: bool) -> None:
        super().__init__()
        self.used, self.unused, self.call = used, unused, call

    def forward(self, x: Tensor) -> Tensor:
        if self.call:
            self.unused(x)
        return self.used(x)


@pytest.mark.parametrize("call", [False, True])
def test_modules_without_effect_do_not_count(call: bool) -> None:
    layer = WithUnused(dense(8, 8), dense(8, 8, dilation=2), call)
    assert failed(changed(C4=nn.Sequential(dense(8, 8), layer, dense(8, 8)))) == ["dilated"]
    layer = WithUnused(dense(8, 8), separable(8), call)
    network = changed(C2=nn.Sequential(dense(8, 8), layer, dense(8, 8), nn.MaxPool2d(2)))
    assert failed(network) == ["depthwise separable"]
    network = changed(O=WithUnused(Head(nn.Identity(), 128), nn.AdaptiveAvgPool2d(1), call))
    assert failed(network) == ["GAP"]


# Receptive field


def small(first: int, second: int) -> Good:
    """Receptive field: first + second - 1 + 4 * (1 + 1 + 2), all other convolutions being 1x1."""

    def pointwise(count: int) -> list[nn.Module]:
        return [nn.Conv2d(8, 8, 1) for _ in range(count)]

    return changed(
        C1=nn.Sequential(nn.Conv2d(3, 8, first, stride=2, padding=first // 2), *pointwise(2)),
        C2=nn.Sequential(nn.Conv2d(8, 8, second, stride=2, padding=second // 2), *pointwise(2)),
        C3=nn.Sequential(separable(8), dense(8, 8), *pointwise(1)),
        C4=nn.Sequential(dense(8, 8, dilation=2), *pointwise(2)),
    )


@pytest.mark.parametrize("first, second, pixels, passed", [(6, 4, 44, False), (7, 4, 45, True), (5, 5, 45, True)])
def test_receptive_field_above_44(first: int, second: int, pixels: int, passed: bool) -> None:
    network = small(first, second)
    assert first + 2 * (second - 1) + 4 * 2 * (1 + 1 + 2) == pixels
    assert of(check(network), "receptive field") == Constraint("receptive field", f"{pixels} px", "> 44 px", passed)
    assert failed(network) == ([] if passed else ["receptive field"])


# Networks that decide by values, and what is left of the caller's things


class DataDependent(Good):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


def test_a_network_that_decides_by_the_values_of_its_images() -> None:
    constraints = check(DataDependent())
    assert all(constraint.passed for constraint in constraints)
    assert of(constraints, "C1 C2 C3 C4 O").value == "3 3 3 3"
    assert of(constraints, "receptive field").value == "114 px"
    network = DataDependent()
    network.C4 = nn.Sequential(dense(8, 8), WithUnused(dense(8, 8), dense(8, 8, dilation=2), call=True), dense(8, 8))
    network.C2 = nn.Sequential(dense(8, 8), dense(8, 8), dense(8, 8), dense(8, 8), nn.MaxPool2d(2))
    network.O = Head(nn.AdaptiveMaxPool2d(1))
    assert failed(network) == ["C1 C2 C3 C4 O", "GAP", "depthwise separable", "dilated"]


@pytest.mark.parametrize("network", [Good(), DataDependent(), Model(3, 10)])
def test_the_network_and_the_random_state_are_left_as_they_are(network: nn.Module) -> None:
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    random_state = torch.get_rng_state()
    check(network)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(module.training for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_network_that_fails_on_such_an_image() -> None:
    with pytest.raises(InputError, match="fails on a 1x32x32 image: RuntimeError"):
        check(Good(), num_channels=1)


def test_the_table_is_aligned() -> None:
    table = format_table(
        [Constraint("a", "12,345", "< 9", True), Constraint("longer", "1", "> 2 px", False), Constraint("b", "?", ">= 1", None)]
    )
    assert table.splitlines() == [
        "constraint  value   limit",
        "a           12,345  < 9     pass",
        "longer      1       > 2 px  FAIL",
        "b           ?       >= 1    unknown",
    ]


OF_OTHER_RULES = ("mnist", "cifar-50k", "onecycle")  # test_assignments.py checks these


@pytest.mark.parametrize("preset", [preset for preset in PRESETS if not preset.startswith(OF_OTHER_RULES)])
def test_every_preset_satisfies_every_constraint(preset: str) -> None:
    unlimited = {"C1 C2 C3 C4 O", "parameters", "depthwise separable", "dilated"}
    expected = {"teacher": unlimited, "cifar100": unlimited | {"GAP"}}.get(preset, set())
    assert set(failed(Net(3, 10, **PRESETS[preset].net))) == expected
