"""The network: shapes, the space-to-batch convolution, whitening, and what a course's loop sees of it."""

import copy
import inspect
import io
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from config import CONFIG
from conftest import ROOT
from learning.inference import for_inference
from learning.presets import PRESETS
from limits.constraints import check
from model import (
    Bottleneck,
    DilatedConv2d,
    DilatedDepthwiseConv2d,
    Layer,
    MaxPoolReLU,
    MeanMaxPool2d,
    Model,
    Net,
    ResidualPointwiseConv2d,
    WhiteningConv2d,
)
from utils import count_parameters


@pytest.mark.parametrize("dilation", [2, 3])
@pytest.mark.parametrize("size", [(8, 8), (7, 7), (3, 5), (1, 4), (16, 9)])
def test_space_to_batch_equals_the_dilated_convolution(size, dilation):
    torch.manual_seed(0)
    module = DilatedDepthwiseConv2d(6, 3, dilation).double()
    x = torch.randn(2, 6, *size, dtype=torch.double, requires_grad=True)
    ours = module(x)
    plain = F.conv2d(x, module.weight, padding=dilation, dilation=dilation, groups=6)
    assert ours.shape == plain.shape
    assert torch.allclose(ours, plain, atol=1e-12)
    upstream = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad(ours, (x, module.weight), upstream),
        torch.autograd.grad(plain, (x, module.weight), upstream),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(
    ("batch", "channels", "height", "width", "classes"),
    [(1, 1, 28, 28, 10), (2, 3, 32, 32, 100), (3, 4, 32, 32, 2), (1, 3, 47, 33, 10), (1, 3, 64, 64, 10)],
)
def test_any_batch_channels_size_and_classes(batch, channels, height, width, classes):
    for network in (Net(channels, classes), Model(channels, classes)):
        network.eval()
        logits = network(torch.randn(batch, channels, height, width))
        assert logits.shape == (batch, classes)
        assert logits.dtype == torch.float32
        assert logits.isfinite().all()


def test_logits_are_raw():
    torch.manual_seed(0)
    logits = Net(3, 10).eval()(torch.randn(64, 3, 32, 32))
    assert (logits.exp().sum(1) - 1).abs().max() > 1e-3  # neither probabilities nor their logarithms sum to one here
    assert logits.min() < 0


def test_whitened_patches_have_unit_variance_and_no_correlation():
    torch.manual_seed(0)
    images = F.interpolate(torch.randn(64, 3, 16, 16), size=32, mode="bilinear")  # neighbours correlate, as in photographs
    stem = WhiteningConv2d(3, 32, kernel_size=4, stride=2)
    stem.whiten(images)
    responses = F.conv2d(images, stem.weight, stride=2).permute(1, 0, 2, 3).flatten(1)
    assert torch.allclose(responses[:16], -responses[16:], atol=1e-4)  # each direction with both signs
    assert torch.allclose(torch.cov(responses[:16]), torch.eye(16), atol=0.05)


def test_stem_is_fixed_and_everything_else_learns():
    network = Net(3, 10)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(layer.weight)  # a layer that starts as the identity passes no gradient to its convolution
    network(torch.randn(8, 3, 32, 32)).sum().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None]
    assert without == ["C1.0.weight"]


def test_layers_that_keep_their_shape_start_as_the_identity():
    layer = Layer(16, 16, "separable")
    x = torch.rand(2, 16, 8, 8)
    assert torch.equal(layer(x), x)
    assert not torch.equal(Layer(16, 32, "separable")(x)[:, :16], x)


def test_bottleneck_starts_as_the_identity_where_it_keeps_its_shape_and_learns():
    torch.manual_seed(0)
    x = torch.rand(2, 16, 8, 8)
    layer = Bottleneck(16, 16, 1, 1, partial(Layer, norm_momentum=0.1, dirac=True))
    assert torch.equal(layer(x), x)
    F.mse_loss(layer(x), torch.zeros_like(x)).backward()
    assert layer.expand.norm.weight.grad.abs().min() > 0
    wider = Bottleneck(16, 32, 2, 1, partial(Layer, norm_momentum=0.1, activation="silu", dirac=True))
    assert wider(x).shape == (2, 32, 4, 4)
    assert sum(p.numel() for p in wider.parameters() if p.ndim == 4) == 16 * 8 + 8 * 8 * 9 + 8 * 32


@pytest.mark.parametrize("kind", ["dense", "pointwise"])
def test_dirac_layer_that_widens_passes_its_input_on_in_its_first_channels(kind):
    torch.manual_seed(0)
    x = torch.randn(4, 8, 6, 6)
    conv = Layer(8, 20, kind, dirac=True).conv
    assert torch.equal(conv(x)[:, :8], x)
    assert conv.weight[8:].abs().amin((1, 2, 3)).min() > 0, "the other filters stay random"
    assert not torch.equal(Layer(8, 20, kind).conv(x)[:, :8], x)


def test_activation_is_that_of_every_layer():
    torch.manual_seed(0)
    x = torch.randn(4, 8, 6, 6)
    for name, function in (("relu", F.relu), ("silu", F.silu)):
        layer = Layer(8, 12, "dense", activation=name).eval()
        torch.testing.assert_close(layer(x), function(layer.norm(layer.conv(x))))


def test_a_network_with_group_norm_is_not_folded_and_predicts_the_same():
    torch.manual_seed(0)
    model = Net(3, 10, **PRESETS["cifar-50k-group"].net).eval()
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(for_inference(model, torch.float32)(images), model(images))


@pytest.mark.parametrize("kind", ["dense", "separable"])
def test_a_stride_in_place_of_max_pooling(kind):
    layer = Layer(8, 8, kind, stride=2)
    assert layer(torch.randn(2, 8, 15, 15)).shape == (2, 8, 8, 8)
    assert not layer.residual
    strided = [module.stride for module in layer.modules() if isinstance(module, torch.nn.Conv2d) and module.stride != (1, 1)]
    assert strided == [(2, 2)]
    network = Net(3, 10, **PRESETS["c1c2c3c4o-strict"].net)
    assert not any(isinstance(module, torch.nn.MaxPool2d) for module in network.modules())
    assert network.C3(network.C2(network.C1(torch.randn(2, 3, 32, 32)))).shape[2:] == (8, 8)


def test_a_stride_that_would_drop_pixels_is_refused():
    for kind in ("pointwise", "separable_dilated", "dense_dilated"):
        with pytest.raises(ValueError, match=f"a layer of kind '{kind}' has no stride"):
            Layer(8, 8, kind, stride=2)


@pytest.mark.parametrize(("norm", "groups"), [("group", 3), ("layer", 1)])
def test_the_normalisation_is_that_of_every_layer(norm, groups):
    layer = Layer(8, 12, "dense", norm=norm)
    assert layer.norm.num_groups == groups
    network = Net(3, 10, **PRESETS[f"cifar-50k-{norm}"].net)
    norms = [module for module in network.modules() if isinstance(module, (torch.nn.BatchNorm2d, torch.nn.GroupNorm))]
    assert len(norms) == 9
    assert all(isinstance(module, torch.nn.GroupNorm) for module in norms)
    with pytest.raises(ValueError, match="unknown normalisation 'weight'"):
        Layer(8, 12, "dense", norm="weight")


def test_mean_and_maximum_of_each_channel():
    x = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]], [[0.0, 0.0], [-4.0, 0.0]]]])
    assert MeanMaxPool2d()(x).flatten().tolist() == [3.0, -1.0, 6.0, 0.0]


@pytest.mark.parametrize("size", [20, 24, 32])
def test_network_of_cifar100_at_every_resolution_of_its_training(size):
    network = Net(3, 100, **PRESETS["cifar100"].net)
    network.whiten(torch.randn(64, 3, 32, 32))
    stem = network.C1[0].weight.clone()
    logits = network(torch.randn(4, 3, size, size))
    assert logits.shape == (4, 100)
    logits.square().sum().backward()
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    optimizer.step()
    assert torch.equal(network.C1[0].weight, stem), "the whitening stem is frozen"
    assert network.O[-1].in_features == 2 * 768


def test_residual_1x1_layer_is_its_convolution_added_to_its_input():
    torch.manual_seed(0)
    layer = ResidualPointwiseConv2d(8).double()
    x = torch.rand(2, 8, 5, 4, dtype=torch.double, requires_grad=True)
    assert torch.equal(layer(x), x)
    torch.nn.init.normal_(layer.weight)
    ours, plain = layer(x), F.relu(x + layer.scale * F.conv2d(x, layer.weight))
    assert torch.allclose(ours, plain, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad(ours.sum(), (x, layer.weight)), torch.autograd.grad(plain.sum(), (x, layer.weight)), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-12)


def test_unknown_kind_of_layer():
    with pytest.raises(ValueError, match="unknown kind of layer 'circular'"):
        Layer(8, 8, "circular")


def test_no_bias_before_batch_norm():
    for network in (Net(3, 10), Model(3, 10)):
        assert all(m.bias is None for m in network.modules() if isinstance(m, torch.nn.Conv2d))


def test_course_model_takes_pixels_of_any_scale():
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (32, 3, 32, 32), dtype=torch.uint8)
    outputs = []
    for images in (pixels, pixels.float() / 255):
        torch.manual_seed(1)
        model = Model(num_channels=3, num_classes=10)
        model.train()(images)
        outputs.append(model.eval()(images))
    assert torch.allclose(*outputs, atol=0.05)  # bf16


def train(model: Model, images: torch.Tensor, optimizer: torch.optim.Optimizer, steps: int = 1) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model.train()(images), torch.arange(len(images)) % 10).backward()
        optimizer.step()


def test_course_model_adapts_to_the_first_batch_that_it_is_trained_on():
    model = Model(num_channels=3, num_classes=10)
    model.eval()(torch.rand(4, 3, 32, 32))
    assert not model.adapted  # looking is not training
    model.train()(torch.randn(2, 3, 32, 32))  # as a summary of the network does
    optimizer = CONFIG.optimizer_factory(model)
    images = torch.rand(16, 3, 32, 32)
    train(model, images, optimizer)
    assert model.mean.flatten().tolist() == pytest.approx(images.mean((0, 2, 3)).tolist(), abs=1e-5)
    mean = model.mean.clone()
    train(model, torch.rand(16, 3, 32, 32) + 5, optimizer)
    assert torch.equal(model.mean, mean)
    again = Model(num_channels=3, num_classes=10)
    again.load_state_dict(model.state_dict())
    again.train()(torch.rand(16, 3, 32, 32) + 5)
    assert torch.equal(again.mean, mean)


@pytest.mark.parametrize("last", [1, 10])
def test_a_small_last_batch_hardly_moves_the_statistics(last):
    torch.manual_seed(0)
    images = torch.randint(0, 256, (640, 32, 32, 3), dtype=torch.uint8)
    model = Model(num_channels=3, num_classes=10)
    norms = [layer for layer in model.C2.small.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    model.train()(images)
    before = [layer.running_mean.clone() for layer in norms]
    model(images[:last] // 8 + 200)  # quite other ones
    small = max(float((layer.running_mean - mean).abs().max()) for layer, mean in zip(norms, before, strict=True))
    model(images // 8 + 200)
    whole = max(float((layer.running_mean - mean).abs().max()) for layer, mean in zip(norms, before, strict=True))
    assert 0 < small < 0.05 * whole
    assert all(layer.momentum == pytest.approx(0.3) for layer in norms)


@pytest.mark.parametrize("mode", ["1", "I", "F", "I;16", np.float32, np.int64])
def test_transforms_take_bytes_alone(mode):
    pixels = np.zeros((30, 30, 3), mode) if isinstance(mode, type) else Image.new(mode, (30, 30))
    with pytest.raises(ValueError, match="takes pixels of bytes, not an .*convert it"):
        CONFIG.transforms(pixels)


def test_course_model_takes_pixels_in_either_order():
    pixels = torch.randint(0, 256, (6, 30, 28, 3), dtype=torch.uint8)
    model = Model(num_channels=3, num_classes=10)
    model.train()(pixels)
    model.eval()
    torch.testing.assert_close(model(pixels), model(pixels.permute(0, 3, 1, 2)))
    photo = Image.fromarray(pixels[0].numpy())
    assert torch.equal(CONFIG.transforms(photo), pixels[0])
    assert torch.equal(CONFIG.transforms(photo.convert("L")), torch.from_numpy(np.array(photo.convert("L")))[..., None])


@pytest.mark.parametrize(("value", "count"), [(77, 1), (255, 8)])
def test_course_model_learns_nothing_from_images_of_one_colour(value, count):
    torch.manual_seed(0)
    model, images = Model(num_channels=3, num_classes=10), torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8)
    model.train()
    assert model(torch.full((count, 32, 32, 3), value, dtype=torch.uint8)).isfinite().all() and not model.adapted
    assert model(images).isfinite().all() and model.adapted
    images[..., 2] = value  # a channel of one value
    model.adapt(images.permute(0, 3, 1, 2))
    assert model.std[2] == 1 and model.std[:2].min() > 50 and model.C1.small[0].weight.isfinite().all()


def test_course_model_names_a_first_batch_with_nan():
    images = torch.rand(4, 3, 32, 32)
    images[1, 2, 3, 4] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite"):
        Model(num_channels=3, num_classes=10).train()(images)


def test_filters_stay_random_where_images_do_not_vary():
    stem = Net(3, 10).C1[0]
    before = stem.weight.clone()
    stem.whiten(torch.zeros(4, 3, 32, 32))
    assert torch.equal(stem.weight, before)


def test_the_states_of_a_course_model_before_and_after_it_has_grown_are_loaded():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (16, 32, 32, 3), dtype=torch.uint8)
    model, again = Model(num_channels=3, num_classes=10), Model(num_channels=3, num_classes=10)
    optimizer = CONFIG.optimizer_factory(model)
    train(model, images, optimizer)
    small, of_small = copy.deepcopy(model.state_dict()), model.eval()(images)
    model.grow()
    average = torch.optim.swa_utils.AveragedModel(model)
    train(model, images, optimizer, 2)
    average.update_parameters(model)
    large, of_large = copy.deepcopy(model.state_dict()), model.eval()(images)
    for state, expected in ((large, of_large), (small, of_small), (large, of_large)):
        again.load_state_dict(state)
        assert torch.equal(again.eval()(images), expected)
    resumed = CONFIG.optimizer_factory(again)
    resumed.load_state_dict(optimizer.state_dict())
    train(again, images, resumed)
    assert torch.equal(average.eval()(images), of_large)  # the first of its averages


def test_a_course_model_that_was_saved_whole_is_trained_further():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (16, 32, 32, 3), dtype=torch.uint8)
    model = Model(num_channels=3, num_classes=10)
    train(model, images, CONFIG.optimizer_factory(model))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    optimizer = CONFIG.optimizer_factory(again)  # whose schedule is the only one
    rates = []
    for _ in range(2):  # epochs
        for _ in range(79):
            train(again, images, optimizer)
            rates.append(optimizer.param_groups[0]["lr"])
        again.eval()(images.repeat(4, 1, 1, 1))
    assert again.C1.is_grown
    assert rates[:79] == pytest.approx(cycle(79)) and rates[79:] == pytest.approx(cycle(4 * 79)[:79])


def cycle(steps: int) -> list[float]:
    return [0.02 * min((i + 1) / (0.25 * steps), (steps - i) / (0.75 * steps)) for i in range(steps)]


def test_course_model_grows_within_the_constraints():
    model = Model(num_channels=3, num_classes=10)
    images = torch.randint(0, 256, (16, 32, 32, 3), dtype=torch.uint8)
    model.train()(images)
    model.grow()
    model(images[:1])  # a batch of one image
    assert model.adapted
    assert all(constraint.passed for constraint in check(model))
    assert count_parameters(model) == count_parameters(Net(3, 10)) + 25_258 < 200_000


class Watched(torch.nn.Linear):
    grown = 0

    def grow(self) -> None:
        self.grown += 1


@pytest.mark.parametrize(
    ("steps_of_epoch", "lengths"),
    [
        (79, [79, 4 * 79, 8 * 79]),  # 50,000 images
        (8, [80, 320, 632]),  # 5,000: the first cycle is of ten epochs
        (40, [80, 320, 640]),
        (94, [94, 376, 658]),  # 60,000: what is left of the first epoch goes on at a tenth of the peak
    ],
)
def test_the_courses_learning_rate_goes_in_cycles_of_whole_epochs(steps_of_epoch, lengths):
    model = Watched(2, 2)
    optimizer = CONFIG.optimizer_factory(model)
    rates, grown = [], []
    for _ in range(sum(lengths) // steps_of_epoch):
        model.train()
        for _ in range(steps_of_epoch):
            optimizer.zero_grad()
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            rates.append(optimizer.param_groups[0]["lr"])
            grown.append(model.grown)
        model.eval()(torch.ones(10, 2))
    assert grown == [0] * lengths[0] + [1] * (sum(lengths) - lengths[0])
    start = 0
    for length in lengths:
        cycle = rates[start : start + length]
        start += length
        assert max(cycle) == pytest.approx(0.02, rel=0.1)
        assert cycle.index(max(cycle)) == pytest.approx(0.25 * length, abs=6)
        assert cycle[-1] == pytest.approx(0.002 if length == 94 else 0, abs=0.0004)


def test_a_look_at_some_images_does_not_end_an_epoch():
    model = Watched(2, 2)
    optimizer = CONFIG.optimizer_factory(model)
    for step in range(200):
        model.train()(torch.ones(640, 2)).sum().backward()
        optimizer.step()
        if step % 5 == 0:
            model.eval()(torch.ones(8, 2))
    assert model.grown == 0
    model.eval()(input=torch.ones(10_000, 2))
    model.train()(torch.ones(640, 2))
    assert model.grown == 1


def test_the_courses_model_is_saved_whole_in_the_middle_of_a_training():
    """The hooks of its optimizer included."""
    model = Model(3, 10)
    optimizer = CONFIG.optimizer_factory(model)
    images, labels = torch.randint(0, 256, (64, 32, 32, 3), dtype=torch.uint8).permute(0, 3, 1, 2), torch.arange(64) % 10
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(images), model.eval()(images))


def test_course_interface_is_annotated_and_documented():
    assert Model.__doc__
    assert Model.forward.__doc__
    annotations = inspect.get_annotations(Model.forward)
    assert set(annotations) == {"x", "return"}
    assert set(inspect.signature(Model.__init__).parameters) == {"self", "num_channels", "num_classes"}


@pytest.mark.parametrize("module", ["model", "config"])
def test_stands_alone(module):
    """Importing it imports no other file of this repository."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {module}; "
        f"print(*(n for n, m in sys.modules.items() if str(getattr(m, '__file__', '')).startswith({str(ROOT)!r})))"
    )
    ours = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True).stdout.split()
    assert [name for name in ours if ".venv" not in name and not name.startswith(("torch", "numpy"))] != []
    project = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert {name.partition(".")[0] for name in ours} & project == {module}


@pytest.mark.parametrize(
    ("preset", "lowest_weight", "left"),
    [
        ("sprint", 0.5, 0),
        ("accurate", 0.5, 0),
        ("teacher", 0.5, 0),
        ("cifar100", 0.5, 0),
        ("accurate", -1.5, 2),
        ("c1c2c3c4o-strict", 0.5, 0),
    ],
)
def test_folded_network_predicts_the_same(preset, lowest_weight, left):
    """Behind max-pooling a BatchNorm with a negative weight is left."""
    torch.manual_seed(0)
    model = Net(3, 10, **PRESETS[preset].net)
    images = torch.randn(8, 3, 32, 32)
    for module in model.modules():  # as after some training: residual layers and statistics are away from where they start
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, lowest_weight, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.1)
        elif isinstance(module, ResidualPointwiseConv2d):
            torch.nn.init.normal_(module.weight, 0, 1.0)
    with torch.no_grad():
        model(images)
        expected = model.eval()(images)
        folded = for_inference(model, torch.float32)
        assert sum(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules()) == left
        torch.testing.assert_close(folded(images), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
        assert any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules()), "the original is left as it was"


@pytest.mark.parametrize("size", [(3, 3), (2, 2), (4, 4), (1, 3), (5, 7)])
def test_dilated_convolution_is_torchs_in_training_too(size):
    """Also on tiny maps, where it is a product."""
    layer = DilatedConv2d(4, 6, 3, dilation=2).double()
    x = torch.randn(5, 4, *size, dtype=torch.float64).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = layer(x)
    y.square().sum().backward()
    gradients = x.grad.clone(), layer.weight.grad.clone()
    x.grad = layer.weight.grad = None
    wanted = F.conv2d(x, layer.weight, padding=2, dilation=2)
    torch.testing.assert_close(y, wanted)
    wanted.square().sum().backward()
    torch.testing.assert_close(gradients, (x.grad, layer.weight.grad))
    assert torch.equal(layer.eval()(x), wanted)


def test_pooled_stem_is_relu_before_the_pooling():
    x = torch.randn(2, 4, 15, 15)
    assert torch.equal(MaxPoolReLU(2)(x), F.max_pool2d(F.relu(x), 2))


@pytest.mark.parametrize("as_rows", [False, True])
def test_pixels_are_normalised_as_written(as_rows):
    model = Model(3, 10)
    model.mean.copy_(torch.tensor([100.0, 120.0, 90.0])[:, None, None])
    model.std.copy_(torch.tensor([60.0, 50.0, 70.0])[:, None, None])
    pixels = torch.randint(0, 256, (2, 32, 28, 3), dtype=torch.uint8)
    x = pixels.permute(0, 3, 1, 2) if as_rows else pixels.permute(0, 3, 1, 2).contiguous()
    before = x.clone()
    torch.testing.assert_close(model.normalised(x, torch.float32), (x - model.mean) / model.std)
    assert torch.equal(x, before)
    floats = x / 255
    torch.testing.assert_close(model.normalised(floats, torch.bfloat16), (floats - model.mean) / model.std)
