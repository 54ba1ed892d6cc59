"""The files that are filled in: pages, feedback, and what other systems read."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from course.text import markdown

TEMPLATES = Path(__file__).parent / "templates"


@functools.lru_cache(maxsize=2)
def _environment(escapes: bool) -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=escapes,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["markdown"] = markdown
    return environment


def render(name: str, /, **values: Any) -> str:
    """The template `name` with these values: in HTML every value is escaped, elsewhere by the template's filters."""
    return _environment(".html" in name).get_template(name).render(**values)
