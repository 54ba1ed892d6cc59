"""Files of weights and checkpoints that were changed, on purpose or not: each is refused in one line."""

from __future__ import annotations

import json
import os
import random
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import ROOT, assert_refused, random_split, run_main
from learning.weights import load_checkpoint, load_weights, save_checkpoint, save_weights
from model import Net

CARD = {
    "dataset": "noise",
    "classes": ["a", "b", "c"],
    "num_channels": 3,
    "image_size": [32, 32],
    "mean": [0.5, 0.5, 0.5],
    "std": [0.2, 0.2, 0.2],
    "net": {},
}


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return Net(3, 3).state_dict()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a training on noise, which is beside it as noise.npz."""
    root = tmp_path_factory.mktemp("files")
    images, labels = random_split(40, 3, 28, 28)
    np.savez(root / "noise.npz", train_x=images, train_y=labels, test_x=images[:9], test_y=labels[:9])
    assert train(root / "run", root / "noise.npz").returncode == 0
    return root / "run"


def train(out: Path, data: Path, *more: object):
    return run_main("train", "--dataset", f"npz:{data}", "--steps", 2, "--augment", 0, "--out", out, *more)


@pytest.mark.parametrize("name", ["checkpoint.pt", "model.safetensors"])
def test_a_flipped_bit_anywhere_is_noticed(run, tmp_path, name):
    whole = (run / name).read_bytes()
    rng, path = random.Random(0), tmp_path / name
    # Anywhere, and at the ends, where the marks of the format and of the checksum are.
    places = [rng.randrange(len(whole)) for _ in range(20)] + [*range(0, 12, 3), *range(len(whole) - 75, len(whole), 5)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        assert_refused(run_main("evaluate", "--weights", path), str(path))
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert_refused(run_main("evaluate", "--weights", path), str(path))


def test_each_byte_of_a_header_is_covered(run, tmp_path):
    whole = (run / "model.safetensors").read_bytes()
    end = 8 + struct.unpack("<Q", whole[:8])[0]
    start = whole.index(b'"sha256"')
    path = tmp_path / "w.safetensors"
    for place in [*range(start, start + 80), *range(end - 40, end)]:
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        assert_refused(run_main("evaluate", "--weights", path), str(path))


def test_files_from_before_there_were_checksums(run, tmp_path, tensors):
    from safetensors.torch import save

    state = load_checkpoint(run / "checkpoint.pt")
    torch.save(state, tmp_path / "old.pt")
    assert load_checkpoint(tmp_path / "old.pt")["step"] == state["step"]
    damaged = bytearray((tmp_path / "old.pt").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "old.pt").write_bytes(damaged)
    assert_refused(run_main("evaluate", "--weights", tmp_path / "old.pt"), "is damaged")
    (tmp_path / "old.safetensors").write_bytes(save(tensors, metadata={"convsprint": json.dumps(CARD)}))
    assert load_weights(tmp_path / "old.safetensors")[1] == CARD
    assert torch.load(run / "checkpoint.pt", weights_only=True)["step"] == state["step"]  # others can still read it


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"classes": "abc"}, "classes"),
        ({"classes": []}, "classes"),
        ({"classes": [1, 2, 3]}, "classes"),
        ({"classes": ["x" * 20_000, "b", "c"]}, "characters"),
        ({"mean": [float("nan")] * 3}, "mean"),
        ({"mean": [0.5]}, "mean has 1 numbers for 3 channels"),
        ({"std": [0.0, 0.2, 0.2]}, "std"),
        ({"std": None}, "std"),
        ({"image_size": [32]}, "image_size"),
        ({"image_size": [32, 10**9]}, "image_size"),
        ({"num_channels": "3"}, "num_channels"),
        ({"num_channels": -1}, "num_channels"),
        ({"test_accuracy": 93.7}, "test_accuracy"),
        ({"test_accuracy": "high"}, "test_accuracy"),
        ({"val_accuracy": float("inf")}, "val_accuracy"),
        ({"precision": "fp7"}, "precision"),
        ({"parameters": 10**30}, "parameters"),
        ({"net": "Net"}, "net"),
        ({"net": {"widths": nested(50)}}, "nested"),
        ({"net": {"widths": [10**6] * 4}}, "another architecture"),
        ({"net": {"widths": "wide"}}, "another architecture"),
        ({"net": {"unknown": 1}}, "another architecture"),
        ({"net": {"stem_stride": 0}}, "another architecture"),
        ({"net": None}, "another architecture"),
        ({"image_size": [4000, 4000], "num_channels": 1000, "mean": [0.5] * 1000, "std": [0.2] * 1000}, "too large"),
        ({"model": "no class"}, "model"),
        ({"hardware": []}, "hardware"),
        ({"anything": nested(300)}, "nested"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value[:20],
)
def test_a_card_that_cannot_be_right_is_refused(tensors, tmp_path, change, word):
    path = tmp_path / "w.safetensors"
    save_weights(path, tensors, CARD | change)
    assert_refused(run_main("evaluate", "--weights", path), str(path), word)
    save_checkpoint(tmp_path / "w.pt", {"model": tensors, "card": CARD | change})
    assert_refused(run_main("evaluate", "--weights", tmp_path / "w.pt"), word)


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "7", "null", '{"classes": 1' + " " * 2**21 + "}"])
def test_a_card_that_is_none_is_refused(tensors, tmp_path, text):
    from safetensors.torch import save

    path = tmp_path / "w.safetensors"
    path.write_bytes(save(tensors, metadata={"convsprint": text}))
    assert_refused(run_main("evaluate", "--weights", path), str(path), "card")


@pytest.mark.parametrize(
    "change", [{"history": {}}, {"optimizer": 3}, {"config": None}, {"random": {"python": 1}}, {"trained": {}}]
)
def test_a_checkpoint_whose_parts_do_not_fit_is_refused(run, tmp_path, change):
    state = load_checkpoint(run / "checkpoint.pt")
    (tmp_path / "run").mkdir()
    save_checkpoint(tmp_path / "run" / "checkpoint.pt", state | change)
    assert_refused(train(tmp_path / "run", run.parent / "noise.npz", "--resume"), "checkpoint.pt")


def test_pipes_are_refused_and_not_waited_for(tmp_path):
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    assert_refused(run_main("evaluate", "--weights", pipe), "not a regular file")
    assert_refused(run_main("train", "--dataset", f"npz:{pipe}", "--out", tmp_path / "run"), "not a regular file")
    result = run_main("predict", pipe, "--weights", ROOT / "weights" / "slim.safetensors")
    assert_refused(result, "pipe.png is not a regular file or folder")
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "photos" / name / "1.png")
        os.mkfifo(tmp_path / "photos" / name / "2.png")
    assert "2 of 4 files" in train_on_folder(tmp_path).stderr


def train_on_folder(folder: Path):
    return run_main("train", "--dataset", f"folder:{folder / 'photos'}", "--steps", 1, "--out", folder / "run")


def test_names_that_are_too_long(tmp_path):
    long = "x" * 300
    for arguments in (
        ("evaluate", "--weights", f"{long}.safetensors"),
        ("train", "--dataset", f"npz:{long}.npz", "--out", tmp_path / "run"),
        ("train", "--dataset", f"folder:{long}", "--out", tmp_path / "run"),
        ("train", "--dataset", "digits", "--out", tmp_path / long),
        ("train", "--dataset", "digits", "--init", long, "--out", tmp_path / "run"),
        ("report", long),
    ):
        assert_refused(run_main(*arguments), "ame too long")


def test_arrays_that_are_not_as_large_as_they_say(run, tmp_path):
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (3255000000, 32, 32, 3), }".ljust(117) + "\n"
    magic = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()
    with np.load(run.parent / "noise.npz") as arrays, zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:
        for name in arrays.files:
            if name == "train_x":
                archive.writestr("train_x.npy", magic + bytes(1000))
            else:
                with archive.open(f"{name}.npy", "w") as file:
                    np.lib.format.write_array(file, arrays[name])
    assert_refused(train(tmp_path / "run", tmp_path / "huge.npz"), "huge.npz", "damaged")
