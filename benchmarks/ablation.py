"""What each part of the sprint is worth: the preset with one part taken back, runs in turn, validation accuracy.

    python benchmarks/ablation.py                # prints the table of docs/sprint.md, five seeds, about two minutes

Every variant trains for the preset's first OneCycle (5,120 images) and is evaluated on 5,000 validation images; the test split
is not touched. Each round runs every variant once, so that drifts of the machine's speed fall on all alike.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import limit_spinning

limit_spinning()

import statistics

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import run_command
from config import InputError
from images import data
from learning.presets import PRESETS
from model import Net
from training import Trainer
from utils import ROOT, seed_everything

SPRINT = replace(PRESETS["sprint"].train, early_exit_accuracy=None, val_images=5000)


class Unwhitened(Net):
    """The stem keeps its random filters."""

    def whiten(self, images: Tensor) -> None:
        pass


DILATED_SEPARABLE = (
    ("whitening", "pointwise", "pointwise"),
    ("dense", "pointwise", "pointwise"),
    ("dense", "pointwise", "pointwise"),
    ("separable", "separable_dilated", "pointwise"),
)
VARIANTS: dict[str, tuple[type[Net], dict, dict]] = {
    "the preset": (Net, {}, {}),
    "random filters in the stem": (Unwhitened, {}, {}),
    "pooling in C2 and C3 instead of C1 and C2": (Net, {"pools": (1, 2, 2, 1)}, {}),
    "dilation in a separable layer of C4 (space-to-batch)": (Net, {"kinds": DILATED_SEPARABLE}, {}),
    "logits not scaled": (Net, {"logit_scale": 1.0}, {}),
    "beta1 0.9": (Net, {}, {"momentum": 0.9}),
    "no label smoothing": (Net, {}, {"label_smoothing": 0.0}),
    "max_lr 0.02": (Net, {}, {"max_lr": 0.02}),
    "SGD, Nesterov momentum 0.85, max_lr 0.05": (Net, {}, {"optimizer": "sgd", "momentum": 0.85, "max_lr": 0.05}),
    "batches of 256, 20 steps": (Net, {}, {"batch_size": 256, "steps": 20, "eval_every": 20}),
    "batches of 64, 80 steps": (Net, {}, {"batch_size": 64, "steps": 80, "eval_every": 80}),
    "fp32": (Net, {}, {"precision": "fp32"}),
}


def run(dataset: data.ImageDataset, variant: str, seed: int) -> tuple[float, float]:
    """Validation accuracy and seconds of training (with the evaluation of 5,000 images) of one run."""
    network, arguments, overrides = VARIANTS[variant]
    seed_everything(seed)
    history = Trainer(network(3, 10, **(PRESETS["sprint"].net | arguments)), dataset, replace(SPRINT, seed=seed, **overrides)).fit()
    return history.evaluations[-1].val_accuracy, history.total_seconds


@dataclass
class Ablation:
    """Train the sprint's preset and its variants, each with one part taken back."""

    seeds: int = 5
    """Trainings of each variant."""

    def run(self) -> int:
        if self.seeds < 1:
            raise InputError(f"--seeds is {self.seeds}: it must be 1 or more")
        dataset = data.load("cifar10", ROOT / "data")
        for variant in VARIANTS:
            run(dataset, variant, 0)  # first calls of each shape: not counted here, as they are in the sprint
        results: dict[str, list[tuple[float, float]]] = {variant: [] for variant in VARIANTS}
        for seed, variant in tqdm(
            [(seed, variant) for seed in range(self.seeds) for variant in VARIANTS], unit=" runs", disable=None
        ):
            results[variant].append(run(dataset, variant, seed))
        print(f"{self.seeds} seeds, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
        print("| variant | accuracy: median (min to max) | seconds: median (min to max) |\n|---|---|---|")
        for variant, runs in results.items():
            accuracies, seconds = zip(*runs, strict=True)
            print(
                f"| {variant} | {statistics.median(accuracies):.1%} ({min(accuracies):.1%} to {max(accuracies):.1%}) | "
                f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f}) |"
            )
        return 0


if __name__ == "__main__":
    sys.exit(run_command(Ablation, __doc__))
