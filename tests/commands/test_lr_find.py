"""lr-find, and --max-lr auto: a curve and a suggestion, and everything else is as if they had never been."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from commands.lr_find import find
from commands.train import without_auto
from config import TrainConfig
from conftest import ROOT, assert_refused, run_main
from images import data
from learning.range_test import RangeTest
from learning.weights import load_weights
from model import Net
from training import Trainer
from utils import random_states, seed_everything

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = TrainConfig(
    steps=3, batch_size=50, val_images=100, whiten_images=200, workers=0, augment=0.5, dropout=True, cutmix=0.5, ema_decay=0.9
)


@pytest.fixture(scope="module")
def dataset(shapes_npz):
    return data.load(f"npz:{shapes_npz}", ROOT)


def flat(value: object) -> list:
    """All tensors and numbers of nested containers, in order."""
    if isinstance(value, dict):
        return [(key, *flat(each)) for key, each in value.items()]
    return [flat(each) for each in value] if isinstance(value, (list, tuple)) else [value]


def same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


class Restless(nn.Module):
    """Draws random numbers, and has buffers and gradients of its own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.dropout = network, nn.Dropout(0.2)
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        return self.network(self.dropout(x))


def state_of(trainer: Trainer) -> list:
    """All that a training goes on from, copied."""
    gradients = [parameter.grad for parameter in trainer.model.parameters()]
    modes = [module.training for module in trainer.model.modules()]
    batches = list(trainer.batches.steps(range(trainer.step, trainer.step + 3)))
    states = [trainer.model.state_dict(), trainer.optimizer.state_dict(), trainer.averaged.module.state_dict(), random_states()]
    images = [trainer.train_split.images, trainer.val_split.images, trainer.dataset.train.images]
    return copy.deepcopy([flat(each) for each in [*states, gradients, modes, batches, [torch.from_numpy(i) for i in images]]])


@pytest.mark.parametrize("optimizer", ["adamw", "muon", pytest.param("sgd", marks=pytest.mark.slow)])
def test_weights_optimizer_random_states_and_next_batches_are_untouched(dataset, optimizer, capsys):
    seed_everything(3)
    model = Restless(Net(dataset.num_channels, dataset.num_classes, widths=(16, 32, 32, 32)))
    trainer = Trainer(model, dataset, replace(CONFIG, optimizer=optimizer, max_lr=0.005))
    trainer.fit()
    model(torch.zeros(2, 3, 32, 32)).sum().backward()  # gradients that a next step would use
    before = state_of(trainer)
    assert int(model.passes) > 3
    curve = find(model, dataset, trainer.config, RangeTest(steps=40))
    assert same(state_of(trainer), before)
    assert len(curve.losses) >= 20 and curve.rates[0] == pytest.approx(1e-5)
    printed = capsys.readouterr().out
    assert f"suggestion: --max-lr {curve.suggestion:g}, " in printed and "loss " in printed
    # And the comparison sees it where something has moved.
    torch.rand(1)
    assert not same(state_of(trainer), before)


@pytest.mark.slow
def test_auto_is_the_same_training_as_with_the_rate_that_it_found(shapes_npz, tmp_path):
    common = ("train", "--dataset", f"npz:{shapes_npz}", "--augment", 0, "--cutmix", 0.5, "--val-images", 500, "--steps", 8)
    result = run_main(*common, "--max-lr", "auto", "--out", tmp_path / "auto")
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "auto" / "run.json").read_text())["config"]["max_lr"]
    assert f"suggestion: --max-lr {found:g}" in result.stdout
    with Image.open(tmp_path / "auto" / "lr-find.png") as plot:
        assert plot.format == "PNG" and len(plot.convert("RGB").getcolors(1 << 24)) > 50
    assert run_main(*common, "--max-lr", found, "--out", tmp_path / "named").returncode == 0
    ours, named = (load_weights(tmp_path / name / "model.safetensors")[0] for name in ("auto", "named"))
    assert all(torch.equal(ours[name], named[name]) for name in named)
    assert not (tmp_path / "named" / "lr-find.png").exists()

    # A resumed run keeps the rate; overwriting removes the plot of the earlier one.
    more = run_main(*common[:-1], 12, "--max-lr", "auto", "--out", tmp_path / "auto", "--resume")
    assert more.returncode == 0 and "suggestion" not in more.stdout, more.stderr
    assert json.loads((tmp_path / "auto" / "run.json").read_text())["config"]["max_lr"] == found
    assert run_main(*common, "--out", tmp_path / "auto", "--overwrite").returncode == 0
    assert not (tmp_path / "auto" / "lr-find.png").exists()


def test_command_writes_the_plot_and_says_what_it_suggests(shapes_npz, tmp_path):
    (tmp_path / "own.py").write_text(
        "import torch\nclass Own(torch.nn.Sequential):\n    def __init__(self, num_channels: int, num_classes: int) -> None:\n"
        "        super().__init__(torch.nn.Conv2d(num_channels, 8, 3, 2), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),"
        " torch.nn.Flatten(), torch.nn.Linear(8, num_classes))\n"
    )
    plot = tmp_path / "new" / "curve.png"
    result = run_main(
        "lr-find", "--dataset", f"npz:{shapes_npz}", "--model", f"{tmp_path / 'own.py'}:Own", "--optimizer", "sgd", "--out", plot,
        "--lowest", 1e-4, "--highest", 1e4, "--steps", 60, "--threads", 1,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("loss ") and lines[1].startswith("suggestion: --max-lr ") and lines[2] == f"plot in {plot}"
    assert Image.open(plot).format == "PNG"
    before = plot.read_bytes()
    assert_refused(run_main("lr-find", "--dataset", f"npz:{shapes_npz}", "--out", plot), "pass --overwrite to replace it")
    assert plot.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--lowest", 1, "--highest", 0.1), ["a range test goes from 1 to 0.1"]),
        (("--steps", 3), ["3 steps"]),
        (("--out", "curve.pdf"), ["must end in .png"]),
        (("--batch-size", 100_000), ["a batch of 100000 is larger than the data"]),
        (("--preset", "none"), ["unknown preset"]),
        (("--lowest", 1e3, "--highest", 1e6), ["lower one"]),
    ],
)
def test_bad_input_is_one_line(shapes_npz, tmp_path, options, words):
    plot = () if "--out" in options else ("--out", tmp_path / "curve.png")
    assert_refused(run_main("lr-find", "--dataset", f"npz:{shapes_npz}", *plot, *options), *words)
    assert not (tmp_path / "curve.png").exists()


def test_auto_is_taken_from_the_command_line_wherever_it_stands():
    assert without_auto(["train", "--max-lr", "auto", "--steps", "3"]) == (["train", "--steps", "3"], True)
    assert without_auto(["train", "--steps", "3", "--max_lr=Auto"]) == (["train", "--steps", "3"], True)
    assert without_auto(["train", "--dataset", "auto", "--max-lr", "0.1"]) == (
        ["train", "--dataset", "auto", "--max-lr", "0.1"],
        False,
    )
    # The last one counts, as of any option.
    assert without_auto(["train", "--max-lr=auto", "-q", "--max-lr", "0.1"]) == (["train", "-q", "--max-lr", "0.1"], False)
    assert without_auto(["--max-lr", "0.1", "--max-lr", "auto"]) == (["--max-lr", "0.1"], True)
    assert without_auto(["train", "--max-lr", "auto", "--max-lr=auto"]) == (["train"], True)
    assert without_auto(["train", "--max-lr"]) == (["train", "--max-lr"], False)


def test_the_line_can_be_printed_on_any_terminal(monkeypatch):
    import io
    import sys

    from learning.range_test import Curve
    from results.range_plot import PLAIN_BARS, range_line

    losses = np.linspace(2, 1, 30)
    curve = Curve(np.logspace(-5, 0, 30), losses, losses, 1e-3, None)
    assert "█" in range_line(curve) or set(PLAIN_BARS) & set(range_line(curve))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    assert range_line(curve).isascii()
