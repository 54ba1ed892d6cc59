"""The learning rate of every step is OneCycleLR's; a resumed run can be given another budget."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR

from config import InputError, TrainConfig
from learning.schedule import cycle_ends, learning_rate, with_other_budget


@pytest.mark.parametrize(("length", "pct_start"), [(40, 0.3), (38, 0.25), (7, 0.1), (1000, 0.5), (3, 0.9)])
def test_equal_to_torchs_one_cycle(length, pct_start):
    config = TrainConfig(max_lr=0.013, pct_start=pct_start, div_factor=20, final_div_factor=300)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    scheduler = OneCycleLR(
        optimizer,
        config.max_lr,
        length,
        pct_start=pct_start,
        anneal_strategy="linear",
        div_factor=20,
        final_div_factor=300,
        cycle_momentum=False,
    )
    for step in range(length):
        assert learning_rate(step, [length], config) == optimizer.param_groups[0]["lr"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no step of the optimizer
            if step < length - 1:
                scheduler.step()


def test_each_cycle_begins_anew():
    config = TrainConfig(steps=10, cycles=3, early_exit_accuracy=0.9)
    ends = cycle_ends(config, 99)
    assert ends == [10, 30, 70]
    assert [learning_rate(step, ends, config) for step in range(10, 30)] == [
        learning_rate(step, [20], config) for step in range(20)
    ]
    assert learning_rate(30, ends, config) == learning_rate(0, [40], config)


def test_a_rise_of_one_step_divides_by_no_zero():
    assert learning_rate(0, [4], TrainConfig(pct_start=0.25)) == pytest.approx(0.01 / 25)


def test_other_budgets():
    config = TrainConfig(epochs=3)
    assert with_other_budget([100], 100, 150, config) == [100, 150]  # finished: another cycle
    assert with_other_budget([100], 60, 150, config) == [150]  # stopped: stretched
    assert with_other_budget([100, 150], 120, 300, config) == [100, 300]
    with pytest.raises(InputError, match="has already made 60 steps, and the new budget is 50"):
        with_other_budget([100], 60, 50, config)
    with pytest.raises(InputError, match="5 OneCycles of doubling length.*train anew"):
        with_other_budget([100], 60, 200, TrainConfig(cycles=5, early_exit_accuracy=0.9))
