"""Networks that ask, compare and decide get the verdict of those that do not; what cannot be seen is unknown, never FAIL."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from networks import Good, changed, dense, separable
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from limits.constraints import Constraint, check
from limits.operations import Op
from limits.receptive_field import ReceptiveField, receptive_field
from limits.tracing import trace_model

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")


class Asking(Good):
    """`ask` gets the images and returns them, however it does so."""

    def __init__(self, ask) -> None:
        super().__init__()
        self.ask = ask

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.ask(x))


def asserting(x: Tensor) -> Tensor:
    assert x.shape[2] == 32 and tuple(x.size()[2:]) == (32, 32)
    return x


def counting(x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    assert len(x) == batch and x.ndim == 4 and x.numel() == batch * channels * height * width
    return sum(x[:, :, :, :] / 2 for _ in range(x.size(0) + 1))


def dimensions(x: Tensor) -> Tensor:
    if x.dim() == 3:
        x = x.unsqueeze(0)
    if not isinstance(x, Tensor) or not torch.is_tensor(x) or x.dtype != torch.float32:
        raise TypeError(type(x))
    return x


def zeros_like_the_images(x: Tensor) -> Tensor:
    return x + torch.zeros(x.size(0), x.size(1), *x.shape[2:], dtype=x.dtype, device=x.device)


def by_values(x: Tensor) -> Tensor:
    if x.max() > 1.5:
        x = x / 255
    assert not torch.isnan(x).any()
    return x * float(x.abs().mean() > 0)


def scaled_by_size(x: Tensor) -> Tensor:
    return x / math.sqrt(x.shape[1]) * (x.shape[2] / 32) + f"{x.shape}".count("x")


class Doubling(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient


ASKING = {
    "asserts": asserting,
    "counts": counting,
    "dimensions": dimensions,
    "zeros": zeros_like_the_images,
    "values": by_values,
    "scales": scaled_by_size,
    "in place": lambda x: x.clone().add_(1).mul_(2),
    "data": lambda x: x.data,
    "detached": lambda x: x.detach().requires_grad_(),
    "stacked": lambda x: torch.cat([image.unsqueeze(0) for image in x]),
    "checkpoint": lambda x: checkpoint(nn.Sequential(nn.Identity()), x, use_reentrant=False),
    "a function of one's own": Doubling.apply,
    "a module made in forward": lambda x: nn.ReLU()(nn.BatchNorm2d(3).eval()(x)),
}


@pytest.fixture(scope="module")
def plain() -> list[Constraint]:
    return check(Good())


@pytest.mark.parametrize("name", ASKING)
def test_the_same_verdict_as_without(plain: list[Constraint], name: str) -> None:
    found = check(Asking(ASKING[name]))
    assert [(one.name, one.passed) for one in found] == [(one.name, one.passed) for one in plain]
    assert found[:5] == plain[:5]
    if name != "stacked":  # how far a loop over the images reaches, arithmetic does not say
        assert found[5] == plain[5]


class Shuffle(nn.Module):
    """ShuffleNet's: by sizes, and only for the sizes that it has been written for."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.size()
        assert h == self.size
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, -1, h, w)


def test_a_network_for_one_size_is_repeated_with_others() -> None:
    network = changed(C3=nn.Sequential(dense(8, 8), Shuffle(8), dense(8, 8), dense(8, 8), nn.MaxPool2d(2)))
    assert receptive_field(network) == ReceptiveField(None, 114)


def test_a_network_that_takes_no_larger_images_is_seen_in_part() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.ones(1, 8, 4, 4)

    class FixedShuffle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(1, 2, 4, 4, 4).transpose(1, 2).reshape(1, 8, 4, 4)

    seen = check(changed(C4=nn.Sequential(Good().C4, Fixed())))[5]
    assert seen == Constraint("receptive field", "114 px by arithmetic, at least 32 px by gradient", "> 44 px", True)
    seen = check(changed(C4=nn.Sequential(Good().C4, FixedShuffle())))[5]
    assert seen.passed is None
    assert seen.value == "unknown, because the network takes no larger images"


def test_global_averages_of_networks_that_ask() -> None:
    class Head(nn.Module):
        def __init__(self, pool) -> None:
            super().__init__()
            self.pool, self.linear = pool, nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[2] == 4
            return self.linear(self.pool(x).view(len(x), -1))

    def verdict(pool) -> bool | None:
        return check(changed(O=Head(pool)))[2].passed

    assert verdict(lambda x: x.mean((2, 3)))
    assert verdict(lambda x: x.mean(axis=(2, 3)))
    assert verdict(lambda x: x.sum((2, 3)) / (x.shape[2] * x.shape[3]))
    assert verdict(lambda x: F.avg_pool2d(x, x.size(2)))
    assert verdict(lambda x: nn.AdaptiveAvgPool2d(1)(x))
    assert verdict(lambda x: nn.AdaptiveAvgPool1d(1)(x.flatten(2)))
    assert verdict(lambda x: torch.ops.aten.adaptive_avg_pool2d.default(x, [1, 1]))
    assert verdict(lambda x: x.amax((2, 3))) is False
    assert verdict(lambda x: x.sum((2, 3))) is False
    assert verdict(lambda x: x[:, :, 0, 0]) is False
    assert verdict(lambda x: torch.einsum("nchw->nc", x)) is None


def test_two_ways_by_the_values_of_the_images() -> None:
    class TwoWays(Good):
        def forward(self, x: Tensor) -> Tensor:
            x = self.C3(self.C2(self.C1(x)))
            return self.O(self.C4(x) if self.images.mean() > 0 else x)

        def __call__(self, x: Tensor) -> Tensor:
            self.images = x
            return super().__call__(x)

    found = {one.name: one for one in check(TwoWays())}
    assert found["GAP"].passed
    assert found["dilated"].passed is None
    assert found["dilated"].value == "unknown, because the network decides by the values of its images (bool in forward)"


def test_values_that_leave_torch() -> None:
    class Numpy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.from_numpy(x.numpy() * 2)

    parameters, *rest = check(changed(O=nn.Sequential(Good().O, Numpy())))
    assert parameters.passed
    reason = "its result does not come from the image by operations of torch (numpy in O.1)"
    assert {(one.passed, one.value) for one in rest} == {(None, f"unknown, because {reason}")}


def test_torchscript_cannot_be_looked_into() -> None:
    found = {one.name: one for one in check(changed(C2=torch.jit.script(Good().C2)))}
    reason = "unknown, because TorchScript in C2 cannot be looked into"
    assert found["parameters"].value == "6,498"
    assert (found["C1 C2 C3 C4 O"].passed, found["C1 C2 C3 C4 O"].value) == (None, reason)
    assert (found["depthwise separable"].passed, found["depthwise separable"].value) == (None, reason)
    assert all(found[name].passed for name in ("GAP", "dilated", "receptive field"))

    found = {one.name: one for one in check(changed(O=torch.jit.script(Good().O)))}
    assert [name for name, one in found.items() if not one.passed] == ["GAP"]
    assert found["GAP"] == Constraint(
        "GAP", "unknown, because TorchScript in O cannot be looked into", "global average after C4", None
    )

    parameters, *rest = check(torch.jit.trace(Good().eval(), torch.zeros(1, 3, 32, 32)))
    assert parameters.passed
    assert {one.passed for one in rest} == {None}
    assert all("TorchScript in forward cannot be looked into" in one.value for one in rest)


def test_a_fault_beside_torchscript_is_still_one() -> None:
    four = nn.Sequential(dense(8, 8), dense(8, 8), dense(8, 8), dense(8, 8, dilation=2))
    found = check(changed(C2=torch.jit.script(Good().C2), C4=four))[1]
    assert (found.passed, found.value) == (False, "3 ? 3 4")


@torch.jit.script
def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


@torch.jit.script
def scripted_mean(x: Tensor) -> Tensor:
    return torch.mean(x, [2, 3])


def test_functions_of_torchscript_are_seen_where_they_are_elementwise(plain: list[Constraint]) -> None:
    class Swish(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return swish(x)

    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return scripted_mean(x)

    layers = nn.Sequential(dense(8, 8), Swish(), dense(8, 8, dilation=2), dense(8, 8))
    assert check(changed(C4=layers)) == plain
    found = check(changed(O=nn.Sequential(Mean(), nn.Linear(8, 10))))
    assert found[2].value == "unknown, because compiled code in O.0 cannot be looked into"
    assert [one.passed for one in found] == [True, True, None, True, True, True]


def test_a_shared_module_has_the_name_that_it_is_called_by() -> None:
    network = Good()
    network.C3 = network.C2
    trace = trace_model(network, (32, 32), 3)
    assert [op.path for op in trace.ops if op.is_conv and op.path[:2] in ("C2", "C3")] == [
        f"{block}.{layer}" for block in ("C2", "C3") for layer in ("0.0", "1.0.0", "1.1", "2.0")
    ]
    assert check(network)[1].value == "3 3 3 3"


def test_forward_may_be_called_by_name(plain: list[Constraint]) -> None:
    class ByName(Good):
        def forward(self, x: Tensor) -> Tensor:
            for block in (self.C1, self.C2, self.C3, self.C4, self.O):
                x = block.forward(x)
            return x

    assert check(ByName()) == plain


def test_what_is_written_into_a_tensor_is_followed() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = separable(8, dilation=2)

        def forward(self, x: Tensor) -> Tensor:
            result = torch.zeros_like(x)
            result[:, ::2] = self.conv(x)[:, ::2]
            result[:, 1::2].copy_(x[:, 1::2])
            return result

    def convolutions(network: nn.Module) -> list[Op]:
        return [op for op in trace_model(network, (32, 32), 3).ops if op.is_conv]

    network = changed(C4=nn.Sequential(dense(8, 8), Written(), dense(8, 8)))
    assert len(convolutions(network)) == len(convolutions(Good())) + 1
    assert check(network)[5].value == "by gradient only: 114 px"


def test_a_network_whose_weights_are_made_at_its_first_image() -> None:
    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.LazyConv2d(8, 3), nn.LazyLinear(10)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.conv(x).mean((2, 3)))

    parameters, _, pooling, *_ = check(Lazy())
    assert parameters.value == f"{3 * 9 * 8 + 8 + 8 * 10 + 10}"
    assert pooling.passed


def test_the_modules_keep_their_forward() -> None:
    network = Good()
    network.C1.forward = own = lambda x: nn.Sequential.forward(network.C1, x)
    assert len(check(network)) == 6
    assert network.C1.forward is own
    assert "forward" not in vars(network.C2)
