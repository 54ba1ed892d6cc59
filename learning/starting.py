"""The trained weights that a training starts from (`--init`): a file, or those of ImageNet."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from config import InputError
from images.data import ImageDataset
from learning import efficientnet_lite
from learning.inference import TrainedNetwork
from learning.optimizers import last_layer


def load_start(path: Path, spec: str) -> TrainedNetwork:
    """The trained weights to start from, on the CPU: of a file, or those of ImageNet. `spec` says where the user's own network is,
    if not where its card says."""
    cpu = torch.device("cpu")
    pixels = efficientnet_lite.pixels_of(str(path))
    meant = str(path).lower().replace("-", "_")
    if pixels is None and meant.partition(":")[0] == efficientnet_lite.NAME and not path.exists():
        raise InputError(f"there is no file {path}: did you mean --init {meant}?")
    if pixels is None:
        start = TrainedNetwork.load(path, cpu, spec)
        start.card["init"] = str(path)
        if start.card.get("model") == efficientnet_lite.SPEC:  # photographs are read as large as it wants them
            start.card["image_size"] = [start.card["net"]["pixels"]] * 2
        return start
    if spec:
        raise InputError(f"{path} has a network of its own: leave out --model, or name another --init")
    card = efficientnet_lite.card(pixels) | {"classes": [], "num_channels": 3, "image_size": [pixels, pixels]}
    return TrainedNetwork(efficientnet_lite.trained_on_imagenet(pixels), card, cpu, torch.float32)


def demand_same_start(checkpoint: Path, card: dict[str, Any], init: Path) -> None:
    """Raise InputError where the training whose checkpoint has this `card` did not begin with `init`."""
    began, pixels = card.get("init", ""), efficientnet_lite.pixels_of(str(init))
    if pixels is None:
        is_same = bool(began) and Path(began).resolve() == init.resolve()
    else:
        is_same = began == efficientnet_lite.INIT and card["net"] == {"pixels": pixels}
    if not is_same:
        raise InputError(
            f"{checkpoint} began with {began or 'random weights'}, not with {init}: leave out --init, or train anew, into another "
            "--out"
        )


def take_weights(model: nn.Module, start: TrainedNetwork, dataset: ImageDataset, path: Path) -> None:
    """Give `model` the trained weights of `start`, without the last layer where the classes are others, which is said on stderr.

    Raises InputError where the images have another number of channels.
    """
    if start.card["num_channels"] != dataset.num_channels:
        raise InputError(
            f"{path} takes images of {start.card['num_channels']} channels, but {dataset.name} has {dataset.num_channels}"
        )
    state = start.model.state_dict()
    if start.card["classes"] != list(dataset.classes):
        last = last_layer(model)
        state = {name: tensor for name, tensor in state.items() if not name.startswith(f"{last}.")}
        print(f"note: the classes of {path} and {dataset.name} differ: its last layer is replaced by a new one", file=sys.stderr)
    model.load_state_dict(state, strict=False)
