"""The networks that ship: each card says what its file holds."""

import json
import re

import numpy as np
import pytest
import torch

from conftest import DATA, ROOT, run_main
from images import data
from learning.inference import TrainedNetwork
from learning.presets import PRESETS
from learning.weights import load_weights
from limits.constraints import check
from utils import count_parameters

# Other names are what sprints left there.
SHIPPED = sorted(path for path in (ROOT / "weights").glob("*.safetensors") if path.stem in (*PRESETS, "teacher_cutmix"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_card_says_what_the_file_holds(path):
    network = TrainedNetwork.load(path, torch.device("cpu"))
    card = network.card
    assert card == json.loads(path.with_suffix(".json").read_text()) == load_weights(path)[1]
    assert card["preset"] == path.stem.partition("_")[0]
    preset = PRESETS[card["preset"]]
    if not preset.needs_weights:
        assert card["net"] == json.loads(json.dumps(preset.net))  # the preset still makes this network
    assert card["parameters"] == count_parameters(network.model)
    for key in (
        "mult_adds",
        "val_accuracy",
        "test_accuracy",
        "epochs",
        "seconds",
        "hardware",
        "command",
        "versions",
        "mean",
        "std",
        "classes",
        "image_size",
    ):
        assert card[key], key
    if card["preset"] not in ("teacher", "cifar100", "finetune"):
        assert all(constraint.passed for constraint in check(network.model))
    if path.stem == "slim":
        assert card["parameters"] < 100_000


QUICK = ("fast85",)  # the others take up to half a minute
# Of these large ones, every so many test images.
EVERY = {"accurate": 4, "teacher": 10, "teacher_cutmix": 10, "cifar100": 4, "finetune": 20}


@pytest.mark.parametrize(
    "path",
    [path if path.stem in QUICK else pytest.param(path, marks=pytest.mark.slow) for path in SHIPPED],
    ids=lambda path: path.stem,
)
def test_evaluate_prints_the_cards_accuracy(path, tmp_path):
    card = json.loads(path.with_suffix(".json").read_text())
    folder = DATA / {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[card["dataset"]]
    if not folder.is_dir():
        pytest.skip(f"there is no {folder}")
    every = EVERY.get(path.stem, 1)
    if every == 1:
        result = run_main("evaluate", "--weights", path, "--dataset", card["dataset"], "--data-dir", DATA)
        assert f"accuracy {card['test_accuracy']:.2%}," in result.stdout, result.stderr
        return
    test = data.load(card["dataset"], DATA).test
    images, labels = test.images[::every], test.labels[::every]
    np.savez(tmp_path / "part.npz", train_x=images, train_y=labels, test_x=images, test_y=labels, classes=card["classes"])
    result = run_main("evaluate", "--weights", path, "--dataset", f"npz:{tmp_path / 'part.npz'}")
    accuracy = float(re.search(r"accuracy ([\d.]+)%,", result.stdout)[1]) / 100
    assert accuracy == pytest.approx(
        card["test_accuracy"], abs=3 * (card["test_accuracy"] * (1 - card["test_accuracy"]) / len(labels)) ** 0.5
    )
