"""The commands that show what a network is and which constraints it satisfies: summary and check."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import tyro

from config import InputError
from learning.presets import get_preset
from utils import ASSIGNMENT, STATED, summary

if TYPE_CHECKING:
    from torch import nn

    from limits.assignments import Assignment


@dataclasses.dataclass
class Summary:
    """Print the torchinfo table of a preset's network, its receptive field layer by layer, and the table of its constraints.

    Exit status: 0 if all constraints are satisfied, 1 if any fails, 2 for bad input.
    """

    preset: Annotated[str | None, STATED] = None
    """Preset of the network (default: the assignment's own, or sprint)."""
    channels: Annotated[int | None, STATED] = None
    """Channels of the images (default: the assignment's, or 3)."""
    classes: Annotated[int | None, STATED] = None
    """Number of classes (default: the assignment's, or 10)."""
    assignment: Annotated[str, ASSIGNMENT] = ""

    def run(self) -> int:
        from limits.assignments import MAX_CHANNELS, MAX_CLASSES, default, load

        named = load(self.assignment) if self.assignment else None
        rules = named or default()
        preset = get_preset(self.preset or (named and named.preset) or "sprint")
        channels = rules.channels if self.channels is None else self.channels
        classes = rules.classes if self.classes is None else self.classes
        if not (1 <= channels <= MAX_CHANNELS and 2 <= classes <= MAX_CLASSES):
            raise InputError(f"--channels must be from 1 to {MAX_CHANNELS:,}, --classes from 2 to {MAX_CLASSES:,}")
        from model import Net

        return show(Net(channels, classes, **preset.net), channels, (), named)


@dataclasses.dataclass
class Check:
    """Print the torchinfo table, the receptive field and the constraints of any network. This runs the code of its file.

    Exit status: 0 if all constraints are satisfied, 1 if any fails, 3 if none fails but one is unknown, 2 for bad input.
    """

    network: tyro.conf.Positional[str]
    """FILE.py:CLASS, NOTEBOOK.ipynb:CLASS or MODULE:CLASS; it is built as CLASS(num_channels=3, num_classes=10), or with the
    assignment's numbers."""
    blocks: str = ""
    """Names of the blocks' modules, if they differ from the assignment's (C1, C2, C3, C4, O) and are not found automatically:
    layer1,layer2,layer3,layer4, and optionally a fifth, the output block."""
    assignment: Annotated[str, ASSIGNMENT] = ""

    def run(self) -> int:
        from limits.assignments import default, load
        from limits.loading import load_network

        named = load(self.assignment) if self.assignment else None
        rules = named or default()
        model = load_network(self.network, rules.channels, rules.classes, rules.size)
        return show(model, rules.channels, [name.strip() for name in self.blocks.split(",")] if self.blocks else (), named)


def show(model: nn.Module, num_channels: int, blocks: Sequence[str] = (), assignment: Assignment | None = None) -> int:
    """Print the torchinfo table, the receptive field layer by layer and the constraints; `blocks` as for `check`.

    `assignment`: None for the default one, whose demands on the training are then not listed. Returns 0 where all constraints pass,
    1 where any fails, 3 where none fails but not all are known; a bonus does not count. Raises InputError as `check` does.
    """
    from limits.assignments import default
    from limits.constraints import check, exit_status, format_table

    rules = assignment or default()
    constraints = check(model, rules.size, num_channels, blocks, rules)
    try:
        print(summary(model, num_channels, rules.size))
    except RuntimeError as error:
        print(f"torchinfo has no table for this network: {str(error.__cause__ or error).splitlines()[0]}")
    print(format_fields(model, rules.size, num_channels))
    if constraints:
        print(format_table(constraints))
    else:
        print(f"the assignment {rules.name} demands nothing of the network")
    if assignment:
        from results.demands import of_training

        demands = of_training(assignment)
        if demands:
            print("\nThe training has demands of its own, which `train --assignment` and `report --assignment` check:")
            print(format_table(demands))
    if not blocks and any(one.passed is False and "no C1 C2 C3 C4" in one.value for one in constraints):
        print("If its blocks have other names, pass --blocks FIRST,SECOND,THIRD,FOURTH, and optionally a fifth, the output block.")
    return exit_status(constraints)


def format_fields(model: nn.Module, image_size: tuple[int, int], num_channels: int) -> str:
    """The receptive field layer by layer as aligned plain text."""
    from limits.receptive_field import layer_fields

    rows = [("layer", "operation", "output", "receptive field")]
    for field in layer_fields(model, image_size, num_channels):
        seen = "unknown" if field.pixels is None else "whole image" if math.isinf(field.pixels) else f"{field.pixels:.0f} px"
        rows.append((field.path or "forward", field.operation, f"{field.size[0]}x{field.size[1]}", seen))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows) + "\n"


COMMANDS = {"summary": Summary, "check": Check}
