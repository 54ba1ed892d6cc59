"""The networks: gradients, dead units."""

import pytest
import torch
from torch import nn

from lab.common import models


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
