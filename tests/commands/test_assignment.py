"""--assignment as a user types it: summary, check, train and report."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from conftest import Tags, assert_refused, run_main

NETWORK = """
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(8, 10)
    def forward(self, x):
        return self.head(self.body(x))
"""


@pytest.fixture
def network(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(NETWORK)
    return f"{tmp_path / 'mine.py'}:Net"


def test_without_it_the_default_counts_as_ever() -> None:
    lines = run_main("summary").stdout.splitlines()
    assert [line.split("  ")[0] for line in lines[-6:]] == [
        "parameters",
        "C1 C2 C3 C4 O",
        "GAP",
        "depthwise separable",
        "dilated",
        "receptive field",
    ]
    assert "training" not in lines[-1]


def test_summary_shows_the_receptive_field_layer_by_layer() -> None:
    result = run_main("summary", "--assignment", "mnist-8k")
    assert result.returncode == 0
    assert re.search(r"^C2\.0\.conv +3x3 convolution +26x26 +5 px$", result.stdout, re.MULTILINE)
    assert re.search(r"^C3\.0\.pool +2x2 max-pooling +6x6 +16 px$", result.stdout, re.MULTILINE)
    assert re.search(r"^parameters +7,\d\d\d \(and 144 not trained\) +< 8,000 +pass$", result.stdout, re.MULTILINE)
    assert "accuracy after each of the last 3 epochs" in result.stdout


def test_summary_of_another_preset_fails() -> None:
    result = run_main("summary", "--assignment", "c1c2c3c4o-strict", "--preset", "slim")
    assert result.returncode == 1
    assert re.search(r"^no max-pooling .* FAIL$", result.stdout, re.MULTILINE)
    assert re.search(r"^bonus: parameters .* bonus$", result.stdout, re.MULTILINE)


def test_check_builds_the_network_for_the_images_of_the_assignment(network: str, tmp_path: Path) -> None:
    result = run_main("check", network, "--assignment", "mnist-20k")
    assert result.returncode == 0, result.stderr
    rules = tmp_path / "tiny.toml"
    rules.write_text("channels = 1\nimage_size = 28\nmax_parameters = 170\nmax_mult_adds = 10_000\nmax_latency_ms = 10_000")
    result = run_main("check", network, "--assignment", rules)
    assert result.returncode == 1
    verdicts = {line.split("  ")[0]: line.split()[-1] for line in result.stdout.splitlines()[-3:]}
    assert verdicts == {"parameters": "FAIL", "mult-adds": "FAIL", "latency of one image": "pass"}


@pytest.mark.parametrize(
    "command", [("summary",), ("check", "model:Net"), ("train",), ("report", "nowhere"), ("grade",), ("leaderboard",)]
)
def test_a_wrong_name_lists_what_there_is(command: tuple[str, ...], tmp_path: Path) -> None:
    store = tmp_path / "store"
    more = ("--store", store) if command[0] in ("grade", "leaderboard") else ()
    if command[0] == "report":
        command = ("report", str(run_folder(tmp_path / "run")))
    if more:
        store.touch()
    assert_refused(run_main(*command, *more, "--assignment", "mnist-9k"), "mnist-8k", "c1c2c3c4o-strict", "speed-55")


def run_folder(folder: Path) -> Path:
    """A folder that holds the record of a run, and nothing else."""
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"card": {"dataset": "shapes"}, "config": {}, "history": {"evaluations": []}}))
    return folder


@pytest.mark.parametrize("text", ["max_parametrs = 5", "max_parameters = ", "require = ['gap']\nforbid = ['gap']"])
def test_a_wrong_file_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.toml").write_text(text)
    assert_refused(run_main("summary", "--assignment", tmp_path / "mine.toml"), "mine.toml")
    assert_refused(run_main("train", "--assignment", tmp_path / "mine.toml", "--out", tmp_path / "run"), "mine.toml")
    assert not (tmp_path / "run").exists()


def test_train_and_report(tmp_path: Path, shapes_npz: Path) -> None:
    rules, out, few = tmp_path / "mine.toml", tmp_path / "run", tmp_path / "few.npz"
    np.savez(few, **{name: array[: 600 if "train" in name else 100] for name, array in np.load(shapes_npz).items()})
    rules.write_text(
        'preset = "mnist-8k"\nmax_parameters = 1_000_000\nforbid = ["max_pool"]\n'
        "target_accuracy = 0.02\nlast_epochs = 1\nmax_epochs = 1\n[bonus]\nmin_receptive_field = 1000\n"
    )
    options = ("--dataset", f"npz:{few}", "--epochs", 1, "--out", out, "--threads", 1)
    result = run_main("train", "--assignment", rules, *options, "--report")
    assert result.returncode == 1, result.stderr  # for max_pool
    assert "note: the network fails demands of the assignment mine: no max-pooling" in result.stderr
    table = result.stdout.split("what the assignment mine demands\n")[1]
    assert re.search(r"^no max-pooling .* FAIL$", table, re.MULTILINE)
    assert re.search(r"^test accuracy .* > 2% +pass$", table, re.MULTILINE)
    assert re.search(r"^accuracy after the last epoch .* on the test images +> 2% +pass$", table, re.MULTILINE)
    assert re.search(r"^bonus: receptive field .* no bonus$", table, re.MULTILINE)
    page = (out / "report.html").read_text()
    Tags(page)
    assert "What the assignment demands" in page
    assert '<strong class="fail">FAIL</strong>' in page
    assert '<strong class="">no bonus</strong>' in page
    assert json.loads((out / "run.json").read_text())["card"]["preset"] == "mnist-8k"  # the assignment's

    result = run_main("report", out, "--assignment", rules)
    assert result.returncode == 1
    assert re.search(r"^epochs +1 +<= 1 +pass$", result.stdout, re.MULTILINE)
    page = (out / "comparison.html").read_text()
    Tags(page)
    assert "What the assignment demands" in page
    assert run_main("report", out).returncode == 0
    assert "What the assignment demands" not in (out / "comparison.html").read_text()

    rules.write_text("max_epochs = 0.1\nbatch_size = 48\npeak_epoch = 0.1\naugmentation.hole = 9")
    again = run_main("train", "--assignment", rules, "--preset", "mnist-8k", *options, "--epochs", 0.2, "--overwrite")
    assert again.returncode == 1
    assert "note: the training lasts 0.2 epochs, but the assignment mine allows 0.1" in again.stderr
    (note,) = (line for line in again.stderr.splitlines() if "the settings fail demands of the assignment mine" in line)
    assert re.search(r": batch size \d+ \(demanded: 48\), augmentation: coarse dropout none \(demanded: one hole of 9x9,", note)
    assert "peak" not in note  # within a tenth of an epoch, it is there

    rules.write_text("max_parameters = 1_000_000\ntarget_accuracy = 0.02")
    assert run_main("report", out, "--assignment", rules).returncode == 0
