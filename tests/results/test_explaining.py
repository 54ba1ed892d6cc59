"""Grad-CAM: the right layer and place, the network left as it was, pictures beside images and in the report."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from config import InputError
from conftest import ROOT, assert_refused, random_split, run_main
from images.files import EXPLANATION
from images.own_images import load_folder
from learning.weights import save_weights
from model import Model, Net
from results import explaining, report
from results.explaining import Explainer

pytestmark = pytest.mark.skipif(find_spec("pytorch_grad_cam") is None, reason="requirements-serve.txt is not installed")
CPU = torch.device("cpu")
WEIGHTS = ROOT / "weights" / "fast85.safetensors"


def card(channels: int = 3, side: int = 32, classes: int = 2) -> dict:
    names = [f"class {i}" for i in range(classes)]
    values = {"mean": [0.5] * channels, "std": [0.25] * channels, "dataset": "made up", "net": {}}
    return {"num_channels": channels, "image_size": [side, side], "classes": names, **values}


class Corners(nn.Module):
    """Class 0 is a bright left half of the maps, class 1 a bright right half; whatever else is needed to be awkward."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2, 3, padding=1, bias=False)
        nn.init.constant_(self.conv.weight, 1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x -= 0.1  # in place: of the input
        x = self.pool(self.pool(torch.relu(self.conv(x))))
        half = x.shape[3] // 2
        return torch.stack([x[..., :half].mean((1, 2, 3)), x[..., half:].mean((1, 2, 3))], 1)


def layer_of(model: nn.Module, channels: int = 3, side: int = 32) -> str:
    return Explainer(model, card(channels, side), CPU).layer


def test_the_deepest_layer_with_maps_of_5x5():
    assert layer_of(Net(3, 2)) == "C1"  # the others have 3x3
    assert layer_of(Net(3, 2), side=64) == "C4"
    assert layer_of(Net(1, 2), channels=1, side=28) == "C1"
    assert layer_of(Model(3, 2)) == "C2"
    assert layer_of(Model(1, 2), channels=1, side=28) == "C1.small.0"  # the only one
    assert layer_of(Corners()) == "conv"  # its pooling runs twice
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    body = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    assert layer_of(nn.Sequential(*body, *head)) == "2"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [28, 32])
def test_heat_is_where_the_class_is(channels, side):
    images = np.zeros((3, side, side, channels), np.uint8)
    images[0, 8:20, 2:10] = 255
    images[1, 8:20, -10:-2] = 255
    heat = Explainer(Corners(channels), card(channels, side), CPU).heat(images, [0, 1, 0])
    assert heat.shape == (3, side, side) and heat.dtype == np.float32 and heat.min() >= 0 and heat.max() <= 1
    rows, columns = zip(*(np.unravel_index(each.argmax(), each.shape) for each in heat[:2]), strict=True)
    assert all(6 <= row <= 21 for row in rows) and columns[0] < side / 2 < columns[1]
    assert np.isfinite(heat[2]).all()


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_as_it_was(training):
    torch.manual_seed(0)
    model = Net(3, 2).train(training)
    model.C1.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    explainer = Explainer(model, card(), CPU)
    explainer.heat(np.full((40, 32, 32, 3), 200, np.uint8), [0] * 40)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in Net(3, 2).parameters()]
    for each in (model, explainer.model):
        assert not any(module._forward_hooks or module._backward_hooks for module in each.modules())
        assert all(p.grad is None for p in each.parameters())


def test_images_explained_together_are_as_alone(monkeypatch):
    torch.manual_seed(0)
    explainer = Explainer(Net(3, 2), card(), CPU)
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    monkeypatch.setattr(explaining, "BATCH", 2)
    together = explainer.heat(images, [0, 1, 0, 1, 0])
    alone = np.concatenate([explainer.heat(images[i : i + 1], [i % 2]) for i in range(5)])
    np.testing.assert_allclose(together, alone, atol=1e-3)
    assert explainer.heat(images[:0], []).shape == (0, 32, 32)


def test_pictures_are_large_and_bright_where_the_heat_is():
    heat = np.zeros((1, 28, 28), np.float32)
    heat[0, :14] = 1
    (picture,) = explaining.overlays(np.full((1, 28, 28, 1), 128, np.uint8), heat)
    assert picture.shape == (252, 252, 3) and picture[:100, ..., 1].mean() > 2 * picture[-100:, ..., 1].mean()
    assert explaining.enlarged(np.zeros((1, 300, 400, 3), np.uint8))[0].shape == (300, 400, 3)


class NoGradient(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).detach().mean((2, 3))[:, :2]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(3072, 2)), "no convolution layer with maps of 5x5"),
        (nn.Sequential(nn.Conv2d(3, 2, 9, 8), nn.Flatten(), nn.Linear(18, 2)), "no convolution layer with maps of 5x5"),
        (NoGradient(), "cannot explain this network"),
    ],
)
def test_networks_that_cannot_be_explained(model, words):
    with pytest.raises(InputError, match=words) as caught:
        Explainer(model, card(), CPU)
    assert "\n" not in str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "holidays" / "more").mkdir(parents=True)
    for name, side in (("cat.jpg", 50), ("cat.png", 32), ("more/dog.png", 40)):
        Image.fromarray(rng.integers(0, 256, (side, 64, 3), dtype=np.uint8)).save(tmp_path / "holidays" / name)
    (tmp_path / "holidays" / "broken.png").write_text("none")
    return tmp_path / "holidays"


def pictures(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob(f"*{EXPLANATION}"))


def test_predict_writes_pictures_beside_the_images_and_overwrites_none_unasked(folder):
    predict = ("predict", folder, "--weights", WEIGHTS, "--explain")
    result = run_main(*predict, "--json")
    assert result.returncode == 1 and "3 pictures by Grad-CAM written beside the images" in result.stderr
    expected = ["cat.jpg.grad-cam.png", "cat.png.grad-cam.png", "more/dog.png.grad-cam.png"]
    assert pictures(folder) == expected
    assert [entry["explanation"] for entry in json.loads(result.stdout)["predictions"]] == [f"{folder}/{name}" for name in expected]
    with Image.open(folder / expected[0]) as picture:
        assert picture.size == (512, 256)
    (folder / expected[0]).write_bytes(b"mine")
    refused = run_main(*predict)  # the pictures themselves are not taken for images
    assert_refused(refused, expected[0], "--overwrite")
    assert not refused.stdout and (folder / expected[0]).read_bytes() == b"mine"
    assert run_main(*predict, "--overwrite").returncode == 1
    assert pictures(folder) == expected and Image.open(folder / expected[0]).size == (512, 256)


def test_pictures_are_no_images_of_a_training(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("RGB", (32, 32), (80 * i, 0, 0)).save(tmp_path / name / f"{i}.png")
            Image.new("RGB", (64, 32)).save(tmp_path / name / f"{i}.png{EXPLANATION}")
    dataset = load_folder(tmp_path, 32)
    assert len(dataset.train.labels) + len(dataset.test.labels) == 6


def test_a_network_of_the_users_own_is_explained(folder, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\ndef Mine(num_channels, num_classes):\n    return nn.Sequential("
        "nn.Conv2d(num_channels, num_classes, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    )
    mine = nn.Sequential(nn.Conv2d(1, 2, 3))
    spec = {"model": f"{tmp_path / 'mine.py'}:Mine"}
    save_weights(tmp_path / "mine.safetensors", mine.state_dict(), card(1, 28) | spec)
    result = run_main("predict", folder / "cat.png", "--explain", "--weights", tmp_path / "mine.safetensors")
    assert result.returncode == 0, result.stderr
    assert pictures(folder) == ["cat.png.grad-cam.png"] and Image.open(folder / "cat.png.grad-cam.png").size == (504, 252)


def test_explain_says_what_it_lacks(folder, tmp_path, monkeypatch):
    assert_refused(run_main("predict", "--explain"), "pass some images")
    (tmp_path / "flat.py").write_text(
        "from torch import nn\ndef Flat(num_classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(3072, num_classes))\n"
    )
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3072, 2))
    save_weights(tmp_path / "flat.safetensors", flat.state_dict(), card() | {"model": f"{tmp_path / 'flat.py'}:Flat"})
    predict = ("predict", folder / "cat.png", "--explain")
    assert_refused(run_main(*predict, "--weights", tmp_path / "flat.safetensors"), "no convolution layer with maps of 5x5")
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    assert_refused(run_main(*predict, "--weights", WEIGHTS), "pip install -r requirements-serve.txt")
    assert pictures(folder) == []


def test_the_report_explains_its_mistakes_where_it_can(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "png", lambda figure, dpi=0: b"")  # the plots, which are others' to test, take their time
    train, test = random_split(64, classes=3, height=28, width=28, channels=1), random_split(48, 3, 28, 28, 1)
    np.savez(tmp_path / "grey.npz", train_x=train.images, train_y=train.labels, test_x=test.images, test_y=test.labels)
    train = ("train", "--dataset", f"npz:{tmp_path / 'grey.npz'}", "--steps", 2, "--augment", 0, "--report")
    result = run_main(*train, "--out", tmp_path / "with")
    assert result.returncode == 0 and "not explained" not in result.stderr, result.stderr
    page = (tmp_path / "with" / "report.html").read_text()
    assert page.count('class="heat" src="data:image/png') == 16 and page.count("Grad-CAM shows") == 1 and len(page) < 1_000_000
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    result = run_main(*train, "--out", tmp_path / "without")
    assert result.returncode == 0
    assert result.stderr.count("mistakes are not explained") == 1 and "requirements-serve.txt" in result.stderr
    page = (tmp_path / "without" / "report.html").read_text()
    assert page.count('<li class="mistake">') == 16 and "Grad-CAM" not in page and 'class="pair"' not in page
