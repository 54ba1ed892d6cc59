"""With 16 images a class, does a fully connected network learn digits or memorise these images?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lab.common.figures import image_grid
from lab.common.page import Figure, Page
from lab.experiments.digits.until_flat import UntilFlat, begin_page

if TYPE_CHECKING:
    from lab.common.trainings import Outcome, Part


@dataclass
class DigitsFC(UntilFlat):
    """Train FC_only, a fully connected network, on 16 images a class until its training loss is flat; does it overfit?"""

    NAME = "digits-fc"

    def make(self, folder: Path) -> Page:
        """FC_only on a few images a class, until the training loss is flat."""
        from lab.common.models import FC_only

        parts, outcomes = self.train_until_flat(FC_only, folder)
        name = self.page_name(parts[0].images.dataset.name)
        page = begin_page(name, "A fully connected network on a few digits", __doc__, parts, outcomes)
        add_weights(page, parts[0], outcomes[0])
        return page


def add_weights(page: Page, part: Part, outcome: Outcome) -> None:
    """The weights of FC_only as pictures: of each hidden unit, and of both layers together for each class."""
    from lab.common.models import FC_only

    dataset, model = part.images.dataset, outcome.model(part)
    assert isinstance(model, FC_only)
    shape = (dataset.num_channels, *dataset.image_size)
    first = model.fc1.weight.detach().numpy()
    units = first.reshape(len(first), *shape).mean(1)
    paths = (model.fc2.weight.detach().numpy() @ first).reshape(-1, *shape).mean(1)
    rows = {f"units {i} to {min(i + 8, len(units)) - 1}": list(units[i : i + 8]) for i in range(0, len(units), 8)}
    page.add(
        "What the weights look like",
        Figure(
            "weights",
            image_grid(rows),
            "Weights of the first layer, one picture for each hidden unit, each weight at its "
            "pixel's place: red raises the unit, blue lowers it.",
        ),
        Figure(
            "evidence",
            image_grid({"fc2 x fc1": list(paths)}, dataset.classes),
            "The product of both layers' weights, one picture a class: what raises (red) or lowers (blue) its logit while all "
            "hidden units are on.",
        ),
    )
