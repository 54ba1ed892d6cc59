"""What the commands that train share: whose network it is, and the page of a finished training."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pkgutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from limits.constraints import Constraint
    from model import Net
    from results.notes import Section
    from training import Trainer

NETWORKS = {"torch": "model:Net", "by-hand": "lab.convolution.conv2d:ByHandNet"}
"""Whose convolution computes the network -> the class."""


@contextlib.contextmanager
def silence(quiet: bool) -> Iterator[None]:
    """Print nothing inside the block where `quiet`; errors are exceptions, which are reported outside of it."""
    with open(os.devnull, "w") as nowhere, contextlib.ExitStack() as stack:
        if quiet:
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield


def network_class(conv: str) -> type[Net]:
    """The class of NETWORKS."""
    return pkgutil.resolve_name(NETWORKS[conv])


def write_report(
    folder: Path,
    title: str,
    trainer: Trainer,
    precision: torch.dtype | None = None,
    demands: list[Constraint] | None = None,
    assignment: str = "",
    author: str = "",
    notes: Sequence[Section] = (),
) -> None:
    """Write the page of a finished training to `folder` and say where it is; `precision` as for Trainer.predict.

    `demands` are those of the `assignment` that was named; without one, the page has the default one's constraints on the network.
    `author` and `notes` are as for `report.write_report`.
    """
    from results.hand_in import write_page
    from utils import command_line, hardware, versions

    page = write_page(
        folder,
        title=f"{title} on {trainer.dataset.name}",
        command=command_line(),
        history=trainer.history,
        dataset=trainer.dataset,
        model=trainer.trained_model,
        logits=trainer.predict(trainer.dataset.test, precision),
        card=trainer.card,
        config=trainer.config,
        fields=dataclasses.asdict(trainer.config),
        environment={**hardware(), **versions()},
        device=trainer.device,
        demands=demands,
        assignment=assignment,
        author=author,
        notes=notes,
    )
    print(f"report in {page}")
