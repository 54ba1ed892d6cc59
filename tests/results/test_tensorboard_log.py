"""The TensorBoard log, read back with TensorBoard's own reader: complete, once each after a kill, never in the way."""

from __future__ import annotations

import functools
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

import processes
from config import TrainConfig
from conftest import ROOT, assert_refused, run_main
from images import data
from learning.weights import load_checkpoint
from model import Net
from results.tensorboard_log import TensorBoardLog
from training import Trainer
from utils import seed_everything

if TYPE_CHECKING:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

CURVES = ["loss/training", "loss/validation", "accuracy/training", "accuracy/validation", "learning_rate"]
BATCHES = ["batch/loss", "batch/accuracy", "batch/learning_rate"]
TEST = ["test/loss", "test/accuracy"]


def read(folder: Path) -> EventAccumulator:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    everything = {"scalars": 0, "histograms": 0, "images": 0, "tensors": 0}
    return EventAccumulator(str(folder), size_guidance=everything).Reload()


def points(log: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in log.Scalars(tag)]


def command(shapes_npz: Path, out: Path, *more: object) -> list[object]:
    """61 steps of 16 images, a look every 20, a checkpoint every 7."""
    settings = (
        "--steps 61 --batch-size 16 --val-images 100 --threads 1 --eval-every 20 --checkpoint-every 7 "
        "--augment 0.5 --images-per-draw 16 --workers 0 --tensorboard"
    )
    return [ROOT / "main.py", "train", "--dataset", f"npz:{shapes_npz}", *settings.split(), "--out", out, *more]


@pytest.fixture(scope="module")
def whole(shapes_npz, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    processes.run(*command(shapes_npz, out), check=True)
    return out


def test_log_holds_what_happened(whole):
    log = read(whole / "tensorboard")
    history = load_checkpoint(whole / "checkpoint.pt")["history"]
    assert sorted(log.Tags()["scalars"]) == sorted(CURVES + BATCHES + TEST)
    for tag, key in zip(CURVES, ("train_loss", "val_loss", "train_accuracy", "val_accuracy", "learning_rate"), strict=True):
        assert points(log, tag) == [(e["step"], pytest.approx(e[key])) for e in history["evaluations"]]
    assert [step for step, _ in points(log, "batch/loss")] == [10, 20, 30, 40, 50, 60]
    looks = [20, 40, 60, 61]
    names = {name for name, _ in Net(3, 10).named_parameters()}
    histograms = set(log.Tags()["histograms"])
    assert {tag.removeprefix("weights/") for tag in histograms if tag.startswith("weights/")} == names
    assert {tag.removeprefix("gradients/") for tag in histograms if tag.startswith("gradients/")} == names - {"C1.0.weight"}
    for tag in histograms:
        assert [event.step for event in log.Histograms(tag)] == looks
    weights = load_checkpoint(whole / "checkpoint.pt")["trained"]["O.2.weight"]
    last = log.Histograms("weights/O.2.weight")[-1].histogram_value
    assert last.num == weights.numel() and last.max == pytest.approx(weights.max().item())
    assert [event.step for event in log.Images("confusion_matrix")] == looks
    (augmented,) = log.Images("augmented_images")
    assert (augmented.step, augmented.width, augmented.height) == (1, 8 * 96, 2 * 96)
    graph = {node.op for node in log.Graph().node}
    assert "aten::_convolution" in graph


def test_log_holds_the_hyper_parameters(whole):
    from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    content = read(whole / "tensorboard").summary_metadata[SESSION_START_INFO_TAG].plugin_data.content
    values = HParamsPluginData.FromString(content).session_start_info.hparams
    assert values["batch_size"].number_value == 16 and values["optimizer"].string_value == "adamw"
    assert values["preset"].string_value == "baseline"


@pytest.mark.slow
def test_killed_and_resumed_run_continues_the_same_curves(shapes_npz, whole, tmp_path):
    """Killed for good while it trains, after the first checkpoint; what it logged beyond the checkpoint comes only once."""
    process = processes.Process(*command(shapes_npz, tmp_path))
    while not (tmp_path / "checkpoint.pt").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] < 61
    for _ in range(2):  # the second finds nothing left to do
        processes.run(*command(shapes_npz, tmp_path, "--resume"), check=True)
        log, expected = read(tmp_path / "tensorboard"), read(whole / "tensorboard")
        for tag in CURVES + BATCHES + TEST:
            assert points(log, tag) == points(expected, tag)
        for tag in expected.Tags()["histograms"]:
            assert [e.step for e in log.Histograms(tag)] == [e.step for e in expected.Histograms(tag)]
        assert [e.step for e in log.Images("confusion_matrix")] == [20, 40, 60, 61]
        assert len(log.Images("augmented_images")) == 1
    assert len(list((tmp_path / "tensorboard").iterdir())) == 3


def make_trainer(dataset, out: Path, log: TensorBoardLog | None = None, **changes: object) -> Trainer:
    config = TrainConfig(
        **{
            "steps": 12,
            "batch_size": 16,
            "val_images": 100,
            "eval_every": 5,
            "checkpoint_every": 6,
            "workers": 0,
            "ema_decay": 0.9,
            **changes,
        }
    )
    seed_everything(0)
    return Trainer(Net(3, 10), dataset, config, out, observer=log)


@pytest.fixture(scope="module")
def dataset(shapes_npz):
    return data.load(f"npz:{shapes_npz}", ROOT)


@pytest.mark.slow
def test_log_changes_nothing_in_the_training(dataset, tmp_path):
    plain = make_trainer(dataset, tmp_path / "plain")
    with TensorBoardLog(tmp_path / "log") as log:
        logged = make_trainer(dataset, tmp_path / "logged", log)
        assert plain.fit().evaluations == logged.fit().evaluations
    other = logged.model.state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in plain.model.state_dict().items())


@pytest.mark.slow
def test_log_that_begins_at_a_resume_has_the_earlier_looks(dataset, tmp_path):
    trainer = make_trainer(dataset, tmp_path)
    trainer.observer.evaluated = lambda trainer, logits: (_ for _ in ()).throw(KeyboardInterrupt) if trainer.step > 9 else None
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    with TensorBoardLog(tmp_path / "log") as log:
        make_trainer(dataset, tmp_path, log).fit(resume=True)
    assert [step for step, _ in points(read(tmp_path / "log"), "accuracy/validation")] == [5, 10, 12]


@pytest.mark.slow
def test_run_from_the_start_replaces_the_log_of_an_earlier_one(dataset, tmp_path):
    for steps in (12, 7):
        with TensorBoardLog(tmp_path / "log") as log:
            make_trainer(dataset, tmp_path, log, steps=steps).fit()
    assert [step for step, _ in points(read(tmp_path / "log"), "loss/training")] == [5, 7]
    assert len(list((tmp_path / "log").iterdir())) == 1


@pytest.mark.slow
def test_grey_images_and_gradients_that_are_not_finite(tmp_path):
    dataset = data.load("digits", tmp_path)
    with TensorBoardLog(tmp_path / "log") as log:
        trainer = make_trainer(dataset, tmp_path, log)
        trainer.model = Net(1, 10)
        trainer.fit()
        trainer.model.O[2].weight.grad = torch.full_like(trainer.model.O[2].weight, np.inf)
        log.trained(trainer, torch.zeros(1, 1, 32, 32))
    assert len(read(tmp_path / "log").Images("augmented_images")) == 1


@pytest.mark.slow
def test_not_imported_without_the_flag(shapes_npz, tmp_path):
    code = (
        "import sys, main\n"
        f"assert main.main(['train', '--dataset', 'npz:{shapes_npz}', '--steps', '2', '--val-images', '100',"
        f" '--out', {str(tmp_path)!r}]) == 0\n"
        "print(*sorted(name for name in sys.modules if 'tensorboard' in name))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=True)
    assert done.stdout.splitlines()[-1] == "", done.stdout
    assert not (tmp_path / "tensorboard").exists()


def test_log_folder_that_cannot_be_written_is_said_before_the_training(shapes_npz, tmp_path):
    (tmp_path / "tensorboard").write_text("in the way")
    assert_refused(run_main(*command(shapes_npz, tmp_path)[1:]), "cannot write", "tensorboard")
    assert not (tmp_path / "checkpoint.pt").exists()


def test_log_that_cannot_grow_ends_in_one_line(shapes_npz, tmp_path):
    """The kernel refuses to let a file grow, as on a full disk."""
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (60_000, 60_000))
    result = processes.run(*command(shapes_npz, tmp_path, "--checkpoint-every", 1000), before=limit)
    assert_refused(result, "cannot write the TensorBoard log", "File too large")
