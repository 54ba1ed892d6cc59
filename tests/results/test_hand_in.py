"""The page to hand in, of a training and later of its run: the author's words in their sections, layers, augmentation, Markdown."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_report import Page, make_history

from config import TrainConfig
from conftest import Tags, assert_refused, random_split, run_main
from images.data import ImageDataset, Split
from learning.history import Evaluation
from results import figures, hand_in

NOTES = """\
A summary | with *stars* and <script>alert(1)</script>.

## Goal

As **small** as can be.

## layers

Few.

## Per-class accuracy

Ants are easy.

## Conclusion

It works.
"""
STEPS = ("--steps", 4, "--eval-every", 2, "--augment", 0.5, "--workers", 0, "--batch-size", 16)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    train, test = random_split(96, 3, 28, 28), random_split(48, 3, 28, 28)
    np.savez(folder / "made.npz", train_x=train.images, train_y=train.labels, test_x=test.images, test_y=test.labels)
    (folder / "notes.md").write_text(NOTES)
    return folder


@pytest.fixture(scope="module")
def run(data) -> Path:
    """A training whose page has author and notes from the start."""
    words = ("--author", "Ada <Lovelace>", "--notes", data / "notes.md")
    result = run_main("train", "--dataset", f"npz:{data / 'made.npz'}", *STEPS, *words, "--out", data / "run")
    assert result.returncode == 0 and "report in" in result.stdout, result.stderr
    return data / "run"


def headings(page: str) -> list[str]:
    return [re.sub("<.*?>", "", text) for text in re.findall(r"<h2[^>]*>(.*?)</h2>", page)]


def test_words_stand_in_their_sections(run):
    page = (run / "report.html").read_text()
    assert "Author: Ada &lt;Lovelace&gt;" in page and "<script" not in page
    found = headings(page)
    assert found[0] == "Goal" and found.index("Layers") < found.index("Conclusion") < found.index("Configuration")
    own = re.findall(r"<h2[^>]*>([^<]*)</h2>\s*<div class=\"own\">\s*<p>(.*?)</p>", page)
    assert own == [
        ("Goal", "As <strong>small</strong> as can be."),
        ("Per-class accuracy", "Ants are easy."),
        ("Layers", "Few."),
        ("Conclusion", "It works."),
    ]
    ids = [attributes["id"] for _, attributes in Tags(page).tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["aria-labelledby"] for _, attributes in Tags(page).tags if "aria-labelledby" in attributes} <= set(ids)


def test_layers_have_their_receptive_fields(run):
    rows = Page((run / "report.html").read_text()).rows
    start = rows.index(["Layer", "Operation", "Output", "Receptive field"])
    assert rows[start + 1] == ["C1.0", "4x4 convolution, stride 2", "13x13", "4 px"]
    fields = [int(row[3].split()[0]) for row in rows[start + 1 :] if len(row) == 4 and row[3].endswith(" px")]
    assert fields == sorted(fields) and fields[-1] == 66


def test_the_same_stands_in_markdown(run):
    text, page = (run / "report.md").read_text(), (run / "report.html").read_text()
    assert text.startswith("# Training of baseline on npz:") and "Author: Ada &lt;Lovelace&gt;" in text
    assert re.findall("^## (.*)$", text, re.MULTILINE) == headings(page)
    pictures = re.findall(r"\]\((\w+\.png)\)", text)
    assert pictures == ["curves.png", "confusion.png", "augmented.png", "mistakes.png"]
    for name in pictures:
        with Image.open(run / name) as picture:
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 50
    assert "A summary | with *stars*" in text  # as it was written
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("|")]
    assert ["C1.0", "4x4 convolution, stride 2", "13x13", "4 px"] in cells
    assert ["augment", "0.5"] in cells and len([row for row in cells if row[0] == "GAP"]) == 1


@pytest.mark.slow
def test_a_finished_run_gets_the_same_page_anew(run, data, tmp_path):
    before = (run / "report.html").read_text()
    words = ("--author", "Ada <Lovelace>", "--notes", data / "notes.md")
    result = run_main("report", run, *words, "--out", tmp_path / "page")
    assert result.returncode == 0 and f"report in {tmp_path / 'page' / 'report.html'}" in result.stdout, result.stderr
    after = (tmp_path / "page" / "report.html").read_text()
    assert headings(after) == headings(before)
    for part in (r"<dl.*</dl>", r'<table class="scores">.*?</table>', r'<ul class="mistakes.*?</ul>', r"<pre><code>.*?</code>"):
        found = [re.search(part, page, re.DOTALL) for page in (before, after)]
        assert found[0] and found[1] and found[0][0] == found[1][0], part
    assert (tmp_path / "page" / "report.md").exists() and (tmp_path / "page" / "comparison.html").exists()
    plain = run_main("report", run, "--page", "--assignment", "mnist-8k", "--out", tmp_path / "plain")
    assert plain.returncode == 1, plain.stderr  # not MNIST, and too large
    page = (tmp_path / "plain" / "report.html").read_text()
    assert 'class="own"' not in page and "Author" not in page and "What the assignment demands" in headings(page)


def test_bad_input_is_one_line_and_trains_nothing(run, data, tmp_path):
    (tmp_path / "bad.md").write_text("![x](none.png)")
    train = ("train", "--dataset", f"npz:{data / 'made.npz'}", *STEPS, "--out", tmp_path / "run")
    assert_refused(run_main(*train, "--notes", tmp_path / "bad.md"), "bad.md shows 'none.png'")
    assert_refused(run_main(*train, "--notes", tmp_path / "none.md"), "none.md")
    assert not (tmp_path / "run").exists()
    assert_refused(run_main("report", run, run, "--author", "Ada"), "are for one run")
    assert_refused(run_main("report", run, "--notes", tmp_path / "none.md"), "none.md")
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    (stopped / "checkpoint.pt").write_bytes((run / "checkpoint.pt").read_bytes())
    assert_refused(run_main("report", stopped, "--page"), "is not finished")
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("model.safetensors", "model.json", "run.json"):
        (moved / name).write_bytes((run / name).read_bytes())
    record = json.loads((moved / "run.json").read_text())
    record["card"]["dataset"] = f"npz:{tmp_path / 'gone.npz'}"
    (moved / "run.json").write_text(json.dumps(record))
    assert_refused(run_main("report", moved, "--page"), "gone.npz")


@pytest.mark.parametrize("settings", [{"augment": 1.0}, {"augment": 0.0, "shift": 4}])
def test_augmented_images_are_what_training_sees(settings):
    split = random_split(20, 4)
    dataset = ImageDataset("made", split, split, ("ant", "bee", "cat", "dog"))
    config = TrainConfig(**settings)
    figure = hand_in.augmented_figure(dataset, config, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    grid = np.array([axes.images[0].get_array() for axes in figure.axes]).reshape(1 + hand_in.DRAWS, hand_in.EXAMPLES, 32, 32, 3)
    originals = {image.tobytes() for image in split.images}
    assert all(image.astype(np.uint8).tobytes() in originals for image in grid[0])
    for draws in grid.swapaxes(0, 1):
        assert len({draw.tobytes() for draw in draws}) > 2
        assert all(abs(draw.mean() - draws[0].mean()) < 25 for draw in draws)  # the same image, moved
    names = [axes.get_title() for axes in figure.axes[: hand_in.EXAMPLES]]
    assert set(names) <= set(dataset.classes)
    assert hand_in.augmented_figure(dataset, replace(config, augment=0.0, shift=0), (0.5,) * 3, (0.2,) * 3) is None


def test_a_network_that_cannot_be_followed_has_no_table_of_layers(capsys):
    class Strange(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("not today")

    split = Split(np.zeros((2, 8, 8, 3), np.uint8), np.arange(2))
    assert hand_in.layer_rows(Strange(), ImageDataset("made", split, split, ("a", "b"))) == []
    assert "no table of layers" in capsys.readouterr().err


def test_curves_have_one_point_an_epoch():
    looks = [
        Evaluation(step=k, epoch=k / 4, images_seen=100 * k, learning_rate=0.1, train_loss=float(k), train_accuracy=k / 100,
                   val_loss=10.0 * k, val_accuracy=k / 50)
        for k in range(1, 14)
    ]  # fmt: skip
    history = replace(make_history(1), evaluations=looks, seconds=[0.5 * k for k in range(1, 14)])
    found = figures.by_epoch(history)
    assert [one.epoch for one in found.evaluations] == [1, 2, 3]
    assert [one.train_loss for one in found.evaluations] == [2.5, 6.5, 10.5]  # means over the epoch
    assert [one.val_loss for one in found.evaluations] == [40, 80, 120] and found.seconds == [2, 4, 6]
    loss = figures.curves_figure(history).axes[0].lines[0]
    np.testing.assert_allclose(loss.get_xdata(), [400, 800, 1200])
    assert figures.by_epoch(make_history(5)) == make_history(5)  # of parts of an epoch alone, all are shown
