"""The command line as a user runs it: each command, its exit status, and one clear line for bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import main
import processes
from commands.sprint import MOST
from conftest import ALL_THREADS, DATA, ROOT, assert_refused, needs_cifar10, run_main
from learning.presets import PRESETS
from processes import wait_for


@pytest.fixture(scope="module")
def trained(shapes_npz, tmp_path_factory):
    """The folder of a short training through the command line."""
    out = tmp_path_factory.mktemp("run")
    result = run_main(
        "train",
        "--dataset",
        f"npz:{shapes_npz}",
        "--epochs",
        2,
        "--augment",
        0,
        "--val-images",
        100,
        "--batch-size",
        64,
        "--out",
        out,
        "--report",
    )
    assert result.returncode == 0, result.stderr
    return out, result.stdout


def test_help_names_every_command_and_field():
    overview = run_main("--help")
    assert overview.returncode == 0
    for command in ("sprint", "train", "evaluate", "predict", "report", "summary", "check", "lab"):
        assert f"\u2022 {command} " in overview.stdout
        text = run_main(command, "--help")
        assert text.returncode == 0
        assert ("Exit status: 0" in text.stdout) == (command not in ("evaluate", "lab"))
    text = run_main("train", "--help").stdout
    for field in ("--preset", "--epochs", "--max-lr", "--label-smoothing", "--ema-decay", "--resume"):
        assert field in text


def test_help_waits_for_no_heavy_library():
    code = (
        "import sys; sys.argv = ['main.py', '--help']; sys.path.insert(0, '.')\n"
        "try: import main; main.main(['--help'])\n"
        "except SystemExit: print(*sorted({m.split('.')[0] for m in sys.modules}))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=True).stdout.split()
    assert "tyro" in loaded
    assert not {"torch", "torchvision", "albumentations", "matplotlib", "sklearn", "cv2", "numpy"} & set(loaded)


def test_train_help_shows_the_presets_own_defaults():
    def steps(*arguments: str) -> int:
        text = " ".join(run_main("train", *arguments, "--help").stdout.replace("│", " ").split())
        return int(text.split("--steps INT")[1].split("(default: ")[1].split(")")[0])

    for preset in ("sprint", "baseline"):
        assert steps("--preset", preset) == PRESETS[preset].train.steps
    assert steps() == PRESETS["baseline"].train.steps != PRESETS["sprint"].train.steps


def test_train_reports_and_keeps(trained):
    out, text = trained
    assert "C1" in text
    assert "test accuracy" in text
    card = json.loads((out / "model.json").read_text())
    for key in (
        "preset",
        "net",
        "parameters",
        "classes",
        "mean",
        "std",
        "test_accuracy",
        "val_accuracy",
        "seconds",
        "command",
        "hardware",
        "versions",
        "image_size",
    ):
        assert key in card
    assert (out / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("file", ["model.safetensors", "checkpoint.pt"])
def test_evaluate_gives_the_accuracy_of_the_training(trained, file):
    out, _ = trained
    result = run_main("evaluate", "--weights", out / file)
    assert result.returncode == 0, result.stderr
    assert f"accuracy {json.loads((out / 'model.json').read_text())['test_accuracy']:.2%}" in result.stdout


def test_evaluate_on_another_data_set(trained, shapes_npz, tmp_path):
    weights = trained[0] / "model.safetensors"
    assert_refused(run_main("evaluate", "--weights", weights, "--dataset", "digits"), "3 channels", "have 1")
    np.savez(tmp_path / "named.npz", **np.load(shapes_npz), classes=list("abcdefghij"))
    named = run_main("evaluate", "--weights", weights, "--dataset", f"npz:{tmp_path / 'named.npz'}")
    assert_refused(named, "classes differ", "a, b, c")


class Evil:
    def __reduce__(self):
        return os.system, ("touch ran",)


def test_bad_weights(trained, tmp_path):
    out, _ = trained
    assert_refused(run_main("evaluate", "--weights", tmp_path / "none.safetensors"), "none.safetensors", "No such file")
    for name in ("model.safetensors", "checkpoint.pt"):
        data = (out / name).read_bytes()
        (tmp_path / f"cut-{name}").write_bytes(data[: len(data) // 2])
        assert_refused(run_main("evaluate", "--weights", tmp_path / f"cut-{name}"), f"cut-{name}")
    torch.save(Evil(), tmp_path / "evil.pt")
    assert_refused(run_main("evaluate", "--weights", tmp_path / "evil.pt", cwd=tmp_path), "evil.pt", "refused")
    assert not (tmp_path / "ran").exists()


def test_weights_of_another_architecture(trained, tmp_path):
    from learning.weights import load_weights, save_weights

    tensors, card = load_weights(trained[0] / "model.safetensors")
    save_weights(tmp_path / "wide.safetensors", tensors, card | {"net": {"widths": [32, 64, 96, 160]}})
    assert_refused(run_main("evaluate", "--weights", tmp_path / "wide.safetensors"), "another architecture", "size mismatch")
    from safetensors.torch import save_file

    save_file(tensors, tmp_path / "bare.safetensors")
    assert_refused(run_main("evaluate", "--weights", tmp_path / "bare.safetensors"), "not written by this project")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sprit"], ["unknown command 'sprit'", "sprint", "lab"]),
        (["sprint", "--dataset", "cifar11"], ["unknown data set", "cifar10"]),
        (["sprint", "--target", "1.5"], ["--target is 1.5"]),
        (["sprint", "--target", "0"], ["--target is 0"]),
        (["sprint", "--preset", "finetune", "--target", "0.5"], ["finetune requires trained weights", "--init"]),
        (["lr-find", "--preset", "finetune"], ["finetune requires trained weights", "--init"]),
        (["summary", "--preset", "finetune"], ["finetune requires trained weights", "--init"]),
        (["sprint", "--seeds", "0"], ["--seeds"]),
        (["sprint", "--seed", "x"], ["--seed", "invalid"]),
        (["sprint", "--bogus", "1"], ["--bogus"]),
        (["train", "--preset", "fastest"], ["unknown preset 'fastest'", "baseline"]),
        (["train", "--learning-rate", "1"], ["--learning-rate"]),
        (["train", "--epochs", "0"], ["epochs is 0"]),
        (["train", "--optimizer", "adam"], ["adamw"]),
        (["train", "--dataset", "digits", "--cycles", "2"], ["cycles is 2", "requires early_exit_accuracy"]),
        (["train", "--dataset", "digits", "--resolutions", "0.5", "8"], ["does not take images of 8x8 pixels"]),
        (["sprint", "--threads", "100000"], ["--threads is 100000", "from 0 to 1,024"]),
        (["train", "--dataset", "digits", "--device", "tpu"], ["unknown device 'tpu'"]),
        (["evaluate"], ["--weights"]),
        (["predict", "--weights", "x.safetensors"], ["x.safetensors", "No such file"]),
        (["predict", "--top", "0"], ["--top is 0"]),
        (["predict", "x.png", "--dataset", "digits"], ["--dataset", "without images"]),
        (["report"], ["no run given", "runs/"]),
        (["summary", "--preset", "none"], ["unknown preset"]),
        (["summary", "--classes", "100000000"], ["--classes from 2 to 100,000"]),
        (["check", "nothing.py:Net"], ["nothing.py"]),
        (["check", "model.py:Nett"], ["Nett", "Net"]),
    ],
)
def test_bad_usage_is_one_line(arguments, words):
    assert_refused(run_main(*arguments, cwd=ROOT), *words)


def test_bad_usage_is_one_line_on_a_console_of_ascii():
    result = run_main("sprint", "--datset", "cifar10", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert_refused(result, "--datset")
    assert "---" not in result.stderr and "+" not in result.stderr


def test_summary_and_check_of_our_network():
    for arguments in (["summary"], ["check", "model.py:Model"], ["check", "model:Net"]):
        result = run_main(*arguments, cwd=ROOT)
        assert result.returncode == 0, result.stdout + result.stderr
        for name in ("C1", "C2", "C3", "C4", "O", "receptive field", "parameters"):
            assert name in result.stdout
        assert "FAIL" not in result.stdout


def test_check_fails_a_network_that_breaks_the_rules(tmp_path):
    (tmp_path / "bad.py").write_text(
        "import torch\n"
        "class Bad(torch.nn.Sequential):\n"
        "    def __init__(self, num_channels, num_classes):\n"
        "        super().__init__(torch.nn.Conv2d(num_channels, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),\n"
        "                         torch.nn.Flatten(), torch.nn.Linear(8, num_classes))\n"
    )
    result = run_main("check", f"{tmp_path / 'bad.py'}:Bad")
    assert result.returncode == 1, result.stderr
    assert "FAIL" in result.stdout


def test_sprint_of_a_preset_without_a_target_asks_for_one():
    assert_refused(run_main("sprint", "--preset", "accurate", "--dataset", "digits"), "no target", "--target")


RECORD_KEYS = {
    "dataset",
    "preset",
    "target",
    "runs",
    "median_seconds",
    "min_seconds",
    "max_seconds",
    "misses",
    "hardware",
    "versions",
    "command",
}
RUN_KEYS = {"seed", "reached", "seconds", "process_seconds", "test_accuracy", "test_passes", "images_seen", "parameters"}


@pytest.mark.slow
def test_sprint_over_seeds_writes_the_record(shapes_npz, tmp_path):
    """Two fresh processes."""
    file = tmp_path / "record.json"
    result = run_main("sprint", "--dataset", f"npz:{shapes_npz}", "--seeds", 2, "--seed", 5, "--target", 0.11, "--json", file)
    assert result.returncode == 0, result.stderr
    record = json.loads(file.read_text())
    assert set(record) == RECORD_KEYS
    assert [run["seed"] for run in record["runs"]] == [5, 6]
    assert all(set(run) == RUN_KEYS for run in record["runs"])
    assert all(run["reached"] and run["test_accuracy"] > 0.11 for run in record["runs"])
    assert record["misses"] == 0
    assert record["min_seconds"] <= record["median_seconds"] <= record["max_seconds"]
    assert all(run["process_seconds"] > run["seconds"] for run in record["runs"])


def test_missed_target_is_status_3(shapes_npz, tmp_path, monkeypatch, capsys):
    """In this process, so that the budget can be made small."""
    sprint = PRESETS["sprint"]
    monkeypatch.setitem(PRESETS, "sprint", replace(sprint, train=replace(sprint.train, steps=3), larger=""))
    file = tmp_path / "record.json"
    assert main.main(["sprint", "--dataset", f"npz:{shapes_npz}", "--target", "0.97", "--json", str(file)]) == 3
    record = json.loads(file.read_text())
    assert record["misses"] == 1
    assert not record["runs"][0]["reached"]
    assert "NOT reached 97.0%" in capsys.readouterr().out


def test_missed_target_goes_over_to_the_larger_network(shapes_npz, tmp_path, monkeypatch, capsys):
    """What the first has spent and seen counts; how long the second trains depends on what was missing."""
    sprint, larger = PRESETS["sprint"], PRESETS["sprint-larger"]
    monkeypatch.setitem(PRESETS, "sprint", replace(sprint, train=replace(sprint.train, steps=2)))
    monkeypatch.setitem(PRESETS, "sprint-larger", replace(larger, train=replace(larger.train, steps=1, cycles=1)))
    file = tmp_path / "record.json"
    assert main.main(["sprint", "--dataset", f"npz:{shapes_npz}", "--target", "0.97", "--json", str(file)]) == 3
    (run,) = json.loads(file.read_text())["runs"]
    output = capsys.readouterr().out
    assert "97.0% is not reached: the larger network of the preset sprint-larger is trained" in output
    assert run["images_seen"] == 2 * 128 + MOST * 2 * 128  # so much is missing that the cap holds
    assert run["test_passes"] == 2
    assert 100_000 < run["parameters"] < 200_000
    weights = Path(output.split("weights in ")[1].split()[0])
    card = json.loads(weights.with_suffix(".json").read_text())
    assert card["preset"] == "sprint-larger"
    assert card["seconds"] == run["seconds"]


@needs_cifar10
def test_sprint_reaches_55_percent_on_cifar10(tmp_path):
    result = run_main("sprint", "--dataset", "cifar10", "--data-dir", DATA, "--json", tmp_path / "record.json", env=ALL_THREADS)
    assert result.returncode == 0, result.stdout + result.stderr
    (run,) = json.loads((tmp_path / "record.json").read_text())["runs"]
    assert run["reached"]
    assert run["test_accuracy"] > 0.55
    assert run["test_passes"] >= 1
    assert run["parameters"] < 200_000
    assert result.stdout.splitlines()[-1].startswith("reached 55.0% on cifar10")
    assert "weights/sprint-cifar10.safetensors" in result.stdout
    evaluated = run_main("evaluate", "--weights", ROOT / "weights" / "sprint-cifar10.safetensors", "--data-dir", DATA)
    assert f"accuracy {run['test_accuracy']:.2%}" in evaluated.stdout


@pytest.mark.parametrize(
    "seconds", [0.3, pytest.param(1.5, marks=pytest.mark.slow)]
)  # the second seed's process is importing, or training
def test_interrupted_sprint(shapes_npz, seconds):
    process = processes.Process(ROOT / "main.py", "sprint", "--dataset", f"npz:{shapes_npz}", "--target", 0.11, "--seeds", 50)
    wait_for(lambda: process.output().startswith("seed 0"))
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    lines = errors.splitlines()
    assert {line for line in lines if not line.startswith("note:")} == {"interrupted"}
    assert sum("chosen for 5,000 training images" in line for line in lines) <= 1, "not once for each seed"


def test_interrupted_while_importing():
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", ROOT / "main.py", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while "tyro." not in process.stderr.readline():  # the first of its modules is imported, others come
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert "Traceback" not in output + errors


def test_a_complaint_names_the_command_once():
    result = run_main("sprint", "--epochs", 3)
    assert_refused(result, "--epochs 3 (given to ./run.sh sprint)")
    assert result.stderr.count("./run.sh") == 1
