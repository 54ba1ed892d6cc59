"""What others have written, names, reasons and output, made fit to be shown in a terminal, on a page and in a spreadsheet."""

from __future__ import annotations

import unicodedata

INVISIBLE = "\u115f\u1160\u3164\uffa0\u2800"  # letters by their category, but blank
MARKS = 2  # accents on one letter
MARKUP = frozenset("\\`*_{}[]()<>#+-!|~&=:@$")  # what may be markup in some kind of Markdown, or begin an address


def printable(text: str, longest: int = 300, lines: bool = False) -> str:
    """`text` without what commands a terminal or cannot be seen, on one line unless `lines`, cut to so many characters."""
    kept, marks = [], 0
    for c in text[: 4 * longest].replace("\r\n", "\n").replace("\r", "\n"):
        marks = marks + 1 if unicodedata.category(c) in ("Mn", "Me") else 0
        if (c.isprintable() and c not in INVISIBLE) or (lines and c in "\n\t"):
            kept += [c] if marks <= MARKS else []
        else:
            kept.append(" " if c.isspace() else "\N{REPLACEMENT CHARACTER}")
    joined = "".join(kept) if lines else " ".join("".join(kept).split())
    return joined if len(joined) <= longest and len(text) <= 4 * longest else joined[: longest - 1] + "…"


def cell(text: str) -> str:
    """`text` as a cell that no spreadsheet takes for a formula, also not one that begins with a look-alike of its signs."""
    start = unicodedata.normalize("NFKC", text).lstrip()[:1]
    return "'" + text if start and start in "=+-@\N{MINUS SIGN}|%" else text


def markdown(text: str) -> str:
    """`text` on one line as Markdown that shows its characters: no markup, no link, no HTML."""
    return "".join("\\" + c if c in MARKUP else c for c in " ".join(text.split()))
