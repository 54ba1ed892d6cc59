"""What the numbers of the README come from: each script runs alone and writes its record."""

from __future__ import annotations

import sys
from typing import Any

import tyro

from config import InputError


def run_command(benchmark: type[Any], description: str | None) -> int:
    """Run the dataclass `benchmark` (its method `run`) as the command line says; returns the exit status."""
    try:
        return tyro.cli(benchmark, description=description).run()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
