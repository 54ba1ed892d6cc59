"""The pages: whole, harmless, without images that others own."""

import re

import numpy as np
import pytest

from conftest import ROOT, Tags
from lab.commands import EXPERIMENTS
from lab.common import figures, page
from lab.common.page import Figure, Page, Table


def make_page(dataset: str) -> Page:
    hostile = "<script>alert(1)</script> | *x*"
    made = Page("test", f"Title {hostile}", "Question?", dataset, [("data", hostile)], 12.3, [f"Observed {hostile}"])
    png = figures.confusion(np.array([0, 1]), [0, 1], ["ant", "bee"])
    made.add(
        "Section",
        "Text",
        Table(("a", "b"), [("1", hostile)], "caption"),
        Figure("curves", png, "Some curves."),
        Figure("pictures", png, "Some images.", shows_images=True),
    )
    return made


def test_page_needs_nothing_and_lets_nothing_in(tmp_path):
    path = make_page("mnist").write(tmp_path)
    text = path.read_text()
    for tag, attributes in Tags(text).tags:
        assert tag != "script"
        assert attributes.get("src", "data:").startswith("data:") and attributes.get("href", "data:").startswith("data:")
    assert {p.name for p in tmp_path.iterdir()} == {"test.html", "test-curves.png", "test-pictures.png"}
    for words in ("Question?", "Observed", "caption", "Some curves.", "12 s", "1 thread"):
        assert words in text


@pytest.mark.parametrize(("dataset", "shown"), [("mnist", False), ("cifar10", False), ("digits", True), ("shapes", True)])
def test_docs_hold_images_only_of_sets_that_may_be_shown(tmp_path, monkeypatch, dataset, shown):
    monkeypatch.setattr(page, "DOCS", tmp_path)
    text = make_page(dataset).write_docs().read_text()
    assert (tmp_path / "test-pictures.png").exists() == shown == ("test-pictures.png" in text)
    assert "![Some curves.](test-curves.png)" in text and (tmp_path / "test-curves.png").exists()
    assert "<script" not in text and "\\|" in text
    assert text.startswith("# Title") and "| data |" in text


def test_figures_of_the_docs_are_there_and_no_others():
    pages = list((ROOT / "docs" / "lab").glob("*.md"))
    assert {"digits-fc.md", "digits-conv.md", "activations.md", "more-data.md"} <= {path.name for path in pages}
    shown = {name for path in pages for name in re.findall(rf"\]\(({path.stem}-[\w-]+\.png)\)", path.read_text())}
    ours = {path.name for page in pages if page.stem in EXPERIMENTS for path in page.parent.glob(f"{page.stem}-*.png")}
    assert shown == ours
