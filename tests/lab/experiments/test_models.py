"""The networks: sizes, gradients, dead units, frozen features."""

import pytest
import torch
from made_up_images import noise
from torch import nn

from config import TrainConfig
from lab.experiments import models
from lab.experiments.digits_conv import size_rows
from lab.experiments.trainings import take_images
from training import Trainer


@pytest.mark.parametrize("side", [28, 29, 32])
def test_arithmetic_of_the_sizes_is_that_of_the_network(side):
    model = models.Grayscale1Convolution(1, (side, side), 3)
    outputs: dict[str, list[int]] = {"input": [1, side, side]}
    for name, layer in model.named_children():
        layer.register_forward_hook(lambda _, __, out, name=name: outputs.update({name: list(out.shape[1:])}))
    model(torch.zeros(1, 1, side, side))
    for row, (name, size) in zip(size_rows(model, (side, side)), outputs.items(), strict=True):
        assert row[0].startswith(name)
        assert [int(part.replace(",", "")) for part in row[2].split(" x ")] == size
        parameters = int(row[3].split("= ")[-1].replace(",", ""))
        assert parameters == sum(p.numel() for p in getattr(model, name, nn.Identity()).parameters())


def test_gradient_norms_are_those_of_the_loss():
    torch.manual_seed(0)
    model, x, y = models.FC_only(1, (4, 4), 3), torch.randn(8, 1, 4, 4), torch.arange(8) % 3
    norms = models.gradient_norms(model, x, y)
    nn.functional.cross_entropy(model(x), y).backward()
    assert norms == {
        "linear 1": pytest.approx(model.fc1.weight.grad.norm().item()),
        "linear 2": pytest.approx(model.fc2.weight.grad.norm().item()),
    }


@pytest.mark.parametrize(
    ("name", "bias", "dead"),
    [
        ("relu", -100, True),
        ("relu", 100, False),
        ("tanh", 100, True),
        ("sigmoid", -100, True),
        ("leaky_relu", -100, False),
        ("gelu", -100, True),
        ("tanh", 0, False),
    ],
)
def test_dead_units(name, bias, dead):
    model = nn.Sequential(nn.Linear(4, 6), models.activation_layer(name), nn.Linear(6, 2))
    nn.init.zeros_(model[0].bias)
    model[0].bias.data[:2] = bias
    assert models.dead_units(model, torch.randn(50, 4)) == [(2 if dead else 0, 6)]


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_features_stay_as_they_are(frozen):
    images = take_images(noise(), (), 20, 0)
    config = TrainConfig(steps=5, batch_size=20, whiten_images=20, precision="fp32")
    torch.manual_seed(0)
    features, width = models.net_features(models.Net(1, 5))
    model = models.Transferred(features, width, 2, frozen)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Trainer(model, images.dataset, config, val_split=images.val).fit()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {"head.weight", "head.bias"} <= changed
    assert "features.0.0.weight" not in changed  # the whitened stem is part of what was learned
    assert any(name.startswith("features") for name in changed) == (not frozen)
