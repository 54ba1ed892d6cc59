"""The range test on losses whose shape is known."""

import math

import numpy as np
import pytest

from config import InputError
from learning.range_test import Ended, RangeTest, smooth


def valley(rate: float) -> float:
    """A loss of 2.3 that falls around 1e-3, fastest there, and is past 2.3 again from 1 on."""
    return 2.3 - 1.3 / (1 + (1e-3 / rate) ** 2) + 1.3 * rate


def ended(test: RangeTest, loss) -> RangeTest:
    """`test` after a training whose loss at a rate is `loss(rate)`."""
    with pytest.raises(Ended):
        for step in range(test.steps):
            test.read(step + 1, test.schedule(step), loss(test.schedule(step)), 0.1)
    return test


def test_rates_rise_exponentially_between_the_ends():
    test = RangeTest(1e-4, 1.0, 41)
    rates = [test.schedule(step) for step in range(41)]
    np.testing.assert_allclose(rates, np.logspace(-4, 0, 41))


def test_a_tenth_of_the_divergence_is_suggested():
    curve = ended(RangeTest(), valley).curve()
    assert curve.divergence == pytest.approx(1.0, rel=0.3)
    assert curve.steepest == pytest.approx(1e-3, rel=0.3)
    assert curve.suggestion == pytest.approx(curve.divergence / 10, rel=0.05)
    assert "a tenth of" in curve.reason and f"{curve.steepest:.2g}" in curve.reason
    assert len(curve.rates) == len(curve.losses) < 100  # it was stopped
    assert np.isfinite(curve.smoothed).all()


def test_the_steepest_descent_is_suggested_where_nothing_diverges():
    curve = ended(RangeTest(highest=0.1), valley).curve()
    assert curve.divergence is None and len(curve.rates) == 100
    assert curve.suggestion == curve.steepest == pytest.approx(1e-3, rel=0.3)
    assert "does not diverge up to 0.1; in all, it falls from 2.30 to 1." in curve.reason


def test_a_loss_that_is_suddenly_not_finite_has_diverged():
    test = RangeTest()
    for step in range(60):
        test.read(step + 1, test.schedule(step), valley(test.schedule(step)) if step < 59 else 2.0, 0.1)
    test.became_infinite = True
    assert test.curve().divergence == pytest.approx(test.schedule(60), rel=0.05)


def test_one_bad_batch_does_not_end_it():
    test = ended(RangeTest(highest=0.1), lambda rate: valley(rate) + 3 * (0.003 < rate < 0.0033))
    assert len(test.losses) == 100 and max(test.losses) > 4


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda rate: 2.3 + 0.01 * math.log10(rate), "falls at no learning rate"),  # it only ever rises
        (lambda rate: 2.3 if rate < 5e-5 else 9.0, "start the range test at a lower one"),
        (lambda rate: 2.3 if rate == 1e-5 else 700 / (1 + rate * 1e6), "the loss rises from the first step on"),
        (lambda rate: 2.3 - 0.1 * (2e-5 < rate < 6e-5) + 0.05 * (rate > 6e-5), "less than ten times the lowest rate"),
    ],
)
def test_losses_that_suggest_nothing(loss, words):
    with pytest.raises(InputError, match=words):
        ended(RangeTest(), loss).curve()


@pytest.mark.parametrize("ends", [(0, 1, 100), (1, 1, 100), (1e-3, math.inf, 100), (1e-5, 10, 5), (math.nan, 1, 100)])
def test_ranges_that_are_none(ends):
    with pytest.raises(InputError, match="a range test"):
        RangeTest(*ends)


def test_smoothing_does_not_move_a_curve():
    straight = np.linspace(3, 1, 50)
    np.testing.assert_allclose(smooth(straight)[10:-10], straight[10:-10])
    step = np.repeat([2.0, 1.0], 25)
    assert smooth(step)[24] + smooth(step)[25] == pytest.approx(3)
