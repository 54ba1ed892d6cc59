"""What a submission is: model.py, config.py and submission.json in a folder, read and checked without running any of it.

A process of its own does that, which is ended when it takes too long: whatever a file holds, `submit` comes back.
"""

from __future__ import annotations

import ast
import io
import json
import multiprocessing
import os
import re
import stat
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from config import InputError
from course.text import printable

FILES = ("model.py", "config.py", "submission.json")  # nothing else of the folder is taken
MAX_BYTES = 1_000_000  # of one file
MAX_TEXT = 200  # characters of a name
MAX_PEOPLE = 20
MAX_SECONDS = 20.0  # for reading and checking
MAX_SOURCES = 100
SEEMS_LONG = 5_000  # bytes of literals; of literals, docstrings and comments together once they are compressed; and
SEEMS_LARGE = 50_000  # of a file: what has more may hold weights
CODE = {tokenize.NAME, tokenize.OP, tokenize.INDENT, tokenize.DEDENT, tokenize.NEWLINE, tokenize.NL, tokenize.ENCODING}
WEIGHTS = "trained weights?"  # how the warning about that begins
# What templates have where a student is to write; compared in lower case, without brackets, _ and -.
PLACEHOLDERS = {
    "name",
    "first last",
    "firstname lastname",
    "full name",
    "john doe",
    "jane doe",
    "student",
    "student name",
    "pennkey",
    "penn key",
    "pennkey1",
    "pennkey2",
    "number",
    "student number",
    "id",
    "assignment",
    "assignment name",
    "source",
    "source 1",
    "todo",
    "tbd",
    "fixme",
    "xxx",
    "placeholder",
    "changeme",
    "example",
    "...",
}
PLACEHOLDER_WORDS = re.compile(r"\b(your|todo|replace me|fill in|insert|goes here|placeholder)\b")


@dataclass(frozen=True)
class Submission:
    """A checked submission."""

    files: dict[str, bytes]
    """Name -> content of FILES."""
    assignment: str
    contributors: tuple[tuple[str, str], ...]
    """(name, pennkey or number) of each, these in lower case."""
    sources: tuple[str, ...]
    warnings: tuple[str, ...]
    """What is wrong with it without preventing that it is graded."""


def read(folder: Path, strict: bool = False, name: str = "", context: BaseContext | None = None) -> Submission:
    """Read and check the submission in `folder`; with `strict`, what would be a warning is an error.

    A message calls the folder `name`. `context` makes the process: a program with threads must not fork. Raises InputError, which
    says what is wrong where.
    """
    context = context or multiprocessing.get_context()
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_read_to, args=(theirs, folder, strict))  # type: ignore[attr-defined]
    process.start()
    theirs.close()
    try:
        found = ours.recv() if ours.poll(MAX_SECONDS) else InputError(f"checking it took more than {MAX_SECONDS:g} s")
    except EOFError:
        found = InputError("checking it ended the process that did so")
    finally:
        process.kill()
        process.join()
        ours.close()
    if isinstance(found, InputError):
        raise InputError(f"{name or printable(str(folder))} is not accepted: {printable(str(found), 500)}")
    return found


def _read_to(pipe: Connection, folder: Path, strict: bool) -> None:
    try:
        pipe.send(check(folder, strict))
    except InputError as error:
        pipe.send(error)
    except RecursionError:
        pipe.send(InputError("its files are nested too deeply"))
    except Exception as error:
        pipe.send(InputError(f"checking it fails: {type(error).__name__}: {error}"))


def check(folder: Path, strict: bool) -> Submission:
    """What `read` does, in this process."""
    files = {name: _read_file(folder, name) for name in FILES}
    assignment, contributors, sources = _check_json(files["submission.json"])
    model, config = (_parse(files, name) for name in ("model.py", "config.py"))
    remarks = tuple(_check_model(model))
    _check_config(config)
    _check_imports(model, "model.py", folder)
    _check_imports(config, "config.py", folder)
    if strict and remarks:
        raise InputError(remarks[0])
    remarks += tuple(_suspicions({"model.py": model, "config.py": config}, files))
    return Submission(files, assignment, contributors, sources, tuple(map(printable, remarks)))


def _suspicions(trees: dict[str, ast.Module], files: dict[str, bytes]) -> Iterator[str]:
    """Files that may hold weights: much of them is literals, docstrings and comments, or they are large altogether."""
    for name, tree in trees.items():
        nodes = list(ast.walk(tree))
        texts = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}  # docstrings
        size = sum(_literal_bytes(node.value) for node in nodes if isinstance(node, ast.Constant) and id(node) not in texts)
        tokens = tokenize.tokenize(io.BytesIO(files[name]).readline)
        # Compressed, since prose becomes a third of itself, and weights nearly stay as long as they are.
        information = len(zlib.compress("\n".join(token.string for token in tokens if token.type not in CODE).encode()))
        if size > SEEMS_LONG or information > SEEMS_LONG or len(files[name]) > SEEMS_LARGE:
            yield (
                f"{WEIGHTS} {name} has {len(files[name]):,} bytes, {size:,} of them in literals; its literals, docstrings and "
                f"comments compress to {information:,} bytes"
            )


def _literal_bytes(value: object) -> int:
    if isinstance(value, int):
        return value.bit_length() // 3 + 1  # about its digits
    return (
        len(value.encode(errors="replace")) if isinstance(value, str) else len(value if isinstance(value, bytes) else repr(value))
    )


def _read_file(folder: Path, name: str) -> bytes:
    path = folder / name
    try:
        if not folder.is_dir():
            if not folder.exists():
                raise InputError("there is no such folder")
            is_zip = folder.is_file() and zipfile.is_zipfile(folder)  # no pipe or device, which could wait for ever
            raise InputError("it is a zip archive: unpack it and submit the folder" if is_zip else "it is not a folder")
        if not path.resolve(strict=True).is_relative_to(folder.resolve()):
            raise InputError(f"{name} is a link out of the folder: put the file itself there")
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{name} is not a file")
            if status.st_size > MAX_BYTES:
                raise InputError(f"{name} has {status.st_size:,} bytes; {MAX_BYTES:,} is the most")
            data = file.read(MAX_BYTES)
    except FileNotFoundError:
        inside = [entry.name for entry in folder.iterdir() if (entry / name).is_file()]
        raise InputError(f"there is no {name} in it" + (f"; did you mean its folder {inside[0]}?" if inside else "")) from None
    except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads to itself, before Python 3.13
        raise InputError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{name} is not UTF-8 (line {line}): save it with that encoding") from None
    return data


def _check_json(data: bytes) -> tuple[str, tuple[tuple[str, str], ...], tuple[str, ...]]:
    """assignment_name, contributors and sources of submission.json."""
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except RecursionError:
        raise InputError("submission.json is nested too deeply") from None
    except ValueError as error:
        raise InputError(f"submission.json is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError('submission.json must be an object: {"assignment_name": .., "contributors": [..], "sources": [..]}')
    if missing := [key for key in ("assignment_name", "contributors", "sources") if key not in value]:
        raise InputError(f"submission.json has no {' and no '.join(missing)}")
    people = value["contributors"]
    if not isinstance(people, list) or not people or not all(isinstance(person, dict) for person in people):
        raise InputError("contributors in submission.json must be a list of objects with name and pennkey or number, at least one")
    if len(people) > MAX_PEOPLE:
        raise InputError(f"contributors in submission.json are {len(people):,}; {MAX_PEOPLE} is the most")
    contributors = tuple(
        (_text(person.get("name"), f"name of contributor {i}"), _number(person, f"contributor {i}"))
        for i, person in enumerate(people, 1)
    )
    if len({number for _, number in contributors}) < len(contributors):
        raise InputError("contributors in submission.json has the same pennkey or number twice")
    sources = value["sources"]
    sources = [sources] if isinstance(sources, str) else sources
    if not isinstance(sources, list) or not 0 < len(sources) <= MAX_SOURCES:
        raise InputError(f'sources in submission.json must be a list of 1 to {MAX_SOURCES} texts ("none" where there is none)')
    return (
        _text(value["assignment_name"], "assignment_name"),
        contributors,
        tuple(_text(source, "each of the sources", 2000) for source in sources),
    )


def _number(person: dict[str, Any], who: str) -> str:
    """By which a course knows a student: one course calls it pennkey, others number."""
    if "pennkey" in person and "number" in person:
        raise InputError(f"{who} in submission.json has a pennkey and a number: leave one out")
    key = "number" if "number" in person else "pennkey"
    value = person.get(key)
    if value is None:
        raise InputError(f"{who} in submission.json has no pennkey and no number")
    return _text(str(value) if type(value) is int else value, f"{key} of {who}").lower()


def _text(value: Any, what: str, longest: int = MAX_TEXT) -> str:
    """`value`, which must be a line of text that no template has."""
    text = " ".join(value.split()) if isinstance(value, str) else ""
    if not text:
        raise InputError(f"{what} in submission.json must be a text")
    if text != printable(text, longest):
        raise InputError(
            f"{what} in submission.json is longer than {longest} characters or has some that cannot be seen or printed"
        )
    plain = " ".join(re.sub(r"[_\-<>\[\](){}]", " ", text.lower()).split())
    if plain in PLACEHOLDERS or PLACEHOLDER_WORDS.search(plain) or not plain:
        raise InputError(f"{what} in submission.json is still the template's: {text}")
    return text


def _parse(files: dict[str, bytes], name: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes and the like in a student's file
            return ast.parse(files[name], name)
    except SyntaxError as error:
        raise InputError(f"{name} line {error.lineno or 1}: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:  # null bytes; nested too deeply
        raise InputError(f"{name} is not Python: {error or type(error).__name__}") from None


def _check_model(tree: ast.Module) -> Iterator[str]:
    """What is merely missing in model.py, as warnings. Raises InputError where it cannot be graded."""
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if "Model" not in classes:
        raise InputError("model.py has no class Model at its top level")
    methods: dict[str, ast.FunctionDef] = {}
    for name in ("__init__", "forward"):
        found = _method(classes, "Model", name)
        if found is None:
            raise InputError(f"Model in model.py has no {name}")
        methods[name] = found
    init, forward = methods["__init__"], methods["forward"]
    by_keyword = {argument.arg for argument in (*init.args.args, *init.args.kwonlyargs)}
    positional = [*init.args.posonlyargs, *init.args.args]
    required = {argument.arg for argument in positional[1 : len(positional) - len(init.args.defaults)]}
    required |= {argument.arg for argument, default in zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True) if not default}
    wanted = {"num_channels", "num_classes"}
    if not (wanted <= by_keyword or init.args.kwarg) or not required <= wanted & by_keyword:
        raise InputError(
            f"model.py line {init.lineno}: Model is built as Model(num_channels=.., num_classes=..), which its "
            "__init__ does not take"
        )
    if len(forward.args.posonlyargs + forward.args.args) < 2 and not forward.args.vararg:
        raise InputError(f"model.py line {forward.lineno}: forward must take a batch of images")
    for name, method in methods.items():
        arguments = [*method.args.posonlyargs, *method.args.args, *method.args.kwonlyargs]
        bare = [argument.arg for argument in arguments if not argument.annotation and argument.arg != "self"]
        if bare or (name == "forward" and not method.returns):
            what = ", ".join([*bare, *(["the result"] if name == "forward" and not method.returns else [])])
            yield f"model.py line {method.lineno}: {name} of Model has no annotation for {what}"
    for what, node in (("Model", classes["Model"]), ("forward of Model", forward)):
        if not ast.get_docstring(node):
            yield f"model.py line {node.lineno}: {what} has no docstring"


def _method(classes: dict[str, ast.ClassDef], name: str, method: str) -> ast.FunctionDef | None:
    """The method of that name in the class, or in the first of its bases in the same file that has it."""
    waiting, seen = [name], set()
    while waiting:
        name = waiting.pop()
        if name not in classes or name in seen:
            continue
        seen.add(name)
        node = classes[name]
        if own := [child for child in node.body if isinstance(child, ast.FunctionDef) and child.name == method]:
            return own[-1]
        waiting += [base.id for base in reversed(node.bases) if isinstance(base, ast.Name)]
    return None


def _check_config(tree: ast.Module) -> None:
    nodes = list(ast.walk(tree))
    targets = [target for node in nodes if isinstance(node, ast.Assign) for target in node.targets]
    targets += [node.target for node in nodes if isinstance(node, ast.AnnAssign)]
    bound = {target.id for target in targets if isinstance(target, ast.Name)}
    bound |= {node.asname or node.name for node in nodes if isinstance(node, ast.alias)}
    bound |= {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    if "CONFIG" not in bound:
        raise InputError("config.py binds no CONFIG")


def _check_imports(tree: ast.Module, name: str, folder: Path) -> None:
    """Raise InputError for the import of a file beside it, which will not be there when the submission is graded."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise InputError(f"{name} line {node.lineno} has a relative import: write `from model import ...`")
            assert node.module is not None  # only a relative import can lack it
            modules = [node.module]
        else:
            continue
        for module in {module.partition(".")[0] for module in modules} - {"model", "config"}:
            if (folder / f"{module}.py").is_file() or (folder / module / "__init__.py").is_file():
                raise InputError(
                    f"{name} line {node.lineno} imports {module} from beside it, but of a submission only model.py "
                    "and config.py are graded: move it into them"
                )
