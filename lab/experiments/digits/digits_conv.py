"""What does one convolution find in a few digits, and where do its sizes come from?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from images import sources
from images.sources import ImageDataset, Split
from lab.common.figures import image_grid
from lab.common.page import Figure, Page, Table
from lab.experiments.digits.until_flat import UntilFlat, begin_page

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lab.common.models import Grayscale1Convolution
    from lab.common.trainings import Outcome, Part


@dataclass
class DigitsConv(UntilFlat):
    """Train Grayscale1Convolution, one convolution, on 16 images a class until its training loss is flat.

    The page computes the sizes by arithmetic and shows filters, activations and gradients as pictures.
    """

    NAME = "digits-conv"

    def make(self, folder: Path) -> Page:
        """Grayscale1Convolution on a few images a class, until the training loss is flat."""
        from lab.common.models import Grayscale1Convolution

        parts, outcomes = self.train_until_flat(Grayscale1Convolution, folder)
        part, outcome = parts[0], outcomes[0]
        name = self.page_name(part.images.dataset.name)
        page = begin_page(name, "One convolution on a few digits", __doc__, parts, outcomes)
        sizes = size_rows(_network(outcome.model(part)), part.images.dataset.image_size)
        arithmetic: list[str | Table | Figure] = [
            Table(("layer", "arithmetic", "output", "parameters"), sizes),
            "A convolution of kernel k with padding p and stride s makes (n + 2p - k) / s + 1 pixels of n on each side, "
            "rounded down; a pooling of k by k with stride k makes n / k, rounded down.",
        ]
        page.sections.insert(0, ("The arithmetic of the sizes", arithmetic))
        add_filters(page, part, outcome)
        add_layers(page, part, outcome)
        return page


def _network(model: nn.Module) -> Grayscale1Convolution:
    """The network of a part, which is always this one."""
    from lab.common.models import Grayscale1Convolution

    assert isinstance(model, Grayscale1Convolution)
    return model


def size_rows(model: Grayscale1Convolution, image_size: tuple[int, int]) -> list[tuple[str, str, str, str]]:
    """Every layer's output size by arithmetic: name, how it is computed, size, parameters."""
    conv, fc = model.conv, model.fc
    assert not isinstance(conv.padding, str), "the padding is a number"
    k, p, s, filters = conv.kernel_size[0], conv.padding[0], conv.stride[0], conv.out_channels
    sides = [(n + 2 * p - k) // s + 1 for n in image_size]
    pooled = [n // 2 for n in sides]
    height, width = image_size
    numbers = filters * pooled[0] * pooled[1]
    return [
        ("input", "", f"1 x {height} x {width}", "0"),
        (
            "conv",
            f"({height} + 2*{p} - {k}) / {s} + 1 = {sides[0]}",
            f"{filters} x {sides[0]} x {sides[1]}",
            f"{filters} x ({k} x {k} x 1 + 1) = {filters * (k * k + 1):,}",
        ),
        ("activation (ReLU)", "keeps the size", f"{filters} x {sides[0]} x {sides[1]}", "0"),
        ("pool", f"{sides[0]} / 2 = {pooled[0]}", f"{filters} x {pooled[0]} x {pooled[1]}", "0"),
        ("flatten", f"{filters} x {pooled[0]} x {pooled[1]} = {numbers:,}", f"{numbers:,}", "0"),
        (
            "fc",
            f"{numbers:,} -> {fc.out_features}",
            str(fc.out_features),
            f"{fc.out_features} x ({numbers:,} + 1) = {fc.out_features * (numbers + 1):,}",
        ),
    ]


def add_filters(page: Page, part: Part, outcome: Outcome) -> None:
    """The filters before and after training, and the gradient of the loss for them."""
    import torch
    import torch.nn.functional as F

    from lab.common.models import gradient_norms
    from lab.common.trainings import as_tensors

    inputs, targets = as_tensors(part.images.dataset.train, outcome.mean, outcome.std)
    rows, norms = {}, []
    for when, network in (("before", part.fresh_model()), ("after", outcome.model(part))):
        model = _network(network)
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(inputs), targets), model.conv.weight)
        rows[f"filters {when}"] = list(model.conv.weight.detach()[:, 0].numpy())
        rows[f"gradient {when}"] = list(gradient[:, 0].numpy())
        norms.append((f"{when} training", *(f"{norm:.2g}" for norm in gradient_norms(model, inputs, targets).values())))
    page.add(
        "Filters",
        Figure(
            "filters",
            image_grid(rows, [f"filter {i}" for i in range(len(rows["filters before"]))]),
            f"The filters before and after training, and the gradient of the training loss for them, seed {part.config.seed}. "
            "Each row has its own scale.",
        ),
        Table(("norm of the gradient", "conv", "linear"), norms, "L2 norm over all weights of a layer, all training images."),
    )


def add_layers(page: Page, part: Part, outcome: Outcome) -> None:
    """One image of each of the first three classes through the layers, and the gradient of its loss on the way back."""
    import torch
    import torch.nn.functional as F

    from lab.common.trainings import as_tensors

    dataset = part.images.dataset
    pictures, whence = _pictures(dataset)
    model, shows_images = _network(outcome.model(part)), whence != "digits"
    filters = [f"filter {i}" for i in range(model.conv.out_channels)]
    activations, gradients = {}, {}
    for label, name in enumerate(dataset.classes[:3]):
        image, one = pictures.images[label], slice(label, label + 1)
        x, target = as_tensors(Split(pictures.images[one], pictures.labels[one]), outcome.mean, outcome.std)
        x.requires_grad_()
        convolved = model.activation(model.conv(x))
        pooled = model.pool(convolved)
        logits = model.fc(model.flatten(pooled))
        back = torch.autograd.grad(F.cross_entropy(logits, target), (x, convolved, pooled))
        for layer, maps, slopes in (("conv, ReLU", convolved, back[1]), ("pool", pooled, back[2])):
            activations[f"{name}: {layer}"] = [_scaled(image[..., 0], maps), *maps[0].detach().numpy()]
            gradients[f"{name}: {layer}"] = [_scaled(back[0][0, 0].numpy(), slopes), *slopes[0].numpy()]
    sample = f"an image of each class from {whence}" + (
        f", scaled to the size of {dataset.name}'s" if whence != dataset.name else "'s test images"
    )
    page.add(
        "Activations by layer",
        Figure(
            "activations",
            image_grid(activations, ["image", *filters], signed=False),
            f"The response of each filter to {sample}: after convolution and ReLU, and after pooling. The image is scaled to the "
            "values of its row.",
            shows_images,
        ),
    )
    page.add(
        "Gradients by layer",
        Figure(
            "gradients",
            image_grid(gradients, ["image", *filters]),
            "The gradient of the loss for the same images: with respect to the pixels (scaled to the row), to the feature maps "
            "after the ReLU, and to those after pooling. Pooling passes it to the largest of four numbers only.",
            shows_images,
        ),
    )


def _pictures(dataset: ImageDataset) -> tuple[Split, str]:
    """One image of each class in their order, and from which data set.

    For digits they are from the data set `digits`, whatever the network was trained on: of that the images may be shown anywhere.
    """
    from PIL import Image

    shown = sources.digits(Path()) if dataset.name in ("mnist", "digits") else dataset
    height, width = dataset.image_size
    images = []
    for name in dataset.classes:
        image = shown.test.images[np.flatnonzero(shown.test.labels == shown.classes.index(name))[0], ..., 0]
        images.append(np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)))
    return Split(np.stack(images)[..., np.newaxis], np.arange(len(images))), shown.name


def _scaled(pixels: np.ndarray, maps: Tensor) -> np.ndarray:
    """`pixels` brought to the scale of `maps`, to be seen beside them."""
    return pixels * float(maps.detach().abs().max()) / max(float(np.abs(pixels).max()), 1e-12)
