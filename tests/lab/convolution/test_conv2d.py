"""The convolution by hand: torch's values, gradients, defaults and errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import main
from conftest import DATA, needs_cifar10
from images import data
from lab.convolution import sums
from lab.convolution.conv2d import ByHandNet, Conv2d, conv2d
from learning.inference import TrainedNetwork
from learning.presets import PRESETS
from limits.constraints import check
from model import Net
from training import Trainer

MODES = ("zeros", "reflect", "replicate", "circular")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def assert_close(ours: Tensor, torchs: Tensor, tolerance: float) -> None:
    """Shape, dtype and values; the tolerance is relative to the largest value, as sums of many terms round."""
    assert ours.shape == torchs.shape and ours.dtype == torchs.dtype
    if torchs.numel():
        assert (ours - torchs).abs().max() <= tolerance * max(1.0, torchs.abs().max().item())


@st.composite
def layers(draw: st.DrawFn) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Arguments of nn.Conv2d and the shape of an input that it takes."""
    kernel, dilation = ((draw(st.integers(1, 3)), draw(st.integers(1, 3))) for _ in range(2))
    groups = draw(st.integers(1, 4))
    padding = draw(st.one_of(st.sampled_from(["same", "valid"]), st.tuples(st.integers(0, 3), st.integers(0, 3))))
    stride = (1, 1) if padding == "same" else (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    # At least as large as the dilated kernel and as the largest reflected padding needs.
    size = [max(4, d * (k - 1) + 1) + draw(st.integers(0, 4)) for k, d in zip(kernel, dilation, strict=True)]
    arguments = {
        "in_channels": groups * draw(st.integers(1, 3)),
        "out_channels": groups * draw(st.integers(1, 3)),
        "kernel_size": kernel,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "bias": draw(st.booleans()),
        "padding_mode": draw(st.sampled_from(MODES)),
    }
    batch = draw(st.sampled_from([(), (0,), (1,), (2,)]))
    return arguments, (*batch, arguments["in_channels"], *size)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(layers(), st.sampled_from([torch.float32, torch.float64]), st.booleans())
def test_values_and_gradients_are_torchs(layer: tuple, dtype: torch.dtype, channels_last: bool):
    arguments, shape = layer
    torch.manual_seed(0)
    theirs = nn.Conv2d(**arguments, dtype=dtype)
    torch.manual_seed(0)
    ours = Conv2d(**arguments, dtype=dtype)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(shape, dtype=dtype)
    if channels_last and x.dim() == 4:
        x = x.to(memory_format=torch.channels_last)
    outputs, gradients, second = [], [], []
    for module in (theirs, ours):
        leaf = x.clone().requires_grad_()
        torch.manual_seed(1)
        y = module(leaf)
        wanted = (leaf, *module.parameters())
        gradients.append(torch.autograd.grad((y * torch.randn(y.shape, dtype=dtype)).sum(), wanted, retain_graph=True))
        first = torch.autograd.grad(y.square().sum(), wanted, create_graph=True)
        second.append(torch.autograd.grad(sum(g.square().sum() for g in first), wanted, materialize_grads=True))
        outputs.append(y)
    assert_close(outputs[1], outputs[0], TOLERANCE[dtype])
    for ours_, theirs_ in zip((*gradients[1], *second[1]), (*gradients[0], *second[0]), strict=True):
        assert_close(ours_, theirs_, TOLERANCE[dtype])


@pytest.mark.parametrize("c_in, c_out, groups", [(3, 2, 1), (4, 4, 2), (3, 3, 3), (2, 4, 2)])
@pytest.mark.parametrize("stride, padding, dilation", [(1, 0, 1), ((2, 1), (1, 2), (1, 2)), (1, "same", 2)])
def test_gradcheck_and_gradgradcheck(c_in, c_out, groups, stride, padding, dilation):
    torch.manual_seed(0)
    inputs = [
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in ((2, c_in, 5, 4), (c_out, c_in // groups, 2, 2), (c_out,))
    ]

    def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return conv2d(x, weight, bias, stride, padding, dilation, groups)

    assert torch.autograd.gradcheck(convolve, inputs)
    assert torch.autograd.gradgradcheck(convolve, inputs, fast_mode=True)  # every entry: compared with torch's above


def test_neither_torchs_convolution_nor_its_unfold_is_called():
    with torch.profiler.profile() as profile:
        x = torch.randn(2, 4, 6, 6, requires_grad=True)
        for groups in (1, 4):
            y = Conv2d(4, 4, 3, padding=1, groups=groups)(x)
            y.sum().backward()
    calls = {event.name for event in profile.events() if event.name.startswith("aten::")}
    assert "aten::as_strided" in calls
    assert not {name for name in calls if "conv" in name or "im2col" in name or "col2im" in name or "unfold" in name}


REFUSED = [  # what differs from conv2d(input (2, 4, 8, 9), weight (6, 4, 3, 3), bias (6,))
    {"stride": (1, 1, 1)},
    {"stride": ()},
    {"stride": 0},
    {"stride": -1},
    {"stride": 1.0},
    {"stride": (1.0, 2)},
    {"stride": None},
    {"stride": True},
    {"stride": "1"},
    {"padding": -1},
    {"padding": (1, 2, 3)},
    {"padding": "full"},
    {"padding": 0.5},
    {"padding": "same", "stride": 2},
    {"dilation": 0},
    {"dilation": -1, "padding": "same"},
    {"dilation": 5},
    {"groups": 0},
    {"groups": -1},
    {"groups": 1.0},
    {"groups": True},
    {"groups": 2},
    {"groups": 4, "weight": torch.ones(6, 1, 3, 3)},
    {"bias": torch.ones(5)},
    {"bias": torch.ones(1)},
    {"bias": torch.ones(6, 1)},
    {"bias": torch.ones(())},
    {"bias": torch.ones(6).double()},
    {"bias": 1.0},
    {"input": torch.ones(4, 4)},
    {"input": torch.ones(1, 1, 4, 4, 4)},
    {"input": torch.ones(2, 3, 8, 8)},
    {"input": torch.ones(2, 4, 2, 8)},
    {"input": torch.ones(2, 4, 0, 8), "padding": 2},
    {"input": torch.ones(2, 4, 8, 8).double()},
    {"input": torch.ones(2, 4, 8, 8).bool()},
    {"input": [[1.0]]},
    {"input": None},
    {"weight": torch.ones(6, 4, 3)},
    {"weight": torch.ones(6, 4, 3, 3, 3)},
    {"weight": torch.ones(0, 4, 3, 3), "bias": None},
    {"weight": torch.ones(6, 4, 0, 3)},
    {"weight": None},
]


@pytest.mark.parametrize("changes", REFUSED, ids=lambda changes: ",".join(changes))
def test_what_torchs_function_refuses_is_refused_alike(changes: dict):
    arguments = {"input": torch.ones(2, 4, 8, 9), "weight": torch.ones(6, 4, 3, 3), "bias": torch.ones(6)} | changes
    with pytest.raises((TypeError, ValueError, RuntimeError)) as theirs:
        F.conv2d(**arguments)
    with pytest.raises(Exception) as ours:
        conv2d(**arguments)
    assert type(ours.value) is type(theirs.value), f"{ours.value!r} is not {theirs.value!r}"


MISBUILT = [  # what differs from Conv2d(4, 6, 3), called with (2, 4, 8, 9)
    {"groups": 0},
    {"groups": -2},
    {"groups": 3},
    {"groups": 4},
    {"groups": "2"},
    {"groups": 2.0},
    {"padding": "full"},
    {"padding": "same", "stride": 2},
    {"padding": "same", "stride": (1, 2)},
    {"padding": "same", "dilation": 0},
    {"padding_mode": "constant"},
    {"padding_mode": ""},
    {"kernel_size": -1},
    {"kernel_size": 3.0},
    {"kernel_size": "3"},
    {"kernel_size": 0},
    {"kernel_size": (3, 3, 3)},
    {"kernel_size": (3,)},
    {"kernel_size": 10},
    {"in_channels": -1},
    {"in_channels": 4.0},
    {"in_channels": 5},
    {"in_channels": "4"},
    {"out_channels": 0},
    {"out_channels": -6},
    {"stride": 0},
    {"stride": (1, 1, 1)},
    {"dilation": 0},
    {"dilation": 1.5},
    {"padding": -1},
    {"padding": None},
    {"padding": 9, "padding_mode": "reflect"},
    {"padding": 10, "padding_mode": "circular"},
    {"padding": (1,), "padding_mode": "reflect"},
    {"dtype": torch.int64},
]


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("changes", MISBUILT, ids=lambda changes: ",".join(changes))
def test_what_torchs_module_refuses_is_refused_alike(changes: dict):
    def outcome(module: type[nn.Module]) -> tuple[str, type[Exception]]:
        stage = "building"
        with pytest.raises((TypeError, ValueError, RuntimeError)) as error:
            layer = module(**({"in_channels": 4, "out_channels": 6, "kernel_size": 3} | changes))
            stage = "calling"
            layer(torch.ones(2, 4, 8, 9))
        return stage, type(error.value)

    assert outcome(Conv2d) == outcome(nn.Conv2d)


@pytest.mark.parametrize("arguments", [(3, 2, 3), (4, 6, (2, 3), 2, (1, 0), 2, 2, False), (4, 4, [3, 1], (1,), (1,), 1, 4)])
def test_the_module_has_torchs_attributes_and_initial_weights(arguments: tuple):
    torch.manual_seed(3)
    theirs = nn.Conv2d(*arguments)
    torch.manual_seed(3)
    ours = Conv2d(*arguments)
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    x = torch.randn(2, arguments[0], 7, 7)
    assert_close(ours(x), theirs(x), 1e-5)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_memory_format_of_the_output_is_torchs(groups: int, channels_last: bool):
    x, weight = torch.randn(2, 8, 5, 5), torch.randn(8, 8 // groups, 3, 3)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    assert conv2d(x, weight, groups=groups).stride() == F.conv2d(x, weight, groups=groups).stride()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("groups", [1, 2, 16])
@pytest.mark.parametrize("arguments", [(1, 1, 1), (1, (4, 3), 1), (2, 1, 2), (1, "same", 2)], ids=str)
def test_half_precision_is_as_exact_as_torchs(arguments: tuple, groups: int, dtype: torch.dtype):
    torch.manual_seed(0)
    x, weight = torch.randn(4, 16, 8, 9).to(dtype), torch.randn(16, 16 // groups, 3, 2).to(dtype)

    def results(convolve: Any, to: torch.dtype) -> list[Tensor]:
        inputs = [t.to(to).requires_grad_() for t in (x, weight)]
        y = convolve(*inputs, None, *arguments, groups)
        gradients = torch.autograd.grad(y, inputs, torch.ones_like(y))
        assert {t.dtype for t in (y, *gradients)} == {to}
        return [t.double() for t in (y, *gradients)]

    for ours, exact in zip(results(conv2d, dtype), results(F.conv2d, torch.float64), strict=True):
        assert (ours - exact).abs().max() <= 2 * torch.finfo(dtype).eps * exact.abs().max()


def test_autocast_computes_in_its_dtype_as_torchs_does():
    x, layer = torch.randn(2, 3, 6, 6), Conv2d(3, 4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        assert y.dtype == F.conv2d(x, layer.weight, layer.bias).dtype == torch.bfloat16
        assert conv2d(x.double(), layer.weight.double()).dtype == torch.float64
    y.sum().backward()
    assert layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("groups", [1, 3, 6])
def test_batches_that_are_taken_in_parts(groups: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sums, "_CACHE_BYTES", 30_000)  # three images of the seven
    inputs = [torch.randn(shape, requires_grad=True) for shape in ((7, 6, 7, 7), (6, 6 // groups, 3, 3), (6,))]
    ours, theirs = (
        [y, *torch.autograd.grad(y.square().sum(), inputs)]
        for y in (convolve(*inputs, groups=groups) for convolve in (conv2d, F.conv2d))
    )
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b, 1e-5)


def test_integers_are_convolved_as_by_torch():
    x, weight = torch.arange(48).view(1, 3, 4, 4), torch.arange(24).view(2, 3, 2, 2)
    assert torch.equal(conv2d(x, weight), F.conv2d(x, weight))


def test_no_input_channels_give_the_bias():
    bias = torch.arange(3.0)
    y = conv2d(torch.ones(2, 0, 4, 4), torch.ones(3, 0, 2, 2), bias)
    assert torch.equal(y, bias[None, :, None, None].expand(2, 3, 3, 3))


def test_the_network_computes_and_trains_the_same_by_hand():
    torch.manual_seed(0)
    theirs, images = Net(3, 10).train(), torch.randn(8, 3, 32, 32)
    ours = ByHandNet(3, 10)
    for parameter in theirs.parameters():  # residual layers that start at zero would hide the others
        nn.init.normal_(parameter, std=0.1)
    ours.load_state_dict(theirs.state_dict())
    assert_close(ours(images), theirs(images), 1e-5)
    gradients = []
    for net in (ours, theirs):
        net(images).logsumexp(1).sum().backward()
        gradients.append([p.grad for p in net.parameters() if p.requires_grad])
    for a, b in zip(*gradients, strict=True):
        assert_close(a, b, 1e-4)  # through a dozen layers
    assert_close(ours.eval()(images), theirs.eval()(images), 1e-5)


def test_the_network_by_hand_does_not_call_torchs_convolution():
    net = ByHandNet(3, 10, **PRESETS["accurate"].net)
    with torch.profiler.profile() as profile:
        net(torch.randn(2, 3, 32, 32)).sum().backward()
    assert not [event.name for event in profile.events() if "conv" in event.name.lower() and event.name.startswith("aten::")]


def test_the_network_by_hand_meets_the_constraints():
    assert all(constraint.passed for constraint in check(ByHandNet(3, 10)))


@pytest.mark.slow  # that both train alike is shown above
@needs_cifar10
def test_a_sprint_by_hand_reaches_55_percent(tmp_path):
    dataset = data.load("cifar10", DATA)
    preset = PRESETS["sprint"]
    torch.manual_seed(0)
    trainer = Trainer(ByHandNet(3, 10, **preset.net), dataset, preset.train, tmp_path, card={"net": preset.net})
    history = trainer.fit()
    assert history.reached
    assert history.test_accuracy > 0.55
    network = TrainedNetwork.load(tmp_path / "checkpoint.pt", torch.device("cpu"))  # as torch's network
    _, accuracy = network.evaluate(dataset)
    assert accuracy == pytest.approx(history.test_accuracy, abs=0.005)


def test_train_by_hand_on_the_command_line(tmp_path, capsys):
    arguments = ["train", "--conv", "by-hand", "--dataset", "digits", "--epochs", "0.2", "--augment", "0", "--val-images", "100"]
    arguments += ["--out", str(tmp_path)]
    assert main.main(arguments) == 0
    assert main.main(["evaluate", "--weights", str(tmp_path / "model.safetensors")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("accuracy")
    assert main.main([*arguments, "--compile"]) == 2
    assert "--conv by-hand" in (error := capsys.readouterr().err) and "compile" in error
    assert main.main(["train", "--conv", "own"]) == 2
    assert "by-hand" in capsys.readouterr().err
