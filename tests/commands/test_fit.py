"""fit as a user types it: within the limits, within the budget, in several processes, and after they were killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from commands.fit import LIMITS as KEPT_LIMITS
from commands.fit import RECIPE, limits_of, preset_text, seconds_of
from commands.trying import Candidates, Run, demanded
from config import InputError, TrainConfig
from conftest import ROOT, assert_refused, run_main
from images import shapes
from images.data import ImageDataset, load
from learning import checkpoint
from learning.presets import PRESETS, Preset
from learning.study import open_study, results
from learning.weights import load_weights
from limits.assignments import parse, read
from limits.constraints import check
from model import Net
from processes import Process, wait_for
from training import Trainer
from utils import write_json

optuna = pytest.importorskip("optuna", reason="requirements-fit.txt is not installed")

LIMITS = 'max_parameters = 6_000\nmin_receptive_field = 30\nrequire = ["gap", "separable"]\nmax_epochs = 500\n'
WORKER = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """The options that name a small data set and an assignment."""
    folder = tmp_path_factory.mktemp("task")
    (images, labels), (test_images, test_labels) = shapes.render(1, 200), shapes.render(2, 100)
    np.savez(folder / "few.npz", train_x=images, train_y=labels, test_x=test_images, test_y=test_labels)
    (folder / "small.toml").write_text(LIMITS)
    return "--dataset", f"npz:{folder / 'few.npz'}", "--assignment", folder / "small.toml", "--threads", 1


def study_at(place: str) -> Any:
    return optuna.load_study(storage=f"sqlite:///{place}", study_name="fit")


@pytest.fixture(scope="module")
def fitted(task: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, float]:
    """The folder of one fit, its result and its seconds."""
    out = tmp_path_factory.mktemp("runs") / "fit"
    began = time.monotonic()
    result = run_main("fit", *task, "--budget", "12s", "--out", out)
    return out, result, time.monotonic() - began


@pytest.mark.slow
def test_every_network_that_was_trained_satisfies_the_limits(fitted, task) -> None:
    out, result, _ = fitted
    assert result.returncode == 0, result.stderr
    rules = read(task[3])
    tried = results(study_at(out / "study.sqlite"))
    assert tried
    for one in tried:
        model = Net(3, 10, **one.net)
        assert all(demand.passed for demand in check(model, (32, 32), 3, assignment=rules))
        assert one.parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_it_ends_within_the_budget(fitted) -> None:
    assert fitted[2] < 60  # of 12: this machine may do much else


class Planned(Candidates):
    """Trains nothing: a step takes a tenth of a second, and evaluation on the 20 validation images two seconds."""

    def _run(self, net: dict[str, Any], steps: int, dataset: ImageDataset, out: Path | None = None, eval_every: int = 0) -> Any:
        self.asked, self.eval_every = steps, eval_every
        return Run(None, 0.1, 4.0)


@pytest.mark.parametrize(
    ("limits", "seconds", "steps"),
    [
        ("", 300, (285 - 10 - (13 + 2) * 2) / 0.1),  # a tenth of it for evaluations, the choice of the weights, 100 test images
        ("seconds = 100", 1000, (95 - 20 * 2 - 4) / 0.1),  # twenty evaluations and the rest of a training count, too
        ("max_epochs = 20", 1000, 20 * 11),  # of 11 batches of 16
        ("", 10, 10),
        ("", 100_000, 300 * 11),
    ],
)
def test_the_training_is_planned_for_the_time_that_is_left(task, tmp_path: Path, limits: str, seconds: float, steps: float) -> None:
    (tmp_path / "mine.toml").write_text(limits)
    candidates = Planned(load(str(task[1]), tmp_path), read(tmp_path / "mine.toml"), RECIPE)
    candidates.train({}, time.monotonic() + seconds, tmp_path)
    assert candidates.asked == pytest.approx(steps, abs=3)


def test_a_hole_that_is_larger_than_the_images_is_refused(task, tmp_path: Path) -> None:
    rules = parse({"name": "mine", "image_size": 48, "augmentation": {"hole": 33}}, "mine")
    candidates = Candidates(load(str(task[1]), tmp_path), rules, RECIPE)
    with pytest.raises(InputError, match=r"^hole is 33: it must be at most the side of an image \(32 pixels\)$"):
        candidates.search(str(tmp_path / "study.sqlite"), time.monotonic() + 600, 0.5)
    tried = [trial for trial in study_at(tmp_path / "study.sqlite").trials if trial.state.name != "WAITING"]
    assert len(tried) == 1  # at once


def test_the_last_epochs_that_an_assignment_asks_for_are_evaluated(task, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("target_accuracy = 0.5\nlast_epochs = 3")
    candidates = Planned(load(str(task[1]), tmp_path), read(tmp_path / "mine.toml"), RECIPE)
    candidates.train({}, time.monotonic() + 300, tmp_path)
    assert candidates.eval_every == candidates.steps_per_epoch == 11
    assert candidates.asked == pytest.approx(
        (285 - 4 * 10 - 4) / (0.1 + 2 / 11), abs=3
    )  # two seconds for each evaluation, ten for the test split


@pytest.mark.slow
def test_a_killed_training_is_resumed(task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def steps(out: Path) -> None:
        out.mkdir()
        Candidates(load(str(task[1]), tmp_path), read(task[3]), RECIPE)._run(PRESETS["baseline"].net, 24, dataset, out, 8)

    def dies(trainer: Trainer) -> None:
        save(trainer)
        raise ProcessLookupError

    dataset, save = load(str(task[1]), tmp_path), checkpoint.save
    steps(tmp_path / "whole")
    monkeypatch.setattr(checkpoint, "save", dies)
    with pytest.raises(ProcessLookupError):
        steps(tmp_path / "run")
    monkeypatch.undo()
    assert checkpoint.read(tmp_path / "run" / "checkpoint.pt")["step"] == 8
    assert_refused(run_main("fit", *task, "--out", tmp_path / "run"), "holds a run", "--resume")
    result = run_main("fit", *task, "--resume", "--out", tmp_path / "run", "--seed", "7")
    assert result.returncode == 1, result.stderr  # the baseline has more parameters than allowed
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [one["step"] for one in record["history"]["evaluations"]] == [8, 16, 24] and record["config"]["seed"] == 0
    found, whole = (checkpoint.read(tmp_path / name / "checkpoint.pt")["model"] for name in ("run", "whole"))
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert {"model.safetensors", "report.html", "preset.txt"} <= set(os.listdir(tmp_path / "run"))


def test_what_fit_cannot_resume(task, tmp_path: Path) -> None:
    assert_refused(run_main("fit", *task, "--resume", "--out", tmp_path / "run"), "nothing to resume")
    assert_refused(run_main("fit", *task, "--resume", "--study", tmp_path / "study"), "leave out --study")
    other = run_main("train", *task[:2], "--steps", 2, "--out", tmp_path / "other")
    assert other.returncode == 0, other.stderr
    assert_refused(run_main("fit", *task, "--resume", "--out", tmp_path / "other"), "another command than fit")


def test_a_name_with_a_quote_makes_a_preset_too(task, tmp_path: Path) -> None:
    (tmp_path / 'student\'s "own".toml').write_text(LIMITS)
    text = preset_text(load(str(task[1]), tmp_path), read(tmp_path / 'student\'s "own".toml'), RECIPE, {"norm": "batch"})
    (preset,) = eval("{" + text + "}", {"Preset": Preset, "TrainConfig": TrainConfig}).values()  # noqa: S307
    assert preset.about == 'found by fit for few within student\'s "own"'


def test_a_training_is_as_the_assignment_demands(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("batch_size = 48\npeak_epoch = 2\n[augmentation]\nflip = true\nhole = 16")
    config = demanded(RECIPE, read(tmp_path / "mine.toml"))
    assert (config.batch_size, config.images_per_draw, config.hole, config.flip) == (48, 16, 16, True)


def test_it_leaves_what_a_training_leaves(fitted) -> None:
    out, result, _ = fitted
    assert {"model.safetensors", "run.json", "report.html", "log.csv", "preset.txt", "study.sqlite"} <= set(os.listdir(out))
    assert "the best of the longest runs is" in result.stdout and "s of the search are left" in result.stdout
    assert "what the assignment small demands" in result.stdout
    record = json.loads((out / "run.json").read_text())
    assert record["history"]["test_passes"] == 0 and record["card"]["test_accuracy"] > 0
    state, card = load_weights(out / "model.safetensors")
    Net(3, 10, **card["net"]).load_state_dict(state)
    assert card["data"]["train"] == 200 and card["preset"] == "fit"
    predicted = run_main("evaluate", "--weights", out / "model.safetensors", "--dataset", card["dataset"])
    assert predicted.returncode in (0, 2), predicted.stderr


def test_the_preset_can_be_pasted(fitted) -> None:
    out, result, _ = fitted
    text = (out / "preset.txt").read_text()
    assert text in result.stdout
    presets = eval("{" + text + "}", {"Preset": Preset, "TrainConfig": TrainConfig})  # noqa: S307
    record = json.loads((out / "run.json").read_text())
    preset = presets["fit-few"]
    assert json.loads(json.dumps(preset.net)) == record["card"]["net"]
    assert preset.train.steps == record["config"]["steps"] == record["history"]["evaluations"][-1]["step"]
    assert preset.train.batch_size == record["config"]["batch_size"]


@pytest.mark.slow
def test_a_second_fit_goes_on_with_the_study(fitted, task, tmp_path: Path) -> None:
    out, _, _ = fitted
    study = out / "study.sqlite"
    before = len(results(study_at(study)))
    result = run_main("fit", *task, "--budget", "10s", "--search-only", "--study", study)
    assert result.returncode == 0, result.stderr
    tried = f"{before} networks have" if before > 1 else "one network has"
    assert f"in which {tried} been tried" in result.stderr
    assert len(results(study_at(study))) > before
    other = tmp_path / "other.toml"
    other.write_text("max_parameters = 7_000")
    wrong = (*task[:3], other)
    assert_refused(run_main("fit", *wrong, "--study", study, "--out", tmp_path / "run"), "about other limits", "--study")
    elsewhere = tmp_path / "few.npz"
    with np.load(task[1].removeprefix("npz:")) as arrays:
        np.savez(elsewhere, **{**arrays, "train_x": 255 - arrays["train_x"]})
    others = ("--dataset", f"npz:{elsewhere}", *task[2:])
    assert_refused(run_main("fit", *others, "--study", study, "--out", tmp_path / "run"), "about other data: pass another")
    seed = ("--seed", 7, "--study", study, "--out", tmp_path / "run")
    assert_refused(run_main("fit", *task, *seed), "about other validation images (--seed)")
    assert not (tmp_path / "run").exists()
    # The study of the run that is replaced may go on, too.
    again = tmp_path / "again"
    shutil.copytree(out, again)
    options = ("--budget", "10s", "--study", again / "study.sqlite", "--out", again)
    assert_refused(run_main("fit", *task, *options), "holds a run")
    tried, record = len(results(study_at(again / "study.sqlite"))), (again / "run.json").read_bytes()
    result = run_main("fit", *task, *options, "--overwrite")
    assert result.returncode == 0, result.stderr
    assert len(results(study_at(again / "study.sqlite"))) >= tried and (again / "run.json").read_bytes() != record


def start(task: tuple[object, ...], study: object, *more: object) -> Process:
    return Process(ROOT / "main.py", "fit", *task, "--study", study, "--search-only", *more, env=WORKER)


def has_runs(study: Path) -> bool:
    try:
        return bool(results(study_at(study)))
    except (KeyError, RuntimeError, optuna.exceptions.StorageInternalError):
        return False


def is_trying(study: Path) -> bool:
    try:
        return any("net" in trial.user_attrs for trial in study_at(study).trials)
    except Exception:  # its tables are being made
        return False


@pytest.mark.slow
def test_a_killed_process_leaves_a_study_to_go_on_with(task, tmp_path: Path) -> None:
    study = tmp_path / "study.sqlite"
    process = start(task, study, "--budget", "1h")
    wait_for(lambda: is_trying(study))
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    (left,) = [trial for trial in study_at(study).trials if trial.state.name == "RUNNING"]
    study_at(study).set_user_attr("unit", 0.5)  # of an hour's study it is longer
    result = run_main("fit", *task, "--budget", "10s", "--search-only", "--study", study)
    assert result.returncode == 0, result.stderr
    trials = study_at(study).trials
    assert trials[left.number].state.name == "FAIL"
    (again,) = [trial for trial in trials[left.number + 1 :] if trial.system_attrs.get("fixed_params") == left.params]
    assert again.user_attrs["known"] == left.user_attrs["known"] == 0


@pytest.mark.slow
def test_two_processes_work_on_one_study(task, tmp_path: Path, place: str) -> None:
    both = [start(task, place, "--budget", "20s") for _ in range(2)]
    ended = [process.communicate(200) for process in both]
    assert [process.returncode for process in both] == [0, 0], ended
    numbers = [re.findall(r"^network (\d+):", output, re.MULTILINE) for output, _ in ended]
    assert numbers[0] and numbers[1] and not {*numbers[0]} & {*numbers[1]}
    candidates = Candidates(load(str(task[1]), tmp_path), read(task[3]), RECIPE)
    study = open_study(place, candidates.about, 1.0)
    assert {str(one.number) for one in results(study)} == {*numbers[0], *numbers[1]}


@pytest.mark.slow
def test_ctrl_c_keeps_the_study(task, tmp_path: Path) -> None:
    study = tmp_path / "study.sqlite"
    process = start(task, study, "--budget", "1h")
    wait_for(lambda: is_trying(study))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(120)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == f"interrupted: the same command with --study {study} goes on with what was tried"
    states = [trial.state.name for trial in study_at(study).trials]
    assert "RUNNING" not in states and "WAITING" in states


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("2h", 7200), ("1h30m", 5400), ("0.5m", 30), ("1m30s", 90)]
)
def test_budgets(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["10", "ten", "5s", "-10m", "10 m", "1e9h", "10m!", "m", "99999h", "９０s", "10m10m", "30s1m"])
def test_wrong_budgets(text: str) -> None:
    with pytest.raises(InputError, match="--budget"):
        seconds_of(text)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--budget", "soon"), "90s, 10m, 2h"),
        (("--assignment", "mnist-9k"), "mnist-8k"),
        (("--dataset", "npz:none.npz"), "none.npz"),
        (("--search-only",), "name it with --study"),
        (("--search-only", "--study", "s.sqlite", "--overwrite"), "leave out --overwrite"),
        (("--study", "redis://host"), "no other kind of address"),
        (("--device", "tpu"), "unknown device"),
        (("--seed", "-1"), "seed"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(task, tmp_path: Path, options: tuple[str, ...], words: str) -> None:
    assert_refused(run_main("fit", *task, "--out", tmp_path / "run", *options), words)
    assert not (tmp_path / "run").exists()


def test_limits_that_no_network_satisfies(task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("commands.trying.PATIENCE", 3)
    (tmp_path / "tiny.toml").write_text("max_parameters = 50")
    result = run_main("fit", *task, "--assignment", tmp_path / "tiny.toml", "--out", tmp_path / "run")
    assert_refused(result, "none of 3 networks satisfies the assignment tiny", "parameters", "< 50")


def test_when_its_time_is_up_it_looks_for_no_more_networks(task, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text("max_parameters = 50")
    candidates = Candidates(load(str(task[1]), tmp_path), read(tmp_path / "tiny.toml"), RECIPE)
    with pytest.raises(InputError, match="none of 1 networks satisfies"):
        candidates.search(str(tmp_path / "study.sqlite"), time.monotonic() - 1, 0.5)


def test_a_run_is_kept_until_there_is_another_to_replace_it(task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("commands.trying.PATIENCE", 1)
    out = tmp_path / "run"
    out.mkdir()
    for name in ("model.safetensors", "run.json", "report.html"):
        (out / name).write_text("earlier")
    (tmp_path / "tiny.toml").write_text("max_parameters = 50")
    result = run_main("fit", *task, "--assignment", tmp_path / "tiny.toml", "--out", out, "--overwrite")
    assert_refused(result, "none of 1 networks")
    assert all((out / name).read_text() == "earlier" for name in ("model.safetensors", "run.json", "report.html"))


def test_a_training_of_one_step_takes_time(task, tmp_path: Path) -> None:
    (tmp_path / "short.toml").write_text("max_epochs = 0.1\nmax_parameters = 6_000")
    candidates = Candidates(load(str(task[1]), tmp_path), read(tmp_path / "short.toml"), RECIPE)
    net = {**PRESETS["baseline"].net, "widths": (8, 8, 8, 8)}
    run = candidates.train_shortly(net, 0.5)
    assert run.trainer.step == 1 and run.step_seconds > 0
    assert candidates.train_shortly(net, 1.5, run).trainer.step == 1


def test_a_run_keeps_its_limits(tmp_path: Path) -> None:
    small, other = (parse({"name": name, "max_parameters": most}, name) for name, most in (("small", 6_000), ("other", 5_000)))
    write_json(tmp_path / KEPT_LIMITS, {"named": True, "assignment": small.model_dump(mode="json", exclude_defaults=True)})
    assert limits_of(tmp_path, None) == limits_of(tmp_path, small) == small
    with pytest.raises(InputError, match="within the limits of small: leave out --assignment"):
        limits_of(tmp_path, other)
    for text in ("{", "[]", "{}", '{"named": true, "assignment": 3}'):
        (tmp_path / KEPT_LIMITS).write_text(text)
        with pytest.raises(InputError, match=KEPT_LIMITS):
            limits_of(tmp_path, None)


def test_without_optuna(task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert_refused(run_main("fit", *task, "--out", tmp_path / "run"), "pip install -r requirements-fit.txt")
