"""The report: real pictures, right numbers, a page that needs nothing else and lets nothing in."""

import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from config import InputError
from conftest import Tags
from images.data import Split
from learning.history import Evaluation, History
from limits.constraints import Constraint
from results import canvas, figures, report

PICTURES = ["curves.png", "confusion.png", "mistakes.png", "run.png"]
CONSTRAINTS = [Constraint("parameters", "196,746", "< 200,000", True), Constraint("receptive field", "39", "> 44", False)]


def make_history(evaluations: int) -> History:
    looks = range(1, evaluations + 1)
    return History(
        evaluations=[
            Evaluation(
                step=8 * k,
                epoch=0.02 * k,
                images_seen=1024 * k,
                learning_rate=0.02 / k,
                train_loss=2.2 - 0.1 * k,
                train_accuracy=0.2 + 0.03 * k,
                val_loss=2.1 - 0.1 * k,
                val_accuracy=0.25 + 0.03 * k,
            )
            for k in looks
        ],
        seconds=[0.3 * k for k in looks],
        test_passes=2,
        images_seen=1024 * evaluations,
        total_seconds=3.456,
    )


def make_test(num_classes: int, channels: int = 3, images: int = 200, perfect: bool = False) -> tuple[Split, torch.Tensor]:
    """Random images, and logits that are right about half of the time or always."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, num_classes, images)
    logits = rng.normal(size=(images, num_classes))
    logits[np.arange(images), labels] += 100 if perfect else 1.5
    return Split(rng.integers(0, 256, (images, 32, 32, channels), dtype=np.uint8), labels), torch.from_numpy(logits).float()


def write(folder: Path, test: Split, logits: torch.Tensor, classes: list[str], evaluations: int = 10, **changes: object) -> str:
    """Write a report; its page."""
    arguments = {
        "title": "sprint on shapes",
        "command": "python main.py sprint --seed 3",
        "history": make_history(evaluations),
        "test": test,
        "logits": logits,
        "card": {"classes": classes, "parameters": 196_746},
        "config": {"early_exit_accuracy": 0.55, "max_lr": 0.02},
        "constraints": CONSTRAINTS,
        "environment": {"hardware": {"processor": "Abacus 9"}},
    }
    path = report.write_report(folder, **arguments | changes)
    assert path == folder / "report.html"
    return path.read_text(encoding="utf-8")


class Page(Tags):
    """Also the text of every table row's cells and of every tile, in order."""

    def __init__(self, text: str) -> None:
        self.rows: list[list[str]] = []
        self.tiles: dict[str, str] = {}
        super().__init__(text)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        super().handle_starttag(tag, attributes)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data.strip()
        if "dt" in self.open:
            self.tiles[data] = ""
        elif "dd" in self.open:
            self.tiles[list(self.tiles)[-1]] = data


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Split, torch.Tensor]:
    folder = tmp_path_factory.mktemp("report") / "new" / "folder"
    test, logits = make_test(4)
    return folder, write(folder, test, logits, ["ant", "bee", "cat", "dog"]), test, logits


def test_pictures_are_real_and_of_a_sensible_size(written):
    folder = written[0]
    assert sorted(p.name for p in folder.iterdir()) == sorted([*PICTURES, "report.html", "report.md"])
    for name in PICTURES:
        with Image.open(folder / name) as picture:
            assert picture.format == "PNG"
            assert 600 <= picture.width <= 2400 and 500 <= picture.height <= 2400
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 50  # not blank
        assert (folder / name).stat().st_size < 400_000
    assert Image.open(folder / "run.png").width == 1600
    assert (folder / "report.html").stat().st_size < 1_000_000


def test_page_loads_nothing_and_runs_nothing(written):
    text = written[1]
    for tag, attributes in Page(text).tags:
        assert tag not in ("script", "iframe", "object", "embed", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "srcset", "data", "poster"):
                assert value.startswith("data:"), value
    assert not re.search(r"https?://|url\(|@import", text)


def test_page_is_accessible(written):
    page = Page(written[1])
    tags = [tag for tag, _ in page.tags]
    assert tags.count("h1") == 1 and "main" in tags and dict(page.tags)["html"] == {"lang": "en"}
    assert all(len(attributes["alt"]) > 10 for tag, attributes in page.tags if tag == "img")
    assert all(attributes["scope"] in ("row", "col") for tag, attributes in page.tags if tag == "th")
    assert "width=device-width" in written[1] and "prefers-color-scheme: dark" in written[1]


def test_page_holds_the_numbers(written):
    _, text, test, logits = written
    page, predictions = Page(text), logits.numpy().argmax(1)
    correct = int((predictions == test.labels).sum())
    assert page.tiles == {
        "Test accuracy": f"{correct / 2:.2f}%",
        "Time on the clock": "3.46 s",
        "Images seen": "10,240",
        "Parameters": "196,746",
        "Passes over the test split": "2",
    }
    assert f"{correct} of 200 test images" in text
    assert f"target of 55% was {'reached' if correct > 110 else 'missed'}" in text
    for index, name in enumerate(["ant", "bee", "cat", "dog"]):
        hits = ((predictions == index) & (test.labels == index)).sum()
        recall, precision = hits / (test.labels == index).sum(), hits / (predictions == index).sum()
        f1 = 2 * recall * precision / (recall + precision)
        assert [name, f"{recall:.1%}", "", f"{precision:.1%}", f"{f1:.1%}", str((test.labels == index).sum())] in page.rows
    assert ["parameters", "pass", "196,746", "< 200,000"] in page.rows
    assert ["receptive field", "FAIL", "39", "> 44"] in page.rows
    assert ["max_lr", "0.02"] in page.rows and ["hardware.processor", "Abacus 9"] in page.rows
    assert "python main.py sprint --seed 3" in text


def test_page_shows_the_most_confident_mistakes(written):
    _, text, test, logits = written
    exponentials = np.exp(logits.numpy().astype(float))
    wrong = [
        (row.max() / row.sum(), int(row.argmax()), label, i)
        for i, (row, label) in enumerate(zip(exponentials, test.labels, strict=True))
        if row.argmax() != label
    ]
    names = ["ant", "bee", "cat", "dog"]
    expected = [
        (str(i), names[label], names[predicted], f"{probability:.1%}")
        for probability, predicted, label, i in sorted(wrong, reverse=True)[:16]
    ]
    pattern = r'alt="Test image (\d+), of class (\w+)">\s*<span><strong>(\w+)</strong> ([\d.]+%)'
    assert re.findall(pattern, text) == expected


def test_names_from_a_users_folders_cannot_break_out(tmp_path):
    test, logits = make_test(3)
    names = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "$\\no$ &{{7}}"]
    text = write(tmp_path, test, logits, names, title="<b>$\\no$", command="run '<i>'", environment={"<u>": "<s>"})
    page = Page(text)
    assert {"script", "b", "i", "u", "s"}.isdisjoint(tag for tag, _ in page.tags)
    assert all("onerror" not in attributes for _, attributes in page.tags)
    assert [row[0] for row in page.rows if row[0] in names] == names  # and read back unchanged


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize(
    ("num_classes", "channels", "evaluations", "perfect"),
    [
        pytest.param(2, 1, 1, False, marks=pytest.mark.slow),
        (10, 1, 0, True),
        pytest.param(20, 3, 60, False, marks=pytest.mark.slow),
        pytest.param(100, 3, 3, False, marks=pytest.mark.slow),
    ],
)
def test_unusual_runs(tmp_path, num_classes, channels, evaluations, perfect):
    test, logits = make_test(num_classes, channels, perfect=perfect)
    names = ["日本\udcff\n" + "x" * 80, *map(str, range(1, num_classes))]
    text = write(tmp_path, test, logits, names, evaluations, card={"classes": names}, config={}, constraints=[], environment={})
    for name in PICTURES:
        Image.open(tmp_path / name).verify()
    page = Page(text)
    assert ("There are none" in text) == perfect
    assert ("no evaluation" in text) == (evaluations == 0)
    assert "Parameters" not in page.tiles and "target" not in text and len(text) < 1_000_000


def test_curves_show_the_history():
    history = make_history(12)
    loss, accuracy, rate = figures.curves_figure(history, target=0.55, test_accuracy=0.5612).axes[:3]
    images = [1024 * k for k in range(1, 13)]
    lines = {(axes.get_ylabel(), line.get_label()): line for axes in (loss, accuracy, rate) for line in axes.lines}
    for key, values in {
        ("loss: cross-entropy (nats)", "training"): [e.train_loss for e in history.evaluations],
        ("loss: cross-entropy (nats)", "validation"): [e.val_loss for e in history.evaluations],
        ("accuracy (%)", "training"): [100 * e.train_accuracy for e in history.evaluations],
        ("accuracy (%)", "validation"): [100 * e.val_accuracy for e in history.evaluations],
        ("learning rate", "learning rate"): [e.learning_rate for e in history.evaluations],
    }.items():
        np.testing.assert_allclose(lines[key].get_xydata(), np.stack([images, values], 1))
    np.testing.assert_allclose(lines["accuracy (%)", "target 55%"].get_ydata(), 55)
    np.testing.assert_allclose(lines["accuracy (%)", "test 56.12%"].get_xydata(), [[12 * 1024, 56.12]])
    clock = loss.child_axes[0]
    ticks = {label.get_text(): place for place, label in zip(clock.get_xticks(), clock.get_xticklabels(), strict=True)}
    assert clock.get_xlabel() == "seconds" and len(ticks) > 3
    assert all(place == pytest.approx(float(text) / 0.3 * 1024) for text, place in ticks.items())


def test_confusion_figure_is_normalised_by_row_and_names_its_cells():
    labels, predictions = np.array([0, 0, 0, 1, 2]), np.array([0, 0, 2, 1, 1])
    axes = figures.confusion_figure(labels, predictions, ["ant", "bee", "cat", "none of it"]).axes[0]
    expected = [[2 / 3, 0, 1 / 3, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(axes.images[0].get_array(), expected)
    cells = {tuple(reversed(text.get_position())): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "67%\n2", (0, 2): "33%\n1", (1, 1): "100%\n1", (2, 1): "100%\n1"}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ant", "bee", "cat", "none of it"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")


@pytest.mark.slow
def test_confusion_figure_of_many_classes_is_not_cluttered():
    labels = np.arange(100)
    figure = figures.confusion_figure(labels, labels, [f"class {i}" for i in labels])
    axes = figure.axes[0]
    canvas.png(figure)  # lays it out
    assert not axes.texts
    for axis in (axes.xaxis, axes.yaxis):
        assert [label.get_text() for label in axis.get_ticklabels()] == [f"class {i}" for i in labels]
        boxes = [label.get_window_extent() for label in axis.get_ticklabels()]
        start, size = ("x0", "width") if axis is axes.xaxis else ("y0", "height")
        along = sorted((getattr(box, start), getattr(box, size)) for box in boxes)
        assert all(place + length <= following for (place, length), (following, _) in zip(along, along[1:], strict=False))


def test_confusion_figure_where_not_all_names_have_room_shows_some_of_them():
    labels = np.arange(400)
    figure = canvas.new_figure(16, 7)
    axes = figures.confusion_figure(labels, labels, [f"class {i}" for i in labels], figure.subfigures(1, 2)[0]).axes[0]
    shown = [label.get_text() for label in axes.get_yticklabels()]
    step = 400 // len(shown)
    assert 10 < len(shown) < 100 and shown == [f"class {i}" for i in range(0, 400, step)][: len(shown)]
    assert axes.get_yticklabels()[0].get_fontsize() >= 6


@pytest.mark.filterwarnings("error")
def test_names_in_any_script_are_drawn_without_a_warning(caplog):
    names = ["日本語", "한국어", "العربية", "ไทย", "🐈", "ελληνικά"]
    figure = figures.confusion_figure(np.arange(6), np.arange(6), names)
    assert canvas.png(figure)[1:4] == b"PNG" and canvas.pixels(figure).shape[2] == 3
    mistakes = figures.mistakes_figure(np.zeros((6, 8, 8, 3), np.uint8), np.arange(6), np.eye(6)[::-1], names)
    assert canvas.png(mistakes)[1:4] == b"PNG"  # its title is bold, as not all of those fonts are
    assert not caplog.records


def test_fonts_of_the_machine_are_asked_for_what_matplotlibs_own_lacks(monkeypatch):
    from types import SimpleNamespace

    from matplotlib import font_manager

    fonts = {"Own": {1, 2}, "Useless": {9}, "Large": {3, 4, 5}, "Small": {5, 6}}
    listed = SimpleNamespace(ttflist=[SimpleNamespace(name=name, fname=name) for name in fonts])
    monkeypatch.setattr(font_manager, "fontManager", listed)
    monkeypatch.setattr(font_manager, "get_font", lambda name: SimpleNamespace(get_charmap=lambda: dict.fromkeys(fonts[name])))
    assert canvas._families_with(frozenset({3, 4, 5, 6, 7})) == ("Large", "Small")


def test_mistakes_figure_shows_image_prediction_and_truth():
    images = np.stack([np.full((28, 28, 1), value, np.uint8) for value in (10, 20, 30, 40)])
    probabilities = np.array([[0.6, 0.4], [0.1, 0.9], [0.2, 0.8], [0.3, 0.7]])
    figure = figures.mistakes_figure(images, np.array([1, 1, 0, 0]), probabilities, ["ant", "bee"])
    shown = [(axes.get_title(), int(axes.images[0].get_array()[0, 0])) for axes in figure.axes if axes.images]
    assert shown == [("bee 80%\ntrue: ant", 30), ("bee 70%\ntrue: ant", 40), ("ant 60%\ntrue: bee", 10)]


def test_same_figure_gives_the_same_bytes():
    first, second = (canvas.png(figures.curves_figure(make_history(3))) for _ in range(2))
    assert first == second and Image.open(io.BytesIO(first)).format == "PNG"


def test_folder_that_cannot_be_written_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("kept")
    test, logits = make_test(2)
    with pytest.raises(InputError, match="cannot write .*file"):
        write(tmp_path / "file", test, logits, ["ant", "bee"])
    assert (tmp_path / "file").read_text() == "kept"


def test_import_is_light_and_pyplot_is_never_used():
    code = """
import sys, numpy as np
from results import canvas, figures, report
print([name for name in ("matplotlib", "sklearn", "jinja2", "PIL") if name in sys.modules])
figure = figures.mistakes_figure(np.zeros((2, 8, 8, 3), np.uint8), np.array([0, 1]), np.eye(2)[::-1], ["ant", "bee"])
print(canvas.png(figure)[1:4].decode(), "matplotlib.pyplot" in sys.modules)
"""
    root = Path(report.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "PNG False"]
