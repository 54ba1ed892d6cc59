"""How gradients flow: their norms by layer, before and after training, with and without residual sums and average pooling.

The loss is that of training (cross-entropy with its label smoothing), on batches of training images, in fp32 and train mode.
"""

from __future__ import annotations

import copy
import statistics
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from images.data import ImageDataset
from learning.presets import get_preset
from model import Layer, Net, ResidualPointwiseConv2d
from training import Trainer
from utils import seed_everything


class WithoutResiduals(Net):
    """Each residual layer is a convolution, BatchNorm that starts at 1, and ReLU; without the sum it could not start as the
    identity."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for block in (self.C1, self.C2, self.C3, self.C4):
            for i, layer in enumerate(block):
                if isinstance(layer, ResidualPointwiseConv2d):
                    momentum = next((m.momentum for m in self.modules() if isinstance(m, nn.BatchNorm2d) and m.momentum), 0.1)
                    layer = block[i] = Layer(layer.in_channels, layer.out_channels, "pointwise", norm_momentum=momentum)
                if isinstance(layer, Layer) and layer.residual:
                    layer.residual = False
                    nn.init.ones_(layer.norm.weight)


class WithMaximum(Net):
    """The output block takes the global maximum of each channel instead of the average."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.O[0] = nn.AdaptiveMaxPool2d(1)


VARIANTS: dict[str, type[Net]] = {
    "as it is": Net,
    "without residual sums": WithoutResiduals,
    "global maximum instead of average": WithMaximum,
}


@dataclass
class Flow:
    """Gradients of one network at one time, by layer: means over batches."""

    outputs: dict[str, float]
    """Norm of the gradient of the loss by a layer's output, over the whole batch."""
    weights: dict[str, float]
    """Norm of the gradient by all trainable parameters of the layer; a whitening stem has none."""
    reached: float
    """Share of the numbers of the last feature map before global pooling that get a gradient at all."""


def flow(network: Net, batches: list[tuple[Tensor, Tensor]], label_smoothing: float) -> Flow:
    """The gradients of `network`, which is left as it is. `batches` are (N, C, H, W) normalised images and (N,) labels."""
    network = copy.deepcopy(network).float().train()
    layers = {
        f"{name}.{i}": layer
        for name in ("C1", "C2", "C3", "C4")
        for i, layer in enumerate(getattr(network, name))
        if not isinstance(layer, nn.MaxPool2d)
    }
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            output.retain_grad()
            kept[name] = output

        return hook

    def gradient_at(name: str) -> Tensor:
        gradient = kept[name].grad
        assert gradient is not None, "backward has been called"
        return gradient

    for name, layer in layers.items():
        layer.register_forward_hook(keep(name))
    layers["O"] = network.O
    outputs: dict[str, list[float]] = {name: [] for name in layers if name != "O"}
    weights: dict[str, list[float]] = {
        name: [] for name, layer in layers.items() if any(p.requires_grad for p in layer.parameters())
    }
    reached = []
    for images, labels in batches:
        network.zero_grad()
        # The images ask for a gradient so that one reaches the output of a stem whose filters are fixed.
        loss = F.cross_entropy(network(images.requires_grad_()).float(), labels, label_smoothing=label_smoothing)
        loss.backward()
        for name in outputs:
            outputs[name].append(gradient_at(name).norm().item())
        for name in weights:
            gradients = [p.grad for p in layers[name].parameters() if p.requires_grad]
            weights[name].append(torch.cat([gradient.flatten() for gradient in gradients]).norm().item())
        reached.append(gradient_at(list(outputs)[-1]).count_nonzero().item() / kept[list(outputs)[-1]].numel())
    return Flow(
        {name: statistics.fmean(values) for name, values in outputs.items()},
        {name: statistics.fmean(values) for name, values in weights.items()},
        statistics.fmean(reached),
    )


@dataclass
class Run:
    """One variant trained with one seed."""

    stages: list[Flow]
    """At initialisation and after training."""
    accuracy: float
    """On validation images, after training."""
    images: int
    """How many these are."""
    classes: int


def measure(preset_name: str, dataset: ImageDataset, seeds: int, batches: int, steps: int) -> dict[str, list[Run]]:
    """Train each variant of the preset's network for `steps` steps, by seed in turn, without augmentation."""
    preset = get_preset(preset_name)
    runs: dict[str, list[Run]] = {name: [] for name in VARIANTS}
    for seed, name in tqdm([(seed, name) for seed in range(seeds) for name in VARIANTS], unit=" runs", disable=None, leave=False):
        seed_everything(seed)
        config = replace(preset.train, seed=seed, cycles=1, early_exit_accuracy=None, teacher=(), augment=0.0, steps=steps)
        network = VARIANTS[name](dataset.num_channels, dataset.num_classes, **preset.net)
        trainer = Trainer(network, dataset, config)
        trainer._prepare()  # whitens the stem
        sample = list(trainer.batches.steps(range(batches)))
        stages = [flow(network, sample, config.label_smoothing)]
        history = trainer.fit()
        stages.append(flow(network, sample, config.label_smoothing))
        runs[name].append(Run(stages, history.evaluations[-1].val_accuracy, len(trainer.val_split.labels), dataset.num_classes))
    return runs
