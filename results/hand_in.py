"""The page of a training that can be handed in: everything it shows is computed here, from the network and the data."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from config import InputError, TrainConfig
from images.data import AugmentedBatches, ImageDataset, Split, VectorisedBatches
from results import report
from results.canvas import new_figure, picture_grid, png
from results.figures import short_name
from utils import resolve_precision

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from learning.history import History
    from learning.inference import TrainedNetwork
    from limits.constraints import Constraint
    from results.comparison import Run
    from results.notes import Section

EXAMPLES = 8
"""Training images that are shown augmented."""
DRAWS = 3
"""Times that each is."""


def write_page(
    folder: Path,
    *,
    title: str,
    command: str,
    history: History,
    dataset: ImageDataset,
    model: nn.Module,
    logits: Tensor,
    card: dict[str, Any],
    config: TrainConfig,
    fields: dict[str, Any],
    environment: dict[str, Any],
    device: torch.device,
    demands: list[Constraint] | None = None,
    assignment: str = "",
    author: str = "",
    notes: Sequence[Section] = (),
) -> Path:
    """Write the report of a training to `folder`; returns the path of the page. Says on stderr what it has to leave out.

    `logits` are those of the test images, `fields` what stands under "Configuration". `demands` are those of the `assignment` that
    was named; without one, the page has the default one's constraints on the network. All else is as for `report.write_report`.
    """
    from limits.constraints import check
    from results.explaining import Explainer

    explainer = None
    try:
        explainer = Explainer(model, card, device)
    except InputError as error:
        print(f"note: the report's mistakes are not explained: {error}", file=sys.stderr)
    examples = augmented_figure(dataset, config, card["mean"], card["std"])
    return report.write_report(
        folder,
        title=title,
        command=command,
        history=history,
        test=dataset.test,
        logits=logits,
        card=card,
        config=fields,
        constraints=check(model, dataset.image_size, dataset.num_channels) if demands is None else demands,
        assignment=assignment,
        environment=environment,
        explainer=explainer,
        layers=layer_rows(model, dataset),
        augmented=png(examples) if examples else None,
        author=author,
        notes=notes,
    )


def page_of_run(
    run: Run, network: TrainedNetwork, dataset: ImageDataset, folder: Path, assignment: str, author: str, notes: Sequence[Section]
) -> Path:
    """Write the report of a finished `run` of `network` on `dataset` to `folder`; returns the path of the page.

    `run` has the demands of the `assignment`, where one is named. Raises InputError where network and data do not fit each other.
    """
    network.demand_fits(dataset)
    card = run.card
    known = {each.name for each in dataclasses.fields(TrainConfig)}
    config = TrainConfig(**{name: value for name, value in run.config.items() if name in known})
    return write_page(
        folder,
        title=f"Training of {card.get('model', '').rpartition(':')[2] or card.get('preset', 'a network')} on {dataset.name}",
        command=card.get("command", ""),
        history=run.history,
        dataset=dataset,
        model=network.model,
        logits=network.logits(dataset.test.images, resolve_precision(card.get("precision", "fp32"), network.device)),
        card=card,
        config=config,
        fields=run.config,
        environment={**card.get("hardware", {}), **card.get("versions", {})},
        device=network.device,
        demands=run.demands if assignment else None,
        assignment=assignment,
        author=author,
        notes=notes,
    )


def layer_rows(model: nn.Module, dataset: ImageDataset) -> list[tuple[str, str, str, str]]:
    """Name, operation, size of the result and receptive field of each layer; none where the network cannot be followed."""
    from limits.receptive_field import layer_fields

    try:
        found = layer_fields(model, dataset.image_size, dataset.num_channels)
    except Exception as error:  # the code may be the user's
        print(f"note: the report has no table of layers: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
        return []
    rows = []
    for field in found:
        seen = "unknown" if field.pixels is None else "whole image" if math.isinf(field.pixels) else f"{field.pixels:.0f} px"
        rows.append((field.path or "forward", field.operation, f"{field.size[0]}x{field.size[1]}", seen))
    return rows


def augmented_figure(dataset: ImageDataset, config: TrainConfig, mean: Sequence[float], std: Sequence[float]) -> Figure | None:
    """Some training images, and below each what augmentation makes of it; None where the training has no augmentation."""
    if not (config.augmentations or config.shift or config.alternating_flip) or dataset.num_channels not in (1, 3):
        return None
    chosen = np.unique(np.linspace(0, len(dataset.train.labels) - 1, EXAMPLES).astype(int))
    figure = new_figure(1.1 * EXAMPLES, 1.12 * (1 + DRAWS))
    grid = picture_grid(figure, 1 + DRAWS, EXAMPLES)
    for column, i in enumerate(chosen):
        image, label = dataset.train.images[i], dataset.train.labels[i]
        for row, shown in enumerate([image, *_draws(image, config, tuple(mean), tuple(std))]):
            pixels = shown[..., 0] if shown.shape[2] == 1 else shown
            grid[row, column].imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        name = short_name(dataset.classes[label], 10)
        grid[0, column].set_title(name, fontsize=9, parse_math=False)
    return figure


def _draws(image: np.ndarray, config: TrainConfig, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """(DRAWS, H, W, C) uint8: `image` as the batches of a training have it, after as many draws."""
    same = Split(np.repeat(image[np.newaxis], DRAWS, 0), np.zeros(DRAWS, np.int64))
    alone = dataclasses.replace(config, batch_size=DRAWS, images_per_draw=1, workers=0)
    kind = AugmentedBatches if config.augmentations else VectorisedBatches
    batches = kind(same, alone, mean, std, torch.device("cpu"))
    inputs, _ = next(batches.steps(range(1)))
    pixels = inputs.permute(0, 2, 3, 1) * torch.tensor(std) + torch.tensor(mean)
    return (255 * pixels).round().clamp(0, 255).to(torch.uint8).numpy()
