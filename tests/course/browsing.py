"""What students send to `course serve`: made-up files, as a form has them."""

from __future__ import annotations

import io
import json
import re
import zipfile

from made_up import files


def submission_json(*numbers: str, **fields: object) -> bytes:
    people = [{"name": number.title(), "pennkey": number} for number in numbers]
    return json.dumps({"assignment_name": "hw", "contributors": people, "sources": ["none"], **fields}).encode()


def three(*numbers: str, **fields: object) -> dict[str, bytes]:
    """The contents of a good upload of these contributors, by name."""
    return {**files(), "submission.json": submission_json(*numbers, **fields)}


def packed(contents: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def csrf(page: str) -> str:
    """What the first form of a page holds."""
    found = re.search(r'name="csrf" value="([0-9a-f]{64})"', page)
    assert found, page
    return found[1]
