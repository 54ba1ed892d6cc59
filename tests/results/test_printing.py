"""The pages on paper and on a phone, as Chromium shows them: nothing is cut, and a report takes two to four sheets."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from test_comparison import write_run
from test_report import make_history, make_test, write

from config import TrainConfig
from conftest import ROOT
from course import leaderboard
from images.data import ImageDataset
from lab.common.page import Figure, Table
from lab.common.page import Page as LabPage
from limits import assignments
from limits.constraints import check
from model import Net
from results import canvas, comparison, figures, hand_in, notes, report
from results.demands import of_training

pypdfium2 = pytest.importorskip("pypdfium2", reason="requirements-dev.txt is not installed")

MARGIN, A4 = 12, (210, 297)  # mm
CUT = """() => [...document.querySelectorAll("th, td, img, pre, p, h1, h2, h3, li, figcaption, .tile, .scroll")].filter(one => {
    const place = one.getBoundingClientRect();
    const hides = getComputedStyle(one).overflowX !== "visible" && one.scrollWidth > one.clientWidth + 1;
    return place.width && (place.right > innerWidth + 1 || place.left < -1 || hides);
}).map(one => one.outerHTML.slice(0, 100))"""


NOTES = "\n\n".join(
    ["Summary. " + "Some words about it. " * 30]
    + [f"## {title}\n\n{'Some words about it. ' * 12}" for title in ("Goal", "Learning curves", "Layers", "Conclusion")]
    + ["| a wide | table |\n|---|---|\n" + "| with cells | of several words each |\n" * 4]
    + ["|" + "column|" * 40 + "\n|" + "---|" * 40 + "\n" + ("|" + "12.34|" * 40 + "\n") * 3]
)


class Explained:
    """Stands for an Explainer, whose pictures cost a network."""

    def pictures(self, images: np.ndarray, classes: np.ndarray, side: int) -> list[np.ndarray]:
        return [np.zeros((side, side, 3), np.uint8) for _ in images]


def lab_page(folder: Path) -> Path:
    page = LabPage("wide", "A wide page", "Does it print?", "shapes", [("data set", "shapes " * 40)], 12.3, ["It does. " * 30])
    page.add(
        "Results",
        Table([f"column number {k}" for k in range(9)], [[f"{k + 0.25:.3f} of 1,234" for k in range(9)]] * 20),
        Figure("curves", canvas.png(figures.curves_figure(make_history(10))), "Some curves."),
    )
    return page.write(folder)


def leaderboard_page(folder: Path) -> Path:
    row = leaderboard.Row(
        rank=1,
        contributors="Ada Lovelace of Ockham Park (alovelace), Grace Brewster Murray Hopper (ghopper)",
        seconds=123.45,
        fastest=120.01,
        slowest=float("inf"),
        repeats=3,
        accuracy=0.5601,
        epochs=12,
        preparation=12.34,
        parameters=193_418,
        passed=4,
        constraints=6,
        failed="dilated, receptive field",
        submitted="2026-11-26 23:00:45",
        submission=1234,
        notes="several settings, graded without a sandbox",
    )
    path = folder / "leaderboard.html"
    path.write_text(leaderboard.as_html([row] * 12, []), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """One of each template, with much on it."""
    folder = tmp_path_factory.mktemp("pages")
    test, logits = make_test(10, images=400)
    (folder / "notes.md").write_text(NOTES)
    assignment = assignments.load("c1c2c3c4o-strict")
    classes = [f"a class of name {i}" for i in range(10)]
    write(
        folder / "report",
        test,
        logits,
        classes,
        evaluations=40,
        config=asdict(TrainConfig()),
        explainer=Explained(),
        command="./run.sh train " + "--option value " * 20,
        constraints=[*check(Net(3, 10), assignment=assignment), *of_training(assignment)],
        assignment=assignment.name,
        layers=[(f"C{k}.depthwise", "3x3 depthwise convolution, dilation 2", "15x15", f"{2 * k} px") for k in range(21)],
        augmented=canvas.png(
            hand_in.augmented_figure(ImageDataset("m", test, test, classes), TrainConfig(augment=1.0), *[[0.5] * 3] * 2)
        ),
        author="Ada Lovelace",
        notes=notes.read(folder / "notes.md"),
    )
    runs = comparison.load_runs([write_run(folder / f"a-run-with-a-long-name-{k}", 30) for k in range(3)])
    served = report.render(
        ROOT / "results" / "serve.html.jinja",
        title="Classify an image",
        weights="accurate",
        card={"classes": classes, "dataset": "shapes", "image_size": [32, 32]},
        unexplained="",
        formats="PNG",
        max_bytes=1,
    )
    (folder / "serve.html").write_text(served, encoding="utf-8")
    return {
        "report": folder / "report" / "report.html",
        "comparison": comparison.write(runs, folder / "comparison"),
        "one run": comparison.write(runs[:1], folder / "one"),
        "leaderboard": leaderboard_page(folder),
        "lab": lab_page(folder),
        "serve": folder / "serve.html",
    }


NAMES = ["report", "comparison", "one run", "leaderboard", "lab", "serve"]


def test_every_template_is_among_the_pages():
    """A new one must be added here."""
    found = [path for folder in ("results", "lab", "course/templates") for path in (ROOT / folder).rglob("*.html.jinja")]
    templates = {path.name for path in found if re.search("<!DOCTYPE|{% extends", path.read_text())}
    in_another_page = {"detailed_results.html.jinja"}  # Codabench's
    assert templates - in_another_page == {
        f"{name}.html.jinja" for name in ("report", "comparison", "leaderboard", "page", "serve")
    }
    assert "@media print" in (ROOT / "course" / "web" / "site.css").read_text()  # of all pages of the course's website


def letters(text: str) -> str:
    """Without white space, and without hyphens: at the end of a line, PDFium gives one as another character."""
    return re.sub(r"[\s\x02\ufffe-]", "", text)


@pytest.mark.parametrize("name", NAMES)
def test_a_printed_page_is_whole(browser, pages, name):
    page = browser.new_page(color_scheme="dark")
    page.goto(pages[name].as_uri())
    printed = pypdfium2.PdfDocument(page.pdf(format="A4", prefer_css_page_size=True))
    sheets = [sheet.get_textpage().get_text_range() for sheet in printed]
    assert (2 if name == "report" else 1) <= len(sheets) <= 4
    assert all(len(sheet.strip()) > 20 for sheet in sheets)  # none is empty
    if name != "serve":  # no word of it is missing
        words = page.evaluate(
            "[...document.querySelectorAll('th, td, h1')].filter(one => one.offsetParent).map(one => one.innerText)"
        )
        text = letters("".join(sheets))
        assert len(words) > 20
        assert [word for word in words if letters(word) not in text] == []
    # As wide as the printer lays it out, nothing reaches over the edge and nothing is scrolled away.
    width, height = (side - 2 * MARGIN for side in sorted(A4, reverse=printed[0].get_width() > printed[0].get_height()))
    page.set_viewport_size({"width": round(width / 25.4 * 96), "height": round(height / 25.4 * 96)})
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate(CUT) == []
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"  # ink is dear
    page.close()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_tables_scroll_and_the_page_does_not(browser, pages, name, scheme):
    page = browser.new_page(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    page.goto(pages[name].as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 23, 26)" if scheme == "dark" else "rgb(246, 247, 249)")
    if name in ("comparison", "leaderboard", "lab"):
        wide = page.evaluate(
            "[...document.querySelectorAll('.scroll:has(table)')].filter(one => one.scrollWidth > one.clientWidth)"
            ".map(one => getComputedStyle(one).overflowX)"
        )
        assert wide and set(wide) == {"auto"}
    page.close()
