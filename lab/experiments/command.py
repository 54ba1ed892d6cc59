"""The commands of the experiments, each of which ends in one page: `python main.py lab NAME --help`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from config import InputError
from utils import ROOT

if TYPE_CHECKING:
    from lab.experiments.page import Page


@dataclass
class Experiment:
    """What all experiments can be told."""

    quick: bool = False
    """A small version on data that need no download, in under a minute."""
    out: Path | None = None
    """Folder of the page, its figures and the trainings, which a second run uses again (default: runs/lab-NAME)."""
    docs: bool = False
    """Also write the page as Markdown to docs/lab/; of images of a data set only those of digits and shapes."""
    data_dir: Path = ROOT / "data"
    """Where the data sets are, or are downloaded to."""
    first_seed: int = 0
    """Seed of the first training; the others follow."""
    threads: int = 0
    """Threads torch computes with; 0 leaves it to torch (one a core)."""
    device: str = "auto"
    """auto, cpu, cuda, xpu or mps."""

    NAME: ClassVar[str]

    def make(self, folder: Path) -> Page:
        """Train what is missing and make the page."""
        raise NotImplementedError

    def choose(self, name: str, full: object, quick: object) -> None:
        """Fill in what the user left open."""
        if getattr(self, name) is None:
            setattr(self, name, quick if self.quick else full)

    def run(self) -> int:
        for field, least in {"seeds": 1, "steps": 1, "first_seed": 0, "threads": 0}.items():
            number = getattr(self, field, None)
            if number is not None and number < least:
                raise InputError(f"--{field.replace('_', '-')} is {number}: it must be {least} or more")
        import torch

        from utils import demand_writable

        folder = self.out or ROOT / "runs" / f"lab-{self.NAME}{'-quick' if self.quick else ''}"
        demand_writable(folder)
        if self.threads:
            torch.set_num_threads(self.threads)
        page = self.make(folder)
        path = page.write(folder)
        for line in page.observations:
            print(f"- {line}")
        print(f"page in {path}")
        if self.docs:
            print(f"Markdown in {page.write_docs()}")
        return 0


@dataclass
class Digits(Experiment):
    """What the experiments on a few digits can be told."""

    dataset: str | None = None
    """mnist, fashion_mnist or digits, or any other data set of `train` (default: mnist, with --quick digits)."""
    classes: tuple[str, ...] = ("0", "4", "6")
    """Names of two or more classes."""
    per_class: int = 16
    """Training images of each class."""
    seeds: int | None = None
    """Trainings, each with its own images and initial weights (default: 5, with --quick 2)."""
    lr: float = 0.001
    """Learning rate, constant."""

    def make(self, folder: Path) -> Page:
        from importlib import import_module

        from images import data

        self.choose("dataset", "mnist", "digits")
        self.choose("seeds", 5, 2)
        experiment = import_module(f"lab.experiments.{self.NAME.replace('-', '_')}").experiment
        return experiment(self, data.load(self.dataset, self.data_dir), folder)


@dataclass
class DigitsFC(Digits):
    """Train FC_only, a fully connected network, on 16 images a class until its training loss is flat; does it overfit?"""

    NAME: ClassVar[str] = "digits-fc"


@dataclass
class DigitsConv(Digits):
    """The same with Grayscale1Convolution: sizes by arithmetic, filters, activations and gradients as pictures."""

    NAME: ClassVar[str] = "digits-conv"


@dataclass
class Activations(Experiment):
    """Compare activation functions in one network of three convolutions: curves, dead units, norms of gradients."""

    dataset: str | None = None
    """Any data set of `train` (default: mnist, with --quick digits)."""
    classes: tuple[str, ...] = ()
    """Names of two or more classes (default: all)."""
    per_class: int | None = None
    """Training images of each class (default: 200, with --quick 64)."""
    activations: tuple[str, ...] = ("relu", "gelu", "tanh", "sigmoid", "silu", "leaky_relu")
    """Of relu, gelu, tanh, sigmoid, silu, leaky_relu, elu, softplus, hardswish, mish; each is compared with the first."""
    steps: int | None = None
    """Optimizer steps of each training (default: 300, with --quick 100)."""
    seeds: int | None = None
    """Trainings of each activation (default: 5, with --quick 2)."""
    lr: float = 0.003
    """Highest learning rate, the same for all."""

    NAME: ClassVar[str] = "activations"

    def make(self, folder: Path) -> Page:
        from images import data
        from lab.experiments.activations import experiment

        for name, full, quick in (("dataset", "mnist", "digits"), ("per_class", 200, 64), ("steps", 300, 100), ("seeds", 5, 2)):
            self.choose(name, full, quick)
        return experiment(self, data.load(self.dataset, self.data_dir), folder)


@dataclass
class MoreData(Experiment):
    """Test accuracy of FC_only and Grayscale1Convolution against the number of training images, and the gap between them."""

    dataset: str | None = None
    """mnist, fashion_mnist or digits (default: mnist, with --quick digits)."""
    classes: tuple[str, ...] = ()
    """Names of two or more classes (default: all)."""
    per_class: tuple[int, ...] = ()
    """Training images of each class, one or more numbers, 0 for all there are (default: those of 16 64 256 1024 0 for which there
    are images, with --quick of 16 64 0)."""
    steps: int | None = None
    """Optimizer steps of each training (default: 1200, with --quick 150)."""
    seeds: int | None = None
    """Trainings of each network on each number of images (default: 5, with --quick 2)."""

    NAME: ClassVar[str] = "more-data"

    def make(self, folder: Path) -> Page:
        from images import data
        from lab.experiments.more_data import experiment

        for name, full, quick in (("dataset", "mnist", "digits"), ("steps", 1200, 150), ("seeds", 5, 2)):
            self.choose(name, full, quick)
        return experiment(self, data.load(self.dataset, self.data_dir), folder)


@dataclass
class CifarLadder(Experiment):
    """One convolution against three better networks on CIFAR-10, all with the same budget of images."""

    dataset: str | None = None
    """Any data set of `train` (default: cifar10, with --quick shapes)."""
    epochs: float | None = None
    """Passes over the training images of each training (default: 3, with --quick 0.5)."""
    seeds: int | None = None
    """Trainings of each network (default: 3, with --quick 1)."""

    NAME: ClassVar[str] = "cifar-ladder"

    def make(self, folder: Path) -> Page:
        from images import data
        from lab.experiments.cifar_ladder import experiment

        for name, full, quick in (("dataset", "cifar10", "shapes"), ("epochs", 3.0, 0.5), ("seeds", 3, 1)):
            self.choose(name, full, quick)
        return experiment(self, data.load(self.dataset, self.data_dir), folder)


@dataclass
class Transfer(Experiment):
    """Use what a network learned from other images: from scratch against frozen features against fine-tuning all of it.

    Without --source, the source is a network trained on MNIST for digits, cifar8 (trained on the eight classes of CIFAR-10 beside
    cat and dog) for a folder, and else one trained on the other classes of the target's data set: for cat and dog of CIFAR-10 it
    ships in weights/, for others it is trained first.
    """

    target: str | None = None
    """Data set to learn: cifar10, folder:PATH or any other (default: cifar10, with --quick digits)."""
    classes: tuple[str, ...] = ()
    """Names of two or more of its classes (default: cat dog of cifar10, star heart of shapes, else all)."""
    source: str = "auto"
    """Trained features: auto, cifar8, mnist, a weights file of `train`, or torchvision:NAME (resnet18, mobilenet_v3_small, any
    ImageNet classifier of torchvision; downloaded)."""
    pretrain: bool = False
    """Train the source anew first; for cifar8 and mnist the one that ships in weights/."""
    per_class: tuple[int, ...] = ()
    """Training images of each class, one or more numbers, 0 for all there are (default: those of 8 32 128 0 for which there are
    images, with --quick of 8 32)."""
    epochs: tuple[int, ...] = ()
    """Passes over them, one or more numbers (default: 1 5 20, with --quick 1 5)."""
    seeds: int | None = None
    """Trainings of each kind, each with its own images (default: 3, with --quick 2)."""
    image_size: int = 32
    """Height and width to which the images of a folder are brought, in pixels (28 or more)."""

    NAME: ClassVar[str] = "transfer"

    def make(self, folder: Path) -> Page:
        from lab.experiments.transfer import experiment

        self.choose("target", "cifar10", "digits")
        self.choose("seeds", 3, 2)
        self.epochs = self.epochs or ((1, 5) if self.quick else (1, 5, 20))
        return experiment(self, folder)


EXPERIMENTS = {command.NAME: command for command in (DigitsFC, DigitsConv, Activations, MoreData, CifarLadder, Transfer)}
