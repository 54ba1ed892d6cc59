"""Knowledge distillation: a small network learns the logits of a larger one, the teacher, beside the labels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from config import InputError
from images.files import some_of
from learning.inference import TrainedNetwork, for_inference
from utils import ROOT

WITHOUT_TEACHER = "train without one: `train --teacher` with no file after it (in Python, teacher=())"


def load_teacher(path: Path, device: torch.device) -> tuple[Path, TrainedNetwork]:
    """The file and the network of a teacher; a path that is not absolute is looked for in the working directory, then in the
    project's. Raises InputError where the file is missing or damaged."""
    if not path.exists() and (ROOT / path).exists():
        path = ROOT / path
    if not path.exists():
        raise InputError(
            f"teacher file missing: {path}. Train one (./run.sh train --preset teacher), pass other weights, or {WITHOUT_TEACHER}"
        )
    return path, TrainedNetwork.load(path, device)


def demand_teaches(path: Path, card: dict[str, Any], classes: Sequence[str], num_channels: int) -> None:
    """Raise InputError where the teacher of that file and card knows other classes than these or takes other images."""
    if card["classes"] != list(classes):
        raise InputError(
            f"classes differ: the teacher {path} has {some_of(card['classes'])}; the data set has {some_of(classes)}; name another "
            f"teacher, or {WITHOUT_TEACHER}"
        )
    if card["num_channels"] != num_channels:
        raise InputError(
            f"the teacher {path} takes images of {card['num_channels']} channels, but the data set has {num_channels}: name "
            f"another, or {WITHOUT_TEACHER}"
        )


class Teacher:
    """One trained network that sees the very images the student sees, as augmented (Beyer et al. 2022, "Knowledge distillation: A
    good teacher is patient and consistent").

    Args:
        path: weights or a checkpoint, as for `load_teacher`.
        classes, num_channels, mean, std: what the student knows and how its inputs are normalised.
        device, precision: where the student's inputs are, and what the teacher computes in.

    Raises InputError where the file is missing or damaged, or the teacher knows other classes or takes other images.
    """

    def __init__(
        self,
        path: Path,
        classes: list[str],
        num_channels: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: torch.device,
        precision: torch.dtype,
    ) -> None:
        path, network = load_teacher(path, device)
        card = network.card
        demand_teaches(path, card, classes, num_channels)
        self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        self.model, self.precision = for_inference(network.model, precision), precision
        # From the student's normalisation to the teacher's own: they differ where other validation images were cut off.
        student_mean, student_std, own_mean, own_std = (
            torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (mean, std, card["mean"], card["std"])
        )
        self.scale, self.shift = student_std / own_std, (student_mean - own_mean) / own_std

    @torch.no_grad()
    def logits(self, inputs: Tensor) -> Tensor:
        """Raw logits (N, num_classes), float32, of the student's `inputs` (N, C, H, W)."""
        return self.model((inputs * self.scale + self.shift).to(self.precision)).float()


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """temperature**2 times the Kullback-Leibler divergence of the student's softened distribution from the teacher's, mean over
    the images, in nats (Hinton et al. 2015, "Distilling the knowledge in a neural network"). Both (N, num_classes)."""
    student = F.log_softmax(logits / temperature, 1)
    teacher = F.log_softmax(teacher_logits / temperature, 1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)
