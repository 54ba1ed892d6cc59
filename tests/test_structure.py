"""The imports run one way, in the order of the folders that CONTRIBUTING.md gives."""

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.util import resolve_name
from pathlib import Path, PurePosixPath

import pytest

from conftest import ROOT

MAX_LEVELS = 7
MIN_CONTENTS = 3  # Python files, or folders of them, in a folder; __init__.py does not count
STAND_ALONE = ("model.py", "config.py")  # a course's grader copies these two files alone

TESTS = ("tests", "conftest", "made_up", "postgres", "processes")  # the product runs without them

Order = list[list[str]]


def order_in(document: str) -> Order:
    """The levels in the fenced list between the markers, the highest first; each holds root files (no .py) and folders."""
    found = re.findall(r"<!-- layers -->\s*```\w*\n(.*?)```\s*<!-- /layers -->", document, re.DOTALL)
    assert len(found) == 1, "CONTRIBUTING.md must have one fenced list between <!-- layers --> and <!-- /layers -->"
    return [line.split() for line in found[0].splitlines() if line.strip()]


def project_files(root: Path) -> list[str]:
    """The project's Python files, as git knows or would take them, without the tests; paths relative to `root`."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=root,
        text=True,
        capture_output=True,
        check=True,
    ).stdout.splitlines()
    return sorted(file for file in set(listed) if not file.startswith("tests/") and (root / file).is_file())


def imports(root: Path, file: str, modules: dict[str, str]) -> Iterator[str]:
    """The files among `modules` (dotted name -> file) that `file` imports: also in functions and under TYPE_CHECKING."""
    package = ".".join(PurePosixPath(file).parent.parts)
    nodes = list(ast.walk(ast.parse((root / file).read_text(encoding="utf-8"))))
    importers = {"import_module", "__import__"}
    importers |= {a.asname for n in nodes if isinstance(n, ast.ImportFrom) for a in n.names if a.name in importers and a.asname}
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            names = [inner if (inner := f"{base}.{alias.name}") in modules else base for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in importers:
            arguments = (*node.args, *(keyword.value for keyword in node.keywords))
            names = [argument.value for argument in arguments if isinstance(argument, ast.Constant)]
        else:
            continue
        yield from (modules[name] for name in names if name in modules)
        yield from (name for name in names if name.partition(".")[0] in TESTS)


def place(file: str) -> str:
    """What the order lists for `file`: its folder at the root, or its own name."""
    return PurePosixPath(file).parts[0].removesuffix(".py")


def problems(root: Path, files: Sequence[str], order: Order) -> list[str]:
    """Every breach of the rules, one sentence each."""
    modules = {file.removesuffix(".py").removesuffix("/__init__").replace("/", "."): file for file in files}
    graph = {file: set(imports(root, file, modules)) - {file} for file in files}
    level = {name: number for number, names in enumerate(order, 1) for name in names}
    places = {place(file) for file in files}
    found = [f"{name} is not in the list of CONTRIBUTING.md" for name in sorted(places - set(level))]
    found += [f"CONTRIBUTING.md lists {name}, which does not exist" for name in sorted(set(level) - places)]
    if len(order) > MAX_LEVELS:
        found.append(f"there are {len(order)} levels: at most {MAX_LEVELS} are allowed")
    for file, targets in graph.items():
        for target in sorted(targets):
            here, there = place(file), place(target)
            if target.partition(".")[0] in TESTS:
                found.append(f"{file} imports {target}, which is of the tests")
            elif file in STAND_ALONE:
                found.append(f"{file} imports {target}: it must stand alone")
            elif here != there and level.get(here, 0) >= level.get(there, MAX_LEVELS + 1):
                found.append(f"{file} imports {target}, which is not on a lower level")
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found.append(f"circle: {' <- '.join(error.args[1])}")
    # A script's own folder comes first where Python looks, also for what torch imports.
    found += [f"{file} hides a module of Python's own" for file in files if PurePosixPath(file).stem in sys.stdlib_module_names]
    contents: dict[str, set[str]] = {}
    for path in map(PurePosixPath, files):
        for parent, child in zip(path.parents, (path, *path.parents), strict=False):
            contents.setdefault(str(parent), set()).add(child.name)
    for folder, names in contents.items():
        if folder != "." and len(names - {"__init__.py"}) < MIN_CONTENTS:
            found.append(f"{folder}/ holds {', '.join(sorted(names))}: too little for a folder")
    return found


def test_the_project_keeps_its_order():
    order = order_in((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert "\n".join(problems(ROOT, project_files(ROOT), order)) == ""


ORDER = order_in("""
<!-- layers -->
```text
main
lab course
images
config model
```
<!-- /layers -->
""")
GOOD = {
    "main.py": "from lab import first\nimport course.store\n",
    "lab/__init__.py": "",
    "lab/first.py": "import json\nfrom lab import second\nfrom images.data import load\n",
    "lab/second.py": "def run():\n    import lab.third\n",
    "lab/third.py": "from config import CONFIG\n",
    "course/store.py": "",
    "course/grading.py": "from course.store import Store\nfrom images import data, sources\n",
    "course/sandbox.py": "",
    "images/data.py": "from images.sources import Split\n",
    "images/sources.py": "from config import InputError\n",
    "images/shapes.py": "",
    "config.py": "import torch\n",
    "model.py": "import torch\n",
}


def breaches(folder: Path, changes: dict[str, str | None], order: Order = ORDER) -> list[str]:
    """The problems of GOOD with some files' text changed, added, or (None) left out."""
    tree = {file: text for file, text in {**GOOD, **changes}.items() if text is not None}
    for file, text in tree.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
    return problems(folder, list(tree), order)


def test_a_tree_in_order_has_no_problems(tmp_path):
    assert breaches(tmp_path, {}) == []
    inner = {f"images/{folder}/{name}.py": "" for folder in ("own", "public") for name in ("a", "b", "c")}
    assert breaches(tmp_path, {**inner, "images/shapes.py": None}) == []  # folders count like files


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images/data.py": "from lab.first import run\n"}, ["images/data.py imports lab/first.py", "circle: "]),
        ({"images/data.py": "def load():\n    import main\n"}, ["images/data.py imports main.py", "circle: "]),
        (
            {"images/shapes.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from course import store\n"},
            ["images/shapes.py imports course/store.py"],
        ),
        ({"lab/third.py": "from course.store import Store\n"}, ["lab/third.py imports course/store.py"]),
        ({"lab/third.py": "import lab.first\n"}, ["circle: "]),
        ({"lab/third.py": "from .first import run\n"}, ["circle: "]),
        ({"lab/third.py": "def run():\n    from . import first\n"}, ["circle: "]),
        ({"course/store.py": "from course import grading\n"}, ["circle: "]),
        ({"model.py": "from config import CONFIG\n"}, ["model.py imports config.py: it must stand alone"]),
        ({"config.py": "def make():\n    import images.shapes\n"}, ["config.py imports images/shapes.py: it must stand alone"]),
        (
            {"course/store.py": "import importlib\nimportlib.import_module('main')\n"},
            ["course/store.py imports main.py", "circle: "],
        ),
        ({"model.py": "config = __import__('config')\n"}, ["model.py imports config.py: it must stand alone"]),
        (
            {"model.py": "from importlib import import_module as load\nconfig = load(name='config')\n"},
            ["model.py imports config.py: it must stand alone"],
        ),
        ({"lab/third.py": "from conftest import ROOT\n"}, ["lab/third.py imports conftest, which is of the tests"]),
        ({"images/shapes.py": "import tests.conftest\n"}, ["images/shapes.py imports tests.conftest, which is of the tests"]),
        ({"course/sandbox.py": None}, ["course/ holds grading.py, store.py: too little"]),
        ({"lab/runtimes/__init__.py": "", "lab/runtimes/measure.py": "", "lab/runtimes/page.py": ""}, ["lab/runtimes/ holds"]),
        ({"tools.py": ""}, ["tools is not in the list"]),
        ({"course/queue.py": ""}, ["course/queue.py hides a module of Python's own"]),
        ({"model.py": None}, ["lists model, which does not exist"]),
    ],
)
def test_each_breach_is_found(tmp_path, changes, words):
    found = breaches(tmp_path, changes)
    assert len(found) == len(words), found
    for word in words:
        assert any(word in line for line in found), found


def test_more_levels_than_allowed(tmp_path):
    order = [["main"], ["lab"], ["course"], ["images"], ["config"], ["model"]]
    assert breaches(tmp_path, {}, order) == []
    more = {"extra.py": "", "other.py": ""}
    assert breaches(tmp_path, more, [*order, ["extra"], ["other"]]) == ["there are 8 levels: at most 7 are allowed"]


@pytest.mark.parametrize("document", ["no list", "<!-- layers -->\nmain\n<!-- /layers -->"])
def test_a_document_without_the_list_is_refused(document):
    with pytest.raises(AssertionError, match="must have one fenced list"):
        order_in(document)
