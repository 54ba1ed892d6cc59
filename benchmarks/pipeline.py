"""Whether the augmentation keeps up with training: how fast each is alone, and how long training really waits for its batches.

    python benchmarks/pipeline.py                                  # CIFAR-10 and the preset baseline
    python benchmarks/pipeline.py --presets baseline sprint        # beside the steps of both
    python benchmarks/pipeline.py --workers 0 2 --images-per-draw 1 16 --json pipeline.json
    python benchmarks/pipeline.py --quick --dataset digits         # a check, no record to quote

Three tables. How to read them: where the pipeline alone makes several times the images of the step alone, one worker suffices, and
what it costs is only the share of the cores that it takes; where it makes fewer, training starves, and the last table says by
how much. Raise images_per_draw first (it saves work), then the workers (they share the cores with training).

Each round measures everything once, so that drifts of the machine's speed fall on all alike; after each, the record is written.
Starting the workers and the first steps are not in the rates.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import limit_spinning

limit_spinning()

import contextlib
import datetime
import statistics
import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import run_command
from config import InputError, TrainConfig
from images import data
from learning.presets import Preset, get_preset
from model import Net
from training import Trainer
from utils import ROOT, demand_writable, machine, provenance, seed_everything, write_json

FIRST_STEPS = 10  # of a training, that are not measured
Values = dict[str, float]  # what one measurement gives, by name


class TimedTrainer(Trainer):
    """Keeps the clock and the time waited, in seconds, at the end of each step."""

    def fit(self, resume: bool = False) -> Any:
        self.marks: list[tuple[float, float]] = []
        return super().fit(resume)

    def _train_step(self, inputs: Tensor, targets: Tensor) -> None:
        super()._train_step(inputs, targets)
        self.marks.append((time.perf_counter(), self.history.waiting_seconds))


@dataclass
class Pipeline:
    """Measure the augmentation pipeline, the training step and both together."""

    dataset: str = "auto"
    """cifar10, shapes, digits, ... as for main.py train; auto is cifar10 where it can be had, else shapes."""
    data_dir: Path = ROOT / "data"
    """Folder that holds the data sets; missing public ones are downloaded to it."""
    presets: tuple[str, ...] = ("baseline",)
    """Whose training is measured; the batch size and the augmentation of the first are those of the pipeline alone."""
    workers: tuple[int, ...] = (0, 1, 2)
    """Numbers of worker processes to compare; 0 is the training process itself."""
    images_per_draw: tuple[int, ...] = (1, 8, 16, 32)
    """Numbers of images that share one draw of random numbers to compare, for the pipeline alone; a training uses its preset's."""
    steps: int = 300
    """Of each short training; the first 10 are not measured."""
    seconds: float = 1.0
    """How long the pipeline alone runs each time."""
    repeats: int = 5
    """Rounds; the tables give the median over them, with the least and the most."""
    threads: int = 0
    """Number of threads for torch; 0 uses torch's default (one per core)."""
    json: Path | None = None
    """Write the record here."""
    quick: bool = False
    """Two rounds of short measurements: a check, no record to quote."""

    def run(self) -> int:
        if self.steps <= FIRST_STEPS or self.repeats < 1 or self.threads < 0 or not self.seconds > 0:
            raise InputError(f"--steps must be above {FIRST_STEPS}, --repeats 1 or more, --threads 0 or more, --seconds above 0")
        if not (self.presets and self.workers and self.images_per_draw):
            raise InputError("name at least one value each for --presets, --workers and --images-per-draw")
        presets = {name: get_preset(name, has_weights=True) for name in self.presets}
        if self.json:
            demand_writable(self.json.parent)
        if self.threads:
            torch.set_num_threads(self.threads)
        if self.quick:
            self.steps, self.seconds, self.repeats = FIRST_STEPS + 3, 0.1, 2
        self.images = data.load(data.resolve_auto(self.dataset, self.data_dir), self.data_dir)
        print(table(self.measure(presets)))
        return 0

    def measure(self, presets: dict[str, Preset]) -> dict[str, Any]:
        """Everything once a round, for all rounds: the record, which is written after every round."""
        first = presets[self.presets[0]].train
        plan: list[tuple[str, dict[str, Any]]] = [
            (
                "pipeline",
                {"batch_size": first.batch_size, "augment": first.augment or 1.0, "workers": workers, "images_per_draw": count},
            )
            for workers in self.workers
            for count in self.images_per_draw
        ]
        for name, preset in presets.items():
            plan.append(("step", {"preset": name, "batch_size": preset.train.batch_size}))
            plan += [
                (
                    "training",
                    {
                        "preset": name,
                        "batch_size": preset.train.batch_size,
                        "augment": preset.train.augment,
                        "workers": workers,
                        "images_per_draw": preset.train.images_per_draw,
                    },
                )
                for workers in (self.workers if preset.train.augment else (0,))
            ]
        runs: list[list[Values]] = [[] for _ in plan]
        with tqdm(total=self.repeats * len(plan), unit=" runs", disable=None, leave=False) as progress:
            for _ in range(self.repeats):
                for i, (kind, what) in enumerate(plan):
                    progress.set_description(kind)
                    runs[i].append(
                        self.pipeline(**what)
                        if kind == "pipeline"
                        else self.training(
                            presets[what["preset"]], augment=what.get("augment", 0.0), workers=what.get("workers", 0)
                        )
                    )
                    progress.update()
                record = self.record(plan, runs)
                if self.json:
                    write_json(self.json, record)
        return record

    def record(self, plan: list[tuple[str, dict[str, Any]]], runs: list[list[Values]]) -> dict[str, Any]:
        """What was measured, on what; every number with its median, minimum and maximum."""
        import cv2  # of its version, since its package has several names

        record: dict[str, Any] = {
            "date": datetime.date.today().isoformat(),
            "dataset": self.images.name,
            "image_size": list(self.images.image_size),
            "quick": self.quick,
            "steps": self.steps,
            "repeats": len(runs[0]),
            **provenance(),
            "pipeline": [],
            "step": [],
            "training": [],
        }
        record["versions"] |= {"albumentations": version("albumentations"), "opencv": cv2.__version__}
        for (kind, what), values in zip(plan, runs, strict=True):
            record[kind].append(what | {name: summarise([run[name] for run in values]) for name in values[0]})
        return record

    def pipeline(self, batch_size: int, augment: float, workers: int, images_per_draw: int) -> Values:
        """Images a second of the pipeline alone, from its first batch on."""
        mean, std = (0.5,) * self.images.num_channels, (0.25,) * self.images.num_channels
        config = TrainConfig(batch_size=batch_size, augment=augment, images_per_draw=images_per_draw, workers=workers)
        batches = data.AugmentedBatches(self.images.train, config, mean, std, torch.device("cpu"))
        with contextlib.closing(batches.steps(range(10**9))) as steps:
            next(steps)
            started, made = time.perf_counter(), 0
            while (seconds := time.perf_counter() - started) < self.seconds:
                next(steps)
                made += batch_size
        return {"images_per_second": made / seconds}

    def training(self, preset: Preset, augment: float, workers: int) -> Values:
        """Images a second of a short training, and the share of its time that it waited."""
        config = replace(
            preset.train,
            steps=self.steps,
            cycles=1,
            early_exit_accuracy=None,
            val_images=self.images.num_classes,
            eval_every=self.steps,
            augment=augment,
            workers=workers,
        )
        seed_everything(config.seed)
        trainer = TimedTrainer(Net(self.images.num_channels, self.images.num_classes, **preset.net), self.images, config)
        trainer.fit()
        (started, waited), (ended, waited_at_end) = trainer.marks[FIRST_STEPS - 1], trainer.marks[-1]
        return {
            "images_per_second": (len(trainer.marks) - FIRST_STEPS) * config.batch_size / (ended - started),
            "waiting_share": (waited_at_end - waited) / (ended - started),
        }


def summarise(values: list[float]) -> dict[str, float]:
    """Median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def table(record: dict[str, Any]) -> str:
    """The record as three Markdown tables."""

    def rate(entry: dict[str, Any]) -> str:
        values = entry["images_per_second"]
        return f"{values['median']:,.0f} ({values['min']:,.0f} to {values['max']:,.0f})"

    draws = list(dict.fromkeys(entry["images_per_draw"] for entry in record["pipeline"]))
    rows = [
        "Images a second: median (least to most).\n",
        "| pipeline alone | " + " | ".join(f"{count} a draw" for count in draws) + " |",
        "|---" * (len(draws) + 1) + "|",
    ]
    for workers in dict.fromkeys(entry["workers"] for entry in record["pipeline"]):
        entries = [entry for entry in record["pipeline"] if entry["workers"] == workers]
        rows.append(f"| {workers} workers | " + " | ".join(map(rate, entries)) + " |")
    rows += ["\n| training step alone, batches that wait ready | images a second |", "|---|---|"]
    rows += [f"| {entry['preset']} | {rate(entry)} |" for entry in record["step"]]
    rows += ["\n| training with its augmentation | workers | a draw | images a second | waited |", "|---|---|---|---|---|"]
    for entry in record["training"]:
        share = entry["waiting_share"]
        rows.append(
            f"| {entry['preset']} | {entry['workers']} | {entry['images_per_draw']} | {rate(entry)} | "
            f"{share['median']:.1%} ({share['min']:.1%} to {share['max']:.1%}) |"
        )
    return "\n".join(
        [
            *rows,
            f"\n{record['dataset']}, {record['date']}, {machine(record)}, albumentations "
            f"{record['versions']['albumentations']}: `{record['command']}`.",
        ]
    )


if __name__ == "__main__":
    sys.exit(run_command(Pipeline, __doc__))
