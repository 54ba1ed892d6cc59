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


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_images_with_numbers_that_are_not_finite(tmp_path, value):
    content = with_images(lambda x: x / 255)
    content["train_x"][3] = value
    np.savez(tmp_path / "own.npz", **content)
    with pytest.raises(InputError, match="train_x is float64, not uint8 .* NaN or infinite"):
        load_npz(tmp_path / "own.npz")


def test_channels_first_are_the_same_images(tmp_path):
    content = arrays()
    np.savez(tmp_path / "own.npz", **content | {name: content[name].transpose(0, 3, 1, 2) for name in ("train_x", "test_x")})
    assert np.array_equal(load_npz(tmp_path / "own.npz").train.images, content["train_x"])


def test_validation_arrays_are_the_validation_split(tmp_path):
    val = random_split(6, 3)
    np.savez(tmp_path / "own.npz", **arrays(val_x=val.images, val_y=val.labels))
    assert np.array_equal(load_npz(tmp_path / "own.npz").val.images, val.images)


def as_objects(images: np.ndarray) -> np.ndarray:
    """An array of arrays, as of a column of pandas."""
    objects = np.empty(len(images), object)
    objects[:] = list(images)
    return objects


OBJECTS = np.array(["ant", "bee", "cow"], object)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (with_labels(lambda y: y - 1), "train_y, test_y = train_y + 1, test_y + 1"),
        (with_labels(lambda y: 2 * y - 2), "np.unique(train_y, return_inverse=True)"),
        (with_labels(lambda y: y - 1) | {"classes": np.array(list("abc"))}, "train_y, test_y = train_y + 1, test_y + 1"),
        (with_labels(lambda y: y + 1) | {"classes": np.array(list("abc"))}, "train_y, test_y = train_y - 1, test_y - 1"),
        (with_labels(lambda y: OBJECTS[y]), "train_y = np.array(train_y.tolist())"),
        (with_labels(lambda y: y.astype(object)), "train_y = np.array(train_y.tolist())"),
        (with_images(as_objects), "train_x = np.array(train_x.tolist())"),
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
        np.savez(path, **{name: content[name] for name in (*arrays(), "classes") if name in content})
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


def test_the_line_of_numpy_is_about_the_validation_labels_too(tmp_path):
    val = random_split(6, 3)
    for change in (lambda y: y + 4, lambda y: y * 3 + 1):
        content = arrays(val_x=val.images, val_y=val.labels)
        for name in ("train_y", "val_y", "test_y"):
            content[name] = change(content[name])
        np.savez(tmp_path / "own.npz", **content)
        with pytest.raises(InputError) as error:
            load_npz(tmp_path / "own.npz")
        (mend,) = re.findall(r"with (.+), or add", str(error.value))
        exec(mend, {"np": np}, content)  # noqa: S102
        assert content["val_y"].tolist() == val.labels.tolist()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"val_x": random_split(3).images}, "val_x and no val_y: the validation split needs both"),
        ({"val_y": np.arange(3)}, "val_y and no val_x"),
        ({"classes": np.array(["ox", "yak", "ox"])}, "two classes have the same name: ox"),
        ({"train_y": np.arange(30) % 3 - 1}, "3 different labels from -1 to 1, not 0 to 2"),
    ],
)
def test_what_is_not_whole_or_not_clear_is_refused(tmp_path, more, words):
    np.savez(tmp_path / "own.npz", **arrays(**more))
    with pytest.raises(InputError, match=words):
        load_npz(tmp_path / "own.npz")


def test_arrays_of_other_names_are_named_and_not_read(tmp_path, capsys):
    np.savez(tmp_path / "own.npz", **arrays(class_names=OBJECTS, valid_x=np.zeros(3)))
    assert load_npz(tmp_path / "own.npz").classes == ("0", "1", "2")
    (line,) = capsys.readouterr().err.splitlines()
    assert "not used: class_names, valid_x; known arrays are train_x, " in line and line.endswith("val_x, val_y, classes")


def test_names_of_classes_that_the_training_labels_do_not_have(tmp_path):
    content = with_labels(lambda y: np.array(["bird", "cat", "dog"])[y])
    content["test_y"][2] = "emu"
    np.savez(tmp_path / "own.npz", **content)
    with pytest.raises(InputError, match="test_y names classes.*emu"):
        load_npz(tmp_path / "own.npz")
