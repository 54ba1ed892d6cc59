"""Muon: the singular values, the size of its steps, what it leaves to AdamW."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from config import TrainConfig
from learning.optimizers import STEP_SIZE, build_optimizer, orthogonalise

CONFIG = TrainConfig(max_lr=0.1, weight_decay=0.0)


@pytest.mark.parametrize("shape", [(64, 576), (576, 64), (48, 48), (1, 20), (20, 1)])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_all_singular_values_come_near_one_and_keep_their_directions(shape, size):
    torch.manual_seed(0)
    matrix = torch.randn(shape) * size
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    values = u.T @ orthogonalise(matrix) @ v.T
    singular = values.diag()
    assert singular.max() < 1.25
    assert singular.quantile(0.1) > 0.65
    assert (values - singular.diag()).abs().max() < 1e-3


def test_zero_gradient_stays_zero():
    assert torch.equal(orthogonalise(torch.zeros(8, 9)), torch.zeros(8, 9))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.Flatten(), nn.Linear(32, 10)
    ).to(memory_format=torch.channels_last)


def steps(model: nn.Module, config: TrainConfig) -> dict[str, torch.Tensor]:
    """What three steps along gradients that do not depend on the weights have changed."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, config, torch.float32)
    torch.manual_seed(1)
    for _ in range(3):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
    return {name: p.detach() - before[name] for name, p in model.named_parameters()}


def test_only_the_convolution_that_combines_channels_takes_other_steps_than_adamw():
    muon, adamw = steps(network(), replace(CONFIG, optimizer="muon")), steps(network(), CONFIG)
    assert {name for name in muon if not torch.equal(muon[name], adamw[name])} == {"1.weight"}


def test_a_step_goes_down_the_gradient_by_its_share_of_the_learning_rate():
    model = nn.Sequential(nn.Conv2d(16, 32, 3, bias=False))
    before = model[0].weight.detach().clone()
    gradient = torch.randn_like(before)
    model[0].weight.grad = gradient.clone()
    build_optimizer(model, replace(CONFIG, optimizer="muon"), torch.float32).step()
    change = model[0].weight.detach() - before
    assert change.square().mean().sqrt() == pytest.approx(0.1 * STEP_SIZE, rel=0.2)
    assert torch.cosine_similarity(change.flatten(), -gradient.flatten(), dim=0) > 0.8


def test_weight_decay_is_decoupled():
    model = nn.Sequential(nn.Conv2d(16, 32, 3, bias=False))
    before = model[0].weight.detach().clone()
    model[0].weight.grad = torch.zeros_like(before)
    build_optimizer(model, replace(CONFIG, optimizer="muon", weight_decay=0.5), torch.float32).step()
    assert torch.allclose(model[0].weight, before * (1 - 0.1 * 0.5))
