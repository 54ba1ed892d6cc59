"""The average of the weights over the steps, and copies of a network's state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from limits.copying import copy_of


class WeightAverage(AveragedModel):
    """The exponential moving average of the weights and buffers of a model, corrected for its start as Adam's moments are (Kingma &
    Ba 2015): after n updates it is the mean of n states of the model with weights in proportion to decay**age.

    Without the correction the first state would have the weight decay**n: most of the average in a run of few steps.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, multi_avg_fn=self._average, use_buffers=True)
        self.decay, self.updates = decay, 0

    def _average(self, averages: Sequence[Tensor], values: Sequence[Tensor], _: Tensor | int) -> None:
        n = self.updates + 1
        get_ema_multi_avg_fn(self.decay * (1 - self.decay ** (n - 1)) / (1 - self.decay**n))(averages, values, None)

    def update_parameters(self, model: nn.Module) -> None:
        super().update_parameters(model)
        self.updates += 1

    def restore(self, state: dict[str, Any], updates: int) -> None:
        """Go on from the state dict of the averaged model after `updates` updates."""
        self.module.load_state_dict(state)
        self.n_averaged.fill_(updates)
        self.updates = updates


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the state dict of `model`, which further steps leave as it is."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@torch.no_grad()
def copy_with(model: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """A copy of `model` with another state dict."""
    other = copy_of(model)
    other.load_state_dict(state)
    return other
