"""Distillation: the loss is Hinton's, the teacher sees what the student sees, wrong teachers are refused."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from config import InputError, TrainConfig
from conftest import ROOT, assert_refused, run_main
from images import data
from images.sources import Split
from learning.distillation import Teacher, distillation_loss
from learning.inference import TrainedNetwork
from learning.weights import load_weights, save_weights
from model import Net
from training import Trainer
from utils import seed_everything

SMALL = TrainConfig(epochs=2, batch_size=128, val_images=100, whiten_images=200, workers=0, max_lr=0.02, precision="fp32")


@pytest.fixture(scope="module")
def dataset(shapes_npz):
    return data.load(f"npz:{shapes_npz}", ROOT)


@pytest.fixture(scope="module")
def teacher_path(dataset, tmp_path_factory) -> Path:
    """A network of a few steps, with a normalisation unlike its students'."""
    seed_everything(7)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    trainer = Trainer(Net(3, 10), dataset, replace(SMALL, epochs=1, statistics_images=5, seed=7), card={"net": {}})
    trainer.fit()
    save_weights(path, trainer.model.state_dict(), trainer.card)
    return path


def test_loss_is_the_scaled_divergence():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(6, 10, generator=generator), torch.randn(6, 10, generator=generator)
    p, q = (teacher / 3).softmax(1).double(), (student / 3).softmax(1).double()
    expected = 9 * (p * (p / q).log()).sum(1).mean()
    assert distillation_loss(student, teacher, 3).item() == pytest.approx(expected.item(), rel=1e-5)
    assert distillation_loss(student, student + 5, 3).item() == pytest.approx(0, abs=1e-5)  # the level of logits says nothing


def test_teacher_answers_as_on_images_of_its_own_normalisation(dataset, teacher_path):
    images = dataset.test.images[:50]
    mean, std = data.statistics(dataset.train.images)
    device = torch.device("cpu")
    network = TrainedNetwork.load(teacher_path, device)
    assert not np.allclose(network.card["mean"], mean, atol=1e-3)
    teacher = Teacher(teacher_path, list(dataset.classes), 3, mean, std, device, torch.float32)
    logits = teacher.logits(data.normalise(torch.from_numpy(images), mean, std))
    torch.testing.assert_close(logits, network.logits(images, torch.float32), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_student_of_the_teacher_alone_becomes_like_it(dataset, teacher_path):
    seed_everything(0)
    config = replace(SMALL, teacher=(str(teacher_path),), teacher_weight=1.0)
    trainer = Trainer(Net(3, 10), dataset, config)
    trainer.fit()
    expected = TrainedNetwork.load(teacher_path, torch.device("cpu")).logits(dataset.test.images)
    imitation = distillation_loss(trainer.predict(dataset.test), expected, 2.0).item()
    assert imitation < 0.5 * distillation_loss(torch.zeros_like(expected), expected, 2.0).item()


def test_two_teachers_are_imitated_by_turns(dataset, teacher_path, tmp_path):
    tensors, card = load_weights(teacher_path)
    other = tmp_path / "other.safetensors"
    save_weights(other, {name: tensor * 1.1 for name, tensor in tensors.items()}, card)
    trainer = Trainer(Net(3, 10), dataset, replace(SMALL, teacher=(str(teacher_path), str(other)), teacher_weight=1.0))
    trainer._prepare()
    inputs = data.normalise(torch.from_numpy(dataset.test.images[:50]), trainer.mean, trainer.std)
    one, two = (teacher.logits(inputs) for teacher in trainer.teachers)
    labels = torch.zeros(50, dtype=torch.int64)
    assert not torch.allclose(one, two, atol=0.01)
    for trainer.step, taught, other in ((0, one, two), (1, two, one), (2, one, two)):
        assert trainer._loss(taught, inputs, labels).item() == pytest.approx(0, abs=1e-5)
        assert trainer._loss(other, inputs, labels).item() > 1e-4


def test_teacher_of_another_data_set_is_refused(dataset, teacher_path, tmp_path):
    few, grey = dataset.train.labels < 9, dataset.train.images[..., :1]
    nine_classes = replace(dataset, train=Split(dataset.train.images[few], dataset.train.labels[few]), classes=dataset.classes[:9])
    one_channel = replace(dataset, train=Split(grey, dataset.train.labels))
    for other, message in ((nine_classes, "classes differ"), (one_channel, "takes images of 3 channels")):
        with pytest.raises(InputError, match=message):
            Trainer(Net(other.num_channels, 10), other, replace(SMALL, teacher=(str(teacher_path),))).fit()


@pytest.mark.slow
def test_resume_with_other_weights_of_the_teacher_is_refused(dataset, teacher_path, tmp_path):
    path = shutil.copytree(teacher_path.parent, tmp_path / "teacher") / teacher_path.name
    config = replace(SMALL, epochs=1, teacher=(str(path),))
    Trainer(Net(3, 10), dataset, config, tmp_path).fit()
    tensors, card = load_weights(path)
    save_weights(path, {name: tensor * 1.01 for name, tensor in tensors.items()}, card)
    with pytest.raises(InputError, match="another teacher"):
        Trainer(Net(3, 10), dataset, config, tmp_path).fit(resume=True)


def test_missing_teacher_is_one_line(shapes_npz, tmp_path):
    result = run_main(
        "train",
        "--dataset",
        f"npz:{shapes_npz}",
        "--teacher",
        tmp_path / "none.safetensors",
        "--val-images",
        100,
        "--out",
        tmp_path,
    )
    assert_refused(result, "teacher file missing", "Train one")


@pytest.mark.slow
def test_resumed_run_of_a_student_is_the_same(dataset, teacher_path, tmp_path):
    config = replace(SMALL, steps=60, batch_size=32, teacher=(str(teacher_path),), checkpoint_every=10)

    def make(out: Path) -> Trainer:
        seed_everything(3)
        return Trainer(Net(3, 10), dataset, config, out)

    whole, stopped = make(tmp_path / "whole"), make(tmp_path / "stopped")
    history = whole.fit()
    train_step = stopped._train_step

    def stop_at_50(*batch: torch.Tensor) -> None:
        if stopped.step == 50:
            raise KeyboardInterrupt
        train_step(*batch)

    stopped._train_step = stop_at_50
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    resumed = make(tmp_path / "stopped")
    assert resumed.fit(resume=True).evaluations == history.evaluations
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
