"""The experiments as a user runs them, and bad input."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from made_up_images import one_line, run_lab, write_noise

from conftest import Tags
from lab.experiments.cifar_ladder import RUNGS
from lab.experiments.transfer.transfer import Transfer


def accuracies(folder: Path) -> list[float]:
    return [json.loads(path.read_text())["test_accuracy"] for path in folder.glob("parts/*.json") if "weights" not in path.name]


@pytest.mark.parametrize(("name", "classes"), [("digits-fc", ()), pytest.param("digits-conv", (0, 6), marks=pytest.mark.slow)])
def test_digits(tmp_path, capsys, name, classes):
    named = ("--classes", *classes) if classes else ()
    assert run_lab(name, "--quick", "--seeds", 1, "--lr", 0.01, *named, "--out", tmp_path) == 0
    out, page = capsys.readouterr().out, (tmp_path / f"{name}-quick.html").read_text()
    (accuracy,) = accuracies(tmp_path)
    assert accuracy > 0.85  # of two or three digits
    assert f"<td>{accuracy:.2%}</td>" in page
    assert "The training loss became flat" in out and "The training loss became flat" in page
    assert "16 a class" in page and f"classes {', '.join(map(str, classes or (0, 4, 6)))}" in page
    own = {"weights", "evidence"} if name == "digits-fc" else {"filters", "activations", "gradients"}
    figures = {"curves", "confusion", *own}
    assert {path.stem.removeprefix(f"{name}-quick-") for path in tmp_path.glob("*.png")} == figures
    Tags(page)


@pytest.mark.slow
def test_more_data(tmp_path, capsys):
    assert run_lab("more-data", "--quick", "--per-class", 8, 0, "--steps", 30, "--seeds", 3, "--out", tmp_path / "m") == 0
    kept = [json.loads(path.read_text()) for path in (tmp_path / "m").glob("parts/*.json")]
    assert len(kept) == 12

    def mean(few: bool) -> float:
        return float(np.mean([k["test_accuracy"] for k in kept if (k["facts"]["images"] == 80) == few]))

    assert mean(few=False) > mean(few=True) + 0.02  # more data help
    out = capsys.readouterr().out
    assert "1,097 training images and with 80: " in out and "The lead of Grayscale1Convolution over FC_only is" in out


@pytest.mark.slow
def test_the_quick_ladder_compares_networks_that_have_learned(tmp_path):
    assert run_lab("cifar-ladder", "--quick", "--out", tmp_path) == 0
    kept = [json.loads(path.read_text()) for path in tmp_path.glob("parts/*.json")]
    assert {k["facts"]["model"] for k in kept} == set(RUNGS)
    assert len({k["history"]["images_seen"] for k in kept}) == 1  # the same budget
    assert min(k["test_accuracy"] for k in kept) > 0.6  # of ten digits
    page = (tmp_path / "cifar-ladder-quick.html").read_text()
    Tags(page)
    assert "guessing" not in page


def test_a_quick_run_and_other_data_leave_the_page_of_a_full_run_alone(tmp_path):
    options = ("--classes", 0, 4, "--per-class", 4, "--seeds", 1, "--lr", 0.02, "--out", tmp_path)
    (tmp_path / "digits-fc.html").write_text("of a full run on mnist")
    assert run_lab("digits-fc", "--quick", *options) == 0
    assert run_lab("digits-fc", "--dataset", "digits", *options) == 0
    assert (tmp_path / "digits-fc.html").read_text() == "of a full run on mnist"
    assert {path.name for path in tmp_path.glob("*.html")} == {"digits-fc.html", "digits-fc-quick.html", "digits-fc-digits.html"}
    assert not list(tmp_path.glob("digits-fc-curves.png")) and (tmp_path / "digits-fc-quick-curves.png").exists()


def test_pages_of_folders_that_are_called_alike_have_different_names():
    command = Transfer()
    names = [command.page_name(f"folder:{folder}") for folder in ("a/photos", "b/photos", "b/my photos!", "a/../a/photos/")]
    assert len(set(names)) == 3 and names[0] == names[3]
    assert all(re.fullmatch(r"transfer-(photos|my-photos)-[0-9a-f]{8}", name) for name in names)
    assert command.page_name("cifar10") == "transfer" and command.page_name("digits") == "transfer-digits"
    assert Transfer(quick=True).page_name("digits") == "transfer-quick"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("digits-fc", "--classes", "0", "x"), "digits has no class 'x': there are 0, 1, 2"),
        (("digits-fc", "--classes", "4"), "only one class, '4'"),
        (("digits-fc", "--classes", "4", "4"), "named twice"),
        (("digits-fc", "--per-class", 1000), "1000 images of class '0' were asked for: digits has 142 for training, of which 35"),
        (("digits-fc", "--per-class", 0), "0 images of class '0'"),
        (("digits-fc", "--seeds", 0), "--seeds is 0: it must be 1 or more"),
        (("digits-fc", "--lr", 0), "max_lr is 0"),
        (("activations", "--activations", "relu", "relo"), "unknown activation 'relo': there are relu, gelu"),
        (("activations", "--steps", 0), "--steps is 0: it must be 1 or more"),
        (("more-data", "--per-class", -1), "-1 images of class"),
        (("more-data", "--dataset", "nothing"), "unknown data set 'nothing'"),
        (("transfer", "--classes", "0", "x"), "digits has no class 'x'"),
        (("transfer", "--source", "cifar8"), "takes images of 3 channels, those of digits have 1"),
        (("transfer", "--source", "nothing"), "unknown source 'nothing'"),
        (("transfer", "--epochs", 0), "--epochs 1 or more"),
        (("transfer", "--target", "folder:/nowhere"), "there is no folder /nowhere"),
        (("nothing",), "unknown command 'nothing'"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, arguments, words):
    assert run_lab(arguments[0], *(("--quick", "--out", tmp_path) if len(arguments) > 1 else ()), *arguments[1:]) == 2
    assert words in one_line(capsys)
    assert not list(tmp_path.glob("parts/*.json"))


def test_models_for_grey_images_refuse_colour(tmp_path, capsys):
    noise = write_noise(tmp_path / "noise.npz")
    for name in ("digits-conv", "more-data"):
        assert run_lab(name, "--quick", "--dataset", noise, "--classes", 0, 4, "--out", tmp_path) == 2
        assert "grey images of 1 channel, these have 3" in one_line(capsys)


def test_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("kept")
    assert run_lab("digits-fc", "--quick", "--out", tmp_path / "file") == 2
    assert f"cannot write to {tmp_path / 'file'}: " in one_line(capsys)
    assert (tmp_path / "file").read_text() == "kept"
