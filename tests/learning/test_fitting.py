"""Settings follow the data unless the user sets them, and those of data of the usual size stay as they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from config import InputError, TrainConfig
from conftest import random_split
from images.data import ImageDataset, Split
from learning.fitting import MIN_STEPS, fit_to_data, say_missing_classes
from learning.presets import PRESETS

BASELINE = PRESETS["baseline"].train


def dataset(count: int, classes: int = 3, **more: object) -> ImageDataset:
    images = np.zeros((1, 28, 28, 1), np.uint8).repeat(count, 0) if count > 1000 else random_split(count, classes).images
    split = Split(images, np.arange(count) % classes)
    return ImageDataset("folder:x", split, random_split(classes, classes), tuple(map(str, range(classes))), **more)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_stay_as_they_are_on_data_of_the_size_of_cifar10(name, capsys):
    config = PRESETS[name].train
    fitted = fit_to_data(config, replace(dataset(50_000, 10), name="cifar10"))
    assert replace(fitted, image_size=0, whiten_images=config.whiten_images) == config
    assert fitted.whiten_images == config.whiten_images
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("count", "classes"), [(3, 3), (4, 3), (6, 3), (48, 3), (300, 10), (1437, 10), (5000, 2)])
@pytest.mark.parametrize("name", PRESETS)
def test_any_number_of_images_gives_a_training_that_is_possible(name, count, classes, capsys):
    config = fit_to_data(PRESETS[name].train, dataset(count, classes))
    rest = count - config.val_images
    assert 0 <= config.val_images <= count - classes
    assert 1 <= config.batch_size <= rest
    assert config.batch_size % config.images_per_draw == 0
    steps = config.steps or round(config.epochs * (rest // config.batch_size))
    assert steps >= (PRESETS[name].train.steps or MIN_STEPS)
    assert config.ema_decay <= max(0, 1 - 8 / steps)
    said = capsys.readouterr().err
    assert (f"batches of {config.batch_size}" in said) == (config.batch_size != PRESETS[name].train.batch_size)
    assert said.count("\n") == 1
    if count == classes:
        assert "the training images stand in" in said


def test_what_the_user_sets_stays(capsys):
    asked = {"val_images": 9, "batch_size": 5, "epochs": 2.0, "ema_decay": 0.99, "whiten_images": 700, "flip": True}
    config = fit_to_data(replace(BASELINE, **asked), dataset(60, flips=False), tuple(asked))
    assert {name: getattr(config, name) for name in asked} == asked
    assert "images of 32x32 pixels" in capsys.readouterr().err


def test_mirroring_is_a_property_of_the_data(capsys):
    assert not fit_to_data(BASELINE, dataset(60, flips=False)).flip
    assert "no flips" in capsys.readouterr().err
    assert fit_to_data(BASELINE, dataset(60)).flip


def test_validation_split_of_the_data_set(capsys):
    config = fit_to_data(BASELINE, dataset(60, val=random_split(7, 3)))
    assert config.val_images == 7 and "the 7 validation images of the data set" in capsys.readouterr().err
    with pytest.raises(InputError, match="has 7 validation images of its own: leave out val_images"):
        fit_to_data(BASELINE, dataset(60, val=random_split(7, 3)), ("val_images",))


def test_the_note_names_options_only_where_there_are_such(capsys):
    fit_to_data(BASELINE, dataset(60))  # as for a sprint
    assert "override" not in capsys.readouterr().err
    fit_to_data(replace(BASELINE, steps=2), dataset(60, val=random_split(7, 3)), ("steps",))
    said = capsys.readouterr().err
    assert "weights not averaged (override with --image-size, --batch-size, --ema-decay)" in said


def test_classes_without_images_are_listed(capsys):
    several = replace(dataset(30, 3), classes=("ant", "bee", "cat", "dog"))
    say_missing_classes(several, random_split(2, 2))
    said = capsys.readouterr().err
    assert "no test image of dog" in said and "no validation image of cat, dog" in said


def test_parts_of_the_augmentation():
    assert TrainConfig(augment=1.0).augmentations == ("flip", "shift_scale_rotate", "dropout")
    assert TrainConfig(augment=1.0, flip=False, dropout=False).augmentations == ("shift_scale_rotate",)
    assert TrainConfig(augment=0.0).augmentations == ()
