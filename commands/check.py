"""The commands that show what a network is and which constraints it satisfies."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import tyro

from config import InputError
from learning.presets import get_preset
from utils import summary

if TYPE_CHECKING:
    from torch import nn

FAILS, UNKNOWN = 1, 3  # exit statuses


@dataclasses.dataclass
class Summary:
    """Print the torchinfo table of a preset's network and the table of its constraints.

    Exit status: 0 all constraints are satisfied, 1 any fails, 2 bad input.
    """

    preset: str = "sprint"
    """Preset of the network."""
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
    """Print the torchinfo table and the table of constraints of any network. This runs the code of its file.

    Exit status: 0 all constraints are satisfied, 1 any fails, 3 none fails but one is unknown, 2 bad input.
    """

    network: tyro.conf.Positional[str]
    """FILE.py:CLASS, NOTEBOOK.ipynb:CLASS or MODULE:CLASS; it is built as CLASS(num_channels=3, num_classes=10)."""
    blocks: str = ""
    """Names of the modules that are the blocks, where they are not called C1, C2, C3, C4, O and not found by themselves:
    layer1,layer2,layer3,layer4, and optionally a fifth, the output block."""

    def run(self) -> int:
        from limits.loading import load_network

        return show(load_network(self.network), 3, [name.strip() for name in self.blocks.split(",")] if self.blocks else ())


def show(model: nn.Module, num_channels: int, blocks: Sequence[str] = ()) -> int:
    """Print the torchinfo table and the constraints for 32x32 images; `blocks` as for `check`.

    Returns 0 where all pass, 1 where any fails, 3 where none fails but not all are known. Raises InputError as `check` does.
    """
    from limits.constraints import check, format_table

    constraints = check(model, num_channels=num_channels, blocks=blocks)
    try:
        print(summary(model, num_channels, (32, 32)))
    except RuntimeError as error:
        print(f"torchinfo has no table for this network: {str(error.__cause__ or error).splitlines()[0]}")
    print(format_table(constraints))
    if not blocks and constraints[1].passed is False and "no C1 C2 C3 C4" in constraints[1].value:
        print("If its blocks have other names, pass --blocks FIRST,SECOND,THIRD,FOURTH, and optionally a fifth, the output block.")
    verdicts = {constraint.passed for constraint in constraints}
    return FAILS if False in verdicts else UNKNOWN if None in verdicts else 0


COMMANDS = {"summary": Summary, "check": Check}
