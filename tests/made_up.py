"""Made-up submissions, the data set they are graded on, how they are submitted, and made-up results."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from conftest import run_main
from course.store import Store
from course.submission import Submission

CLASSES = 4
MODEL = '''
import os, signal, socket, subprocess, sys, threading, time
import torch

class Model(torch.nn.Module):
    """A linear classifier of mean colours."""

    def __init__(self, num_channels: int, num_classes: int) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(num_channels, num_classes)
        self.passes = 0
        {init}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> logits (N, num_classes)."""
        self.passes += 1
        logits = self.layer(x.mean((2, 3)))
        {forward}
        return logits

{module}
'''
CONFIG = """
import torch
from torchvision.transforms import ToTensor

class CONFIG:
    batch_size = 20
    num_epochs = 8
    transforms = ToTensor()

    @staticmethod
    def optimizer_factory(model):
        return torch.optim.Adam(model.parameters(), lr=0.3)
"""


def files(place: str = "module", code: str = "", model: str = MODEL, config: str = CONFIG) -> dict[str, bytes]:
    """A good submission with `code` in Model.__init__ (init), in forward, or at the end of model.py (module)."""
    indent = {"init": 8, "forward": 8, "module": 0}[place]
    for name in ("init", "forward", "module"):
        text = code.strip().replace("\n", "\n" + " " * indent) if name == place else ""
        model = model.replace("{" + name + "}", text)
    return {"model.py": model.encode(), "config.py": config.encode()}


def submission(*pennkeys: str, **fields: Any) -> Submission:
    """A submission that nobody runs, as `Store.add` takes it."""
    people = tuple((key.title(), key) for key in pennkeys)
    values = {
        "files": {"model.py": b"# \xc3\xa9"},
        "assignment": "hw",
        "contributors": people,
        "sources": ("none",),
        "warnings": (),
    }
    return Submission(**(values | fields))


def write_colours(path: Path) -> Path:
    """Four colours with noise: 200 training and 80 test images of 28x28 pixels."""
    rng = np.random.default_rng(0)
    colours = np.array([[220, 30, 30], [30, 220, 30], [30, 30, 220], [200, 200, 200]])

    def split(count):
        labels = np.arange(count) % CLASSES
        return (colours[labels, None, None] + rng.integers(-20, 21, (count, 28, 28, 3))).astype(np.uint8), labels

    (train_x, train_y), (test_x, test_y) = split(200), split(80)
    np.savez(path, train_x=train_x, train_y=train_y, test_x=test_x, test_y=test_y)
    return path


def submit(folder: Path, store: Path, contents: dict[str, dict[str, bytes]], **fields: object) -> None:
    """Make a folder of each and submit them all with one command."""
    for name, content in contents.items():
        (folder / name).mkdir(parents=True)
        for file, data in content.items():
            (folder / name / file).write_bytes(data)
        (folder / name / "submission.json").write_text(
            json.dumps(
                {"assignment_name": "hw", "contributors": [{"name": name.title(), "pennkey": name}], "sources": ["none"], **fields}
            )
        )
    result = run_main("submit", *(folder / name for name in contents), "--store", store)
    assert result.returncode == 0, result.stderr


def alive(seed: int) -> list[int]:
    """Processes that run, or are copies of one that runs, a submission with that seed."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f'"seed": {seed}'.encode() in (path / "cmdline").read_bytes():
                found.append(int(path.name))
    return found


def run(seconds: float | None, accuracy: float = 0.6, seed: int = 0) -> dict[str, Any]:
    """One run; None seconds is a miss."""
    return {
        "seed": seed,
        "reached": seconds is not None,
        "stopped_by": "target" if seconds else "epochs",
        "reason": "",
        "seconds": seconds or 99.0,
        "accuracies": [0.4, accuracy],
        "epoch_seconds": [1.0, 2.0],
        "import_seconds": 0.5,
        "init_seconds": 0.25,
        "optimizer_seconds": 0.125,
        "log": "<b>said</b>\n",
    }


RESULT = {
    "dataset": "shapes",
    "timeout": 360.0,
    "count_init": False,
    "jobs": 1,
    "threads": 0,
    "sandbox": "bwrap",
    "parameters": 1234,
    "hardware": {"processor": "A processor", "cores": 2},
    "constraints": [["GAP", "in O", "in O", True], ["dilated", "none", ">= 1", False]],
}


def graded(store: Store, score: float | None, *contributors: Any, runs: list[dict[str, Any]] | None = None, **result: Any) -> None:
    """Adds a graded submission; contributors are pennkeys, or (name, pennkey)."""
    people = tuple(person if isinstance(person, tuple) else (person.title(), person) for person in contributors)
    number, _ = store.add(Submission({}, "hw", people, ("none",), ()))
    assert store.take()[0].id == number
    state = "graded" if score else "failed"
    assert store.finish(number, state, "" if score else "not above 55%", score, RESULT | {"runs": runs or [run(score)]} | result)
