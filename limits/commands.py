"""The commands that show what a network is and which constraints it satisfies."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import tyro

from config import InputError, get_preset
from utils import summary

if TYPE_CHECKING:
    from torch import nn


@dataclasses.dataclass
class Summary:
    """The torchinfo table of a preset's network, and the table of its constraints."""

    preset: str = "sprint"
    """Whose network."""
    channels: int = 3
    """Channels of the images."""
    classes: int = 10
    """Number of classes."""

    def run(self) -> int:
        preset = get_preset(self.preset)
        if self.channels < 1 or self.classes < 2:
            raise InputError("--channels must be 1 or more, --classes 2 or more")
        from model import Net

        return show(Net(self.channels, self.classes, **preset.net), self.channels)


@dataclasses.dataclass
class Check:
    """The same tables for anybody's network; exit status 1 if it fails any constraint. The class's code is run."""

    network: tyro.conf.Positional[str]
    """FILE.py:CLASS or MODULE:CLASS; it is built as CLASS(num_channels=3, num_classes=10)."""

    def run(self) -> int:
        from limits.constraints import load_network

        return show(load_network(self.network), 3)


def show(model: nn.Module, num_channels: int) -> int:
    """Print the summary and the constraints; 1 if any fails, else 0."""
    from limits.constraints import check, format_table

    print(summary(model, num_channels, (32, 32)))
    constraints = check(model, num_channels=num_channels)
    print(format_table(constraints))
    return 0 if all(constraint.passed for constraint in constraints) else 1


COMMANDS = {"summary": Summary, "check": Check}
