"""What the commands that train share: whose network it is, and the page of a finished training."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from limits.constraints import Constraint
    from model import Net
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
) -> None:
    """Write the page of a finished training to `folder` and say where it is; `precision` as for Trainer.predict.

    `demands` are those of the `assignment` that was named; without one, the page has the default one's constraints on the network.
    """
    from config import InputError
    from limits.constraints import check
    from results import report
    from results.explaining import Explainer
    from utils import command_line, hardware, versions

    dataset, explainer = trainer.dataset, None
    try:
        explainer = Explainer(trainer.trained_model, trainer.card, trainer.device)
    except InputError as error:
        print(f"note: the report's mistakes are not explained: {error}", file=sys.stderr)
    page = report.write_report(
        folder,
        title=f"{title} on {dataset.name}",
        command=command_line(),
        history=trainer.history,
        test=dataset.test,
        logits=trainer.predict(dataset.test, precision),
        card=trainer.card,
        config=dataclasses.asdict(trainer.config),
        constraints=check(trainer.trained_model, dataset.image_size, dataset.num_channels) if demands is None else demands,
        assignment=assignment,
        environment={**hardware(), **versions()},
        explainer=explainer,
    )
    print(f"report in {page}")
