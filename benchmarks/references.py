"""The networks that the sprint is compared with, each trained by this project's own Trainer on the sprint's clock.

    python benchmarks/references.py NAME --seed 0 --json FILE

NAME is one of `REFERENCES`, or `ours`: the sprint preset, validated from the first steps on, for the curve
of its accuracy (its time is a little longer for that). One run is one process; benchmarks/sprint.py starts them.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import limit_spinning

if __name__ == "__main__":  # not where it is imported: the harness is to run as the course runs it
    limit_spinning()  # the same terms for ours and the references

import _thread
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from config import InputError, TrainConfig
from images import data
from learning.presets import PRESETS
from model import Net
from training import Interrupted, Trainer
from utils import ROOT, count_parameters, seed_everything, write_atomically

TARGET = 0.55  # test accuracy to exceed


def conv_bn(in_channels: int, out_channels: int, *between: nn.Module) -> list[nn.Module]:
    """A dense 3x3 convolution that keeps the size, what comes `between`, and BatchNorm."""
    return [nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False), *between, nn.BatchNorm2d(out_channels)]


class DenseCNN(nn.Sequential):
    """What a course's student writes first: four dense 3x3 convolutions with BatchNorm and ReLU, halved after each, flattened.

    Shape: (N, num_channels, 32, 32) -> raw logits (N, num_classes).
    """

    def __init__(self, num_channels: int, num_classes: int) -> None:
        widths = (num_channels, 32, 64, 128, 128)
        blocks = [[*conv_bn(i, o), nn.ReLU(), nn.MaxPool2d(2)] for i, o in pairwise(widths)]
        super().__init__(*(layer for block in blocks for layer in block), nn.Flatten(), nn.Linear(128 * 2 * 2, num_classes))


class AirbenchGroup(nn.Module):
    """Convolution, pooling, convolution with the input of the second one added; BatchNorm and GELU after each convolution.

    BatchNorm has a bias but no trained scale, and the convolutions start as a partial identity.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.first = nn.Sequential(*conv_bn(in_channels, out_channels, nn.MaxPool2d(2)))
        self.second = nn.Sequential(*conv_bn(out_channels, out_channels))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.dirac_(module.weight[: module.in_channels])
            elif isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.4
                module.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.first(x))
        return F.gelu(x + self.second(x))


class Airbench(nn.Module):
    """A residual network of the kind of cifar10-airbench (Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU").

    A 2x2 stem whose filters are whitened and not trained, three groups of 64, 256 and 256 channels, global max-pooling, and a
    linear layer scaled by 1/9.

    Shape: (N, num_channels, 32, 32) -> raw logits (N, num_classes).
    """

    def __init__(self, num_channels: int, num_classes: int) -> None:
        super().__init__()
        patch = num_channels * 2 * 2
        self.stem = nn.Conv2d(num_channels, 2 * patch, 2)
        self.stem.weight.requires_grad_(False)
        self.groups = nn.Sequential(AirbenchGroup(2 * patch, 64), AirbenchGroup(64, 256), AirbenchGroup(256, 256))
        self.head = nn.Linear(256, num_classes, bias=False)

    @torch.no_grad()
    def whiten(self, images: Tensor) -> None:
        """Set the stem's filters from normalised `images` (N, num_channels, H, W): the patches' eigenvectors, with both signs."""
        weight = self.stem.weight
        patches = F.unfold(images.float(), 2).transpose(1, 2).reshape(-1, weight[0].numel())
        eigenvalues, eigenvectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (eigenvectors / (eigenvalues + 5e-4).sqrt()).T.reshape(-1, *weight.shape[1:])
        weight.copy_(torch.cat([filters, -filters]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.groups(F.gelu(self.stem(x)))
        return self.head(x.amax((2, 3))) / 9


class UndownsampledNet(nn.Module):
    """All the demands of an assignment, met without any down-sampling: every layer works on all 32x32 positions.

    Four blocks C1..C4, each of a dense, a depthwise-separable and a dilated depthwise-separable 3x3 layer; global average
    pooling, linear. About 198,000 parameters and 198 million multiply-adds an image, like a network that students handed in.

    Shape: (N, num_channels, H, W) -> raw logits (N, num_classes).
    """

    def __init__(self, num_channels: int, num_classes: int) -> None:
        super().__init__()

        def separable(width: int, dilation: int) -> list[nn.Module]:
            return [
                nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, groups=width, bias=False),
                nn.Conv2d(width, width, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]

        def block(in_channels: int, width: int, dilation: int) -> nn.Sequential:
            return nn.Sequential(*conv_bn(in_channels, width), nn.ReLU(), *separable(width, 1), *separable(width, dilation))

        self.C1 = block(num_channels, 32, 2)
        self.C2 = block(32, 64, 4)
        self.C3 = block(64, 84, 4)
        self.C4 = block(84, 102, 4)
        self.O = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(102, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.O(self.C4(self.C3(self.C2(self.C1(x)))))


@dataclass(frozen=True)
class Reference:
    """A network and how it is trained."""

    about: str
    """One line for a table."""
    build: Callable[[int, int], nn.Module]
    """From channel and class counts."""
    train: TrainConfig
    """As a sprint: validated as it trains and stopped at TARGET; of `undownsampled` two steps only."""
    is_one_step: bool = False
    """Whether the second of two steps is timed and scaled to an epoch, instead of a run to TARGET."""


OURS = PRESETS["sprint"]
# What a sprint needs besides the recipe: the same monitor for each.
MONITOR: dict[str, Any] = {"statistics_images": 500, "val_images": 1000, "early_exit_accuracy": TARGET, "early_exit_margin": 0.01}
REFERENCES = {
    "dense": Reference(
        "dense CNN of a course's kind, Adam 1e-3, batch 64, fp32",
        DenseCNN,
        TrainConfig(
            epochs=5,
            batch_size=64,
            max_lr=1e-3,
            div_factor=1,
            final_div_factor=1,  # that is: a constant rate
            momentum=0.9,
            beta2=0.999,
            weight_decay=0,
            precision="fp32",
            eval_every=40,
            **MONITOR,
        ),
    ),
    # airbench94's rates for a loss that is a mean: 1.5 at batch 1,024 (in proportion to the batch) and weight decay 1.3e-3.
    "airbench": Reference(
        "residual network of the airbench kind, SGD Nesterov, batch 256, bf16",
        Airbench,
        TrainConfig(
            epochs=1,
            batch_size=256,
            optimizer="sgd",
            max_lr=0.375,
            momentum=0.85,
            weight_decay=1.3e-3,
            label_smoothing=0.2,
            pct_start=0.23,
            div_factor=5,
            final_div_factor=3,
            whiten_images=5000,
            eval_every=12,
            **MONITOR,
        ),
    ),
    "undownsampled": Reference(
        "C1C2C3C4 without down-sampling, batch 64, fp32: one epoch, scaled from one step",
        UndownsampledNet,
        TrainConfig(steps=2, batch_size=64, precision="fp32", eval_every=1, val_images=10),
        is_one_step=True,
    ),
    "ours": Reference(
        "ours, validated from the first steps on",
        lambda channels, classes: Net(channels, classes, **OURS.net),
        replace(OURS.train, early_exit_accuracy=TARGET, eval_every=4),
    ),
}


def run(name: str, dataset: data.ImageDataset, seed: int, limit: float) -> dict[str, Any]:
    """One run of a reference in this process, cut after `limit` seconds (0 for none): its entry in the record.

    `curve` holds the points (seconds, validation accuracy). Where one step is timed, `seconds` is that of an epoch.
    """
    reference = REFERENCES[name]
    seed_everything(seed)
    model = reference.build(dataset.num_channels, dataset.num_classes)
    trainer = Trainer(model, dataset, replace(reference.train, seed=seed))
    entry = {"seed": seed, "parameters": count_parameters(model)}
    timer = threading.Timer(limit, _thread.interrupt_main)  # the Trainer then stops after the step under way
    timer.daemon = True
    if limit:
        timer.start()
    started = time.perf_counter()
    try:
        history = trainer.fit()
    except Interrupted:
        history = trainer.history
        history.images_seen, history.total_seconds = trainer.step * trainer.config.batch_size, time.perf_counter() - started
        if history.total_seconds < limit or not limit:
            raise
    finally:
        timer.cancel()
    if reference.is_one_step:
        step_seconds = history.seconds[1] - history.seconds[0]
        steps = len(dataset.train.labels) / reference.train.batch_size
        return entry | {"step_seconds": step_seconds, "seconds": step_seconds * steps}
    return entry | {
        "reached": history.reached,
        "seconds": history.total_seconds,
        "test_accuracy": history.test_accuracy,
        "test_passes": history.test_passes,
        "images_seen": history.images_seen,
        "curve": [(seconds, e.val_accuracy) for seconds, e in zip(history.seconds, history.evaluations, strict=True)],
    }


@dataclass
class Arguments:
    """One run of one reference network."""

    name: tyro.conf.Positional[str]
    """dense, airbench, undownsampled, or ours."""
    json: Path
    """Write the run's entry of the record here."""
    dataset: str = "cifar10"
    """cifar10, cifar100, mnist, fashion_mnist, digits, shapes, folder:PATH or npz:FILE."""
    data_dir: Path = ROOT / "data"
    """Folder that holds the data sets."""
    seed: int = 0
    """Seeds the weights, the split and the order of the images."""
    threads: int = 0
    """Number of threads for torch; 0 uses torch's default (one per core)."""
    limit: float = 0.0
    """Seconds after which training is cut; 0 for none."""


def main() -> int:
    """Run what the command line says; returns the exit status."""
    arguments = tyro.cli(Arguments, description=__doc__)
    try:
        if arguments.name not in REFERENCES:
            raise InputError(f"unknown reference '{arguments.name}': choose from {', '.join(REFERENCES)}")
        if arguments.threads:
            torch.set_num_threads(arguments.threads)
        entry = run(arguments.name, data.load(arguments.dataset, arguments.data_dir), arguments.seed, arguments.limit)
        write_atomically(arguments.json, (json.dumps(entry) + "\n").encode())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
