"""Transfer: its sources, its targets."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up_images import count_fits, numbered_set, numbers_of, one_line, run_lab, write_noise
from PIL import Image

from conftest import ROOT
from lab.experiments.transfer import sources, transfer
from learning.weights import load_weights


def test_splits_of_a_seed_share_no_image():
    splits = [transfer.resplit(numbered_set(), seed) for seed in range(3)]
    for dataset in splits:
        assert not set(numbers_of(dataset.train)) & set(numbers_of(dataset.test))
        assert np.bincount(dataset.test.labels).tolist() == [100] * 4
    assert set(numbers_of(splits[0].test)) != set(numbers_of(splits[1].test))


def test_transfer_trains_a_source_on_the_other_classes_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sources, "PRETRAINING", replace(sources.PRETRAINING, steps=3, augment=0.0))
    fits = count_fits(monkeypatch)
    arguments = (
        "transfer",
        "--target",
        write_noise(tmp_path / "noise.npz"),
        "--classes",
        3,
        8,
        "--per-class",
        8,
        "--epochs",
        1,
        "--seeds",
        1,
        "--out",
        tmp_path,
    )
    assert run_lab(*arguments) == 0
    assert len(fits) == 4  # the source and three methods
    (source,) = tmp_path.glob("source-*.safetensors")
    assert load_weights(source)[1]["classes"] == ["0", "1", "2", "4", "5", "6", "7", "9"]
    assert run_lab(*arguments) == 0
    assert len(fits) == 4
    page = (tmp_path / "transfer.html").read_text()
    for method in transfer.METHODS:
        assert method in page
    capsys.readouterr()
    assert run_lab(*arguments[:3], "--classes", 3, 4, "--source", source, "--out", tmp_path) == 2
    assert "was trained on 4 of" in capsys.readouterr().err


def photographs(folder: Path, count: int = 20) -> Path:
    rng = np.random.default_rng(0)
    for number, name in enumerate(("cake", "pie")):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(100 * number, 100 * number + 100, (40 + i, 61, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.jpg")
    return folder


def test_transfer_to_a_folder_leaves_out_unreadable_images(tmp_path, capsys):
    folder = photographs(tmp_path / "desserts")
    (folder / "pie" / "bad.jpg").write_bytes(b"no image")
    (folder / "cake" / "notes.txt").write_text("sugar")
    assert run_lab("transfer", "--target", f"folder:{folder}", "--epochs", 1, "--seeds", 1, "--out", tmp_path / "out") == 0
    errors = capsys.readouterr().err
    assert f"1 of 41 files in {folder} are not readable images and are left out: pie/bad.jpg" in errors
    assert f"1 file in {folder} left out, hidden or without the ending of an image, as {folder / 'cake' / 'notes.txt'}" in errors
    page = (tmp_path / "out" / "transfer.html").read_text()
    assert "cake, pie" in page and "cifar8" in page
    assert "<td>8, all 12 a class" in page  # 20, without 4 for the test and 4 held out; 32 and 128 are not there
    (tmp_path / "one").mkdir()
    shutil.copytree(folder / "cake", tmp_path / "one" / "cake")
    (tmp_path / "one" / "pie").mkdir()
    (tmp_path / "one" / "pie" / "bad.jpg").write_bytes(b"no image")
    assert run_lab("transfer", "--target", f"folder:{tmp_path / 'one'}", "--out", tmp_path / "out") == 2
    assert "none of its 1 files can be read" in capsys.readouterr().err


def test_transfer_digits_from_mnist_without_either_network_or_data(tmp_path):
    assert (
        run_lab(
            "transfer", "--quick", "--per-class", 8, "--epochs", 5, "--seeds", 1, "--data-dir", tmp_path / "none", "--out", tmp_path
        )
        == 0
    )
    kept = {(k := json.loads(path.read_text()))["facts"]["method"]: k["test_accuracy"] for path in tmp_path.glob("parts/*.json")}
    assert kept["frozen features"] > kept["from scratch"]


@pytest.mark.parametrize(("name", "left_out"), [("cifar8", ("cat", "dog")), ("mnist", ())])
def test_sources_that_ship(name, left_out):
    path = ROOT / "weights" / f"{name}.safetensors"
    card = load_weights(path)[1]
    assert path.stat().st_size < 1_000_000
    assert not set(left_out) & set(card["classes"]) and len(card["classes"]) + len(left_out) == 10
    assert card["parameters"] < 200_000
    assert json.loads(path.with_suffix(".json").read_text()) == card


def test_torchvision_weights_that_cannot_be_had(tmp_path, monkeypatch, capsys):
    import torchvision

    def no_network(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models, "get_model", no_network)
    assert run_lab("transfer", "--target", "digits", "--source", "torchvision:resnet18", "--out", tmp_path) == 2
    assert "resnet18 are not here and cannot be downloaded (no route to host)" in one_line(capsys)
    assert run_lab("transfer", "--target", "digits", "--source", "torchvision:renset", "--out", tmp_path) == 2
    assert "no classifier 'renset'" in one_line(capsys)
