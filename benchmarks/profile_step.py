"""Where the time of a sprint goes: a training step and the test pass by operator and by shape, as Markdown tables.

    python benchmarks/profile_step.py            # prints the tables of docs/sprint.md

Synthetic images of CIFAR-10's size: the time does not depend on what they show. torch.profiler itself adds a few per cent.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import limit_spinning

limit_spinning()

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import run_command
from images.data import ImageDataset, Split
from learning.presets import PRESETS
from model import Net
from training import Trainer

REPEATS, ROWS = 30, 12


def print_table(title: str, work: Callable[[], object], by_shape: bool) -> None:
    """Profile `REPEATS` calls of `work` and print its dearest operators, milliseconds a call."""
    for _ in range(5):
        work()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=by_shape) as profiler:
        for _ in range(REPEATS):
            work()
    events = sorted(profiler.key_averages(group_by_input_shape=by_shape), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    print(f"\n{title}: {total / REPEATS / 1000:.1f} ms in operators\n")
    print(f"| operator |{' shapes |' if by_shape else ''} calls | ms | share |")
    print(f"|---|{'---|' if by_shape else ''}---:|---:|---:|")
    for event in events[:ROWS]:
        shapes = " " + " ".join("x".join(map(str, shape)) for shape in event.input_shapes[:3] if shape) + " |" if by_shape else ""
        print(
            f"| {event.key} |{shapes} {event.count / REPEATS:.0f} | {event.self_cpu_time_total / REPEATS / 1000:.2f} | "
            f"{event.self_cpu_time_total / total:.0%} |"
        )


@dataclass
class Profile:
    """Profile a training step and the evaluation of the sprint's preset."""

    def run(self) -> int:
        preset = PRESETS["sprint"]
        rng = np.random.default_rng(0)
        split = Split(rng.integers(0, 256, (8000, 32, 32, 3), dtype=np.uint8), np.arange(8000) % 10)
        torch.manual_seed(0)
        trainer = Trainer(Net(3, 10, **preset.net), ImageDataset("noise", split, split, tuple("0123456789")), preset.train)
        trainer._prepare()
        inputs, targets = next(trainer.batches.steps(range(1)))
        thousand = Split(split.images[:1000], split.labels[:1000])

        def step() -> None:
            trainer.step = 0  # the schedule is not to run out
            trainer._train_step(inputs, targets)

        print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {trainer.precision}")
        for by_shape in (False, True):
            print_table(f"Training step of {preset.train.batch_size} images", step, by_shape)
        print_table("Evaluation of 1,000 images", lambda: trainer.evaluate(thousand), True)
        return 0


if __name__ == "__main__":
    sys.exit(run_command(Profile, __doc__))
