"""The learning rate of every step is OneCycleLR's; a resumed run can be given another budget."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR

from config import InputError, TrainConfig
from learning.schedule import GAIN, budget_of, images_needed, learning_rate, next_cycle, with_other_budget


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
    config, ends = TrainConfig(steps=10, cycles=3, early_exit_accuracy=0.9), [10, 30, 70]
    assert budget_of(config, 99) == 10
    assert budget_of(TrainConfig(epochs=0.5), 99) == 50
    assert [learning_rate(step, ends, config) for step in range(10, 30)] == [
        learning_rate(step, [20], config) for step in range(20)
    ]
    assert learning_rate(30, ends, config) == learning_rate(0, [40], config)


@pytest.mark.parametrize(
    "steps, missing, length", [(40, GAIN, 40), (40, 3 * GAIN, 280), (100, 0.0, 25), (101, -0.01, 26), (1000, GAIN / 100, 250)]
)
def test_the_more_is_missing_the_longer_the_next_cycle(steps, missing, length):
    assert next_cycle(steps, missing) == length


def test_a_network_that_misses_on_the_test_images_alone_is_given_as_many_images_again():
    assert images_needed(3200, -0.44) == 3200


def test_seeds_are_bounded():
    with pytest.raises(InputError, match="seed is .*1,000,000,000,000 at most"):
        TrainConfig(seed=10**23)


def test_a_rise_of_one_step_divides_by_no_zero():
    assert learning_rate(0, [4], TrainConfig(pct_start=0.25)) == pytest.approx(0.01 / 25)


def test_other_budgets():
    config = TrainConfig(epochs=3)
    assert with_other_budget([100], 100, 150, config) == [100, 150]  # finished: another cycle
    assert with_other_budget([100], 60, 150, config) == [150]  # stopped: stretched
    assert with_other_budget([100, 150], 120, 300, config) == [100, 300]
    with pytest.raises(InputError, match="has already made 60 steps, and the new budget is 50"):
        with_other_budget([100], 60, 50, config)
    with pytest.raises(InputError, match="up to 5 OneCycles.*train anew"):
        with_other_budget([100], 60, 200, TrainConfig(cycles=5, early_exit_accuracy=0.9))
