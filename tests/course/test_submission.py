"""What `submit` accepts and refuses, each with one clear line, without running anything of it."""

import base64
import json
import os
import random
import subprocess
import sys
import time
import zipfile

import pytest

from config import InputError
from conftest import ROOT, assert_refused, run_main
from course import submission

MODEL = '''
"""A model."""
import torch
open({marker!r}, "w").close()  # must not be run

class Model(torch.nn.Module):
    """A linear classifier of mean colours."""

    def __init__(self, num_channels: int, num_classes: int) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(num_channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> logits (N, num_classes)."""
        return self.layer(x.mean((2, 3)))
'''
JSON = {"assignment_name": "hw4", "contributors": [{"name": "Ada Lovelace", "pennkey": "Ada"}], "sources": ["none"]}


@pytest.fixture
def folder(tmp_path):
    """A good submission."""
    path = tmp_path / "ada"
    path.mkdir()
    (path / "model.py").write_text(MODEL.replace("{marker!r}", repr(str(tmp_path / "it ran"))))
    (path / "config.py").write_text("class CONFIG:\n    batch_size = 20\n")
    (path / "submission.json").write_text(json.dumps(JSON))
    yield path
    assert not (tmp_path / "it ran").exists()


def refused(folder, *words, strict=False):
    with pytest.raises(InputError) as caught:
        submission.read(folder, strict)
    text = str(caught.value)
    assert str(folder) in text
    assert "\n" not in text
    for word in words:
        assert word in text


def change(folder, **fields):
    (folder / "submission.json").write_text(json.dumps({**JSON, **fields}))


@pytest.mark.parametrize(("value", "number"), [("S-12 3", "s-12 3"), (12345678, "12345678")])
def test_a_student_may_have_a_number(folder, value, number):
    change(folder, contributors=[{"name": "Ada Lovelace", "number": value}])
    assert submission.read(folder, strict=True).contributors == (("Ada Lovelace", number),)


def test_a_good_one_is_read(folder):
    found = submission.read(folder, strict=True)
    assert set(found.files) == {"model.py", "config.py", "submission.json"}
    assert found.files["model.py"] == (folder / "model.py").read_bytes()
    assert (found.assignment, found.contributors, found.sources) == ("hw4", (("Ada Lovelace", "ada"),), ("none",))
    assert found.warnings == ()


def test_the_projects_own_is_good():
    found = submission.read(ROOT, strict=True)
    assert len(found.sources) > 3


def test_sources_as_a_text(folder):
    change(folder, sources="Goodfellow et al. 2016")
    assert submission.read(folder).sources == ("Goodfellow et al. 2016",)


@pytest.mark.parametrize("name", submission.FILES)
def test_missing_file(folder, name):
    (folder / name).unlink()
    refused(folder, f"there is no {name}")


def test_the_folder_is_one_further_down(folder):
    refused(folder.parent, "there is no model.py", "did you mean its folder ada?")


def test_not_a_folder(folder, tmp_path):
    refused(tmp_path / "none", "no such folder")
    refused(folder / "model.py", "not a folder")
    with zipfile.ZipFile(tmp_path / "ada.zip", "w") as archive:
        archive.write(folder / "model.py", "model.py")
    refused(tmp_path / "ada.zip", "zip archive", "unpack it")


def test_a_link_out_of_the_folder(folder, tmp_path):
    (tmp_path / "secret.py").write_text("CONFIG = 1")
    (folder / "config.py").unlink()
    (folder / "config.py").symlink_to(tmp_path / "secret.py")
    refused(folder, "config.py is a link out of the folder")
    (folder / "config.py").unlink()
    (folder / "config.py").symlink_to("config.py")
    refused(folder, "config.py cannot be read")


def test_neither_files_nor_of_a_sensible_size(folder):
    (folder / "config.py").unlink()
    os.mkfifo(folder / "config.py")
    refused(folder, "config.py is not a file")
    (folder / "config.py").unlink()
    (folder / "config.py").write_text("CONFIG = 1\n" + "#" * submission.MAX_BYTES)
    refused(folder, "config.py has 1,000,011 bytes")


def test_a_pipe_instead_of_the_folder(tmp_path):
    os.mkfifo(tmp_path / "ada")
    result = subprocess.run(
        [sys.executable, ROOT / "main.py", "submit", tmp_path / "ada", "--store", tmp_path / "s"],
        timeout=60,
        text=True,
        capture_output=True,
    )
    assert_refused(result, "it is not a folder")


def test_bases_that_meet_again_and_again(folder):
    """Each class names the next one twice: 2 ** 60 ways to the end."""
    chain = "\n".join(f"class C{i}(C{i + 1}, C{i + 1}): pass" for i in range(60))
    (folder / "model.py").write_text(f"class Model(C0): pass\n{chain}\nclass C60: pass\n")
    refused(folder, "Model in model.py has no __init__")


def test_checking_takes_a_limited_time(folder, monkeypatch):
    monkeypatch.setattr(submission, "MAX_SECONDS", 0.2)
    monkeypatch.setattr(submission, "_check_config", lambda tree: time.sleep(60))
    refused(folder, "checking it took more than 0.2 s")
    monkeypatch.setattr(submission, "_check_config", lambda tree: os._exit(1))
    monkeypatch.setattr(submission, "MAX_SECONDS", 20.0)
    refused(folder, "checking it ended the process")


RANDOM = [random.Random(i).randbytes(700) for i in range(10)]  # 7 KB as ten comments or docstrings


@pytest.mark.parametrize(
    "weights",
    [
        "W = " + repr("\u4e16" * 2000),
        "W = [" + "0.12345," * 1000 + "]",
        "W = " + hex(1 << 20_000),
        "#" * 50_000,
        "\n".join(f"#>{row.hex()}" for row in RANDOM),
        "\n".join(f'def f{i}():\n    """{base64.b85encode(row).decode()}"""' for i, row in enumerate(RANDOM)),
    ],
)
def test_weights_in_the_source_are_noticed(folder, weights):
    (folder / "model.py").write_text((folder / "model.py").read_text() + weights)
    (warning,) = submission.read(folder, strict=True).warnings
    assert warning.startswith(f"{submission.WEIGHTS} model.py has ")


def test_a_documented_model_is_not_noticed(folder):
    """This project's own, with more than 5,000 characters of docstrings and comments."""
    for name in ("model.py", "config.py"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    assert submission.read(folder, strict=True).warnings == ()


def test_a_warning_is_one_short_line(folder):
    (folder / "model.py").write_text((folder / "model.py").read_text().replace("x: torch.Tensor", "x" * 100_000))
    assert max(len(warning) for warning in submission.read(folder).warnings) <= 300


@pytest.mark.parametrize("name", submission.FILES)
def test_not_utf8(folder, name):
    (folder / name).write_bytes(b"# one\n# caf\xe9\n")
    refused(folder, f"{name} is not UTF-8 (line 2)")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", ["not JSON"]),
        ("[" * 100_000, ["nested too deeply"]),
        ("[1]", ["must be an object"]),
        ("{}", ["no assignment_name and no contributors and no sources"]),
    ],
)
def test_broken_json(folder, text, words):
    (folder / "submission.json").write_text(text)
    refused(folder, *words)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"assignment_name": ""}, ["assignment_name"]),
        ({"assignment_name": "Assignment Name"}, ["assignment_name", "template's"]),
        ({"contributors": []}, ["contributors", "at least one"]),
        ({"sources": []}, ["sources", "1 to 100 texts"]),
        ({"sources": ["s"] * 101}, ["sources", "1 to 100 texts"]),
        ({"contributors": ["Ada"]}, ["contributors", "list of objects"]),
        ({"contributors": [{"name": "Ada"}]}, ["contributor 1", "no pennkey and no number"]),
        ({"contributors": [{"name": "Ada", "number": True}]}, ["number of contributor 1", "must be a text"]),
        ({"contributors": [{"name": "Ada", "number": "1", "pennkey": "a"}]}, ["contributor 1", "leave one out"]),
        ({"contributors": [{"name": "Ada", "number": "Student Number"}]}, ["number of contributor 1", "template's"]),
        ({"contributors": [{"name": "A", "pennkey": "7"}, {"name": "B", "number": 7}]}, ["same pennkey or number twice"]),
        ({"contributors": [{"name": "Your Name", "pennkey": "ada"}]}, ["name of contributor 1", "template's: Your Name"]),
        ({"contributors": [{"name": "Ada", "pennkey": "<pennkey>"}]}, ["pennkey of contributor 1", "template's"]),
        ({"contributors": [{"name": "Ada", "pennkey": "your_pennkey_here"}]}, ["template's"]),
        ({"contributors": [{"name": "A\u001b[2J", "pennkey": "ada"}]}, ["cannot be seen or printed"]),
        ({"contributors": [{"name": "A", "pennkey": "ada"}, {"name": "B", "pennkey": "ADA"}]}, ["same pennkey or number twice"]),
        ({"contributors": [{"name": "\u3164", "pennkey": "ada"}]}, ["name of contributor 1", "cannot be seen"]),
        ({"contributors": [{"name": "A", "pennkey": f"a{i}"} for i in range(21)]}, ["contributors", "20 is the most"]),
        ({"sources": []}, ["sources"]),
        ({"sources": 3}, ["sources"]),
        ({"sources": ["TODO: list them"]}, ["sources", "template's"]),
    ],
)
def test_fields(folder, fields, words):
    change(folder, **fields)
    refused(folder, *words)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("class Model", "class Net", ["no class Model"]),
        ("def forward", "def forwards", ["Model in model.py has no forward"]),
        ("def __init__", "def init", ["Model in model.py has no __init__"]),
        ("num_classes: int)", "classes: int)", ["line 9", "Model(num_channels=.., num_classes=..)"]),
        ("num_classes: int)", "num_classes: int, width: int)", ["line 9"]),
        ("num_channels: int, num_classes: int", "num_channels, num_classes, /", ["line 9"]),
        ("(self, x: torch.Tensor)", "(self)", ["line 13", "batch of images"]),
        ("super().__init__()", "super(.__init__()", ["model.py line 10"]),
        ("import torch\n", "import torch\x00\n", ["model.py"]),
        ("import torch\n", "import torch, helper\n", ["model.py line 3 imports helper"]),
        ("import torch\n", "import torch\nfrom .config import CONFIG\n", ["relative import"]),
    ],
)
def test_models_that_cannot_be_graded(folder, old, new, words):
    (folder / "helper.py").write_text("")
    (folder / "model.py").write_text((folder / "model.py").read_text().replace(old, new, 1))
    refused(folder, *words)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("num_classes: int)", "num_classes: int, width: int = 8)"),
        ("num_channels: int, num_classes: int", "*, num_classes: int, num_channels: int"),
        ("num_channels: int, num_classes: int", "num_channels: int, **rest: int"),
        ("class Model(torch.nn.Module):", "class Model(Base):\n    '''Empty.'''\n\nclass Base(torch.nn.Module):"),
    ],
)
def test_models_that_can(folder, old, new):
    (folder / "model.py").write_text((folder / "model.py").read_text().replace(old, new, 1))
    assert submission.read(folder).warnings == ()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("x: torch.Tensor", "x", ["line 13", "forward", "annotation for x"]),
        (" -> torch.Tensor", "", ["line 13", "annotation for the result"]),
        ("num_channels: int", "num_channels", ["line 9", "__init__", "annotation for num_channels"]),
        ('"""(N, C, H, W) -> logits (N, num_classes)."""', "", ["forward of Model has no docstring"]),
        ('"""A linear classifier of mean colours."""', "", ["Model has no docstring"]),
    ],
)
def test_what_is_left_out_is_a_warning_unless_strict(folder, old, new, words):
    (folder / "model.py").write_text((folder / "model.py").read_text().replace(old, new, 1))
    (warning,) = submission.read(folder).warnings
    for word in words:
        assert word in warning
    refused(folder, warning, strict=True)


@pytest.mark.parametrize(
    ("text", "is_fine"),
    [
        ("CONFIG: dict = {}", True),
        ("from model import CONFIG", True),
        ("import model as CONFIG", True),
        ("CONFIGS = 1", False),
        ("", False),
    ],
)
def test_config(folder, text, is_fine):
    (folder / "config.py").write_text(text)
    if is_fine:
        submission.read(folder)
    else:
        refused(folder, "binds no CONFIG")


def test_the_command(folder, tmp_path):
    store = tmp_path / "store.sqlite"
    result = run_main("submit", folder, "--store", store)
    assert (result.returncode, result.stdout) == (0, "#1 queued: hw4 by Ada Lovelace\n"), result.stderr
    again = run_main("submit", tmp_path / "none", folder, "--store", store)
    assert again.stdout == "#2 queued: hw4 by Ada Lovelace; cancelled: #1\n"
    assert_refused(again, "none is not accepted", "no such folder")
    assert_refused(run_main("submit", "--store", store), "no folder named")
    (folder / "model.py").write_text((folder / "model.py").read_text().replace("x: torch.Tensor", "x"))
    assert "annotation for x" in run_main("submit", folder, "--store", store).stderr
    assert_refused(run_main("submit", folder, "--store", store, "--strict"), "annotation for x")


def test_weights_in_a_docstring_are_noted(folder):
    path = folder / "model.py"
    path.write_text(path.read_text() + f'\n\ndef weights() -> None:\n    """{b"".join(RANDOM).hex()}"""\n')
    assert any(remark.startswith(f"{submission.WEIGHTS} model.py") for remark in submission.read(folder).warnings)
