"""Where a training writes: no run is overwritten, none shares a folder with another, each has its log."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from commands import sprint, train
from config import InputError
from conftest import ROOT, assert_refused, random_split, run_main
from learning.run_folder import run_folder
from learning.weights import load_weights


def write_npz(path: Path, classes: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    images, labels = random_split(60, classes, 28, 28)
    np.savez(path, train_x=images, train_y=labels, test_x=images[:9], test_y=labels[:9])
    return path


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A folder in place of the project's, for runs/ and weights/."""
    monkeypatch.setattr(train, "ROOT", tmp_path)
    monkeypatch.setattr(sprint, "ROOT", tmp_path)
    return tmp_path


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


TRAIN = ("train", "--preset", "baseline", "--steps", 4, "--augment", 0)


@pytest.mark.slow
def test_runs_of_the_same_name_get_folders_of_their_own(root):
    first, second = write_npz(root / "a" / "photos.npz"), write_npz(root / "b" / "photos.npz", 4)
    assert run_main(*TRAIN, "--dataset", f"npz:{first}", "--report").returncode == 0
    runs = root / "runs"
    before = files(runs / "baseline-photos")
    assert {"report.html", "model.safetensors", "run.json", "checkpoint.pt", "log.csv"} <= set(before)

    other = run_main(*TRAIN, "--dataset", f"npz:{second}")
    assert "baseline-photos holds another run: this one is written to" in other.stderr
    assert files(runs / "baseline-photos") == before
    assert len(load_weights(runs / "baseline-photos-2" / "model.safetensors")[1]["classes"]) == 4

    # Overwriting and resuming take the run on the same data, not that of the same name.
    again = run_main(*TRAIN, "--dataset", f"npz:{first}", "--seed", 1, "--overwrite")
    assert again.returncode == 0, again.stderr
    assert json.loads((runs / "baseline-photos" / "run.json").read_text())["config"]["seed"] == 1
    assert not (runs / "baseline-photos" / "report.html").exists()  # it was of the other weights
    more = run_main(*TRAIN, "--dataset", f"npz:{first}", "--seed", 1, "--resume", "--steps", 8)
    assert f"weights in {runs / 'baseline-photos' / 'model.safetensors'}" in more.stdout
    assert sorted(path.name for path in runs.iterdir()) == ["baseline-photos", "baseline-photos-2"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (("--val-images", 5000), "cannot split off 5,000 images: only 60"),
        (("--batch-size", 512), "a batch of 512 is larger than the data"),
        (("--teacher", "none.safetensors"), "none.safetensors"),
        (("--teacher", ROOT / "weights" / "slim.safetensors"), "`train --teacher` with no file after it"),
        (("--model", "none.py:Net"), "there is no file 'none.py'"),
        (("--model", ROOT / "model.py:Nothing"), "there is no 'Nothing'"),
        (("--image-size", 48), "image_size is for folder:PATH alone: the images of npz:"),
        (("--augment", 0, "--flip"), "flip has no effect without augment, which is off"),
    ],
)
def test_a_wrong_number_removes_makes_and_prints_nothing(root, wrong, words):
    data, out = write_npz(root / "own.npz"), root / "run"
    out.mkdir()
    for name in ("model.safetensors", "log.csv"):
        (out / name).write_text("of an earlier run")
    before = files(out)
    for more in (("--out", out, "--overwrite"), ("--out", root / "new")):
        result = run_main(*TRAIN, "--dataset", f"npz:{data}", *more, *wrong)
        assert_refused(result, words)
        assert result.stdout == "" and "chosen for" not in result.stderr
    assert files(out) == before and not (root / "new").exists()


def test_a_folder_that_the_user_names_must_be_free(tmp_path):
    data, out = write_npz(tmp_path / "own.npz"), tmp_path / "run"
    arguments = (*TRAIN, "--dataset", f"npz:{data}", "--out", out)
    assert run_main(*arguments, "--report").returncode == 0
    before = files(out)
    assert_refused(run_main(*arguments), f"{out} holds a run", "--overwrite")
    assert_refused(run_main(*arguments, "--resume", "--overwrite"), "pass one of them")
    assert files(out) == before
    assert_refused(run_main(*arguments, "--out", tmp_path / "none", "--resume"), "nothing to resume")
    assert_refused(run_main(*arguments, "--dataset", "npz:none.npz", "--out", tmp_path / "none"), "none.npz")
    assert not (tmp_path / "none").exists()  # nothing was written, nothing is left

    wrong = run_main(*arguments, "--resume", "--val-images", 9)
    assert_refused(wrong, "another configuration: val_images was 6, is 9")
    assert wrong.stdout == wrong.stderr.partition("error:")[0] == ""  # before the images are read

    # A run that goes on has other weights in the end: the page of the earlier ones goes, and what the user exported stays.
    (out / "model.int8.onnx").write_bytes(b"exported")
    (out / "comparison.html").write_text("of the earlier weights")
    assert "removed" not in run_main(*arguments, "--resume").stderr  # nothing to do
    result = run_main(*arguments, "--resume", "--steps", 8)
    notes = [line for line in result.stderr.splitlines() if str(out) in line]
    assert [line.partition(" in ")[0].partition(" removed")[0] for line in notes] == [
        "note: report.html, report.md, curves.png, confusion.png, mistakes.png, run.png, comparison.html",
        "note: model.int8.onnx",
    ]
    assert files(out)["model.safetensors"] != before["model.safetensors"] and files(out)["model.int8.onnx"] == b"exported"
    assert not {"report.html", "curves.png", "comparison.html"} & {*files(out)}
    (out / "model.int8.onnx").unlink()
    again = run_main(*arguments, "--resume", "--steps", 12, "--report")
    assert (out / "report.html").exists() and str(out) not in again.stderr
    assert run_main(*arguments, "--resume", "--steps", 16).stderr.count("removed") == 1


def test_the_second_training_in_a_folder_says_so(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", f"import fcntl, os; fcntl.flock(os.open({str(out)!r}, 0), 2); print(1, flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout.readline() == b"1\n"
    data = write_npz(tmp_path / "own.npz")
    assert_refused(run_main(*TRAIN, "--dataset", f"npz:{data}", "--out", out), "another training is writing to")
    with run_folder(out, None, "digits", resume=False, overwrite=False) as folder:
        assert folder == tmp_path / "run-2"  # one that nobody named goes elsewhere
    holder.kill()
    holder.wait()
    with run_folder(out, out, "digits", resume=False, overwrite=False) as folder:  # a killed one holds no lock
        assert folder == out
        descriptor = os.open(out, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)
    with pytest.raises(InputError, match="cannot write"), run_folder(Path("/proc/none/run"), None, "digits", False, False):
        pass


def test_a_line_for_each_epoch_also_in_a_file(tmp_path):
    data, out = write_npz(tmp_path / "own.npz"), tmp_path / "run"
    arguments = (*TRAIN[:3], "--augment", 0, "--dataset", f"npz:{data}", "--out", out)
    result = run_main(*arguments, "--epochs", 3)
    lines = [line for line in result.stdout.splitlines() if line.startswith("epoch ")]
    assert [line.split(":")[0] for line in lines] == ["epoch 1", "epoch 2", "epoch 3"]
    history = json.loads((out / "run.json").read_text())["history"]

    def check(history: dict) -> None:
        with open(out / "log.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [float(row["val_accuracy"]) for row in rows] == [e["val_accuracy"] for e in history["evaluations"]]
        assert [float(row["seconds"]) for row in rows] == history["seconds"]

    check(history)
    with open(out / "log.csv", "a") as file:  # as if killed between an evaluation and its checkpoint
        file.write("9,9,9,9,9,9,9,9,9\n")
    quiet = run_main(*arguments, "--resume", "--epochs", 5, "-q")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, f"{out}\n", "")
    history = json.loads((out / "run.json").read_text())["history"]
    assert len(history["evaluations"]) == 5
    check(history)
    refused = run_main(*arguments, "-q")
    assert_refused(refused, "holds a run")
    assert refused.stdout == ""


@pytest.mark.slow
def test_a_sprints_report_has_its_weights_beside_it(root):
    first, second = write_npz(root / "a" / "photos.npz"), write_npz(root / "b" / "photos.npz", 4)
    arguments = ("sprint", "--target", 0.01, "-q", "--report", "--dataset")
    for data in (first, second, first):
        assert run_main(*arguments, f"npz:{data}").returncode in (0, 3)
    for number, classes in (("", 3), ("-2", 4), ("-3", 3)):
        folder = root / "runs" / f"sprint-photos{number}"
        assert len(load_weights(folder / "model.safetensors")[1]["classes"]) == classes
        assert (folder / "report.html").exists()
    known = {path.name: len(load_weights(path)[1]["classes"]) for path in (root / "weights").glob("*.safetensors")}
    assert known == {"sprint-photos.safetensors": 3, "sprint-photos-2.safetensors": 4}


@pytest.mark.slow
def test_the_threads_of_a_sprint_stand_in_its_record(tmp_path):
    data = write_npz(tmp_path / "own.npz")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = ["sprint", "--target", 0.01, "--threads", 2, "--seeds", 2, "--dataset", f"npz:{data}", "--json", tmp_path / "r.json"]
    result = run_main(*command, env=environment, cwd=tmp_path)
    assert result.returncode in (0, 3), result.stderr
    assert json.loads((tmp_path / "r.json").read_text())["hardware"]["threads"] == 2
