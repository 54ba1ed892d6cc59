"""Exported files: what they answer, what they say of themselves, what a program needs to use them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import DATA, ROOT, assert_refused, needs_cifar10, run_main
from images.files import prepare
from learning.inference import TrainedNetwork
from learning.weights import load_weights, save_weights
from results import export

# Not imported here: that takes a second of each of pytest's processes, of which one runs these tests.
pytestmark = pytest.mark.skipif(not find_spec("onnxscript"), reason="requirements-export.txt is not installed")

SCRIPT = (ROOT / "docs" / "own-images.md").read_text().partition("<!-- onnx -->\n```python\n")[2].partition("```")[0]


def write_colours(path: Path, count: int = 120) -> Path:
    rng, labels = np.random.default_rng(0), np.arange(count) % 3
    images = rng.integers(0, 120, (count, 32, 32, 3), dtype=np.uint8)
    images[np.arange(count), :, :, labels] += 100
    classes = np.array(["red", "green", "blue"])
    np.savez(path, train_x=images, train_y=labels, test_x=images[:30], test_y=labels[:30], classes=classes)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("export")
    data = write_colours(root / "colours.npz")
    assert run_main("train", "--dataset", f"npz:{data}", "--steps", 60, "--augment", 0, "--out", root / "run").returncode == 0
    return root / "run" / "model.safetensors"


@pytest.fixture(scope="module")
def onnx_file(weights) -> Path:
    result = run_main("export", weights)
    assert result.returncode == 0, result.stderr
    assert "100.00% equal answers" in result.stdout and "images a second" in result.stdout
    return weights.with_suffix(".onnx")


@pytest.mark.slow
def test_images_of_any_size_are_answered_as_on_the_command_line(weights, onnx_file):
    network = TrainedNetwork.load(weights, torch.device("cpu"))
    run = export.runner(onnx_file, "onnx")
    rng = np.random.default_rng(0)
    for height, width in ((32, 32), (90, 120), (300, 70), (20, 25), (33, 32)):
        photo = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((width, height))
        ours = network.logits(prepare(photo, 3, 32, 32)[None].copy(), torch.float32).softmax(1).numpy()
        np.testing.assert_allclose(run(np.asarray(photo)[None]), ours, atol=0.01)  # Pillow rounds between rows and columns
    assert run(np.zeros((0, 40, 40, 3), np.uint8)).shape == (0, 3)


def test_the_file_says_what_it_is(weights, onnx_file):
    import onnxruntime

    about = onnxruntime.InferenceSession(onnx_file).get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == ["red", "green", "blue"]
    assert json.loads(about["card"]) == load_weights(weights)[1]


@pytest.mark.slow  # all 10,000 test images, four times
@needs_cifar10
def test_a_network_that_ships_keeps_its_accuracy(tmp_path):
    size = {}
    for format, least_equal in (("onnx", "100.00%"), ("int8", "9")):
        out = tmp_path / format
        result = run_main("export", ROOT / "weights" / "fast85.safetensors", "--format", format, "--out", out, "--data-dir", DATA)
        assert result.returncode == 0, result.stderr
        found = re.search(
            r"accuracy ([\d.]+)% on 10,000 test images, ([\d.]+)% by the original; (\S+) equal answers", result.stdout
        )
        assert abs(float(found[1]) - float(found[2])) <= (0.5 if format == "int8" else 0)
        assert found[3].startswith(least_equal)
        size[format] = out.stat().st_size
    assert size["onnx"] > 3 * size["int8"]


def test_a_program_needs_onnxruntime_alone(onnx_file, tmp_path):
    Image.new("RGB", (200, 100), (10, 220, 10)).save(tmp_path / "photo.jpg")
    (tmp_path / "model.onnx").write_bytes(onnx_file.read_bytes())
    assert 0 < len(SCRIPT.strip().splitlines()) <= 10
    script = f"{SCRIPT}\nimport sys\nassert 'torch' not in sys.modules\n"
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, text=True, capture_output=True)
    assert result.returncode == 0 and "green" in result.stdout, result.stderr


@pytest.mark.slow
def test_8_bits(weights, onnx_file):
    import onnx

    result = run_main("export", weights, "--format", "int8")
    assert result.returncode == 0, result.stderr
    small = weights.with_suffix(".int8.onnx")
    assert small.stat().st_size < onnx_file.stat().st_size / 2
    tensors = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(small).graph.initializer]
    weights_used = [tensor for tensor in tensors if tensor.dtype == np.int8 and tensor.ndim > 1]
    assert weights_used and all(np.abs(tensor.astype(int)).max() <= 64 for tensor in weights_used)  # 7 bits: see reduce_range
    colour = np.zeros((1, 50, 60, 3), np.uint8)
    colour[..., 2] = 200
    assert export.runner(small, "int8")(colour).argmax() == 2


@pytest.mark.slow
def test_torch_export(weights):
    result = run_main("export", weights, "--format", "torch", "--out", weights.parent / "t.pt2")
    assert result.returncode == 0 and "100.00% equal answers" in result.stdout, result.stderr
    about = {"classes": ""}
    program = torch.export.load(weights.parent / "t.pt2", extra_files=about)
    assert json.loads(about["classes"]) == ["red", "green", "blue"]
    assert program.module()(torch.zeros(3, 50, 41, 3, dtype=torch.uint8)).shape == (3, 3)


def test_a_file_that_differs_is_an_error(weights, onnx_file, tmp_path, capsys):
    tensors, card = load_weights(weights)
    other = tmp_path / "other.safetensors"
    save_weights(other, tensors | {"O.2.weight": tensors["O.2.weight"] * 1.1}, card)
    from images import data

    dataset = data.load(card["dataset"], Path())
    found = export.compare(TrainedNetwork.load(other, torch.device("cpu")), onnx_file, "onnx", dataset)
    assert export.show(found, "onnx", onnx_file) == 2
    assert "more than rounding" in capsys.readouterr().err
    found.accuracy = found.original_accuracy - 0.006
    assert export.show(found, "int8", onnx_file) == 0
    assert "8-bit integers cost 0.60 points" in capsys.readouterr().err


def test_what_is_missing_is_said(weights, tmp_path, monkeypatch):
    assert_refused(run_main("export", tmp_path / "none.safetensors"), "cannot read")
    assert_refused(run_main("export", weights, "--dataset", "digits", "--out", tmp_path / "o.onnx"), "classes differ")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert_refused(run_main("export", weights, "--out", tmp_path / "o.onnx"), "pip install -r requirements-export.txt")
    assert not (tmp_path / "o.onnx").exists()


NETWORK = """
from torch import nn

class Mine(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 5, 4), nn.BatchNorm2d(8), nn.GELU(), nn.Flatten())
        self.head = nn.Linear(8 * 49, num_classes)

    def forward(self, x):
        return self.head(self.body(x))
"""


@pytest.mark.slow
def test_a_network_of_the_users_own(weights, tmp_path):
    (tmp_path / "mine.py").write_text(NETWORK)
    data = ("--dataset", f"npz:{weights.parent.parent / 'colours.npz'}")
    result = run_main("train", "--model", f"{tmp_path / 'mine.py'}:Mine", *data, "--steps", 20, "--out", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    result = run_main("export", tmp_path / "run" / "model.safetensors")
    assert result.returncode == 0 and "100.00% equal answers" in result.stdout, result.stderr
