"""What the pages of the digits say is true of the numbers."""

import numpy as np
from made_up_images import numbered_set

from images.sources import ImageDataset, Split
from lab.common.trainings import Images, Outcome
from lab.experiments.digits import until_flat
from learning.history import Evaluation, History


def make_outcome(
    train_loss: list[float], val_loss: list[float], train_accuracy: float, test_accuracy: float, predictions: list[int], seed: int
) -> Outcome:
    looks = [
        Evaluation(i + 1, i + 1, 10 * (i + 1), 0.1, a, 0.9, b, 0.9)
        for i, (a, b) in enumerate(zip(train_loss, val_loss, strict=True))
    ]
    return Outcome(
        {"model": "FC_only", "seed": seed},
        History(looks, list(range(1, len(looks) + 1))),
        train_accuracy,
        0.3,
        test_accuracy,
        test_accuracy,
        predictions,
        100,
        1000,
        [0.5],
        [0.2],
        {},
    )


def test_overfitting_is_stated_where_it_is_and_only_there():
    numbers = numbered_set()
    test = Split(numbers.test.images[:6], np.array([0, 0, 1, 1, 2, 2]))
    images = Images(ImageDataset("numbered", numbers.train, test, ("ant", "bee", "cat")), numbers.train)
    overfitted = [
        make_outcome([1, 0.1, 0.001], [1, 0.5, 0.8], 1.0, 0.6 + 0.01 * seed, [0, 1, 1, 1, 2, 1], seed) for seed in range(3)
    ]
    says = " ".join(until_flat.observations(overfitted, images))
    assert "It overfits in all 3 runs: there the validation loss was lowest after 2 epochs and then rose by 60%" in says
    assert "Accuracy is higher on the training images than on the test images: 100.0% against 61.0%" in says
    assert "take ant for bee: 3 of 6 mistakes" in says or "take cat for bee: 3 of 6 mistakes" in says
    fine = [make_outcome([1, 0.5, 0.4], [1, 0.5, 0.45], 0.9 + 0.02 * seed, 0.92, [0, 0, 1, 1, 2, 2], seed) for seed in range(3)]
    says = " ".join(until_flat.observations(fine, images))
    assert "overfits" not in says and "Accuracy is not clearly different on the training images" in says
    assert "Every test image was recognised." in says
    mixed = " ".join(until_flat.observations([overfitted[0], fine[1], fine[2]], images))
    assert "overfits in 1 of 3 runs" in mixed and "The validation loss ended within 1% of its lowest value in 2 of 3 runs" in mixed
