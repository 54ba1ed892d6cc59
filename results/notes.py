"""A student's own words for a report: Markdown, by section."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config import InputError
from utils import demand_regular_file

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markupsafe import Markup

MAX_BYTES = 1_000_000  # of the file, and of an image in it
FORMATS = {"PNG": "png", "JPEG": "jpeg", "GIF": "gif", "WEBP": "webp"}


@dataclass(frozen=True)
class Section:
    """What stands under one `## heading`; the heading is empty for what stands before the first."""

    heading: str
    source: str
    """Markdown."""
    html: Markup
    """The same as HTML that loads nothing: tags in the source are text, images are inside."""


@dataclass(frozen=True)
class Placed:
    """Sections in their places on a page."""

    own: dict[str, Section]
    """Title of a section of the page -> the words that go into it."""
    first: list[Section]
    """Those of other headings that come before the first of these, and so before all sections of the page."""
    last: list[Section]
    """The others, which come after them."""


def demand_kept(path: Path, folder: Path) -> None:
    """Raise InputError where the report of a run in `folder` would replace the notes."""
    if path.resolve() == (folder / "report.md").resolve():
        raise InputError(f"{path} is where the report goes: save your notes under another name, such as notes.md")


def read(path: Path) -> list[Section]:
    """The sections of a file of Markdown, in their order.

    Raises InputError, in one line, where the file or an image in it cannot be read, or two headings are the same.
    """
    demand_regular_file(path)
    try:
        data = path.read_bytes()
        if len(data) > MAX_BYTES:
            raise InputError(f"{path} has more than {MAX_BYTES:,} bytes: these are too many for notes")
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text in UTF-8: save it as such") from error
    parser, sections = _parser(path), []
    lines = text.splitlines()
    definitions: dict[str, Any] = {}  # of links and images: any section may use them
    tokens = parser.parse(text, definitions)
    headings = [i for i, token in enumerate(tokens) if token.type == "heading_open" and token.tag == "h2" and token.level == 0]
    starts = [(0, 0, ""), *((*(tokens[i].map or (0, 0)), tokens[i + 1].content.strip()) for i in headings)]
    for number, (_, start, heading) in enumerate(starts):
        end = starts[number + 1][0] if number + 1 < len(starts) else len(lines)
        source = "\n".join(lines[start:end]).strip()
        if number and not heading:
            raise InputError(f"{path} has the heading '##' without words in line {start}: name the section")
        if source or heading:
            sections.append(Section(heading, source, _html(parser, source, definitions)))
    names = [section.heading.casefold() for section in sections]
    for section in sections:
        if names.count(section.heading.casefold()) > 1:
            raise InputError(f"{path} has the heading '## {section.heading}' twice: join the two")
    return sections


def place(sections: Sequence[Section], titles: Collection[str]) -> Placed:
    """Which of `sections` go into the sections of a page with these `titles`, whatever the case of letters."""
    known = {title.casefold(): title for title in titles}
    own = {known[one.heading.casefold()]: one for one in sections if one.heading.casefold() in known}
    first: list[Section] = []
    last: list[Section] = []
    into = first
    for section in sections:
        if section.heading.casefold() in known:
            into = last
        else:
            into.append(section)
    return Placed(own, first, last)


def _parser(path: Path) -> MarkdownIt:
    """Markdown as CommonMark has it, with tables. Tags are text, addresses of scripts are no links, images are put inside."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])

    def image(renderer: Any, tokens: Sequence[Any], index: int, options: Any, environment: Any) -> str:
        token = tokens[index]
        token.attrSet("src", _inside(path, str(token.attrGet("src"))))
        return str(renderer.image(tokens, index, options, environment))

    parser.add_render_rule("image", image)
    return parser


def _html(parser: MarkdownIt, source: str, definitions: dict[str, Any]) -> Markup:
    from markupsafe import Markup

    tokens = parser.parse(source, definitions)
    for token in tokens:
        if token.tag in ("h1", "h2"):  # the page has these itself
            token.tag = "h3"
    return Markup(parser.renderer.render(tokens, parser.options, definitions))


def _inside(path: Path, source: str) -> str:
    """An image file, named relative to the notes in `path`, as an address that holds all of it. Raises InputError."""
    from urllib.parse import unquote

    from PIL import Image

    file = path.parent / unquote(source)
    try:
        demand_regular_file(file)
        data = file.read_bytes()
        with Image.open(io.BytesIO(data)) as picture:
            kind = FORMATS.get(picture.format or "")
    except (InputError, OSError, ValueError, Image.DecompressionBombError):
        kind = None
    if kind is None:
        raise InputError(f"{path} shows {source[:100]!r}, which is no image file beside it (PNG, JPEG, GIF or WebP)")
    if len(data) > MAX_BYTES:
        raise InputError(f"{path} shows {source[:100]!r}, which has more than {MAX_BYTES:,} bytes: make it smaller")
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
