"""Anybody's network from files, notebooks and modules: each works or says why not, in one line."""

from __future__ import annotations

import inspect
import json
import os
import sys
from pathlib import Path

import pytest
from torch import nn

from config import InputError
from limits.constraints import check
from limits.loading import load_class, load_network


def write(folder: Path, text: str, name: str = "net.py") -> str:
    path = folder / name
    path.write_text("import torch\nfrom torch import nn\n" + text)
    return str(path)


NETWORK = """
class {name}(nn.Module):
    def __init__(self, {arguments}):
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10))
    def forward(self, x):
        return self.layers(x)
"""


@pytest.mark.parametrize("arguments", ["num_channels, num_classes", "channels, classes, width=3", "dropout=0.1"])
def test_a_class_in_a_file_is_loaded_and_built(tmp_path: Path, arguments: str) -> None:
    path = write(tmp_path, NETWORK.format(name="Mine", arguments=arguments))
    network = load_network(f"{path}:Mine")
    assert type(network).__name__ == "Mine"
    assert network.training
    assert len(check(network)) == 6


def test_a_class_in_a_module_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "package_to_check").mkdir()
    write(tmp_path / "package_to_check", NETWORK.format(name="Mine", arguments=""))
    monkeypatch.chdir(tmp_path)
    assert load_class("package_to_check.net:Mine").__name__ == "Mine"
    assert issubclass(load_class("model:Model"), nn.Module)


def test_a_file_imports_its_own_neighbours(tmp_path: Path) -> None:
    import config

    write(tmp_path, "WIDTH = 3\n", "config.py")
    path = write(tmp_path, "from config import WIDTH\n" + NETWORK.format(name="Mine", arguments=""), "model.py")
    assert load_class(f"{path}:Mine").__name__ == "Mine"
    import config as again

    assert again is config


@pytest.mark.parametrize(
    "text, name, message",
    [
        ("class (:\n", "Mine", r"cannot import '.*net.py': SyntaxError"),
        ("import no_such_module_anywhere\n", "Mine", "cannot import .* ModuleNotFoundError: No module named"),
        ("raise SystemExit(1)\n", "Mine", "cannot import .* SystemExit"),
        (NETWORK.format(name="Theirs", arguments=""), "Mine", "there is no 'Mine' in .*; its networks: Theirs"),
        ("Mine = 3\n", "Mine", "'Mine' in .* is not an nn.Module; the file defines no nn.Module"),
        ("class Mine:\n    pass\n", "Mine", "'Mine' in .* is not an nn.Module"),
        ("class Mine(nn.Module):\n    def __init__(self, a, b, c):\n        pass\n", "Mine", "'Mine' takes neither"),
        (
            "class Mine(nn.Module):\n    def __init__(self):\n        raise ValueError('a\\nb')\n",
            "Mine",
            "'Mine' cannot be built: ValueError: a$",
        ),
        (
            "class Mine(nn.Linear):\n    def __init__(self):\n        super().__init__(7, 10)\n",
            "Mine",
            r"'Mine' fails on images of shape \(2, 3, 32, 32\): RuntimeError",
        ),
        (
            "class Mine(nn.Flatten):\n    pass\n",
            "Mine",
            r"'Mine' makes shape \(2, 3072\) of images .*, not logits of shape \(2, 10\)",
        ),
        ("class Mine(nn.Module):\n    def forward(self, x):\n        return x, x\n", "Mine", "'Mine' makes a tuple of images"),
    ],
)
def test_classes_that_cannot_be_checked(tmp_path: Path, text: str, name: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InputError, match=message) as error:
        load_network(f"{path}:{name}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "spec, message",
    [
        ("nowhere/net.py:Mine", "there is no file 'nowhere/net.py'"),
        ("no_such_module_anywhere:Mine", "cannot import 'no_such_module_anywhere'"),
        ("model.py", "class missing"),
        ("model.py:", "class missing"),
        (".:Mine", "there is no file"),
    ],
)
def test_names_that_lead_nowhere(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_class(spec)


SCRIPT = """
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--width", type=int{more})
args = parser.parse_args()
"""


def test_a_script_that_parses_arguments_sees_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["main.py", "check", "net.py:Mine"])
    path = write(tmp_path, SCRIPT.format(more=", default=3") + NETWORK.format(name="Mine", arguments="width=args.width"))
    assert isinstance(load_network(f"{path}:Mine"), nn.Module)
    path = write(tmp_path, "import sys\nSEEN = sys.argv\n" + NETWORK.format(name="Mine", arguments="seen=SEEN"), "seen.py")
    assert inspect.signature(load_class(f"{path}:Mine")).parameters["seen"].default == [path]
    assert sys.argv == ["main.py", "check", "net.py:Mine"]


def test_a_network_that_parses_arguments_when_it_is_built_sees_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["main.py", "check", "net.py:Mine"])
    text = "import argparse\n" + NETWORK.format(name="Mine", arguments="").replace(
        "super().__init__()", "super().__init__(); argparse.ArgumentParser().parse_args()"
    )
    assert isinstance(load_network(f"{write(tmp_path, text)}:Mine"), nn.Module)


def test_a_script_that_requires_arguments(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    script = SCRIPT.format(more=", required=True") + "print(args.width)\n"
    path = write(tmp_path, script + NETWORK.format(name="Mine", arguments=""))
    assert isinstance(load_network(f"{path}:Mine"), nn.Module)
    said = capsys.readouterr().err
    assert said.startswith(
        "note: net.py cannot be run whole (SystemExit: net.py: error: the following arguments are required: --width)"
    )
    assert said.endswith("only what Mine needs was run\n")
    assert said.count("\n") == 1

    path = write(tmp_path, script + NETWORK.format(name="Mine", arguments="width=args.width"))
    with pytest.raises(InputError, match="cannot import 'net.py': SystemExit: .* required: --width .*below `if __name__"):
        load_network(f"{path}:Mine")


def test_what_a_script_says_on_standard_error_is_passed_on(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = write(tmp_path, "import sys\nprint('careful', file=sys.stderr)\n" + NETWORK.format(name="Mine", arguments=""))
    load_network(f"{path}:Mine")
    assert capsys.readouterr().err == "careful\n"


@pytest.mark.parametrize("with_init", [False, True])
def test_relative_imports(tmp_path: Path, with_init: bool) -> None:
    inner = tmp_path / "my-project" / "nets"
    inner.mkdir(parents=True)
    for folder in (inner, inner.parent):
        (folder / "common.py").write_text(f"WHERE = {folder.name!r}\n")
        if with_init:
            (folder / "__init__.py").write_text("from .common import WHERE\n")
    imports = "from .common import WHERE as here\nfrom ..common import WHERE as above\nfrom . import common\n"
    path = write(inner, imports + NETWORK.format(name="Mine", arguments="where=(here, above, common.WHERE)"))
    network = load_class(f"{path}:Mine")
    assert inspect.signature(network).parameters["where"].default == ("nets", "my-project", "nets")
    assert isinstance(load_network(f"{path}:Mine"), nn.Module)


def test_a_relative_import_that_leads_nowhere(tmp_path: Path) -> None:
    path = write(tmp_path, "from .nowhere import Block\n" + NETWORK.format(name="Mine", arguments="block=Block"))
    with pytest.raises(InputError, match="cannot import 'net.py': ModuleNotFoundError: No module named '.*nowhere'"):
        load_network(f"{path}:Mine")


def notebook(folder: Path, *cells: str, kind: str = "code") -> str:
    path = folder / "work.ipynb"
    contents = [{"cell_type": kind, "source": cell.splitlines(keepends=True)} for cell in cells]
    path.write_text(json.dumps({"cells": contents, "nbformat": 4}))
    return str(path)


def test_a_class_in_a_notebook(tmp_path: Path) -> None:
    path = notebook(
        tmp_path,
        "# A comment",
        "%matplotlib inline\n!pip install nothing\nimport torch\nimport no_such_module_anywhere as plots\nfrom torch import nn",
        "%%bash\nls -l",
        "WIDTH = 3\nif torch.cuda.is_available():\n    DEVICE = 'cuda'\nelse:\n    DEVICE = 'cpu'",
        "def scale(x):\n    return x / FACTOR",
        "FACTOR = 2",
        NETWORK.format(name="Mine", arguments="width=WIDTH, device=DEVICE").replace("self.layers(x)", "self.layers(scale(x))"),
        "net = Mine().to(DEVICE)\nfor epoch in range(10**9):\n    raise RuntimeError('it trains')",
        "Model = Mine",
        "one, two = undefined_here",
    )
    for name in ("Mine", "Model"):
        assert type(load_network(f"{path}:{name}")).__name__ == "Mine"
    with pytest.raises(InputError, match="there is no 'Theirs' in 'work.ipynb'; its classes: Mine"):
        load_network(f"{path}:Theirs")
    with pytest.raises(InputError, match="cannot import '.*work.ipynb': NameError: name 'undefined_here' is not defined"):
        load_network(f"{path}:two")


@pytest.mark.parametrize("text", ["", "[]", '{"worksheets": []}', '{"cells": [1]}', "\x00"])
def test_what_is_no_notebook(tmp_path: Path, text: str) -> None:
    (tmp_path / "work.ipynb").write_text(text)
    with pytest.raises(InputError, match="'work.ipynb' is not a notebook of format 4"):
        load_class(f"{tmp_path / 'work.ipynb'}:Mine")


def test_aliases_functions_and_networks_that_are_ready(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        NETWORK.format(name="Mine", arguments="num_classes=7, deep=False").replace("10", "num_classes")
        + "import functools\nModel = Mine\nready = Mine(10)\nwide = functools.partial(Mine, deep=True)\n"
        "def small(num_classes=100):\n    return Mine(num_classes)\ndef number(): return 3\n",
    )
    for name in ("Model", "ready", "wide", "small"):
        assert type(load_network(f"{path}:{name}")).__name__ == "Mine"
    with pytest.raises(InputError, match="'number' makes a int, not an nn.Module"):
        load_network(f"{path}:number")
    with pytest.raises(InputError, match="there is no 'Other' in .*; its networks: Mine, Model$"):
        load_network(f"{path}:Other")


def test_an_alias_of_a_class_of_another_file(tmp_path: Path) -> None:
    write(tmp_path, NETWORK.format(name="Net", arguments=""), "their_nets.py")
    path = write(tmp_path, "from their_nets import Net as Model\n")
    assert type(load_network(f"{path}:Model")).__name__ == "Net"


def test_files_that_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "net.txt").write_text("")
    for location, message in (
        (tmp_path / "pipe.py", "is not a regular file"),
        ("/dev/null", "'/dev/null' is not a regular file"),
        (tmp_path / "net.txt", "is neither a Python file"),
        (tmp_path, "there is no file"),
        ("n" * 5000 + ".py", "there is no file"),
        ("nowhere.ipynb", "there is no file 'nowhere.ipynb'"),
    ):
        with pytest.raises(InputError, match=message):
            load_class(f"{location}:Mine")
