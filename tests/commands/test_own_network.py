"""A network of the user's own, from train --model to everything that comes after."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import assert_refused, run_main
from learning.weights import load_checkpoint, load_weights

# Imports a module with the name of one of the project's, does not whiten, has no C1..C4 and takes 40 pixels alone.
NETWORK = """
import torch
from torch import nn
from model import width

class Mine(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, width, 5, 4, 2), nn.BatchNorm2d(width), nn.ReLU())
        self.scale = nn.Parameter(torch.ones(width, 1, 1))
        self.head = nn.Linear(width * 10 * 10, num_classes)

    def forward(self, x):
        assert x.shape[2] == 40
        return self.head((self.features(x) * self.scale).flatten(1))

class Tuple(Mine):
    def forward(self, x):
        return (super().forward(x), x) if self.training else super().forward(x)

class Keeping(Mine):
    # Keeps what its forward pass gives, as for Grad-CAM, has a layer under two names, and an old weight_norm.
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.also = self.features[1]
        self.features[0] = nn.utils.weight_norm(self.features[0])
        self.seen = []

    def forward(self, x):
        self.seen = [{"features": self.features(x)}]
        return self.head((self.seen[0]["features"] * self.scale).flatten(1))

class Stating(Mine):
    def get_extra_state(self):
        return {"a": 1}

    def set_extra_state(self, state):
        pass

class Nothing(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.num_classes = num_classes

    def forward(self, x):
        return x.mean((1, 2, 3))[:, None].expand(-1, self.num_classes)
"""


def write_colours(path: Path, classes: tuple[str, ...] = ("red", "green", "blue")) -> Path:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % len(classes)
    images = rng.integers(0, 90, (60, 40, 40, 3), dtype=np.uint8)
    images[np.arange(60), :, :, labels] += 120
    np.savez(path, train_x=images, train_y=labels, test_x=images[:12], test_y=labels[:12], classes=np.array(classes))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path, tuple]:
    """The folder of the network's file, that of a run of it, and the command that trained it."""
    root = tmp_path_factory.mktemp("own")
    (root / "code").mkdir()
    (root / "code" / "mine.py").write_text(NETWORK)
    (root / "code" / "model.py").write_text("width = 6\n")
    data = write_colours(root / "colours.npz")
    command = ("train", "--model", f"{root / 'code' / 'mine.py'}:Mine", "--dataset", f"npz:{data}", "--out", root / "run")
    result = run_main(*command, "--epochs", 6, "--report", "--tensorboard")
    assert result.returncode == 0, result.stderr
    assert "Linear" in result.stdout  # the table is of this network
    return root, root / "run", command


def test_card_and_report(trained):
    root, out, _ = trained
    tensors, card = load_weights(out / "model.safetensors")
    assert card["model"] == f"{root / 'code' / 'mine.py'}:Mine" and len(card["model_sha256"]) == 64
    assert card["parameters"] == 3 * 6 * 25 + 6 + 12 + 6 + 600 * 3 + 3
    assert tensors["features.0.weight"].shape == (6, 3, 5, 5)
    assert card["test_accuracy"] > 0.9
    page = (out / "report.html").read_text()
    assert "Training of Mine" in page and "receptive field" in page
    assert list((out / "tensorboard").iterdir())


def test_evaluate_and_predict(trained, tmp_path):
    root, out, _ = trained
    data = f"npz:{root / 'colours.npz'}"
    card = load_weights(out / "model.safetensors")[1]
    result = run_main("evaluate", "--weights", out / "model.safetensors", "--dataset", data)
    assert f"accuracy {card['test_accuracy']:.2%}," in result.stdout, result.stderr
    Image.new("RGB", (90, 70), (220, 30, 30)).save(tmp_path / "red.png")
    for weights in ("model.safetensors", "checkpoint.pt"):
        result = run_main("predict", tmp_path / "red.png", "--weights", out / weights, "--json")
        assert json.loads(result.stdout)["predictions"][0]["top"][0]["class"] == "red", result.stderr


def test_a_network_that_keeps_tensors_and_shares_weights(trained, tmp_path):
    root, _, command = trained
    command = [*command[:2], f"{root / 'code' / 'mine.py'}:Keeping", *command[3:-1], tmp_path / "run"]
    result = run_main(*command, "--epochs", 6, "--max-lr", "auto", "--report")
    assert result.returncode == 0, result.stderr
    tensors, card = load_weights(tmp_path / "run" / "model.safetensors")
    assert torch.equal(tensors["features.1.weight"], tensors["also.weight"])
    assert card["test_accuracy"] > 0.9
    result = run_main("evaluate", "--weights", tmp_path / "run" / "model.safetensors", "--dataset", f"npz:{root / 'colours.npz'}")
    assert f"accuracy {card['test_accuracy']:.2%}," in result.stdout, result.stderr


def test_a_state_that_is_no_tensor_is_refused_at_once(trained, tmp_path):
    root, _, command = trained
    result = run_main(*command[:2], f"{root / 'code' / 'mine.py'}:Stating", *command[3:-1], tmp_path / "run")
    assert_refused(result, "Stating has _extra_state in its state, which is no tensor")


def test_resume_and_go_on_from_its_weights(trained, tmp_path):
    root, out, command = trained
    folder = shutil.copytree(out, tmp_path / "run")
    result = run_main(*command, "--out", folder, "--resume", "--epochs", 8)
    assert result.returncode == 0, result.stderr
    assert load_checkpoint(folder / "checkpoint.pt")["step"] > load_checkpoint(out / "checkpoint.pt")["step"]
    two = write_colours(tmp_path / "two.npz", ("one", "two"))
    init = ("--init", out / "model.safetensors", "--freeze")
    result = run_main("train", "--dataset", f"npz:{two}", *init, "--epochs", 1, "--out", tmp_path / "two")
    assert "its last layer is replaced" in result.stderr
    before, after = load_weights(out / "model.safetensors")[0], load_weights(tmp_path / "two" / "model.safetensors")[0]
    assert torch.equal(before["features.0.weight"], after["features.0.weight"]) and after["head.weight"].shape == (2, 600)


def test_weights_whose_file_has_moved(trained, tmp_path):
    root, out, _ = trained
    code = shutil.copytree(root / "code", tmp_path / "code")
    with open(code / "mine.py", "a") as file:
        file.write("# changed\n")
    data = ("--dataset", f"npz:{root / 'colours.npz'}")
    (root / "code").rename(root / "gone")
    try:
        missing = run_main("evaluate", "--weights", out / "model.safetensors", *data)
        assert_refused(missing, "needs the network", "there is no file", "mine.py", "--model FILE.py:CLASS")
        moved = run_main("evaluate", "--weights", out / "model.safetensors", *data, "--model", f"{code / 'mine.py'}:Mine")
        assert moved.returncode == 0 and "has changed since" in moved.stderr
        page = ("report", out, "--page", "--out", tmp_path / "page")
        assert_refused(run_main(*page), "--model FILE.py:CLASS")
        assert run_main(*page, "--model", f"{code / 'mine.py'}:Mine").returncode == 0
        other = run_main("evaluate", "--weights", out / "model.safetensors", *data, "--model", f"{code / 'mine.py'}:Nothing")
        assert_refused(other, "does not fit", "mine.py:Nothing")
    finally:
        (root / "gone").rename(root / "code")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Tuple", "makes no logits of shape (2, 3) to train by"),
        ("Nothing", "has no parameters to train"),
        ("None", "there is no 'None'"),
    ],
)
def test_networks_that_cannot_be_trained(trained, tmp_path, name, words):
    root, _, command = trained
    result = run_main(*command[:2], f"{root / 'code' / 'mine.py'}:{name}", *command[3:5], "--out", tmp_path / "run")
    assert_refused(result, words)
