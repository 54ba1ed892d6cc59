"""The course's experiments, each one command: `python main.py lab NAME --help`."""
from __future__ import annotations

import dataclasses

from lab.experiments import EXPERIMENTS


@dataclasses.dataclass
class ByHand:
    """Convolution by hand: its difference from torch's on the homework's case, and its cost on the presets' own shapes."""

    quick: bool = False
    """One repeat of each shape instead of five."""

    def run(self) -> int:
        from lab import conv2d

        conv2d.show(repeats=1 if self.quick else 5)
        return 0


COMMANDS = {"conv2d": ByHand, **EXPERIMENTS}
