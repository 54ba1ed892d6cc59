"""Predictions of image files and folders, the accuracy of weights, contact sheets: as a user asks for them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tqdm.utils import disp_len

import main
from config import InputError
from conftest import RNG, ROOT, assert_refused, run_main
from images import data, drawings
from images.files import printable, read_image
from learning.inference import TrainedNetwork, predict_logits
from learning.weights import save_weights
from model import Net
from results import commands
from results.predictions import Table, find_images

CPU = torch.device("cpu")


def make_weights(path: Path, dataset: str, classes: list[str], channels: int = 3, side: int = 32) -> Path:
    """A network that was not trained, whose logits are spread as a trained one's."""
    torch.manual_seed(0)
    model = Net(channels, len(classes))
    torch.nn.init.normal_(model.O[2].weight)
    save_weights(
        path,
        model.state_dict(),
        {
            "dataset": dataset,
            "classes": classes,
            "num_channels": channels,
            "image_size": [side, side],
            "net": {},
            "mean": [0.5] * channels,
            "std": [0.25] * channels,
            "test_accuracy": 0.1234,
        },
    )
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return make_weights(tmp_path_factory.mktemp("weights") / "w.safetensors", "cifar10", list(drawings.CLASSES))


@pytest.fixture
def folder(tmp_path) -> Path:
    """20 images in a folder and one within, a text, a hidden file and a damaged image."""
    (tmp_path / "images" / "more" / "deep").mkdir(parents=True)
    (tmp_path / "images" / ".hidden").mkdir()
    for i in range(20):
        image = Image.fromarray(RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        image.save(tmp_path / "images" / ("more/deep" if i % 2 else "") / f"{i:02}.png")
    image.save(tmp_path / "images" / ".hidden" / "x.png")
    (tmp_path / "images" / "notes.txt").write_text("hello")
    (tmp_path / "images" / "10.png").write_bytes((tmp_path / "images" / "12.png").read_bytes()[:1000])
    return tmp_path / "images"


def test_folder_is_predicted_and_what_cannot_be_is_named(weights, folder, tmp_path):
    (tmp_path / "grey.png").write_bytes(b"")
    Image.new("L", (64, 90)).save(tmp_path / "grey.png")
    (tmp_path / "empty").mkdir()
    result = run_main("predict", tmp_path / "grey.png", folder, tmp_path / "none.png", tmp_path / "empty", "--weights", weights)
    assert result.returncode == 1, result.stderr
    head, *rows = result.stdout.splitlines()
    assert head.split() == ["image", "1", "2", "3", "4", "5"]
    names = [f"{i:02}.png" for i in range(0, 20, 2) if i != 10] + [f"more/deep/{i:02}.png" for i in range(1, 20, 2)]
    assert [row.split()[0] for row in rows] == [str(tmp_path / "grey.png"), *(str(folder / name) for name in names)]
    assert all(row.count("%") == 5 for row in rows)
    assert len({row.index("%") for row in rows}) == 1  # aligned
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 3
    for name in ("none.png", "empty holds no image", "10.png is not a readable image"):
        assert any(name in error for error in errors)
    assert "grey.png: converted from L to RGB" in result.stderr
    assert "grey.png: resized from 64x90 to 32x32" in result.stderr
    assert f"2 files and folders in {folder} left out, hidden or without the ending of an image" in result.stderr
    assert "20 images in" in result.stderr


def test_json_is_what_the_network_says(weights, folder):
    result = run_main("predict", "--json", "--top", 3, "--weights", weights, folder)
    assert result.returncode == 1
    report = json.loads(result.stdout)
    assert len(report["predictions"]) == 19 and len(report["faults"]) == 1 and "10.png" in report["faults"][0]
    network = TrainedNetwork.load(weights, CPU)
    for entry in report["predictions"]:
        image, _ = read_image(Path(entry["path"]), 3, 32, 32)
        probabilities = predict_logits(
            network.model, np.stack([image]), network.card["mean"], network.card["std"], CPU, torch.float32
        ).softmax(1)[0]
        by_class = dict(zip(network.card["classes"], probabilities.tolist(), strict=True))
        values = [p["probability"] for p in entry["top"]]
        assert len(values) == 3 and values == sorted(values, reverse=True)
        for p in entry["top"]:  # bf16 where the processor has it
            assert p["probability"] == pytest.approx(by_class[p["class"]], abs=0.06)


def test_many_files_keep_their_order_and_batches_change_nothing(weights, tmp_path):
    """More than the reading threads may be ahead of the network, with damaged ones between."""
    paths = []
    for i in range(700):
        paths.append(tmp_path / f"{i}.bmp")
        if i % 97 == 5:
            paths[-1].write_bytes(b"damaged")
        else:
            Image.new("RGB", (32, 32), tuple(int(c) for c in RNG.integers(0, 256, 3))).save(paths[-1])
    network = TrainedNetwork.load(weights, CPU)
    network.precision = torch.float32
    predictions = list(network.predict_files(paths, top=1))
    assert [p.path for p in predictions] == paths
    assert [bool(p.fault) for p in predictions] == [i % 97 == 5 for i in range(700)]
    for prediction in predictions[::50]:
        if prediction.fault:
            continue
        alone = network.most_probable(network.logits(np.stack([prediction.image]), torch.float32), top=1)[0]
        assert prediction.top[0] == (alone[0][0], pytest.approx(alone[0][1], abs=1e-4))


def test_nothing_readable_is_status_1_and_no_traceback(weights, tmp_path):
    (tmp_path / "notes.png").write_text("not an image")
    result = run_main("predict", "--weights", weights, tmp_path / "notes.png")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1 and "notes.png is not a readable image" in result.stderr


@pytest.mark.slow
def test_reader_who_has_enough_is_no_error(weights, folder):
    process = subprocess.Popen(
        [sys.executable, ROOT / "main.py", "predict", "--weights", weights, folder], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()  # as `| head -0`
    errors = process.stderr.read().decode()
    process.wait()
    assert "Traceback" not in errors and "BrokenPipe" not in errors, errors


def test_without_the_data_set_drawings_are_predicted_and_it_is_said(weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "has_cifar10", lambda root: False)
    arguments = ["predict", "--weights", str(weights), "--data-dir", str(tmp_path), "--sheet", str(tmp_path / "sheet.png")]
    assert main.main(arguments) == 0
    output, errors = capsys.readouterr()
    assert output.count("drawing of ") == 20 and "of 20 drawings recognised" in output
    assert "drawings of the project's own" in errors and "12.34%" in errors and str(tmp_path) in errors
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG" and sheet.width > 600 and len(sheet.convert("RGB").getcolors(1 << 24)) > 1000
    assert main.main([*arguments[:-2], "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    tops = [entry["top"][0]["class"] == entry["true"] for entry in report["predictions"]]
    assert report["correct"] == sum(tops) and len(tops) == 20


def test_drawings_are_two_of_each_class_and_always_the_same():
    images, labels = drawings.render()
    assert images.shape == (20, 32, 32, 3) and images.dtype == np.uint8
    assert np.bincount(labels).tolist() == [2] * 10
    assert np.array_equal(images, drawings.render()[0])
    assert len({image.tobytes() for image in images}) == 20


def test_without_images_the_accuracy_on_the_test_set(shapes_npz, tmp_path):
    name = f"npz:{shapes_npz}"
    weights = make_weights(tmp_path / "w.safetensors", name, list("0123456789"))
    network, dataset = TrainedNetwork.load(weights, CPU), data.load(name, tmp_path)
    loss, accuracy = network.evaluate(dataset)
    result = run_main("predict", "--weights", weights, "--sheet", tmp_path / "sheet.png")
    assert result.returncode == 0, result.stderr
    assert result.stdout == (
        f"accuracy {accuracy:.2%}, loss {loss:.4f} on the 500 test images of {name}; the weights' card says 12.34%\n"
    )
    assert "contact sheet of 100 images" in result.stderr
    report = json.loads(run_main("predict", "--weights", weights, "--json").stdout)
    assert report == {"dataset": name, "images": 500, "accuracy": accuracy, "loss": loss, "card_accuracy": 0.1234}
    np.savez(tmp_path / "named.npz", **np.load(shapes_npz), classes=list("abcdefghij"))
    assert_refused(
        run_main("predict", "--weights", weights, "--dataset", f"npz:{tmp_path / 'named.npz'}"), "classes differ", "a, b"
    )


def test_default_weights_that_are_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(commands, "ROOT", tmp_path)
    missing = tmp_path / "weights" / "accurate.safetensors"
    monkeypatch.setattr(commands, "DEFAULT_WEIGHTS", missing)
    with pytest.raises(InputError, match="accurate.safetensors are missing: .*run.sh sprint"):
        commands.load_network(missing, "cpu")
    missing.parent.mkdir()
    (missing.parent / "slim.safetensors").touch()
    with pytest.raises(InputError, match="--weights .weights/slim.safetensors"):
        commands.load_network(missing, "cpu")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has an accelerator")
@pytest.mark.parametrize("device", ["cuda", "xpu", "mps"])
def test_device_that_is_not_there(weights, device, capsys):
    assert main.main(["predict", "--weights", str(weights), "--device", device]) == 2
    assert f"no {device} device" in capsys.readouterr().err


def test_sheet_that_cannot_be_written_is_said_before_anything_is_predicted(weights, folder, capsys):
    assert main.main(["predict", "--weights", str(weights), str(folder), "--sheet", str(weights / "s.png")]) == 2
    output, errors = capsys.readouterr()
    assert output == "" and "cannot write" in errors


def test_sheet_is_not_written_among_the_images(weights, folder, tmp_path, monkeypatch, capsys):
    before = sorted(folder.rglob("*"))
    monkeypatch.chdir(folder)
    for images, sheet in ((folder, folder / "sheet.png"), (Path("."), Path("sheet.png")), (folder, folder / "new" / "sheet.png")):
        assert main.main(["predict", str(images), "--weights", str(weights), "--sheet", str(sheet)]) == 2
        assert "it would be taken for an image there the next time" in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before
    assert main.main(["predict", str(folder / "00.png"), "--weights", str(weights), "--sheet", str(tmp_path / "sheet.png")]) == 0


def test_grey_weights_take_colour_files(tmp_path, folder):
    weights = make_weights(tmp_path / "grey.safetensors", "digits", list("0123456789"), channels=1, side=28)
    report = json.loads(run_main("predict", "--json", "--weights", weights, folder / "00.png").stdout)
    assert report["predictions"][0]["changes"] == ["converted from RGB to L", "resized from 32x32 to 28x28"]


def test_find_images_takes_named_files_as_they_are(tmp_path, capsys):
    (tmp_path / "odd.name").touch()
    (tmp_path / "a").mkdir()
    for name in ("B.PNG", "a.jpeg", "c.md"):
        (tmp_path / "a" / name).touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    found, faults = find_images([tmp_path / "odd.name", tmp_path / "a"])
    assert found == [tmp_path / "odd.name", tmp_path / "a" / "B.PNG", tmp_path / "a" / "a.jpeg"] and not faults
    assert "c.md" in capsys.readouterr().err


def test_names_are_shown_on_one_line():
    assert printable("a\nb\x1b[31m\udcff é.png") == "a\\nb\\x1b[31m\\udcff é.png"


def test_paths_that_are_all_missing_are_bad_input(weights, tmp_path):
    (tmp_path / "empty").mkdir()
    result = run_main("predict", tmp_path / "none.jpg", tmp_path / "empty", "--weights", weights)
    assert (result.returncode, result.stdout) == (2, "")
    assert "does not exist" in result.stderr and "holds no image" in result.stderr


def test_names_of_wide_characters_are_aligned_on_a_terminal():
    table = Table(["猫.png", "long name.png"], ["犬", "dogs", "🐱 cat"])
    rows = [table.row("猫.png", [("犬", 0.5), ("dogs", 0.25)]), table.row("long name.png", [("🐱 cat", 0.5), ("dogs", 0.25)])]
    widths = [[disp_len(part) for part in row.split("%")] for row in rows]
    assert widths[0] == widths[1]
