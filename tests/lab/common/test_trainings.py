"""The trainings: exact subsets, and what is kept of each."""

import json
import signal
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from made_up_images import count_fits, noise, numbered, numbered_set, numbers_of, run_lab

from config import InputError, TrainConfig
from images import data
from images.data import ImageDataset, Split, balanced_subset
from lab.common import models
from lab.common.trainings import Part, run_parts, take_images
from training import Trainer


@pytest.mark.parametrize("seed", range(3))
def test_balanced_subset_has_exact_counts_and_new_labels(seed):
    split = numbered(2000)
    subset = balanced_subset(split, {"dog": 3, "ant": 0}, 16, seed)
    assert np.bincount(subset.labels).tolist() == [16, 16]
    assert (numbers_of(subset) % 4 == np.where(subset.labels == 0, 3, 0)).all()  # dog is 0 now, ant 1
    assert len(set(numbers_of(subset))) == 32
    assert set(numbers_of(subset)) < set(numbers_of(balanced_subset(split, {"dog": 3, "ant": 0}, 64, seed)))
    assert (numbers_of(subset) == numbers_of(balanced_subset(split, {"dog": 3, "ant": 0}, 16, seed))).all()
    assert set(numbers_of(subset)) != set(numbers_of(balanced_subset(split, {"dog": 3, "ant": 0}, 16, seed + 1)))
    assert len(balanced_subset(split, {"dog": 3, "ant": 0}, None, seed).labels) == 1000


def test_balanced_subset_says_how_many_there_are():
    with pytest.raises(InputError, match="'cat': 501 images were asked for, and there are 500"):
        balanced_subset(numbered(2001), {"ant": 0, "cat": 2}, 501, 0)


@pytest.mark.parametrize("seed", range(3))
def test_no_image_is_in_two_splits(seed):
    few, many, everything = (take_images(numbered_set(), ("bee", "cat", "dog"), count, seed) for count in (16, 64, None))
    for images in (few, many, everything):
        train, val, test = (set(numbers_of(split)) for split in (images.dataset.train, images.val, images.dataset.test))
        assert not train & val and not train & test and not val & test
        assert val == set(numbers_of(few.val)) and test == set(range(4000, 4400)) - set(range(4000, 4400, 4))
        assert images.dataset.classes == ("bee", "cat", "dog")
        assert (numbers_of(images.dataset.test) % 4 == images.dataset.test.labels + 1).all()
    assert len(few.dataset.train.labels) == 48 and np.bincount(few.val.labels).tolist() == [100] * 3
    assert set(numbers_of(few.dataset.train)) < set(numbers_of(many.dataset.train)) < set(numbers_of(everything.dataset.train))
    assert len(everything.dataset.train.labels) == 3 * 400
    other = take_images(numbered_set(), ("bee", "cat", "dog"), 16, seed + 1)
    assert (numbers_of(other.dataset.test) == numbers_of(few.dataset.test)).all()


def make_part(seed: int = 0, steps: int = 3, keep_weights: bool = False, dataset: ImageDataset | None = None) -> Part:
    images = take_images(dataset or noise(), (), 20, seed)
    config = TrainConfig(steps=steps, batch_size=20, eval_every=1, precision="fp32", seed=seed)
    return Part(
        {"model": "FC_only", "seed": seed}, partial(models.FC_only, 1, (28, 28), 2), images, config, keep_weights=keep_weights
    )


def test_second_run_trains_only_what_is_missing_or_changed(tmp_path, monkeypatch):
    fits = count_fits(monkeypatch)
    first = run_parts([make_part(seed) for seed in (0, 1)], tmp_path)
    assert fits == [0, 1]
    again = run_parts([make_part(seed) for seed in (0, 1, 2)], tmp_path)
    assert fits == [0, 1, 2]
    assert again[:2] == first
    run_parts([make_part(0, steps=4), make_part(1)], tmp_path)
    assert fits == [0, 1, 2, 0]  # another configuration
    other = replace(noise(), train=Split(255 - noise().train.images, noise().train.labels))
    run_parts([make_part(1, dataset=other)], tmp_path)
    assert fits == [0, 1, 2, 0, 1]  # other images
    kept = next(path for path in tmp_path.iterdir() if json.loads(path.read_text())["facts"]["seed"] == 2)
    kept.write_text(kept.read_text()[:100])
    run_parts([make_part(2)], tmp_path)
    assert fits == [0, 1, 2, 0, 1, 2]  # a damaged file


def test_kept_weights_are_the_trained_network(tmp_path):
    part = make_part(keep_weights=True)
    (outcome,) = run_parts([part], tmp_path)
    (again,) = run_parts([part], tmp_path)
    model = again.model(part)
    test = part.images.dataset.test
    with torch.no_grad():
        logits = model(data.normalise(torch.from_numpy(test.images), tuple(again.mean), tuple(again.std)))
    assert logits.argmax(1).tolist() == outcome.predictions == again.predictions
    assert (np.array(outcome.predictions) == test.labels).mean() == pytest.approx(outcome.test_accuracy)
    again.weights.unlink()
    assert run_parts([part], tmp_path)[0].weights.exists()


def test_ctrl_c_keeps_what_is_done(tmp_path, monkeypatch, capsys):
    """It comes in the middle of the third of six trainings; the same command with one seed then makes the third, and the page."""
    step, steps = Trainer._train_step, []

    def interrupt(self: Trainer, *arguments: object) -> None:
        steps.append(self.config.seed)
        if len(steps) == 2 * 8 + 4:
            signal.raise_signal(signal.SIGINT)
        step(self, *arguments)

    monkeypatch.setattr(Trainer, "_train_step", interrupt)
    names = ("relu", "sigmoid", "elu")
    options = ("--activations", *names, "--classes", 0, 1, "--steps", 8, "--per-class", 8, "--out", tmp_path)
    assert run_lab("activations", "--quick", "--seeds", 2, *options) == 130
    kept = f"2 of 6 trainings are done and kept in {tmp_path / 'parts'}: the same command goes on with the others"
    assert capsys.readouterr().err.splitlines()[-1] == f"interrupted: {kept}"
    assert len(list(tmp_path.glob("parts/*.json"))) == 2
    assert len(steps) < 3 * 8  # the third did not go on
    assert not list(tmp_path.glob("*.html"))
    steps.clear()
    assert run_lab("activations", "--quick", "--seeds", 1, *options) == 0
    assert "2 of 3 trainings are already in" in capsys.readouterr().out
    assert steps == [0] * 8
    page = (tmp_path / "activations-quick.html").read_text()
    assert all(f'<th scope="row">{name}</th>' in page for name in names)
