"""A student's own words: by section, harmless, whole."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from PIL import Image

from config import InputError
from conftest import assert_refused, run_main
from results import notes

TEXT = """\
Before all. <script>alert(1)</script> & <b>bold</b>

## Goal

Reach **85%**. [A link](https://example.org), [a trap](javascript:alert(1)).

# A loud heading

| a | b |
|---|---|
| 1 | 2 |

## LEARNING curves

```
## not a heading
```

- a list
  > ## nor this one

Conclusion
----------

The end.
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "notes.md"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_report_does_not_replace_the_notes(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "report.md").write_text("my own words")
    (tmp_path / "link.md").symlink_to(run / "report.md")
    for path in (run / "report.md", tmp_path / "link.md", run / ".." / "run" / "report.md"):
        assert_refused(run_main("report", run, "--notes", path), "save your notes under another name")
    out = ("--dataset", "shapes", "--steps", 1, "--data-dir", tmp_path, "--out", run)
    assert_refused(run_main("train", *out, "--notes", run / "report.md"), "save your notes under another name")
    assert (run / "report.md").read_text() == "my own words"


def test_words_are_split_by_heading(tmp_path):
    sections = notes.read(write(tmp_path, TEXT))
    assert [section.heading for section in sections] == ["", "Goal", "LEARNING curves", "Conclusion"]
    assert sections[2].source.startswith("```\n## not a heading\n```") and sections[3].source == "The end."
    placed = notes.place(sections, ["Learning curves", "Confusion matrix"])
    assert [section.heading for section in placed.first] == ["", "Goal"]
    assert {title: section.heading for title, section in placed.own.items()} == {"Learning curves": "LEARNING curves"}
    assert [section.heading for section in placed.last] == ["Conclusion"]


def test_words_become_harmless_html(tmp_path):
    before, goal, curves, _ = (str(section.html) for section in notes.read(write(tmp_path, TEXT)))
    assert "<script" not in before and "<b>" not in before
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &lt;b&gt;bold&lt;/b&gt;" in before
    assert "<strong>85%</strong>" in goal and 'href="https://example.org"' in goal and 'href="javascript' not in goal
    assert "<h3>A loud heading</h3>" in goal and "<h1>" not in goal and "<td>2</td>" in goal
    assert "<code>## not a heading" in curves and "<h2>" not in curves


def test_images_beside_the_notes_are_put_inside(tmp_path):
    (tmp_path / "a plot").mkdir()
    Image.new("RGB", (5, 4), "red").save(tmp_path / "a plot" / "x.png")
    (section,) = notes.read(write(tmp_path, '## A\n![my plot](<a plot/x.png> "hm")'))
    data = base64.b64encode((tmp_path / "a plot" / "x.png").read_bytes()).decode()
    assert f'src="data:image/png;base64,{data}"' in section.html and 'alt="my plot"' in section.html


def test_addresses_at_the_end_count_in_all_sections(tmp_path):
    Image.new("RGB", (5, 4), "red").save(tmp_path / "x.png")
    text = "See [the paper][p].\n\n## A\n![a plot][x]\n\n## B\nThe end.\n\n[p]: https://example.org\n[x]: x.png\n"
    before, first, last = notes.read(write(tmp_path, text))
    assert '<a href="https://example.org">the paper</a>' in before.html
    assert 'src="data:image/png;base64,' in first.html and "[" not in last.html


@pytest.mark.parametrize(
    "source", ["https://example.org/x.png", "none.png", "notes.md", "/etc/hostname", "javascript:x", "data:text/html,x"]
)
def test_what_is_no_image_is_refused(tmp_path, source):
    if source in ("javascript:x", "data:text/html,x"):  # which the library takes for text
        (section,) = notes.read(write(tmp_path, f"## A\n![x]({source})"))
        assert "<img" not in section.html
        return
    with pytest.raises(InputError, match=r"notes.md shows .* which is no image file beside it") as refused:
        notes.read(write(tmp_path, f"## A\n![x]({source})"))
    assert "\n" not in str(refused.value)


def test_files_that_are_no_notes(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        notes.read(tmp_path / "none.md")
    with pytest.raises(InputError, match="not a regular file"):
        notes.read(tmp_path)
    (tmp_path / "latin.md").write_bytes("naïve".encode("latin-1"))
    with pytest.raises(InputError, match="UTF-8"):
        notes.read(tmp_path / "latin.md")
    with pytest.raises(InputError, match="has the heading '## goal' twice|has the heading '## Goal' twice"):
        notes.read(write(tmp_path, "## Goal\na\n## goal\nb"))
    with pytest.raises(InputError, match="has the heading '##' without words in line 3"):
        notes.read(write(tmp_path, "before\n\n##\nafter"))
    with pytest.raises(InputError, match="too many for notes"):
        notes.read(write(tmp_path, "x" * 1_000_001))
    assert notes.read(write(tmp_path, "\n \n")) == []
