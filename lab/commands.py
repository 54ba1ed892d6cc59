"""The course's experiments, each one command: `python main.py lab NAME --help`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from config import InputError, get_preset
from lab.experiments.command import EXPERIMENTS
from utils import ROOT


@dataclasses.dataclass
class ByHand:
    """Convolution by hand: its difference from torch's on the homework's case, and its cost on the presets' own shapes."""

    quick: bool = False
    """One repeat of each shape instead of seven."""
    docs: bool = False
    """Put the table into docs/conv2d.md."""

    def run(self) -> int:
        demand_whole(self.quick, self.docs)
        from lab.convolution import cost as conv2d_cost

        conv2d_cost.show(self.quick, self.docs)
        return 0


@dataclasses.dataclass
class Runtimes:
    """The network as it is, compiled, traced, scripted and exported: first call, speed, exactness, memory.

    By precision (fp32, and bf16 where the processor has it) and memory layout, training and inference, on the CPU, and on the GPU
    where there is one. Takes about eight minutes on two cores.
    """

    preset: str = "sprint"
    """Whose network."""
    dataset: str = "auto"
    """As for sprint; the times do not depend on it."""
    data_dir: Path = ROOT / "data"
    """Where the data sets are, or are downloaded to."""
    batch_size: int = 128
    """Images a call."""
    rounds: int = 7
    """How often each runtime is timed, over a quarter of a second or more."""
    quick: bool = False
    """One precision and layout, two rounds, no compiled training; on shapes."""
    docs: bool = False
    """Put tables, words and plot into docs/runtimes.md."""

    def run(self) -> int:
        demand_whole(self.quick, self.docs)
        get_preset(self.preset)
        if self.batch_size < 1 or self.rounds < 1:
            raise InputError("--batch-size and --rounds must be 1 or more")
        import torch

        from lab.measurements import runtimes_page

        accelerator = torch.accelerator.current_accelerator(check_available=True)
        devices = ["cpu", *([accelerator.type] if accelerator and not self.quick else [])]
        dataset = load("shapes" if self.quick and self.dataset == "auto" else self.dataset, self.data_dir)
        if self.batch_size > len(dataset.test.labels):
            raise InputError(f"--batch-size is {self.batch_size}: {dataset.name} has {len(dataset.test.labels)} test images")
        runtimes_page.show(self.preset, dataset, devices, self.batch_size, 2 if self.quick else self.rounds, self.quick, self.docs)
        return 0


@dataclasses.dataclass
class Layers:
    """Every layer of a preset's network: formula, shape, parameters, mult-adds, receptive field after it."""

    preset: str = "sprint"
    """Whose network."""
    docs: bool = False
    """Put the table into docs/model.md."""

    def run(self) -> int:
        get_preset(self.preset)
        from lab.measurements import layers

        layers.show(self.preset, self.docs)
        return 0


@dataclasses.dataclass
class Gradients:
    """Norms of the gradients by layer, before and after a sprint's training; what residual sums and GAP change in them."""

    preset: str = "sprint"
    """Network and training, which is of so many steps as its first OneCycle has, or of 400."""
    dataset: str = "auto"
    """As for sprint."""
    data_dir: Path = ROOT / "data"
    """Where the data sets are, or are downloaded to."""
    seeds: int = 5
    """Trainings of each variant."""
    quick: bool = False
    """One seed, ten steps; on shapes."""
    out: Path = ROOT / "runs" / "gradients.png"
    """Where the plot goes."""
    docs: bool = False
    """Put table, words and plot into docs/model.md."""

    def run(self) -> int:
        demand_whole(self.quick, self.docs)
        get_preset(self.preset)
        if self.seeds < 1:
            raise InputError("--seeds must be 1 or more")
        from lab.measurements import gradients
        from utils import demand_writable

        out = ROOT / "docs" / "gradients.png" if self.docs else self.out
        demand_writable(out.parent)
        dataset = load("shapes" if self.quick and self.dataset == "auto" else self.dataset, self.data_dir)
        gradients.show(self.preset, dataset, self.seeds, self.quick, out, self.docs)
        return 0


def demand_whole(quick: bool, docs: bool) -> None:
    """Raise InputError where a part of an experiment would be put into the documents."""
    if quick and docs:
        raise InputError("--quick measures a part only: leave it out for --docs")


def load(name: str, root: Path) -> object:
    """The data set of that name, or for auto what there is."""
    from images import data

    return data.load(data.resolve_auto(name, root), root)


COMMANDS = {"conv2d": ByHand, "runtimes": Runtimes, "layers": Layers, "gradients": Gradients, **EXPERIMENTS}
