"""Statements are true of the numbers."""

import numpy as np
import pytest

from lab.common.statements import compare, difference


def test_comparison_tells_a_difference_from_the_spread():
    mean, half = difference([0.9, 0.92, 0.91], [0.8, 0.82, 0.84])
    assert mean == pytest.approx(0.09)
    assert half == pytest.approx(4.3027 * np.std([0.1, 0.1, 0.07], ddof=1) / 3**0.5, rel=1e-4)
    assert compare("a", [0.9, 0.92, 0.91], "b", [0.8, 0.82, 0.84], "accuracy").startswith(
        "a is better than b in accuracy by 9.0 points"
    )
    assert compare("b", [0.8, 0.82, 0.84], "a", [0.9, 0.92, 0.91], "accuracy").startswith("b is worse than a")
    assert "no difference in accuracy beyond the spread" in compare("a", [0.9, 0.7, 0.8], "b", [0.8, 0.8, 0.81], "accuracy")
    assert "do not tell" in compare("a", [0.9, 0.9], "b", [0.8, 0.8], "accuracy")  # two seeds
