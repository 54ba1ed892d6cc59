"""Training on a user's own images, as one command: defaults that fit, resuming by content, trained weights to start from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import main
from commands.train import train_defaults
from config import InputError
from learning.presets import PRESETS
from learning.weights import load_checkpoint, load_weights


def write_colours(root: Path, count: int, names: tuple[str, ...] = ("blue", "green", "red"), seed: int = 0) -> Path:
    """`count` images of each colour with noise, of differing sizes."""
    rng = np.random.default_rng(seed)
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = rng.integers(0, 90, (rng.integers(30, 46), rng.integers(30, 46), 3), dtype=np.uint8)
            pixels[..., {"red": 0, "green": 1, "blue": 2}[name]] += 120
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def run(*arguments: object) -> int:
    return main.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    """A folder of 10 images a class, and the folder of a finished training on it."""
    root = tmp_path_factory.mktemp("own")
    photos, out = write_colours(root / "photos", 10), root / "run"
    assert run("train", "--dataset", f"folder:{photos}", "--epochs", 4, "--out", out) == 0
    return photos, out


def test_the_command_of_the_readme(trained, capsys):
    _, out = trained
    card = json.loads((out / "model.json").read_text())
    assert card["test_accuracy"] > 0.6 and card["image_size"] == [32, 32]
    config = load_checkpoint(out / "checkpoint.pt")["config"]
    assert (config["epochs"], config["val_images"], config["batch_size"], config["image_size"]) == (4, 3, 8, 32)


@pytest.mark.slow
def test_two_images_a_class(tmp_path, capsys):
    photos = write_colours(tmp_path / "photos", 2, ("green", "red"))
    assert run("train", "--dataset", f"folder:{photos}", "--epochs", 2, "--out", tmp_path / "run", "--report") == 0
    output, errors = capsys.readouterr()
    assert "test accuracy" in output and "the training images stand in" in errors
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize("arguments", [("sprint", "--target", "0.01"), ("train", "--steps", "2")])
def test_small_arrays(tmp_path, monkeypatch, arguments, capsys):
    from commands import sprint

    labels = np.arange(30) % 3
    images = np.repeat(np.array([20, 120, 220], np.uint8)[labels], 28 * 28).reshape(30, 28, 28)
    np.savez(tmp_path / "own.npz", train_x=images, train_y=labels, test_x=images[:6] + 1, test_y=labels[:6])
    monkeypatch.setattr(sprint, "ROOT", tmp_path)
    more = ("--out", tmp_path) if arguments[0] == "train" else ()
    assert run(*arguments, "--dataset", f"npz:{tmp_path / 'own.npz'}", *more) == 0
    assert "chosen for 30 training images" in capsys.readouterr().err


def test_budget_that_the_user_sets_wins_over_the_presets():
    assert (train_defaults(["train", "--preset", "sprint", "--epochs", "2"]).config.steps) == 0
    assert (train_defaults(["train", "--preset=sprint"]).config.steps) == PRESETS["sprint"].train.steps
    with pytest.raises(InputError, match="--epochs and --steps are two ways"):
        train_defaults(["train", "--epochs", "2", "--steps=7"])
    assert train_defaults(["train", "--no-flip", "--max-lr", "1"]).given == ("flip", "max_lr")


def test_evaluate_takes_all_images_of_a_new_folder(trained, tmp_path, capsys):
    photos, out = trained
    new = write_colours(tmp_path / "new", 4, ("green", "red"), seed=1)
    weights = ("--weights", out / "model.safetensors", "--dataset")
    assert run("evaluate", *weights, f"folder:{new}") == 0
    output, errors = capsys.readouterr()
    assert "on the 8 test images" in output and "all 8 images of the folder are evaluated" in errors
    # Those that it was trained on do not count, wherever they lie now.
    shutil.copytree(photos, tmp_path / "moved")
    for place in (photos, tmp_path / "moved"):
        assert run("evaluate", *weights, f"folder:{place}") == 0
        output, errors = capsys.readouterr()
        assert "on the 6 test images" in output and "only the 6 others are evaluated" in errors
    # New images among which there are some that it was trained on.
    for i in range(10):
        shutil.copy(photos / "red" / f"{i}.png", new / "red" / f"copy{i}.png")
    assert run("evaluate", *weights, f"folder:{new}") == 0
    assert "8 of the 18 test images are exact copies of training images" in capsys.readouterr().err
    assert run("evaluate", *weights, f"folder:{write_unknown(tmp_path / 'unknown')}") == 2
    assert "classes that are unknown: emu; known are blue, green, red" in capsys.readouterr().err


def write_unknown(root: Path) -> Path:
    (root / "emu").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(root / "emu" / "0.png")
    return root


def test_resume_goes_on_with_moved_images_and_other_epochs(trained, tmp_path, monkeypatch, capsys):
    photos, out = trained
    shutil.copytree(out, tmp_path / "run")
    shutil.copytree(photos, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    command = ("train", "--dataset", "folder:moved", "--out", "run", "--resume")
    assert run(*command, "--epochs", 7) == 0
    errors = capsys.readouterr().err
    steps = load_checkpoint(out / "checkpoint.pt")["step"]
    assert f"from step {steps} (of {steps}) to step {steps // 4 * 7}: another OneCycle" in errors
    state = load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert state["step"] == steps // 4 * 7 and state["cycle_ends"] == [steps, steps // 4 * 7]
    assert run(*command) == 0  # finished, and known to be
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"] == steps // 4 * 7
    assert run(*command, "--epochs", 5) == 2
    assert "choose more --epochs" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["deleted", "swapped"])
def test_resume_refuses_other_images(trained, tmp_path, change, capsys):
    photos, out = trained
    shutil.copytree(out, tmp_path / "run")
    shutil.copytree(photos, tmp_path / "photos")
    if change == "deleted":
        for name in ("red", "green", "blue"):
            (tmp_path / "photos" / name / "3.png").unlink()
    else:
        for old, new in (("red", "x"), ("green", "red"), ("x", "green")):
            (tmp_path / "photos" / old).rename(tmp_path / "photos" / new)
    assert run("train", "--dataset", f"folder:{tmp_path / 'photos'}", "--out", tmp_path / "run", "--resume", "--epochs", 4) == 2
    assert {"deleted": "training split had 24 images and has", "swapped": "pixels are others"}[change] in capsys.readouterr().err


@pytest.mark.parametrize("freeze", [False, True])
def test_training_from_trained_weights(trained, tmp_path, freeze, capsys):
    photos, out = trained
    two = write_colours(tmp_path / "two", 5, ("green", "red"), seed=2)
    command = ["train", "--dataset", f"folder:{two}", "--init", out / "model.safetensors", "--out", tmp_path / "run"]
    assert run(*command, "--epochs", 2, *["--freeze"] * freeze) == 0
    assert "its last layer is replaced by a new one" in capsys.readouterr().err
    (before, old_card), (after, card) = (
        load_weights(out / "model.safetensors"),
        load_weights(tmp_path / "run" / "model.safetensors"),
    )
    features = [name for name in before if not name.startswith("O.")]
    assert all(torch.equal(before[name], after[name]) for name in features) == freeze
    assert torch.equal(before["C1.0.weight"], after["C1.0.weight"])  # the stem is not whitened anew
    assert after["O.2.weight"].shape[0] == 2
    assert (card["mean"], card["std"], card["init"]) == (old_card["mean"], old_card["std"], str(out / "model.safetensors"))
    for init in (tmp_path / "none.safetensors", "efficientnet_lite0"):
        assert run(*command[:4], init, *command[5:], "--epochs", 3, *["--freeze"] * freeze, "--resume") == 2
        assert f"began with {out / 'model.safetensors'}, not with {init}" in capsys.readouterr().err
    assert run(*command, "--epochs", 3, *["--freeze"] * freeze, "--resume") == 0


def test_trained_weights_of_the_same_classes_keep_their_last_layer(trained, tmp_path, capsys):
    photos, out = trained
    again = ("train", "--dataset", f"folder:{photos}", "--init", out / "model.safetensors", "--out", tmp_path)
    assert run(*again, "--steps", 1, "--max-lr", 1e-9, "--ema-decay", 0) == 0
    assert "new one" not in capsys.readouterr().err
    before, after = load_weights(out / "model.safetensors")[0], load_weights(tmp_path / "model.safetensors")[0]
    torch.testing.assert_close(before["O.2.weight"], after["O.2.weight"], atol=1e-6, rtol=0)
    assert run("train", "--dataset", f"folder:{photos}", "--freeze", "--out", tmp_path / "other") == 2
    assert "--init" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--epochs", "inf"], "epochs is inf"),
        (["--epochs", "1e30"], "1,000,000 at most"),
        (["--image-size", 100_000], "from 28 to 2048"),
        (["--threads", -3], "--threads is -3"),
        (["--out", ""], "an argument is empty"),
        (["--out="], "an argument is empty"),
    ],
)
def test_absurd_numbers_are_refused_before_anything_is_read(arguments, words, tmp_path, capsys):
    data = write_colours(tmp_path / "photos", 4)
    assert main.main(["train", "--dataset", f"folder:{data}", *map(str, arguments)]) == 2
    assert words in capsys.readouterr().err


def test_what_a_training_starts_from_is_not_removed(tmp_path, capsys):
    data, out = write_colours(tmp_path / "photos", 6), tmp_path / "run"
    command = ["train", "--dataset", f"folder:{data}", "--steps", "2", "--out", str(out)]
    assert main.main(command) == 0
    weights = out / "model.safetensors"
    before = weights.read_bytes()
    assert main.main([*command, "--overwrite", "--init", str(weights)]) == 2
    assert "lies in the folder whose run --overwrite removes" in capsys.readouterr().err
    assert weights.read_bytes() == before
    assert main.main(["export", str(weights), "--out", str(weights)]) == 2
    photo = next(data.rglob("*.png"))
    kept = photo.read_bytes()
    assert main.main(["predict", str(photo), "--weights", str(weights), "--sheet", str(photo)]) == 2
    assert "pass --overwrite" in capsys.readouterr().err
    assert (weights.read_bytes(), photo.read_bytes()) == (before, kept)


def test_what_the_accuracies_leave_open_is_said(trained, tmp_path, capsys):
    photos, out = trained
    capsys.readouterr()
    command = ("train", "--dataset", f"folder:{photos}", "--steps", 1)
    assert run(*command, "--out", tmp_path / "some") == 0
    errors = capsys.readouterr().err
    assert "only 3 validation and 6 test images: accuracies on them are rough, one image is worth 33.3 and 16.7 points" in errors
    assert "with 32x32 pixels in RGB, to which 30 of 30 were scaled or converted" in errors
    assert run(*command, "--val-images", 0, "--out", tmp_path / "none") == 0
    errors = capsys.readouterr().err
    assert "no validation images: the training images are used instead" in errors and "only 6 test images" in errors


def test_classes_of_the_teacher_of_a_preset(trained, tmp_path, capsys):
    photos, out = trained
    command = ("train", "--dataset", f"folder:{photos}", "--preset", "slim", "--steps", 1, "--out", tmp_path)
    capsys.readouterr()
    assert run(*command, "--init", out / "model.safetensors") == 2
    assert "`train --teacher` with no file after it" in capsys.readouterr().err
    assert run(*command, "--init", out / "model.safetensors", "--teacher") == 0


def test_resume_with_classes_of_other_names(trained, tmp_path, capsys):
    photos, out = trained
    shutil.copytree(out, tmp_path / "run")
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "red").rename(tmp_path / "photos" / "rot")
    capsys.readouterr()
    assert run("train", "--dataset", f"folder:{tmp_path / 'photos'}", "--out", tmp_path / "run", "--resume") == 2
    output, errors = capsys.readouterr()
    assert "was made with other classes (" in errors and output == ""  # no table either
    assert run("train", "--dataset", "digits", "--out", tmp_path / "run", "--resume") == 2
    output, errors = capsys.readouterr()
    assert "was made with other data: the training split had" in errors and output == ""


@pytest.mark.slow
def test_a_second_sprint_says_what_it_replaces(trained, tmp_path, monkeypatch, capsys):
    from commands import sprint

    photos, _ = trained
    monkeypatch.setattr(sprint, "ROOT", tmp_path)
    command = ("sprint", "--target", 0.01, "--dataset", f"folder:{photos}", "--report")
    capsys.readouterr()
    for count in (0, 1):
        assert run(*command) in (0, 3)
        output, errors = capsys.readouterr()
        assert output.count("(those of an earlier sprint are replaced)") == count
        assert errors.count("sprint-photos.onnx in") == errors.count("holds another run") == count
        (tmp_path / "weights" / "sprint-photos.onnx").touch()
        (tmp_path / "weights" / "other.onnx").touch()
    assert "--overwrite" not in errors and "other.onnx" not in errors  # sprint has no such option


def test_an_old_checkpoint_keeps_the_order_of_its_classes(tmp_path, monkeypatch, capsys):
    from images import own_images

    photos = write_colours(tmp_path / "photos", 6, ("green", "red"))
    for old, new in (("green", "10"), ("red", "9")):
        (photos / old).rename(photos / new)
    monkeypatch.chdir(tmp_path)
    command = ("train", "--dataset", "folder:photos", "--steps", 12, "--out", "run")
    with monkeypatch.context() as patch:
        patch.setattr(own_images, "natural", str)  # as it was once
        assert run(*command) == 0
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt")["card"]["classes"] == ["10", "9"]
    capsys.readouterr()
    assert run(*command, "--resume", "--steps", 16) == 0
    state = load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert state["card"]["classes"] == ["10", "9"] and state["step"] == 16
    assert run("evaluate", "--weights", "run/model.safetensors") == 0
    output = capsys.readouterr().out
    accuracy = load_weights(tmp_path / "run" / "model.safetensors")[1]["test_accuracy"]
    assert f"accuracy {accuracy:.2%}" in output.splitlines()[-1]
    photos.rename(tmp_path / "moved")
    for command in (("evaluate", "--weights"), ("export",)):
        assert run(*command, "run/model.safetensors") == 2
        assert "trained on folder:photos, which is not here: say what to evaluate on with --dataset" in capsys.readouterr().err
