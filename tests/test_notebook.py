"""The notebook to start with runs whole, in an interpreter of its own, and is committed without what it printed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import DATA, ROOT

nbformat = pytest.importorskip("nbformat", reason="requirements-dev.txt is not installed")
nbclient = pytest.importorskip("nbclient", reason="requirements-dev.txt is not installed")
pytest.importorskip("ipykernel", reason="requirements-dev.txt is not installed")

PATH = ROOT / "notebooks" / "start.ipynb"


@pytest.fixture
def notebook():
    notebook = nbformat.read(PATH, 4)
    nbformat.validate(notebook)
    return notebook


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def replace(cell, old: str, new: str) -> None:
    assert old in cell.source
    cell.source = cell.source.replace(old, new)


def test_outputs_are_stripped(notebook):
    for cell in code_cells(notebook):
        assert cell.outputs == [] and cell.execution_count is None and cell.metadata == {}


@pytest.mark.slow
def test_it_runs_whole(notebook, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    first, data, *_ = code_cells(notebook)
    replace(first, 'ROOT / "runs" / "start"', f'Path(r"{tmp_path}")')
    replace(data, 'ROOT / "data"', f'Path(r"{DATA}")')
    nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(PATH.parent)}}).execute()
    said = "".join(output.get("text", "") for cell in code_cells(notebook) for output in cell.outputs)
    pictures = [output for cell in code_cells(notebook) for output in cell.outputs if "image/png" in output.get("data", {})]
    assert "20,000 training images" in said and "FAIL" not in said and said.count(" pass\n") == 6
    assert "100%|" in said and "validation accuracy" in said and "says the same" in said
    assert len(pictures) == 3
    assert {"report.html", "run.png", "model.safetensors", "model.json", "model.pt2"} <= {path.name for path in tmp_path.iterdir()}


def test_first_cell_clones_and_installs_where_the_project_is_not(notebook, tmp_path, monkeypatch):
    source = code_cells(notebook)[0].source
    calls = []

    def run(command: list[str], check: bool) -> None:
        calls.append(command)
        if "clone" in command:
            Path(command[-1]).mkdir()

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = os.getcwd()
    try:
        os.chdir(tmp_path)
        with pytest.raises(SystemExit, match="Write the address"):
            exec(source, {})
        exec(source.replace('REPOSITORY = ""', 'REPOSITORY = "https://example.org/a.git"'), {})
        cloned = tmp_path / "convsprint"
        assert calls[0][:2] == ["git", "clone"] and calls[0][-2:] == ["https://example.org/a.git", str(cloned)]
        assert calls[1][:4] == [sys.executable, "-m", "pip", "install"] and calls[1][-1] == str(cloned / "requirements.txt")
        assert Path.cwd() == cloned and sys.path[0] == str(cloned)

        calls.clear()
        os.chdir(PATH.parent)
        exec(source, {})
        assert calls == [] and Path.cwd() == ROOT
    finally:
        os.chdir(before)
