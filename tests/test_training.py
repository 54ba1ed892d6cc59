"""The Trainer: it learns, stops early, resumes exactly after a real SIGKILL, survives Ctrl-C, NaN and a full disk."""

import functools
import itertools
import multiprocessing
import os
import platform
import random
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tqdm import tqdm

import processes
from config import InputError, TrainConfig
from conftest import ALL_THREADS, ROOT, assert_refused, run_main
from images import data
from images.data import Split
from learning.history import FLAT_EVALUATIONS, History, Observer
from learning.resolution import scaled
from learning.schedule import next_cycle
from learning.weights import load_checkpoint, save_checkpoint
from model import Net
from processes import wait_for
from training import Trainer
from utils import seed_everything

SMALL = TrainConfig(epochs=1, batch_size=128, val_images=100, whiten_images=200, workers=0, max_lr=0.02)
STEPS = 38  # in an epoch of 4,900 images


@pytest.fixture(scope="module")
def dataset(shapes_npz):
    return data.load(f"npz:{shapes_npz}", ROOT)


def make_trainer(dataset, config: TrainConfig, out: Path | None = None) -> Trainer:
    seed_everything(config.seed)
    return Trainer(Net(dataset.num_channels, dataset.num_classes, widths=(16, 32, 32, 32)), dataset, config, out)


def test_learns_shapes(dataset):
    trainer = make_trainer(dataset, replace(SMALL, epochs=4, val_images=500))
    history = trainer.fit()
    assert [e.step for e in history.evaluations] == [35 * i for i in range(1, 5)]
    assert history.evaluations[-1].val_accuracy > 0.16  # chance is 0.1, four deviations below
    assert history.evaluations[-1].train_loss < history.evaluations[0].train_loss
    assert history.images_seen == 4 * 35 * 128
    assert history.seconds == sorted(history.seconds)
    assert history.test_passes == 0  # nobody asked


@pytest.mark.slow
def test_learns_with_augmentation_and_averaging(dataset):
    history = make_trainer(dataset, replace(SMALL, epochs=3, val_images=500, augment=0.3, ema_decay=0.9, label_smoothing=0.1)).fit()
    assert history.evaluations[-1].val_accuracy > 0.16


@pytest.mark.parametrize("step", [2, 3])
def test_ctrl_c_in_the_last_step_counts_too(dataset, monkeypatch, step):
    """Else the search of fit, which is many short trainings, would go on with the next one."""
    trainer = make_trainer(dataset, replace(SMALL, steps=3))
    train_step = trainer._train_step
    before = signal.getsignal(signal.SIGINT)

    def interrupted(*batch):
        train_step(*batch)
        if trainer.step == step:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(trainer, "_train_step", interrupted)
    with pytest.raises(KeyboardInterrupt, match=f"after step {step} of 3"):
        trainer.fit()
    assert signal.getsignal(signal.SIGINT) == before


def test_cutmix_puts_a_rectangle_of_another_image_and_its_share_of_the_label(dataset):
    trainer = make_trainer(dataset, replace(SMALL, steps=3, cutmix=1.0))
    mixed, loss = [], trainer._loss
    trainer._loss = lambda logits, *batch: mixed.append(batch) or loss(logits, *batch)
    trainer.fit()
    covered = []
    for (inputs, labels), (originals, targets) in zip(mixed, trainer.batches.steps(range(3)), strict=True):
        others = originals.roll(1, 0)
        inside = (inputs == others).all(0).all(0)  # for every image of the batch: no accident of two alike
        assert torch.equal(inputs, torch.where(inside, others, originals))
        rows, columns = inside.any(1).sum(), inside.any(0).sum()
        assert rows * columns == inside.sum()
        covered.append(inside.float().mean())
        own, other = torch.eye(10)[targets], torch.eye(10)[targets.roll(1)]
        torch.testing.assert_close(labels, torch.lerp(own, other, covered[-1]))
    assert len(set(covered)) == 3
    assert max(covered) > 0


def test_images_are_small_at_first_and_whole_at_last(dataset):
    config = replace(SMALL, steps=10, resolutions=((0.2, 20), (0.5, 24)))
    trainer = make_trainer(dataset, config)
    sizes = []
    trainer.model.register_forward_pre_hook(
        lambda module, inputs: sizes.append(tuple(inputs[0].shape[2:])) if module.training else None
    )
    trainer.fit()
    assert sizes == [(20, 20)] * 2 + [(24, 24)] * 3 + [(32, 32)] * 5


def test_scaled_images_keep_their_brightness_and_layout():
    images = torch.linspace(-1, 1, 32).expand(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    small = scaled(images, ((0.5, 16),), 0.49)
    assert small.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(small[0, 0, 0, 1:-1], images[0, 0, 0].unflatten(0, (16, 2)).mean(1)[1:-1])
    assert scaled(images, ((0.5, 16),), 0.5) is images


@pytest.mark.parametrize("resolutions", [((0.5, 20), (0.2, 24)), ((0.0, 20),), ((1.0, 20),), ((0.5, 0),)])
def test_impossible_resolutions(resolutions):
    with pytest.raises(InputError, match="resolutions is"):
        replace(SMALL, resolutions=resolutions)


@pytest.mark.parametrize("field", [{"shift": 2}, {"alternating_flip": True}])
def test_two_ways_to_augment_are_refused(field):
    with pytest.raises(InputError, match="augment is 0.5: with shift or alternating_flip it must be 0"):
        replace(SMALL, augment=0.5, **field)


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
def test_weight_decay_spares_biases_and_batch_norm(dataset, optimizer):
    trainer = make_trainer(dataset, replace(SMALL, optimizer=optimizer, weight_decay=0.3))
    trainer._prepare()
    decayed, spared = trainer.optimizer.param_groups
    assert decayed["weight_decay"] == 0.3
    assert spared["weight_decay"] == 0
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert len(spared["params"]) == sum(p.ndim < 2 for p in trainer.model.parameters())


def test_one_cycle_spans_the_budget(dataset):
    config = replace(SMALL, eval_every=1, pct_start=0.25, max_lr=0.02, div_factor=25, final_div_factor=1000)
    rates = [e.learning_rate for e in make_trainer(dataset, config).fit().evaluations]
    assert len(rates) == STEPS
    assert max(rates) == pytest.approx(0.02, rel=0.1)
    assert rates.index(max(rates)) == pytest.approx(STEPS * 0.25, abs=1.5)
    assert rates[-1] == pytest.approx(0.02 / 25 / 1000, rel=0.01)


def test_early_exit_stops_at_the_first_test_pass_above_the_target(dataset, tmp_path):
    config = replace(SMALL, epochs=10, eval_every=5, early_exit_accuracy=0.15)
    trainer = make_trainer(dataset, config, tmp_path)
    history = trainer.fit()
    assert history.reached
    assert history.test_accuracy > 0.15
    assert history.images_seen < 10 * STEPS * 128
    assert history.test_passes >= 1
    promising = [e for e in history.evaluations if e.val_accuracy >= 0.15]
    assert len(promising) == history.test_passes  # no pass without a promise
    assert trainer.evaluate(dataset.test)[1] == history.test_accuracy  # the network that is kept is the one that passed
    resumed = make_trainer(dataset, config, tmp_path).fit(resume=True)  # there is nothing left to do
    assert resumed.evaluations == history.evaluations
    assert resumed.images_seen == history.images_seen


def test_early_exit_that_is_never_reached_makes_a_last_test_pass(dataset):
    history = make_trainer(dataset, replace(SMALL, early_exit_accuracy=0.99)).fit()
    assert not history.reached
    assert history.test_passes == 1
    assert history.test_accuracy is not None


def test_missed_target_begins_a_cycle_as_long_as_the_accuracy_lacks(dataset, tmp_path):
    config = replace(SMALL, steps=8, cycles=3, eval_every=1, early_exit_accuracy=0.99, early_exit_margin=0.005)
    trainer = make_trainer(dataset, config, tmp_path)
    history = trainer.fit()
    assert not history.reached
    ends = trainer.cycle_ends
    assert 2 <= len(ends) <= 3
    assert len(history.evaluations) == ends[-1] <= 8 * 7
    assert history.test_passes == len(ends)  # at the end of each
    for start, end in itertools.pairwise([0, *ends]):
        cycle = history.evaluations[start:end]
        assert max(e.learning_rate for e in cycle) == pytest.approx(0.02, rel=0.3)
        assert cycle[0].learning_rate == pytest.approx(0.02 / 25)
        assert cycle[-1].learning_rate < 1e-5
        if end < ends[-1]:
            lacks = 0.995 - cycle[-1].val_accuracy
            assert ends[ends.index(end) + 1] == min(end + next_cycle(end, lacks), 56)
    resumed = make_trainer(dataset, config, tmp_path).fit(resume=True)  # there is nothing left to do
    assert resumed.evaluations == history.evaluations


@pytest.mark.slow
def test_the_last_cycle_allowed_ends_the_training(dataset):
    """Also where it does not use up what all cycles together may take."""
    config = replace(SMALL, steps=40, cycles=2, early_exit_accuracy=0.3, max_lr=1e-6, early_exit_margin=0.0)
    trainer = make_trainer(dataset, config)
    trainer.fit()
    assert trainer.step == trainer.cycle_ends[-1]


def test_stops_when_the_loss_is_flat_also_after_a_resume(dataset, tmp_path):
    config = replace(SMALL, steps=200, eval_every=1, max_lr=1e-9, div_factor=1, final_div_factor=1, flat_loss=0.5)
    history = make_trainer(dataset, config, tmp_path).fit()
    assert [e.step for e in history.evaluations] == list(range(1, FLAT_EVALUATIONS + 1))  # nothing is learned at that rate
    assert {e.learning_rate for e in history.evaluations} == {1e-9}
    assert make_trainer(dataset, config, tmp_path).fit(resume=True).evaluations == history.evaluations


@pytest.mark.parametrize("steps", range(1, 6))
def test_the_shortest_budgets(dataset, steps):
    assert make_trainer(dataset, replace(SMALL, steps=steps, batch_size=32)).fit().images_seen == 32 * steps


def test_does_not_stop_while_the_loss_moves(dataset):
    history = make_trainer(dataset, replace(SMALL, steps=25, eval_every=1, flat_loss=1e-6)).fit()
    assert len(history.evaluations) == 25


def test_given_held_out_images_leave_all_others_to_be_trained_on(dataset):
    seed_everything(0)
    bar = tqdm(total=10_000, disable=True)
    bar.update = lambda n: setattr(bar, "n", bar.n + n)
    held_out = Split(dataset.test.images[:50], dataset.test.labels[:50])
    trainer = Trainer(Net(3, 10), dataset, replace(SMALL, steps=2, eval_every=1), val_split=held_out, progress=bar)
    trainer.fit()
    assert trainer.train_split is dataset.train
    assert trainer.history.evaluations[-1].val_accuracy == trainer.evaluate(held_out)[1]
    assert bar.n == 2 * 128


def test_same_seed_same_run(dataset):
    runs = [make_trainer(dataset, SMALL) for _ in range(2)]
    histories = [trainer.fit() for trainer in runs]
    assert histories[0].evaluations == histories[1].evaluations
    other = make_trainer(dataset, replace(SMALL, seed=1)).fit()
    assert other.evaluations != histories[0].evaluations


def test_infinite_loss_names_step_and_rate_and_keeps_the_checkpoint(dataset, tmp_path):
    trainer = make_trainer(dataset, replace(SMALL, checkpoint_every=3), tmp_path)
    original = trainer.model.forward
    trainer.model.forward = lambda x: original(x) * (float("nan") if trainer.step == 7 else 1)
    with pytest.raises(InputError, match=r"the loss became nan at step 8 of 38, learning rate 0\.\d+.*max_lr.*checkpoint\.pt"):
        trainer.fit()
    kept = load_checkpoint(tmp_path / "checkpoint.pt")
    assert kept["step"] == 6
    assert all(tensor.isfinite().all() for tensor in kept["model"].values())


def test_absurd_learning_rate_ends_in_one_line(shapes_npz, tmp_path):
    result = run_main(
        "train",
        "--dataset",
        f"npz:{shapes_npz}",
        "--optimizer",
        "sgd",
        "--max-lr",
        "1e30",
        "--augment",
        0,
        "--val-images",
        100,
        "--out",
        tmp_path,
    )
    assert_refused(result, "learning rate", "try a lower max_lr")


def test_batch_larger_than_the_data(dataset):
    with pytest.raises(InputError, match="batch"):
        make_trainer(dataset, replace(SMALL, batch_size=5000)).fit()


def train_command(shapes_npz: Path, out: Path, *more: object) -> list[object]:
    settings = "--epochs 0.25 --batch-size 16 --val-images 100 --eval-every 19 --checkpoint-every 7 --ema-decay 0.9"
    return [ROOT / "main.py", "train", "--dataset", f"npz:{shapes_npz}", *settings.split(), "--out", out, *more]


class WorkerKiller(Observer):
    """Kills the workers after the first step, as a system without memory does."""

    def trained(self, trainer, inputs):
        for worker in multiprocessing.active_children():
            worker.kill()


def test_a_killed_worker_is_told_in_one_line(dataset):
    config = replace(SMALL, epochs=50, batch_size=16, augment=0.5, workers=1)
    with pytest.raises(InputError, match="^a worker that augments images was killed.*--resume"):
        Trainer(Net(3, 10), dataset, config, observer=WorkerKiller()).fit()


def outcome(out: Path) -> tuple[dict, History]:
    state = load_checkpoint(out / "checkpoint.pt")
    return state, History.from_dict(state["history"])


@pytest.mark.parametrize(
    ("options", "env"),
    [
        (("--augment", 0), ALL_THREADS),
        pytest.param(("--augment", 0, "--optimizer", "muon"), ALL_THREADS, marks=pytest.mark.slow),
        pytest.param(("--augment", 0.5, "--cutmix", 0.5), None, marks=pytest.mark.slow),
        pytest.param(
            ("--augment", 0, "--stratified", "--shift", 2, "--alternating-flip", "--resolutions", 0.2, 20, 0.6, 24),
            ALL_THREADS,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_resume_after_sigkill_is_exact(shapes_npz, tmp_path, options, env):
    """Killed for good at random moments after its first checkpoint, and resumed, the run ends as one never killed."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    processes.run(*train_command(shapes_npz, whole, *options), env=env, check=True)
    rng = random.Random(7)
    for attempt in range(2):
        resume = ["--resume"] if attempt else []
        checkpoint = killed / "checkpoint.pt"
        before = checkpoint.stat().st_mtime_ns if attempt else 0
        process = processes.Process(*train_command(shapes_npz, killed, *options, *resume), env=env)
        wait_for(
            lambda: (
                process.poll() is not None  # noqa: B023 (called at once)
                or (checkpoint.exists() and checkpoint.stat().st_mtime_ns != before)  # noqa: B023
            )
        )
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        load_checkpoint(checkpoint)  # whole, whatever was being written
    processes.run(*train_command(shapes_npz, killed, *options, "--resume"), env=env, check=True)

    (one, one_history), (other, other_history) = outcome(whole), outcome(killed)
    assert one_history.evaluations == other_history.evaluations
    assert one["step"] == other["step"]
    for part in ("model", "trained"):
        assert all(torch.equal(one[part][name], other[part][name]) for name in one[part])


def test_ctrl_c_saves_and_says_how_to_go_on(shapes_npz, tmp_path):
    process = processes.Process(*train_command(shapes_npz, tmp_path, "--epochs", 200, "--checkpoint-every", 7))
    wait_for((tmp_path / "checkpoint.pt").exists)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1].startswith("interrupted: after step ")
    assert "--resume" in errors
    assert "Traceback" not in errors
    assert f"after step {load_checkpoint(tmp_path / 'checkpoint.pt')['step']} of" in errors.splitlines()[-1]


def test_resume_refuses_another_configuration_and_names_the_field(dataset, tmp_path):
    make_trainer(dataset, SMALL, tmp_path).fit()
    with pytest.raises(InputError, match=r"max_lr was 0\.02, is 0\.5"):
        make_trainer(dataset, replace(SMALL, max_lr=0.5), tmp_path).fit(resume=True)


def test_resume_refuses_a_configuration_with_a_field_that_is_gone(dataset, tmp_path):
    make_trainer(dataset, SMALL, tmp_path).fit()
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    save_checkpoint(tmp_path / "checkpoint.pt", state | {"config": state["config"] | {"distinct_epochs": 10}})
    with pytest.raises(InputError, match="distinct_epochs was 10, is gone"):
        make_trainer(dataset, SMALL, tmp_path).fit(resume=True)


def test_resume_refuses_another_data_set_and_another_network(dataset, tmp_path):
    def trainer(dataset, last_width: int = 96) -> Trainer:
        net = {"widths": (32, 64, 96, last_width)}
        return Trainer(Net(3, 10, **net), dataset, replace(SMALL, steps=1), tmp_path, card={"net": net})

    trainer(dataset).fit()
    with pytest.raises(InputError, match="was made with another network "):
        trainer(dataset, 64).fit(resume=True)
    others = {
        "labels are others": Split(dataset.train.images, np.roll(dataset.train.labels, 1)),
        "pixels are others": Split(255 - dataset.train.images, dataset.train.labels),
        "training split had 5,000 images and has 4,999": Split(dataset.train.images[1:], dataset.train.labels[1:]),
    }
    for words, train in others.items():
        with pytest.raises(InputError, match=words):
            trainer(replace(dataset, train=train)).fit(resume=True)
    trainer(replace(dataset, name="moved")).fit(resume=True)  # the same images by another name
    # An older checkpoint knows its data by the name alone.
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    state["card"].pop("data")
    save_checkpoint(tmp_path / "checkpoint.pt", state)
    with pytest.raises(InputError, match="was made with another data set "):
        trainer(replace(dataset, name="third")).fit(resume=True)


def test_resume_without_a_checkpoint(dataset, tmp_path):
    with pytest.raises(InputError, match="nothing to resume"):
        make_trainer(dataset, SMALL, tmp_path).fit(resume=True)


def test_full_disk_keeps_the_old_checkpoint(shapes_npz, tmp_path):
    """The kernel refuses to let the file grow, as it does on a full disk or over a quota: a real failed write."""
    command = train_command(shapes_npz, tmp_path, "--augment", 0)
    processes.run(*command, "--epochs", "0.1", check=True)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (200_000, 200_000))
    result = processes.run(*command, "--resume", before=limit)
    assert_refused(result, "checkpoint.pt", "File too large", "untouched")
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_out_folder_that_cannot_be_written(shapes_npz, tmp_path):
    (tmp_path / "file").write_text("in the way")
    result = run_main(*train_command(shapes_npz, tmp_path / "file")[1:])
    assert_refused(result, "cannot write")


FAULTS = """
import resource
import torch
from utils import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        tensors = [torch.empty(2**23, dtype=torch.uint8).fill_(1) for _ in range(8)]
        del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

default = faults()
keep_freed_memory()
faults()
print(default, faults())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the settings")
def test_memory_of_freed_tensors_is_used_again_without_page_faults():
    result = subprocess.run([sys.executable, "-c", FAULTS], cwd=ROOT, capture_output=True, text=True, check=True)
    default, kept = map(int, result.stdout.split())
    assert default > 20 * kept, (default, kept)
