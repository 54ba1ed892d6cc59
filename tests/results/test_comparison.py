"""Runs beside each other: their numbers in table, plot and page, from the files that train writes."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_report import Page, make_history

from config import InputError
from conftest import assert_refused, run_main
from learning.history import History
from results import comparison


def write_run(folder: Path, evaluations: int = 3, card: dict | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(
        json.dumps(
            {
                "card": {"dataset": "shapes", "parameters": 133_930, "test_accuracy": 0.8, **(card or {})},
                "config": {},
                "history": asdict(make_history(evaluations)),
            }
        )
    )
    return folder


@pytest.fixture(scope="module")
def trained(shapes_npz, tmp_path_factory) -> tuple[Path, Path]:
    """Two folders of real runs, the second as if it had been stopped: its checkpoint alone."""
    folders = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("other")
    for folder, steps in zip(folders, (20, 10), strict=True):
        result = run_main(
            "train",
            "--dataset",
            f"npz:{shapes_npz}",
            "--steps",
            steps,
            "--eval-every",
            5,
            "--augment",
            0,
            "--val-images",
            100,
            "--out",
            folder,
        )
        assert result.returncode == 0, result.stderr
    (folders[1] / "run.json").unlink()
    return folders


def test_command_compares_what_train_wrote(trained, tmp_path):
    result = run_main("report", *trained, "--out", tmp_path / "new")
    assert result.returncode == 0, result.stderr
    head, first, second, where = result.stdout.splitlines()
    record = json.loads((trained[0] / "run.json").read_text())
    last = record["history"]["evaluations"][-1]
    assert first.split() == [
        str(trained[0]),
        record["card"]["dataset"],
        f"{last['epoch']:.4g}",
        f"{last['train_loss']:.3f}",
        f"{last['train_accuracy']:.2%}",
        f"{last['val_loss']:.3f}",
        f"{last['val_accuracy']:.2%}",
        f"{record['card']['test_accuracy']:.2%}",
        "133,930",
        f"{record['history']['total_seconds']:,.1f}",
    ]
    assert second.split()[:2] == [str(trained[1]), "(unfinished)"] and second.split()[-3] == "-"
    page = Page((tmp_path / "new" / "comparison.html").read_text())
    assert first.split() in page.rows
    assert len(page.rows) == 1 + 2 + (1 + 4) + (1 + 2)  # the table of runs, and of each run its looks
    with Image.open(tmp_path / "new" / "validation-accuracy.png") as plot:
        assert plot.format == "PNG" and plot.width > 700


def test_one_run_is_reported_in_its_own_folder(trained):
    assert run_main("report", trained[0]).returncode == 0
    assert (trained[0] / "comparison.html").exists() and (trained[0] / "validation-accuracy.png").exists()


def test_page_loads_nothing_and_lets_no_name_break_out(tmp_path):
    folder = write_run(tmp_path / "<script>$\\no$ &", card={"dataset": "<b>"})
    text = comparison.write(comparison.load_runs([folder, folder]), tmp_path).read_text()
    page = Page(text)
    tags = [tag for tag, _ in page.tags]
    assert not {"script", "b", "iframe"} & set(tags) and tags.count("h1") == 1
    assert all(values["src"].startswith("data:") for tag, values in page.tags if tag == "img")
    assert all(len(values["alt"]) > 10 for tag, values in page.tags if tag == "img")
    assert not re.search(r"https?://|url\(|@import", text)


def test_plot_shows_each_run_over_epochs_and_clock(tmp_path):
    runs = comparison.load_runs([write_run(tmp_path / "a", 3), write_run(tmp_path / "b", 5)])
    by_epoch, by_clock = comparison.validation_figure(runs).axes
    history = make_history(5)
    accuracy = [100 * e.val_accuracy for e in history.evaluations]
    curves = [line for line in by_epoch.lines if len(line.get_xdata()) == 5]
    np.testing.assert_allclose(curves[0].get_xydata(), np.stack([[e.epoch for e in history.evaluations], accuracy], 1))
    curves = [line for line in by_clock.lines if len(line.get_xdata()) == 5]
    np.testing.assert_allclose(curves[0].get_xydata(), np.stack([history.seconds, accuracy], 1))
    stars = [line.get_ydata()[0] for line in by_clock.lines if line.get_marker() == "*"]
    assert stars == [80, 80]


@pytest.mark.slow
def test_many_runs_and_runs_without_a_look(tmp_path):
    folders = [write_run(tmp_path / f"run {i}", i % 3) for i in range(30)]
    runs = comparison.load_runs(folders)
    assert runs[0].cells()[2:7] == ("-",) * 5
    assert len(comparison.format_table(runs).splitlines()) == 31
    assert comparison.write(runs, tmp_path / "out").exists()
    assert comparison.write(runs[:1], tmp_path / "none").exists()


def test_newer_checkpoint_is_that_of_a_run_begun_again(trained):
    record, checkpoint = trained[0] / "run.json", trained[0] / "checkpoint.pt"
    assert comparison.load_runs([trained[0]])[0].is_finished
    times = checkpoint.stat()
    os.utime(checkpoint, ns=(times.st_atime_ns, record.stat().st_mtime_ns + 10**9))
    (run,) = comparison.load_runs([trained[0]])
    os.utime(checkpoint, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not run.is_finished and isinstance(run.history, History)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("{", "no JSON"),
        ("[]", r"all is \[\]: .* dictionary"),
        ('{"card": {}}', "card.dataset"),
        ('{"card": {"dataset": "a", "parameters": "many"}, "config": {}, "history": {}}', "card.parameters is 'many'"),
        ('{"card": {"dataset": "a"}, "config": [], "history": {}}', r"config is \[\]"),
        ('{"card": {"dataset": "a"}, "config": {}, "history": {"evaluations": [null]}}', "history.evaluations.0 is None"),
        ('{"card": {"dataset": "a"}, "config": {}, "history": {"seconds": ["soon"]}}', "history.seconds.0 is 'soon'"),
        ('{"card": {"dataset": "a"}, "config": {}, "history": {"seconds": [1]}}', "not one for each"),
    ],
)
def test_damaged_records_are_named(tmp_path, content, word):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match=f"run.json.*{word}"):
        comparison.load_runs([tmp_path])


def test_folders_without_a_run(tmp_path):
    assert_refused(run_main("report", tmp_path), str(tmp_path), "neither run.json nor checkpoint.pt")
    assert_refused(run_main("report", tmp_path / "none"), "there is no folder", "none")


def test_folder_that_cannot_be_written(tmp_path):
    run = write_run(tmp_path / "run")
    (tmp_path / "file").touch()
    assert_refused(run_main("report", run, "--out", tmp_path / "file"), "cannot write")
