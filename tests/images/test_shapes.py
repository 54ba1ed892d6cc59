"""The rendered data set: repeatable, balanced, and not to be solved by a linear classifier."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from conftest import ROOT
from images import shapes


def test_what_is_rendered():
    images, labels = shapes.render(seed=3, count=205)
    assert images.shape == (205, 32, 32, 3) and images.dtype == np.uint8
    assert labels.shape == (205,) and labels.dtype == np.int64
    counts = np.bincount(labels, minlength=10)
    assert len(shapes.CLASSES) == len(counts) == 10
    assert set(counts) == {20, 21}
    assert (np.diff(labels) != 0).sum() > 100, "the classes are mixed"
    assert len({image.tobytes() for image in images}) == 205
    assert images.std(axis=(1, 2)).min() > 1, "no image is blank"


def test_same_seed_same_images_in_another_process():
    digest = "hashlib.sha256(b''.join(a.tobytes() for a in shapes.render(7, 300))).hexdigest()"
    code = f"import hashlib; from images import shapes; print({digest})"
    elsewhere = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    assert elsewhere == hashlib.sha256(b"".join(a.tobytes() for a in shapes.render(7, 300))).hexdigest()


def test_other_seeds_are_other_images():
    (images, labels), (other_images, other_labels) = shapes.render(0, 100), shapes.render(1, 100)
    assert not (labels == other_labels).all()
    assert not {image.tobytes() for image in images} & {image.tobytes() for image in other_images}


@pytest.mark.parametrize("label", range(10))
def test_every_shape_lies_inside_and_is_of_a_size_to_be_seen(label):
    rng = np.random.default_rng(label)
    for _ in range(50):
        cover = shapes._shape_cover(rng, label)
        assert cover.shape == (32, 32, 1) and 0 <= cover.min() and cover.max() <= 1.0001
        inside = cover.sum()
        assert 40 < inside < 600
        # Little of it may be cut off: compare with how much of the border it covers.
        assert cover[[0, -1]].sum() + cover[:, [0, -1]].sum() < 0.2 * inside


def test_ring_has_a_hole_and_circle_has_none():
    def covered_at_centroid(name: str) -> float:
        cover = shapes._shape_cover(np.random.default_rng(0), shapes.CLASSES.index(name))[..., 0]
        row, column = (int(round(float((cover * grid).sum() / cover.sum()))) for grid in np.mgrid[:32, :32])
        return float(cover[row, column])

    assert covered_at_centroid("circle") > 0.9
    assert covered_at_centroid("ring") < 0.1


@pytest.mark.slow
def test_linear_classifier_stays_under_30_percent():
    """Ridge regression on all pixels, at the best of several strengths chosen on the very test images."""
    (train_x, train_y), (test_x, test_y) = shapes.render(0, 2000), shapes.render(1, 500)

    def flat(images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), -1).astype(np.float32) / 128 - 1

    kernel, targets = flat(train_x) @ flat(train_x).T, np.eye(10, dtype=np.float32)[train_y] - 0.1
    against_test = flat(test_x) @ flat(train_x).T
    accuracies = []
    for ridge in (1e1, 1e3, 1e5):
        scores = against_test @ np.linalg.solve(kernel + ridge * np.eye(len(kernel), dtype=np.float32), targets)
        accuracies.append((scores.argmax(1) == test_y).mean())
    assert max(accuracies) < 0.30, accuracies
