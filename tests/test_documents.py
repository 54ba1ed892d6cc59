"""The documents: links lead somewhere, files that they name exist, and the command line takes every command that they show."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from config import InputError
from conftest import ROOT
from main import parse

WRITTEN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
GENERATED = sorted((ROOT / "docs" / "lab").glob("*.md"))  # by `lab NAME --docs`
FILE = re.compile(r"`((?:\w[\w.-]*/)+[\w.-]+\.(?:py|md|jinja|json|png|toml))`")
COMMAND = re.compile(r"`\./run\.sh([^`]*)`|^(?:\$ )?\./run\.sh([^#\n]*)", re.MULTILINE)  # within a line, or on its own
PLACEHOLDERS = {"COMMAND": "sprint", "--preset NAME": "--preset sprint", "lab NAME": "lab transfer", " ... ": " "}


def headings(document: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a document."""
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(document: Path) -> list[str]:
    """The relative links of a document, and its images, that lead nowhere."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.exists() or (anchor and anchor not in headings(target)):
            broken.append(link)
    return broken


def missing_files(document: Path, root: Path = ROOT) -> list[str]:
    """The files that a document names in backticks, from the root or from its own folder, and that do not exist.

    Names with a placeholder in capitals, like NAME.json, are none.
    """
    bases = (root, document.parent)
    return [
        name
        for name in FILE.findall(document.read_text(encoding="utf-8"))
        if not re.search("[A-Z]{4}", name) and not any((base / name).exists() for base in bases)
    ]


def refused_commands(text: str) -> Iterator[str]:
    """Each `./run.sh ...` in `text` that the command line does not take, and why; nothing is run."""
    for arguments in sorted({" ".join("".join(found).split()) for found in COMMAND.findall(text)}):
        example = f" {arguments} "
        for placeholder, word in PLACEHOLDERS.items():
            example = example.replace(placeholder, word)
        try:
            parse(shlex.split(example))
        except InputError as error:
            yield f"./run.sh {arguments}: {error}"
        except SystemExit:  # --help
            pass


@pytest.mark.parametrize("document", [*WRITTEN, *GENERATED], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document):
    assert broken_links(document) == []


@pytest.mark.parametrize("document", WRITTEN, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_named_files_exist(document):
    assert missing_files(document) == []


@pytest.mark.parametrize("document", [*WRITTEN, *GENERATED], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_are_taken(document):
    text = document.read_text(encoding="utf-8")
    assert list(refused_commands(text)) == []
    assert "python main.py" not in text, "./run.sh is the command everywhere"


def test_the_index_names_every_page():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert [
        page.name for page in WRITTEN if page.parent.name == "docs" and page.name != "README.md" and f"]({page.name})" not in index
    ] == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_faults_of_a_document_are_found(tmp_path):
    (tmp_path / "other.md").write_text("# A title: with `code`\n\n```\n# no title\n```\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](other.md) [b](other.md#a-title-with-code) [c](#mine) [d](https://example.org/x.md)\n"
        "[e](gone.md) [f](other.md#no-title)\n## Mine\n`lab/gone.py` `config.py` `docs/gone.md` `docs/NAME.md` `docs/README.md`\n"
        "./run.sh sprint --sneeds 3  # a comment\n`./run.sh train --preset NAME\n--epochs 3`\n"
        "`./run.sh COMMAND --help` `./run.sh fly`\n"
    )
    assert broken_links(page) == ["gone.md", "other.md#no-title"]
    assert missing_files(page) == ["lab/gone.py", "docs/gone.md"]
    first, second = refused_commands(page.read_text())
    assert "fly" in first and "--sneeds" in second
