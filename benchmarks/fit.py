"""`fit` beside what it has to match: the network of a preset, random networks, and the default preset on few photographs.

    python benchmarks/fit.py limits        # the default limits on CIFAR-10: 20 minutes, and fast85's network for the same time
    python benchmarks/fit.py small         # under 20,000 parameters: 10 minutes, and the best of 20 random networks, three seeds
    python benchmarks/fit.py photographs   # 60 photographs of ten classes, three draws: 5 minutes, and the default preset
    python benchmarks/fit.py small --quick # one seed and a twentieth of the time: a check, no record to quote

Random networks get the same time as `fit`: each of the 20 is trained for an equal part of its half, and the one with the best
validation accuracy for the other half. All are evaluated on the whole test split, once. The record, docs/records/fit-NAME.json, is
written after every run.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import limit_spinning

limit_spinning()

import json
import subprocess
import tempfile
import time
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
import tyro

from benchmarks import run_command
from commands.fit import RECIPE
from commands.trying import Candidates
from config import InputError
from images import data
from learning.presets import PRESETS
from limits.assignments import default, parse
from utils import ROOT, demand_writable, provenance, write_json

MINUTES = {"limits": 20.0, "small": 10.0, "photographs": 5.0}
SEEDS = {"limits": 1, "small": 3, "photographs": 3}
RANDOM = 20
PHOTOGRAPHS = 60
SMALL = {"max_parameters": 20_000}


@dataclass
class Benchmark:
    """Run `fit` and what it is compared with; write the record and print the test accuracies."""

    name: tyro.conf.Positional[Literal["limits", "small", "photographs"]]
    """What to compare."""
    seeds: int = 0
    """Number of consecutive seeds, from 0; 0 for one with limits and three with the others."""
    data_dir: Path = ROOT / "data"
    """Holds CIFAR-10."""
    quick: bool = False
    """One seed and a twentieth of the time: a check."""

    def run(self) -> int:
        if self.seeds < 0:
            raise InputError("--seeds must be 0 or more")
        if not (self.data_dir / "cifar-10-batches-py").is_dir():
            raise InputError(f"no CIFAR-10 in {self.data_dir}: ./run.sh sprint --dataset cifar10 downloads it")
        seconds = 60 * MINUTES[self.name] / (20 if self.quick else 1)
        path = ROOT / "docs" / "records" / f"fit-{self.name}{'-quick' if self.quick else ''}.json"
        demand_writable(path.parent)
        runs: list[dict[str, Any]] = []
        for seed in range(1 if self.quick else self.seeds or SEEDS[self.name]):
            with tempfile.TemporaryDirectory() as folder:
                for who, accuracy in self.compare(seed, seconds, Path(folder)):
                    runs.append({"seed": seed, "who": who, "test_accuracy": accuracy})
                    write_json(path, {"name": self.name, "seconds": seconds, "runs": runs, **provenance()})
                    print(f"seed {seed}, {who}: {accuracy:.2%}", flush=True)
        return 0

    def compare(self, seed: int, seconds: float, folder: Path) -> Any:
        """Yields (who, test accuracy) of each contender."""
        name = "cifar10"
        if self.name == "photographs":
            name = f"npz:{write_photographs(data.load('cifar10', self.data_dir), seed, folder / 'photographs.npz')}"
        rules = default()
        options: list[object] = ["--dataset", name, "--seed", seed, "--data-dir", self.data_dir]
        fit = ["fit", *options, "--budget", f"{seconds:.0f}s", "--out", folder / "fit"]
        if self.name == "small":
            rules = parse({"name": "small", **SMALL}, "small")
            (folder / "small.toml").write_text("".join(f"{line} = {value}\n" for line, value in SMALL.items()))
            fit += ["--assignment", folder / "small.toml"]
        yield "fit", run_main(fit, folder / "fit")
        if self.name == "photographs":
            yield "the default preset", run_main(["train", *options, "--out", folder / "train"], folder / "train")
            return
        began = time.monotonic()
        candidates = Candidates(data.load(name, self.data_dir), rules, replace(RECIPE, seed=seed))
        if self.name == "limits":
            yield "the network of fast85", tested(candidates, PRESETS["fast85"].net, began + seconds, folder)
        else:
            yield f"the best of {RANDOM} random networks", best_of_random(candidates, seed, seconds, folder)


def best_of_random(candidates: Candidates, seed: int, seconds: float, folder: Path) -> float:
    """The test accuracy of the best of RANDOM networks within the limits, by short trainings; the checks are not on the clock."""
    import optuna

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    nets: list[dict[str, Any]] = []
    while len(nets) < RANDOM:
        candidate = candidates.space.repaired(candidates.space.suggest(study.ask()))
        nets += [] if candidate.failed else [candidate.net]
    began = time.monotonic()
    scores = [candidates.train_shortly(net, seconds / 2 / RANDOM).score for net in nets]
    return tested(candidates, nets[int(np.argmax(scores))], began + seconds, folder)


def tested(candidates: Candidates, net: dict[str, Any], ends: float, folder: Path) -> float:
    """The test accuracy of a network that is trained until `ends` on the monotonic clock."""
    trainer = candidates.train(net, ends, folder).trainer
    return trainer.evaluate(trainer.dataset.test, torch.float32)[1]


def run_main(arguments: list[Any], out: Path) -> float:
    """The test accuracy of a command in a process of its own. Raises InputError where it fails."""
    done = subprocess.run([sys.executable, str(ROOT / "main.py"), *map(str, arguments)], stdout=sys.stderr)
    if not (out / "run.json").exists():
        raise InputError(f"{arguments[0]} ended with status {done.returncode}")
    return json.loads((out / "run.json").read_text(encoding="utf-8"))["card"]["test_accuracy"]


def write_photographs(cifar10: data.ImageDataset, seed: int, path: Path) -> Path:
    """An .npz file of PHOTOGRAPHS training images, equally many of each class, and all test images."""
    classes = {name: label for label, name in enumerate(cifar10.classes)}
    few = data.balanced_subset(cifar10.train, classes, PHOTOGRAPHS // len(classes), seed)
    np.savez(path, train_x=few.images, train_y=few.labels, test_x=cifar10.test.images, test_y=cifar10.test.labels)
    return path


if __name__ == "__main__":
    sys.exit(run_command(Benchmark, __doc__))
