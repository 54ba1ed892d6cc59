"""The commands of the lab: all are listed, and no list of them or of their options waits for torch."""

import subprocess
import sys

import pytest

import main
from conftest import ROOT
from lab.commands import COMMANDS


@pytest.mark.parametrize("arguments", [["lab"], ["lab", "--help"]])
def test_the_lab_lists_its_commands(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main.main(arguments)
    assert not stop.value.code
    out = capsys.readouterr().out
    assert all(f"\u2022 {command} " in out for command in COMMANDS)


def test_no_help_of_the_lab_waits_for_a_heavy_library():
    code = (
        "import contextlib, main, sys\n"
        "from lab.commands import COMMANDS\n"
        "for name in COMMANDS:\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        main.main(['lab', name, '--help'])\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=True)
    for command in COMMANDS:
        assert f"usage: ./run.sh lab {command} " in result.stdout
    loaded = set(result.stdout.splitlines()[-1].split())
    assert "tyro" in loaded
    assert not {"torch", "torchvision", "albumentations", "matplotlib", "sklearn", "scipy", "cv2", "jinja2"} & loaded


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_quick_run_which_is_not_for_the_documents(name, capsys):
    assert main.main(["lab", name, "--quick", "--docs"]) == 2
    assert "--quick measures a part only: leave it out for --docs" in capsys.readouterr().err


def test_bad_usage(capsys):
    assert main.main(["lab", "conv3d"]) == 2
    assert "unknown command 'conv3d'" in (error := capsys.readouterr().err) and "conv2d" in error
    assert main.main(["lab", "conv2d", "--slow"]) == 2
    assert "--slow" in capsys.readouterr().err
