"""Arrays as people have them: what is taken and said, and the line of NumPy in each refusal, which really fixes it."""

from __future__ import annotations

import re

import numpy as np
import pytest

from config import InputError
from conftest import random_split
from images.arrays import load_npz


def arrays(**changes: np.ndarray) -> dict[str, np.ndarray]:
    train, test = random_split(30, 3), random_split(9, 3)
    return {"train_x": train.images, "train_y": train.labels, "test_x": test.images, "test_y": test.labels, **changes}


def with_labels(change) -> dict[str, np.ndarray]:
    whole = arrays()
    return whole | {name: change(whole[name]) for name in ("train_y", "test_y")}


def with_images(change) -> dict[str, np.ndarray]:
    whole = arrays()
    return whole | {name: change(whole[name]) for name in ("train_x", "test_x")}


@pytest.mark.parametrize(
    ("content", "said", "classes"),
    [
        (with_labels(lambda y: np.eye(3)[y]), "one-hot", ("0", "1", "2")),
        (with_labels(lambda y: np.eye(3, dtype=bool)[y]), "one-hot", ("0", "1", "2")),
        (with_labels(lambda y: y[:, None]), "its one column", ("0", "1", "2")),
        (with_labels(lambda y: np.array(["bird", "cat", "dog"])[y]), "the labels are names", ("bird", "cat", "dog")),
        (with_labels(lambda y: np.array(["2", "10", "x"])[y]), "the classes are 2, 10, x", ("2", "10", "x")),
        (with_images(lambda x: x.transpose(0, 3, 1, 2)), "taken as (N, C, H, W)", ("0", "1", "2")),
    ],
)
def test_what_can_mean_one_thing_only_is_taken_and_said(tmp_path, capsys, content, said, classes):
    np.savez(tmp_path / "own.npz", **content)
    dataset = load_npz(tmp_path / "own.npz")
    assert dataset.classes == classes
    assert dataset.train.labels.tolist() == [i % 3 for i in range(30)] and dataset.test.labels.tolist() == [i % 3 for i in range(9)]
    assert dataset.train.images.shape == (30, 32, 32, 3)
    assert said in capsys.readouterr().err


def test_channels_first_are_the_same_images(tmp_path):
    content = arrays()
    np.savez(tmp_path / "own.npz", **content | {name: content[name].transpose(0, 3, 1, 2) for name in ("train_x", "test_x")})
    assert np.array_equal(load_npz(tmp_path / "own.npz").train.images, content["train_x"])


def test_validation_arrays_are_the_validation_split(tmp_path):
    val = random_split(6, 3)
    np.savez(tmp_path / "own.npz", **arrays(val_x=val.images, val_y=val.labels))
    assert np.array_equal(load_npz(tmp_path / "own.npz").val.images, val.images)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (with_labels(lambda y: y + 1), "train_y, test_y = train_y - 1, test_y - 1"),
        (with_labels(lambda y: y * 10), "np.unique(train_y, return_inverse=True)"),
        (with_labels(lambda y: 2 * y + 5), "np.unique(train_y, return_inverse=True)"),
        (with_labels(lambda y: y.astype(np.float64)), "train_y = train_y.astype(np.int64)"),
        (with_labels(lambda y: np.eye(3)[y] * 0.8 + 0.1), "train_y = train_y.argmax(1)"),
        (with_images(lambda x: x / 255), "* 255.0"),
        (with_images(lambda x: x.astype(np.float32)), "np.rint(train_x)"),
        (with_images(lambda x: x.astype(np.int64)), "train_x = train_x.astype(np.uint8)"),
        (with_images(lambda x: x.astype(np.uint16) * 16), "(255.0 / 4095)"),
        (with_images(lambda x: x.astype(np.uint16) * 257), "(255.0 / 65535)"),
        (with_images(lambda x: x / 127.5 - 1), "train_x.min()"),
        (with_images(lambda x: x[:, ::2, ::2]), "train_x.repeat(2, 1).repeat(2, 2)"),
    ],
)
def test_the_line_of_numpy_in_the_refusal_mends_it(tmp_path, content, line):
    path = tmp_path / "own.npz"
    for _ in range(6):  # the array of each split in turn
        np.savez(path, **{name: content[name] for name in arrays()})
        try:
            dataset = load_npz(path)
            break
        except InputError as error:
            assert "\n" not in str(error) and str(path) in str(error)
            (mend,) = re.findall(r"with (.+?)(?:, or add .*)?$", str(error))
            line = line if line in str(error) else line.replace("train", "test")
            assert line in str(error)
            exec(mend, {"np": np}, content)  # noqa: S102
    assert dataset.train.labels.tolist() == [i % 3 for i in range(30)] and dataset.test.labels.tolist() == [i % 3 for i in range(9)]
    assert dataset.train.images.dtype == np.uint8 and int(dataset.train.images.max()) - int(dataset.train.images.min()) > 230


def test_names_of_classes_that_the_training_labels_do_not_have(tmp_path):
    content = with_labels(lambda y: np.array(["bird", "cat", "dog"])[y])
    content["test_y"][2] = "emu"
    np.savez(tmp_path / "own.npz", **content)
    with pytest.raises(InputError, match="test_y names classes.*emu"):
        load_npz(tmp_path / "own.npz")
