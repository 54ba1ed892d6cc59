"""The measured gradients are those of the formulas in docs/model.md."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import main
from conftest import random_split
from lab.measurements.gradients import VARIANTS, Flow, Run, WithMaximum, WithoutResiduals, flow
from lab.measurements.gradients_page import in_words
from model import Net


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randn(16, 3, 32, 32), torch.arange(16) % 10


def test_norms_are_those_of_autograd(batch):
    torch.manual_seed(0)
    net = Net(3, 10).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    measured = flow(net, [batch, batch], label_smoothing=0.1)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    features = net.C4(net.C3(net.C2(net.C1(batch[0])))).detach().requires_grad_()
    loss = F.cross_entropy(net.logit_scale * net.O(features), batch[1], label_smoothing=0.1)
    loss.backward()
    assert measured.outputs["C4.2"] == pytest.approx(features.grad.norm().item(), rel=1e-4)
    by_hand = torch.cat([p.grad.flatten() for p in net.O.parameters()]).norm().item()
    assert measured.weights["O"] == pytest.approx(by_hand, rel=1e-4)
    assert "C1.0" in measured.outputs
    assert "C1.0" not in measured.weights  # whitened, not trained
    assert measured.reached == 1


def test_cross_entropy_and_pooling_have_the_gradients_of_the_page(batch):
    torch.manual_seed(0)
    net = Net(3, 10)
    features = torch.rand(16, 96, 3, 3, requires_grad=True)
    logits = net.logit_scale * net.O(features)
    logits.retain_grad()
    F.cross_entropy(logits, batch[1], label_smoothing=0.1).backward()
    target = torch.full((16, 10), 0.1 / 10)
    target[range(16), batch[1]] += 0.9
    torch.testing.assert_close(logits.grad, (logits.softmax(1) - target) / 16)
    pooled = net.logit_scale * logits.grad @ net.O[2].weight
    torch.testing.assert_close(features.grad, (pooled / 9)[:, :, None, None].expand(-1, -1, 3, 3))


def test_batch_norm_has_the_gradient_of_the_page():
    torch.manual_seed(0)
    norm, x = torch.nn.BatchNorm2d(3).double().train(), torch.randn(4, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    torch.nn.init.normal_(norm.weight)
    g = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    y = norm(x)
    y.backward(g)
    dims = (0, 2, 3)
    deviation = (x.var(dims, unbiased=False, keepdim=True) + norm.eps).sqrt()
    normalised = (x - x.mean(dims, keepdim=True)) / deviation
    by_page = (
        norm.weight[None, :, None, None]
        / deviation
        * (g - g.mean(dims, keepdim=True) - normalised * (g * normalised).mean(dims, keepdim=True))
    )
    torch.testing.assert_close(x.grad, by_page.detach())
    torch.testing.assert_close(norm.weight.grad, (g * normalised).sum(dims).detach())


def test_the_variants_differ_in_what_they_say(batch):
    for kind in VARIANTS.values():
        torch.manual_seed(0)
        net = kind(3, 10)
        assert net(batch[0]).shape == (16, 10)
        reached = flow(net, [batch], 0.0).reached
        assert (reached < 0.2) == (kind is WithMaximum)  # one pixel of nine
    assert not any(getattr(layer, "residual", False) for layer in WithoutResiduals(3, 10).modules())
    start = [flow(kind(3, 10), [batch], 0.0).weights for kind in (Net, WithoutResiduals)]
    assert start[0].keys() == start[1].keys()


def made_up(ratio: float, reached: float, accuracy: float) -> Run:
    stage = Flow({"C1.0": ratio, "C4.2": 1.0}, {"O": 1.0}, reached)
    return Run([stage, stage], accuracy, 1000, 10)


def test_words_claim_no_more_than_the_spread_allows():
    net, plain, maximum = VARIANTS
    runs = {
        net: [made_up(0.8, 1.0, 0.50), made_up(0.9, 1.0, 0.54)],
        plain: [made_up(4.0, 1.0, 0.40), made_up(5.0, 1.0, 0.44)],
        maximum: [made_up(0.8, 0.11, 0.53), made_up(0.9, 0.11, 0.56)],
    }
    words = in_words(runs)
    assert "changes by a factor of 0.85 at initialisation" in words
    assert "Without the sums, the factors are 4.50 and 4.50" in words
    assert "the gradient vanishes in neither network" in words
    assert "Validation accuracy is not clearly different with the network as it is and with a maximum: 52.0% against 54.5%" in words
    assert "gets a gradient is higher with average pooling than with a maximum: 100.0% against 11.0%" in words
    few = {name: of_seeds[:1] for name, of_seeds in runs.items()}
    assert "with a maximum: 100.0% against 11.0% (89.0 points). That is one seed" in in_words(few)
    assert "Validation accuracy is higher with the network as it is than with the network without sums: 50.0%" in in_words(few)
    runs[plain] = [made_up(1e-4, 1.0, 0.1)] * 2
    assert "below 0.01: the gradient vanishes." in in_words(runs)


def test_quick_on_the_command_line(tmp_path, capsys):
    train, test = random_split(1500), random_split(20)
    np.savez(tmp_path / "noise.npz", train_x=train.images, train_y=train.labels, test_x=test.images, test_y=test.labels)
    out = tmp_path / "gradients.png"
    assert main.main(["lab", "gradients", "--quick", "--dataset", f"npz:{tmp_path / 'noise.npz'}", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "**Residual sums.**" in printed
    assert out.stat().st_size > 10_000


def test_bad_usage(capsys):
    assert main.main(["lab", "gradients", "--seeds", "0"]) == 2
    assert "--seeds" in capsys.readouterr().err
