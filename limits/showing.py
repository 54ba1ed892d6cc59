"""What the commands `summary` and `check` print."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from limits.constraints import check, format_table
from utils import summary

FAILS, UNKNOWN = 1, 3  # exit statuses


def show(model: nn.Module, num_channels: int, blocks: Sequence[str] = ()) -> int:
    """Print the torchinfo table and the constraints for 32x32 images; `blocks` as for `check`.

    Returns 0 where all pass, 1 where any fails, 3 where none fails but not all are known. Raises InputError as `check` does.
    """
    constraints = check(model, num_channels=num_channels, blocks=blocks)
    try:
        print(summary(model, num_channels, (32, 32)))
    except RuntimeError as error:
        print(f"torchinfo has no table for this network: {str(error.__cause__ or error).splitlines()[0]}")
    print(format_table(constraints))
    if not blocks and constraints[1].passed is False and "no C1 C2 C3 C4" in constraints[1].value:
        print(
            "If its blocks have other names, say which: --blocks FIRST,SECOND,THIRD,FOURTH or with the output block as the fifth."
        )
    verdicts = {constraint.passed for constraint in constraints}
    return FAILS if False in verdicts else UNKNOWN if None in verdicts else 0
