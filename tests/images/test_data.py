"""The statistics, the split, and the two ways to make batches."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import processes
from config import InputError, TrainConfig
from conftest import ROOT, random_split
from images import data
from images.data import AugmentedBatches, Split, VectorisedBatches, stratified_split
from transform import train_transform

CPU = torch.device("cpu")
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)


# --- statistics, split -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count, channels", [(1, 3), (700, 3), (257, 1)])
def test_statistics_are_exact(count, channels):
    images = random_split(count, channels=channels).images
    mean, std = data.statistics(images)
    scaled = images.astype(np.float64) / 255
    np.testing.assert_allclose(mean, scaled.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, scaled.std((0, 1, 2)), rtol=1e-9)


def test_statistics_of_white_images_can_be_divided_by():
    """All sums are at their largest here: 256 images of 255 are what float32 just holds."""
    mean, std = data.statistics(np.full((1000, 28, 28, 1), 255, np.uint8))
    assert mean == (1.0,) and 0 < std[0]


def test_stratified_split():
    labels = np.repeat([0, 1, 2], [500, 300, 200])
    images = np.arange(1000, dtype=np.uint16).view(np.uint8).reshape(1000, 1, 2, 1)  # each names itself
    rest, held = stratified_split(Split(images, labels), 100, seed=0)
    assert np.bincount(held.labels).tolist() == [50, 30, 20] and np.bincount(rest.labels).tolist() == [450, 270, 180]
    numbers = np.concatenate([rest.images, held.images]).reshape(1000, 2).view(np.uint16).ravel()
    assert sorted(numbers) == list(range(1000))
    assert np.array_equal(labels[numbers], np.concatenate([rest.labels, held.labels])), "each image keeps its label"
    assert np.array_equal(stratified_split(Split(images, labels), 100, seed=0)[1].images, held.images)
    assert not np.array_equal(
        np.sort(stratified_split(Split(images, labels), 100, seed=1)[1].images, axis=0), np.sort(held.images, axis=0)
    )
    assert len(stratified_split(Split(images, labels), 7, seed=0)[1].labels) == 7


@pytest.mark.parametrize("held_out", [0, 9, 100, 1000])
def test_impossible_split(held_out):
    with pytest.raises(InputError, match=f"cannot split off {held_out:,} images: only 100 are available.*from 10 to 90"):
        stratified_split(random_split(100), held_out, seed=0)


# --- batches -----------------------------------------------------------------------------------------------------------------


def vectorised(split: Split, batch_size: int = 16, seed: int = 0, shard: tuple[int, int] = (0, 1)) -> VectorisedBatches:
    return VectorisedBatches(split, TrainConfig(batch_size=batch_size, seed=seed), MEAN, STD, CPU, shard)


def augmented(
    split: Split, workers: int, seed: int = 0, images_per_draw: int = 1, shard: tuple[int, int] = (0, 1)
) -> AugmentedBatches:
    config = TrainConfig(batch_size=16, augment=1.0, images_per_draw=images_per_draw, seed=seed, workers=workers)
    return AugmentedBatches(split, config, MEAN, STD, CPU, shard)


def assert_same(batches, others) -> None:
    for (inputs, targets), (other_inputs, other_targets) in zip(batches, others, strict=True):
        assert torch.equal(inputs, other_inputs) and torch.equal(targets, other_targets)


def test_vectorised_batches_are_normalised_images_with_their_labels():
    split = random_split(50, classes=50)  # the label names the image
    batches = vectorised(split)
    assert batches.steps_per_epoch == 3
    seen = []
    for inputs, targets in batches.steps(range(3)):
        assert inputs.shape == (16, 3, 32, 32) and inputs.dtype == torch.float32 and targets.dtype == torch.int64
        assert inputs.is_contiguous(memory_format=torch.channels_last)
        pixels = torch.from_numpy(split.images[targets.numpy()]).permute(0, 3, 1, 2) / 255
        expected = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        torch.testing.assert_close(inputs, expected, rtol=1e-5, atol=1e-5)
        seen += targets.tolist()
    assert len(set(seen)) == 48, "no image twice in an epoch"


@pytest.mark.parametrize("kind", [VectorisedBatches, AugmentedBatches])
def test_stratified_batches_have_the_classes_in_the_proportions_of_all(kind):
    images = random_split(1000).images
    labels = np.random.default_rng(1).permutation(np.repeat([0, 1, 2, 4], [500, 250, 247, 3]))  # there is no class 3
    images[:, 0, 0, 0], images[:, 0, 0, 1] = divmod(np.arange(1000), 256)  # the number of the image
    config = TrainConfig(batch_size=100, stratified=True, augment=1e-9 if kind is AugmentedBatches else 0, workers=0)
    batches = kind(Split(images, labels), config, (0.0,) * 3, (1.0,) * 3, CPU)
    epochs = []
    for epoch in range(2):
        numbers = []
        for inputs, targets in batches.steps(range(10 * epoch, 10 * epoch + 10)):
            counts = np.bincount(targets, minlength=5)
            assert np.abs(counts - [50, 25, 24.7, 0, 0.3]).max() <= 1, counts
            numbers += (256 * inputs[:, 0, 0, 0] * 255 + inputs[:, 1, 0, 0] * 255).round().int().tolist()
        if kind is VectorisedBatches:
            assert sorted(numbers) == list(range(1000)), "each image once"
        epochs.append(numbers)
    assert epochs[0] != epochs[1]


def moved(
    split: Split, seed: int = 0, shard: tuple[int, int] = (0, 1), shift: int = 2, alternating_flip: bool = True
) -> VectorisedBatches:
    config = TrainConfig(batch_size=16, seed=seed, shift=shift, alternating_flip=alternating_flip)
    return VectorisedBatches(split, config, (0.0,) * 3, (1.0,) * 3, CPU, shard)


def test_every_image_is_moved_by_whole_pixels_and_its_border_mirrored():
    split = random_split(64, classes=64)  # the label names the image
    seen = set()
    for inputs, targets in moved(split, alternating_flip=False).steps(range(4)):
        assert inputs.is_contiguous(memory_format=torch.channels_last) and inputs.dtype == torch.float32
        for image, label in zip(inputs, targets, strict=True):
            padded = np.pad(split.images[label], ((2, 2), (2, 2), (0, 0)), mode="reflect").astype(np.float32) / 255
            crops = {(y, x): padded[y : y + 32, x : x + 32] for y in range(5) for x in range(5)}
            found = [place for place, crop in crops.items() if np.allclose(crop, image.permute(1, 2, 0).numpy(), atol=1e-6)]
            assert len(found) == 1
            seen.update(found)
    assert len(seen) > 15, "most of the 25 places occur"


def test_every_image_is_mirrored_in_every_second_epoch():
    split = random_split(32, classes=32)
    epochs = []
    for epoch in range(4):
        mirrored = {}
        for inputs, targets in moved(split, shift=0).steps(range(2 * epoch, 2 * epoch + 2)):
            for image, label in zip(inputs, targets.tolist(), strict=True):
                plain = torch.from_numpy(split.images[label]).permute(2, 0, 1) / 255
                mirrored[label] = torch.allclose(image, plain.flip(2), atol=1e-6)
                assert mirrored[label] or torch.allclose(image, plain, atol=1e-6)
        epochs.append(mirrored)
    assert 4 < sum(epochs[0].values()) < 28, "about half of them in the first epoch"
    assert all(epochs[0][label] != epochs[1][label] for label in range(32))
    assert epochs[2:] == epochs[:2]


def test_shift_as_large_as_an_image_is_refused():
    with pytest.raises(InputError, match="shift is 32: it must be less than the side of an image"):
        moved(random_split(16), shift=32)


@pytest.mark.parametrize(
    "make", [vectorised, moved, functools.partial(augmented, workers=0), functools.partial(augmented, workers=0, images_per_draw=8)]
)
def test_batches_depend_on_seed_and_step_alone(make):
    split = random_split(50)
    whole = list(make(split).steps(range(8)))
    assert len(whole) == 8
    assert_same(make(split).steps(range(5, 8)), whole[5:])
    batches = make(split)
    list(batches.steps(range(2)))
    assert_same(batches.steps(range(2, 8)), whole[2:])
    assert not torch.equal(whole[0][0], whole[3][0]), "two epochs differ"
    assert not torch.equal(whole[0][0], next(make(split, seed=1).steps(range(1)))[0])


@pytest.mark.parametrize("images_per_draw", [1, 8])
def test_number_of_workers_changes_nothing(images_per_draw):
    split = random_split(50)
    whole = list(augmented(split, 0, images_per_draw=images_per_draw).steps(range(7)))
    inputs, targets = whole[0]
    assert inputs.shape == (16, 3, 32, 32) and inputs.dtype == torch.float32 and targets.dtype == torch.int64
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    for workers in (1, 2):
        assert_same(augmented(split, workers, images_per_draw=images_per_draw).steps(range(7)), whole)


def test_same_image_is_augmented_otherwise_in_another_epoch():
    split = random_split(16, classes=16)
    (first, labels), (second, other_labels) = augmented(split, 0).steps(range(2))
    pairs = [(first[i], second[(other_labels == label).nonzero().item()]) for i, label in enumerate(labels)]
    assert sum(torch.equal(a, b) for a, b in pairs) < 4  # every fourth draw is at most a flip


@pytest.mark.parametrize(
    "make",
    [
        vectorised,
        moved,
        functools.partial(augmented, workers=0, images_per_draw=4),
        functools.partial(augmented, workers=2, images_per_draw=2),
    ],
)
@pytest.mark.parametrize("processes", [2, 4])
def test_shards_are_the_parts_of_the_batch_of_one_process(make, processes):
    split = random_split(50)
    whole = make(split)
    shards = [make(split, shard=(rank, processes)) for rank in range(processes)]
    assert {shard.steps_per_epoch for shard in shards} == {whole.steps_per_epoch} == {3}
    parts = list(zip(*(shard.steps(range(2, 7)) for shard in shards), strict=True))  # over the ends of two epochs
    assert all(len(targets) == 16 // processes for step in parts for _, targets in step)
    assert_same(((torch.cat([part[i] for part in step]) for i in range(2)) for step in parts), whole.steps(range(2, 7)))


@pytest.mark.parametrize(
    "make, unit",
    [
        (functools.partial(vectorised, shard=(0, 3)), 3),
        (functools.partial(augmented, workers=0, shard=(1, 3)), 3),
        (functools.partial(augmented, workers=0, images_per_draw=8, shard=(1, 4)), 32),
        (functools.partial(augmented, workers=0, images_per_draw=6), 6),
    ],
)
def test_a_batch_that_cannot_be_shared_out(make, unit):
    with pytest.raises(InputError, match=f"16 .*multiple of {unit} ") as error:
        make(random_split(50))
    assert "\n" not in str(error.value)


def test_images_that_cannot_share_a_draw():
    split = random_split(50, channels=5)
    with pytest.raises(InputError, match="images_per_draw is 2.*5 channels"):
        augmented(split, 0, images_per_draw=2)
    with pytest.raises(InputError, match="images_per_draw is 33"):
        TrainConfig(images_per_draw=33)
    with pytest.raises(InputError, match="images_per_draw is 0"):
        TrainConfig(images_per_draw=0)


def test_images_of_one_draw_have_the_same_hole_and_others_another():
    white = Split(np.full((32, 32, 32, 3), 255, np.uint8), np.zeros(32, np.int64))
    batches = augmented(white, 0, images_per_draw=4).steps(range(8))
    is_hole = torch.cat([(inputs != inputs.amax((0, 2, 3), True)).any(1) for inputs, _ in batches])
    draws = is_hole.view(32, 4, -1)
    assert (draws == draws[:, :1]).all()
    assert set(draws.sum(2).flatten().tolist()) == {0, 64}  # every second one has a hole
    assert len({tuple(draw.nonzero().flatten().tolist()) for draw in draws[:, 0]}) > 8  # of 625 places, and none


def test_normalisation_of_augmented_batches_is_that_of_the_transform():
    """One image a draw: the images of `train_transform`."""
    split = random_split(16, classes=16)
    ((inputs, targets),) = augmented(split, 0).steps(range(1))
    transform = train_transform(MEAN, STD, 1.0)
    for place, label in enumerate(targets.tolist()):
        transform.set_random_seed([0, 0, place])
        torch.testing.assert_close(inputs[place], transform(split.images[label]), atol=1e-5, rtol=1e-5)


def test_a_batch_larger_than_the_data():
    for make in (vectorised, functools.partial(augmented, workers=0)):
        with pytest.raises(InputError, match="16.*10"):
            make(random_split(10))


BATCHES_SCRIPT = f"""
import multiprocessing, sys
sys.path.insert(0, {str(ROOT)!r})
import numpy as np, torch
from config import TrainConfig
from images.data import AugmentedBatches, Split

def made(split, **options):
    config = TrainConfig(augment=1.0, **options)
    return AugmentedBatches(split, config, (.5, .4, .3), (.25, .2, .3), torch.device("cpu"))

def batches(workers):
    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
    return made(Split(images, np.arange(64)), batch_size=16, images_per_draw=4, workers=workers)
"""


def script(folder: Path, body: str, start_method: str | None = None) -> Path:
    """A program of its own that makes batches with workers started so, and then does what `body` says."""
    body = f"multiprocessing.set_start_method({start_method!r})\n{textwrap.dedent(body)}"
    path = folder / "script.py"
    path.write_text(f"{BATCHES_SCRIPT}\nif __name__ == '__main__':\n{textwrap.indent(body, '    ')}")
    return path


@pytest.mark.slow
def test_spawned_workers(tmp_path):
    """As on systems without fork; quiet, and with the same batches."""
    body = """
        for (a, i), (b, j) in zip(batches(0).steps(range(0, 5)), batches(2).steps(range(5)), strict=True):
            assert torch.equal(a, b) and torch.equal(i, j)
        print("same")
    """
    result = processes.run(script(tmp_path, body, "spawn"))
    assert (result.returncode, result.stdout, result.stderr) == (0, "same\n", "")


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux says what memory a process has of its own")
@pytest.mark.slow
def test_forked_workers_do_not_copy_the_images(tmp_path):
    body = """
        images = np.full((130_000, 32, 32, 3), 9, np.uint8)  # 400 MB
        split = Split(images, np.zeros(len(images), np.int64))
        steps = made(split, batch_size=1000, images_per_draw=20, workers=1).steps(range(0, 130))
        for _ in range(100):
            next(steps)
        [worker] = multiprocessing.active_children()
        text = open(f"/proc/{worker.pid}/smaps_rollup").read()
        print(sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private_")) // 1024)
    """
    result = processes.run(script(tmp_path, body, "fork"))
    assert result.returncode == 0, result.stderr
    assert 0 < int(result.stdout) < 300  # MB


def test_closing_the_batches_ends_the_workers(tmp_path):
    body = """
        steps = batches(2).steps(range(0, 100))
        next(steps)
        assert len(multiprocessing.active_children()) == 2
        steps.close()
        print(len(multiprocessing.active_children()))
    """
    result = processes.run(script(tmp_path, body))
    assert (result.returncode, result.stdout, result.stderr) == (0, "0\n", "")


def test_workers_end_with_a_killed_parent(tmp_path):
    body = """
        steps = batches(2).steps(range(0, 10**9))
        next(steps)
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        for _ in steps:
            pass
    """
    command = [sys.executable, script(tmp_path, body)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert len(workers) == 2
    process.send_signal(signal.SIGKILL)
    process.wait()

    def is_running(pid: int) -> bool:
        try:
            os.kill(pid, 0)
            status = Path(f"/proc/{pid}/status")
            return not status.exists() or "State:\tZ" not in status.read_text()
        except OSError:
            return False

    deadline = time.monotonic() + 60
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    survivors = [pid for pid in workers if is_running(pid)]
    for pid in survivors:
        os.kill(pid, signal.SIGKILL)
    assert not survivors
