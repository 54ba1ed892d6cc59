"""Statements are true of the numbers, whatever these are."""

import itertools
import re

import numpy as np
import pytest

from lab.common.statements import compare, highest, is_at_chance, judge, listed, of_runs, share_half, span

LEVELS = (0.0, 0.1, 0.111, 0.5, 0.99, 1.0)


def spread_around(level: float, spread: float, seeds: int) -> list[float]:
    return [float(np.clip(level + spread * offset, 0, 1)) for offset in (0, 1, -1, 0.5, -0.5)[:seeds]]


@pytest.mark.parametrize("images", [60, 1000])
@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_no_sentence_is_wrong_or_empty(seeds, images):
    for first, second, spread in itertools.product(LEVELS, LEVELS, (0.0, 0.01)):
        demand_true(spread_around(first, spread, seeds), spread_around(second, -spread, seeds), images)


def demand_true(a: list[float], b: list[float], images: int) -> None:
    """Check the sentence on these accuracies, one a seed, on so many images, where a guess is right in 10% of all cases."""
    seeds = len(a)
    text = compare("Test accuracy", "one", a, "two", b, images, chance=0.1)
    assert text.startswith("Test accuracy is ") and text.endswith(".") and "  " not in text
    assert not re.search(r"nan|inf|do(es)? not tell|\b1 seeds|no different|-0\.0 points", text), text
    means = [100 * float(np.mean(each)) for each in (a, b)]
    if a == b and len(set(a)) == 1:
        assert f"is {means[0]:.1f}% with one and with two" in text
        assert ("too easy" in text) == (a[0] == 1 and images >= 100)
        assert (f"{images} images are too few" in text) == (a[0] == 1 and images < 100)
    else:
        assert f"{means[0]:.1f}% against {means[1]:.1f}%" in text or f"{means[0]:.2f}% against {means[1]:.2f}%" in text
        assert (f"{seeds} seeds" if seeds > 1 else "seed") in text
        word = "higher" if means[0] > means[1] else "lower"
        if abs(means[0] - means[1]) > 30:  # far beyond all chance there is here, with one seed as with five
            assert f"is {word} with one than with two" in text and "not ruled out" not in text
        if abs(means[0] - means[1]) < 0.05:
            assert "not clearly different" in text
    limits = re.search(r"interval ([-+.\d]+) to ([-+.\d]+)", text)
    assert (limits is not None) == (seeds > 1 and "every run" not in text)
    if limits:
        assert -100 <= float(limits[1]) <= means[0] - means[1] + 0.05 and means[0] - means[1] - 0.05 <= float(limits[2]) <= 100
    for name, mean in zip(("One", "Two"), means, strict=True):
        if mean <= 10:  # what a guess reaches
            assert f"{name} is not clearly better than guessing (10%)" in text or "Both are not clearly better" in text
        if mean > 40:
            assert f"{name} is not clearly" not in text and "Both are not" not in text


def test_a_huge_difference_is_said_as_what_it_is_with_few_seeds():
    assert compare("Test accuracy", "A", [1.0], "B", [0.111], 1000).startswith(
        "Test accuracy is higher with A than with B: 100.0% against 11.1% (88.9 points, of which the choice of 1,000 images "
        "explains at most 2.0). That is one seed"
    )
    low = compare("Test accuracy", "A", [0.10, 0.15], "B", [0.95, 0.94], 1000)
    assert low.startswith("Test accuracy is lower with A than with B: 12.5% against 94.5% (-82.0 points, 95% interval -9")
    apart = compare("Test accuracy", "A", [1.0, 1.0], "B", [0.0, 0.222], 1000)
    assert apart.startswith("Test accuracy is higher with A than with B: 100.0% against 11.1%")


def test_what_seeds_scatter_too_widely_for_is_said_with_its_sign_and_its_doubt():
    text = compare("Test accuracy", "A", [1.0, 1.0, 1.0], "B", [0.0, 0.1, 0.8], 1000)
    assert "is higher with A than with B with each of the 3 seeds, by 20.0 to 100.0 points" in text
    assert "chance is not ruled out: +70.0 points, 95% interval -38.3 to +100.0" in text
    near = compare("Test accuracy", "A", [0.901, 0.902, 0.903], "B", [0.9, 0.9, 0.9], 100)
    assert "not clearly different" in near  # 100 images show no tenth of a point, however steady it is


def test_images_that_are_too_easy():
    assert "too easy to tell them apart" in compare("Test accuracy", "A", [0.999, 1.0], "B", [1.0, 1.0], 1000)
    assert "too easy" not in compare("Share", "A", [1.0], "B", [1.0])  # of no images
    assert "not clearly different" in compare("Test accuracy", "A", [0.9], "B", [0.95], 20)  # one more of 20 images
    few = compare("Test accuracy", "A", [1.0, 1.0], "B", [0.833, 0.917], 12)
    assert few.endswith("Both are within chance of 100%: 12 images are too few to tell them apart.")
    for second in ([1.0, 1.0], [0.981, 0.983]):  # of other images
        assert "tell them apart" not in compare("Accuracy", "training", [1.0, 1.0], "test", second, (900, 360))


def test_the_choice_of_images_counts_for_differences_of_shares():
    for more, few in (([0.011], [-0.008]), ([0.006, 0.008], [-0.006, -0.006])):
        assert "is higher" in compare("The lead", "A", more, "B", few, unit="points")
        text = compare("The lead", "A", more, "B", few, 360, unit="points", by_images=0.08)
        assert "is not clearly different" in text and ("360 images alone can explain 8.0 points" in text) == (len(more) == 1)


def test_numbers_and_differences():
    larger = compare("The norm", "A", [1.0, 1.2, 1.1], "B", [2.0, 2.3, 2.2], unit="number")
    assert larger.startswith("The norm is lower with A than with B: 1.1 against 2.17 (difference -1.07, 95% interval")
    assert compare("The norm", "A", [1.0], "B", [2.0], unit="number") == (
        "The norm is lower with A than with B: 1 against 2. That is one seed; others may differ."
    )
    lead = compare("The lead", "9 images", [0.02, 0.03], "8", [0.05, 0.01], unit="points")
    assert lead.startswith("The lead is not clearly different with 9 images and with 8: +2.5 points against +3.0 points (")


def test_the_rule_is_the_one_that_is_named():
    """Student's t of pairs from three seeds on, of two samples with two, Agresti & Caffo's interval for the images."""
    pairs = judge([0.9, 0.92, 0.91], [0.8, 0.82, 0.84])
    assert pairs.mean == pytest.approx(0.09)
    assert pairs.half == pytest.approx(4.3027 * np.std([0.1, 0.1, 0.07], ddof=1) / 3**0.5, rel=1e-4)
    two = judge([0.9, 0.92], [0.8, 0.84])
    assert two.half == pytest.approx(4.3027 * ((0.0002 + 0.0008) / 2) ** 0.5, rel=1e-4)
    assert share_half(1.0, 98, 0.0, 98) == pytest.approx(1.96 * (2 * 0.99 * 0.01 / 100) ** 0.5)
    assert judge([1.0], [0.9]).half == 0
    assert judge([1.0], [0.9], images=98).half == pytest.approx(share_half(1.0, 98, 0.9, 98))
    assert judge([1.0, 1.0, 1.0], [0.9, 0.9, 0.9], floor=0.05).half == pytest.approx(0.05)


@pytest.mark.parametrize("seeds", [1, 2, 3])
@pytest.mark.parametrize("accuracy", [0.5, 0.95])
def test_equal_networks_are_seldom_told_apart(seeds, accuracy):
    """On images drawn by chance, and with seeds that scatter by two points, of which one seed cannot know."""
    rng = np.random.default_rng(0)
    scatter = 0.0 if seeds == 1 else 0.02
    wrong = 0
    for _ in range(2000):
        rates = np.clip(rng.normal(accuracy, scatter, (2, seeds)), 0, 1)
        first, second = rng.binomial(200, rates) / 200
        wrong += judge(first.tolist(), second.tolist(), 200).is_clear
    assert wrong / 2000 < 0.06


def test_guessing():
    assert is_at_chance([0.1, 0.12], 0.1, 1000) and is_at_chance([0.0], 0.1, 1000) and is_at_chance([0.5], 0.5, 60)
    assert not is_at_chance([0.2, 0.25], 0.1, 1000) and not is_at_chance([1.0], 0.5, 60)


def test_the_highest():
    runs = {"a": [0.9, 0.91], "b": [0.9, 0.91], "c": [0.2, 0.3], "d": [0.89, 0.91]}
    assert highest("Accuracy", runs, 1000) == "Accuracy is highest with a and b: 90.5% ± 0.7; it is not clearly lower with d."
    assert highest("Accuracy", {"a": [1.0], "c": [0.2]}, 1000) == "Accuracy is highest with a: 100.0%."


def test_words():
    assert (of_runs(1, 1), of_runs(5, 5), of_runs(2, 5)) == ("the only run", "all 5 runs", "2 of 5 runs")
    assert (listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])) == ("a", "a and b", "a, b and c")
    assert (span([1, 3], "d"), span([1.01, 1.04], ".1f")) == ("1 to 3", "1.0")
