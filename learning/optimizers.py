"""The optimizers of `TrainConfig.optimizer`."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from config import InputError, TrainConfig

STEP_SIZE = 0.2
"""Root mean square of a step's elements, as a multiple of the learning rate: about what AdamW's steps have (Liu et al. 2025, "Muon
is scalable for LLM training"), so that both share one learning rate and weight decay."""
LARGE = 2**16
"""Elements above which a matrix is orthogonalised in the precision of training: on a CPU a product in bf16 begins with 25 us of
preparation, in which small matrices are done in fp32 (32x288: 0.14 ms instead of 0.40, 256x2304: 12.6 ms instead of 5.1)."""


def build_optimizer(model: nn.Module, config: TrainConfig, precision: torch.dtype) -> Optimizer:
    """The optimizer of `config` with weight decay on the parameters of two or more dimensions only."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if p.ndim >= 2]},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    if config.optimizer == "sgd":
        return SGD(
            groups,
            lr=config.max_lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.momentum > 0,
            fused=True,
        )
    options: dict[str, Any] = {
        "lr": config.max_lr,
        "betas": (config.momentum, config.beta2),
        "weight_decay": config.weight_decay,
        "fused": True,
    }
    return Muon(groups, precision, **options) if config.optimizer == "muon" else AdamW(groups, **options)


def freeze_features(model: nn.Module) -> None:
    """Leave all but the last linear or convolution layer of `model` out of training."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in model.get_submodule(last_layer(model)).parameters():
        parameter.requires_grad_(True)


def last_layer(model: nn.Module) -> str:
    """The name of the last linear or convolution layer of `model`. Raises InputError where there is none."""
    names = [name for name, layer in model.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    if not names:
        raise InputError("the network has no linear or convolution layer to train anew")
    return names[-1]


class _Eager:
    """Methods of Optimizer without torch's decorators, which import torch._dynamo when they are first called.

    That takes one to two seconds, and only torch.compile requires it.
    """

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    zero_grad = inspect.unwrap(Optimizer.zero_grad)
    state_dict = inspect.unwrap(Optimizer.state_dict)
    load_state_dict = inspect.unwrap(Optimizer.load_state_dict)


class AdamW(_Eager, torch.optim.AdamW):
    """torch's AdamW, likewise."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class SGD(_Eager, torch.optim.SGD):
    """torch's SGD, likewise."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


class Muon(AdamW):
    """Muon for the convolutions that combine channels, AdamW for all other parameters.

    Muon steps along the Nesterov momentum of a layer's gradient after all singular values of that, as a matrix of output channels
    by the rest, have been brought near 1 (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"). A
    depthwise convolution is no such matrix, and Jordan et al. leave the last layer to AdamW. `precision` is what the products of
    large matrices are computed in.
    """

    def __init__(self, groups: list[dict], precision: torch.dtype, **options: Any) -> None:
        super().__init__(groups, **options)
        self.precision = precision

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # torch's stubs demand a closure, which no caller here has
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.ndim == 4 and parameter.shape[1] > 1:
                    self._step_of_muon(parameter, group)
                    parameter.grad = None  # AdamW passes it by
        super().step()

    def _step_of_muon(self, parameter: Tensor, group: dict) -> None:
        assert parameter.grad is not None  # `step` passes by those without
        state = self.state[parameter]
        if not state:
            state |= {"step": torch.tensor(0.0), "momentum": torch.zeros_like(parameter)}  # AdamW wants a "step" to be restored
        state["step"] += 1
        momentum = state["momentum"].lerp_(parameter.grad, 1 - group["betas"][0])
        # With the channels last, as they lie in memory, nothing has to be copied; the order of a matrix's columns does not matter.
        direction = parameter.grad.lerp(momentum, group["betas"][0]).permute(0, 2, 3, 1)
        matrix = direction.flatten(1)
        dtype = self.precision if matrix.numel() > LARGE else torch.float32
        size = STEP_SIZE * math.sqrt(max(matrix.shape))  # an orthogonal matrix has elements of 1 / sqrt(max(shape))
        step = orthogonalise(matrix.to(dtype)).view(direction.shape).permute(0, 3, 1, 2)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(step, alpha=-group["lr"] * size)


def orthogonalise(matrix: Tensor, iterations: int = 5) -> Tensor:
    """`matrix` (rows, columns), any float dtype, with its singular values brought to 0.7 to 1.2; those below a thousandth of its
    norm stay small. A quintic Newton-Schulz iteration with the coefficients of Jordan et al. 2024, matrix products only."""
    is_tall = len(matrix) > matrix.shape[1]
    x = matrix.T if is_tall else matrix  # the products are of the shorter side
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.T if is_tall else x
