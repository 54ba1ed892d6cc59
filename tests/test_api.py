"""`import convsprint` beside scripts and modules of anybody's."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import convsprint
from conftest import ROOT, run_main

TAKEN = ("config", "data", "images", "learning", "limits", "model", "results", "training", "transform", "utils")


@pytest.fixture(scope="module")
def colours() -> tuple[np.ndarray, np.ndarray]:
    """60 noisy images of 40x40 pixels; class k is bright in channel k."""
    rng, labels = np.random.default_rng(0), np.arange(60) % 3
    images = rng.integers(0, 90, (60, 40, 40, 3), dtype=np.uint8)
    images[np.arange(60), :, :, labels] += 120
    return images, labels


@pytest.fixture(scope="module")
def network(colours) -> convsprint.Network:
    images, labels = colours
    test = images[:12], labels[:12]
    return convsprint.fit(images[12:], labels[12:], classes=["red", "green", "blue"], test=test, epochs=6, augment=0.0)


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder that has nothing but this package, as what `pip install -e .` adds to the path; of the project it has no name."""
    folder = tmp_path_factory.mktemp("site-packages")
    (folder / "convsprint").symlink_to(ROOT / "convsprint")
    return folder


def run_script(folder: Path, installed: Path, text: str) -> subprocess.CompletedProcess:
    (folder / "script.py").write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run([sys.executable, "script.py"], cwd=folder, env=environment, text=True, capture_output=True)


@pytest.mark.slow
def test_the_example_of_the_page_beside_modules_of_the_same_names(installed, tmp_path):
    (example,) = re.findall(r"<!-- example -->\n```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text(), re.DOTALL)
    assert len(example.strip().splitlines()) <= 10
    Image.new("RGB", (300, 200), (10, 220, 10)).save(tmp_path / "photo.jpg")
    for name in TAKEN:
        (tmp_path / f"{name}.py").write_text(f"mine = '{name}'\n")
    text = f"import sys\nbefore = list(sys.path)\n{example}\nassert sys.path == before\n"
    for name in TAKEN:
        text += f"assert '{name}' not in sys.modules\nimport {name}\nassert {name}.mine == '{name}'\n"
    result = run_script(tmp_path, installed, text)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "['red', 'green']\n"
    # What it saved is what the command line reads.
    assert "green" in run_main("predict", tmp_path / "photo.jpg", "--weights", tmp_path / "colours.safetensors").stdout


@pytest.mark.slow
def test_a_script_that_has_imported_its_own_first(installed, tmp_path):
    (tmp_path / "utils").mkdir()
    (tmp_path / "utils" / "__init__.py").write_text("mine = 1\n")
    text = f"import utils\nimport convsprint\nconvsprint.load({str(ROOT / 'weights' / 'slim.safetensors')!r})\n"
    result = run_script(tmp_path, installed, text + "import sys\nassert sys.modules['utils'] is utils and utils.mine\n")
    assert result.returncode == 0, result.stderr


def test_without_the_repository_beside_it(tmp_path):
    (tmp_path / "site" / "convsprint").mkdir(parents=True)
    for path in (ROOT / "convsprint").glob("*.py"):
        (tmp_path / "site" / "convsprint" / path.name).write_bytes(path.read_bytes())
    result = run_script(tmp_path, tmp_path / "site", "import convsprint\n")
    assert result.stderr.splitlines()[-1].startswith("ImportError: convsprint needs the files of its repository")


def test_images_of_every_kind_are_predicted_as_on_the_command_line(network, colours, tmp_path):
    assert network.card["test_accuracy"] == network.evaluate(colours[0][:12], colours[1][:12]) > 0.9
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)
    turned = Image.fromarray(noise)
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    turned.save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(noise).save(tmp_path / "plain.png")
    network.save(tmp_path / "w.safetensors")
    again = convsprint.load(tmp_path / "w.safetensors", device="cpu")
    assert again.classes == ["red", "green", "blue"] and again.card["epochs"] == 6

    plain = again.probabilities(tmp_path / "plain.png")
    for same in (noise, [noise], noise[None], Image.fromarray(noise), str(tmp_path / "plain.png"), [Image.fromarray(noise)]):
        np.testing.assert_array_equal(again.probabilities(same), plain)
    with Image.open(tmp_path / "turned.png") as image:
        np.testing.assert_array_equal(again.probabilities(image), again.probabilities(tmp_path / "turned.png"))
    assert not np.allclose(again.probabilities(tmp_path / "turned.png"), plain)
    grey = noise[..., 0]
    np.testing.assert_array_equal(again.probabilities(grey), again.probabilities(np.repeat(grey[..., None], 3, 2)))
    clear = np.dstack([noise, np.zeros_like(grey)])  # wholly transparent: white
    np.testing.assert_array_equal(again.probabilities(clear), again.probabilities(np.full_like(noise, 255)))
    assert again.predict([]) == []
    for wrong in (noise / 255, noise.astype(np.float32), noise[None, None], [3], tmp_path / "none.png"):
        with pytest.raises(convsprint.InputError):
            again.predict(wrong)


def test_channels_first_are_refused_with_the_line_that_mends_it(network, colours):
    image = colours[0][4]
    for wrong, axes in ((image.transpose(2, 0, 1), "1, 2, 0"), (colours[0][:5].transpose(0, 3, 1, 2), "0, 2, 3, 1")):
        with pytest.raises(convsprint.InputError, match=rf"channels first: pass array.transpose\({axes}\)"):
            network.predict(wrong)
    with pytest.raises(convsprint.InputError, match=r"pass array.transpose\(1, 2, 0\)"):
        network.predict([image.transpose(2, 0, 1)])
    with pytest.raises(convsprint.InputError, match=r"pass images.transpose\(0, 2, 3, 1\)"):
        convsprint.fit(colours[0].transpose(0, 3, 1, 2), colours[1])
    assert len(network.predict([image[..., 0], image[..., 1], image[..., 2]])) == 3  # grey images, which is said by the list


def test_a_missing_folder_is_not_made(network, tmp_path):
    with pytest.raises(convsprint.InputError, match="w.safetensors: there is no folder"):
        network.save(tmp_path / "typo" / "w.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_replaced_only_when_asked(network, colours, tmp_path, capsys):
    def fit(**more) -> convsprint.Network:
        return convsprint.fit(*colours, model=Tiny(3), epochs=1, out=tmp_path / "run", **more)

    fit()
    for name in ("run.json", "model.onnx"):
        (tmp_path / "run" / name).write_text("of that run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(convsprint.InputError, match="run holds a run: pass overwrite=True or another out$"):
        fit(seed=1)
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    fit(seed=1, overwrite=True)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint.pt", "log.csv", "model.onnx"]
    assert "model.onnx in" in capsys.readouterr().err

    for taken in ("w.safetensors", "w.json"):
        (tmp_path / taken).write_text("another's")
        with pytest.raises(convsprint.InputError, match=f"{taken} exists: pass overwrite=True"):
            network.save(tmp_path / "w.safetensors")
        assert (tmp_path / taken).read_text() == "another's"
        (tmp_path / taken).unlink()
    network.save(tmp_path / "w.safetensors")
    network.save(tmp_path / "w.safetensors", overwrite=True)


def test_seeds_are_as_documented(colours):
    images, labels = colours
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    runs = [convsprint.fit(images, labels, epochs=1, seed=seed) for seed in (3, 3, 4)]
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected
    one, same, other = (run.probabilities(images) for run in runs)
    assert np.array_equal(one, same) and not np.array_equal(one, other)


class Tiny(nn.Module):
    """A network of the user's own."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.head(self.body(x))


def test_a_module_of_the_users_own(colours, tmp_path, capsys):
    images, labels = colours
    trained = convsprint.fit(images, labels, model=Tiny(3), epochs=4, max_lr=0.05, out=tmp_path, verbose=True)
    output, errors = capsys.readouterr()
    assert output.count("epoch ") == 4 and "only 6 validation images: accuracies on them are rough" in errors
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 5
    trained.save(tmp_path / "w.safetensors")
    again = convsprint.load(tmp_path / "w.safetensors")
    assert type(again.module).__name__ == "Tiny"
    np.testing.assert_array_equal(again.probabilities(images), trained.probabilities(images))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": np.zeros((60, 40, 40, 3))}, "float64"),
        ({"images": np.zeros((60, 20, 20, 3), np.uint8)}, "28 pixels or more"),
        ({"labels": np.arange(60) % 3 + 1, "classes": "abc"}, "labels go from 1 to 3: they must be 0 to 2"),
        ({"labels": [0] * 60}, "one class only"),
        ({"labels": [0, 1]}, "must be 60 integers"),
        ({"test": (np.zeros((5, 32, 32, 3), np.uint8), [0] * 5)}, "the test images have shape"),
        ({"preset": "none"}, "unknown preset"),
        ({"max_lr": -1}, "max_lr"),
        ({"epochs": "x"}, "epochs is x: it must be a number"),
        ({"bogus": 1}, "unknown setting bogus"),
        ({"steps": 4}, "epochs and steps are two ways"),
        ({"augment": 0.0, "flip": True}, "flip has no effect without augment"),
        ({"temperature": 3.0}, "temperature has no effect without teacher"),
        ({"image_size": 64}, "image_size is for folder:PATH alone"),
        ({"labels": np.arange(60) % 3 - 1}, r"from -1 to 1: they must be 0 to 2; pass np.unique\("),
        ({"labels": np.arange(60) % 2 * 2}, "from 0 to 2: they must be 0 to 1; pass"),
        ({"labels": np.array(["a", "b", "c"], object)[np.arange(60) % 3]}, "fix them with classes, labels = np.unique"),
        ({"classes": ["a", "a", "b"]}, "same name"),
        ({"test": (np.zeros((5, 40, 40, 3), np.uint8),)}, "must be a pair"),
        ({"model": nn.Flatten()}, "no parameters to train"),
        ({"preset": "finetune"}, "finetune requires trained weights"),
        ({"freeze": True}, "on random features: name trained weights with init"),
        ({"init": "none.safetensors"}, "none.safetensors: No such file"),
        ({"init": "none.safetensors", "model": Tiny(3)}, "leave out the module"),
        ({"init": Tiny(3)}, "init must be the path of trained weights"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(colours, change, words):
    with pytest.raises(convsprint.InputError, match=words):
        convsprint.fit(**{"images": colours[0], "labels": colours[1], "epochs": 1, **change})


def test_training_goes_on_from_trained_weights(colours, tmp_path):
    images, labels = colours
    first = convsprint.fit(images, labels, classes=["red", "green", "blue"], epochs=3)
    first.save(tmp_path / "first.safetensors")
    hardly = {"steps": 1, "max_lr": 1e-9, "ema_decay": 0.0, "augment": 0.0, "init": tmp_path / "first.safetensors"}
    again = convsprint.fit(images, labels, classes=["red", "green", "blue"], **hardly)
    before, after = first.module.state_dict(), again.module.state_dict()
    assert torch.equal(before["C1.0.weight"], after["C1.0.weight"]), "the stem is not whitened anew"
    torch.testing.assert_close(before["O.2.weight"], after["O.2.weight"], atol=1e-6, rtol=0)
    assert again.card["init"] == str(tmp_path / "first.safetensors") and again.card["mean"] == first.card["mean"]
    other = convsprint.fit(images, labels % 2, preset="finetune", **hardly | {"freeze": True})
    assert other.module.state_dict()["O.2.weight"].shape[0] == 2


def test_labels_that_are_none_of_the_classes_are_refused(colours):
    images, labels = colours
    network = convsprint.fit(images, labels, model=Tiny(3), epochs=1)
    for wrong in ([7] * 60, ["red"] * 60, [-1] * 60):
        with pytest.raises(convsprint.InputError, match="whole numbers from 0 to 2"):
            network.evaluate(images, wrong)
    for unclear in (images[0, ..., :1].repeat(5, 2), images[:4, :5, :, 0]):
        with pytest.raises(convsprint.InputError, match=r"no image.*smaller than 28 pixels: pass list\(array\)"):
            network.predict(unclear)
        assert len(network.predict(list(unclear))) == len(unclear)
    for nothing in (None, 5, np.zeros((0, 5, 3), np.uint8)):
        with pytest.raises(convsprint.InputError, match="is no image"):
            network.predict(nothing)
