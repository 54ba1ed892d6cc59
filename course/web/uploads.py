"""From what a browser has sent to a checked submission: a zip archive, or the three files. Nothing in them is run."""

from __future__ import annotations

import multiprocessing
import re
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from config import InputError
from course.submission import FILES, MAX_BYTES, Submission, read
from course.text import printable

MAX_UPLOAD = 4_000_000  # bytes of the three files, or of an archive, and of what the form adds
MAX_ENTRIES = 1000  # of an archive
MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")


def check(files: Sequence[tuple[str, BinaryIO]], strict: bool) -> Submission:
    """The submission in the uploaded (name, content)s. Raises InputError, which says what is wrong."""
    if not files:
        raise InputError(f"no file was chosen: choose a zip archive, or {', '.join(FILES)}")
    with tempfile.TemporaryDirectory(prefix="convsprint-upload-") as folder:
        if len(files) == 1 and files[0][0].lower().endswith(".zip"):
            _unpack(files[0][1], Path(folder))
        else:
            for name, file in files:
                plain = PurePosixPath(name.replace("\\", "/")).name
                if plain not in FILES:
                    raise InputError(f"{printable(name, 100)} is not asked for: choose a zip archive, or {', '.join(FILES)}")
                (Path(folder) / plain).write_bytes(file.read(MAX_BYTES + 1))  # one too many is refused by the check
        return read(Path(folder), strict, "your upload", multiprocessing.get_context("forkserver"))  # the server has threads


def _unpack(file: BinaryIO, folder: Path) -> None:
    """Write the three files of the archive, from its top or its one folder with a model.py, under their own names.

    No path of the archive is used. Of modules beside them, empty files tell the check that they are there.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir() and not entry.filename.startswith("__MACOSX/")]
            if len(entries) > MAX_ENTRIES:
                raise InputError(f"the archive has {len(entries):,} files; {MAX_ENTRIES:,} is the most")
            paths = {entry.filename.replace("\\", "/"): entry for entry in entries}
            tops = {path[: -len("model.py")] for path in paths if PurePosixPath(path).name == "model.py"}
            top = "" if "" in tops else min(tops, key=lambda top: (top.count("/"), top), default="")
            for path, entry in paths.items():
                name = path.removeprefix(top)
                if not path.startswith(top):
                    continue
                if name in FILES:
                    (folder / name).write_bytes(_content(archive, entry))
                    continue
                module = name.removesuffix("/__init__.py").removesuffix(".py")
                if module != name and MODULE.fullmatch(module):
                    (folder / f"{module}.py").touch()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        raise InputError(f"the archive cannot be read: {printable(str(error))}") from None


def _content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """At most one byte more than is allowed, however much it claims or unpacks to."""
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others ask for memory as they like
        raise InputError("the archive is packed by another method than zip's usual one: pack it again")
    if entry.flag_bits & 1:
        raise InputError("the archive is encrypted: pack it again without a password")
    with archive.open(entry) as content:
        return content.read(MAX_BYTES + 1)
