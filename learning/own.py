"""Networks of the user's own: any nn.Module of a Python file, built for a data set, and built again for its trained weights."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from config import InputError
from limits.copying import copy_of

if TYPE_CHECKING:
    from images.data import ImageDataset


def find(spec: str) -> Callable[..., nn.Module] | nn.Module:
    """The class that `spec`, FILE.py:CLASS, names; the file is run for it. Raises InputError where there is none."""
    from limits.loading import load_class

    return load_class(spec)


def build(
    spec: str,
    dataset: ImageDataset,
    found: Callable[..., nn.Module] | nn.Module | None = None,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A new network of the class that `spec`, FILE.py:CLASS, names, for the images and classes of `dataset`.

    `found` is that class where `find` has been called already, `options` are more arguments of it. Raises InputError where it
    cannot be built, or cannot be trained.
    """
    from limits.loading import build_network

    model = build_network(found or find(spec), spec, dataset.num_channels, dataset.num_classes, dataset.image_size, options)
    demand_trainable(model, spec, dataset)
    return model


def demand_trainable(model: nn.Module, name: str, dataset: ImageDataset) -> None:
    """Raise InputError, which calls the network `name`, unless it has parameters and makes logits of the images of `dataset` in
    training mode."""
    import torch

    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(f"{name} has no parameters to train")
    if others := [key for key, value in model.state_dict().items() if not isinstance(value, Tensor)]:
        raise InputError(f"{name} has {others[0]} in its state, which is no tensor: files of weights hold tensors alone")
    shape = (2, dataset.num_channels, *dataset.image_size)
    try:
        logits = copy_of(model).train()(torch.zeros(shape))
    except Exception as error:  # it may be of any kind: the code is the user's
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{name} fails in training mode on images of shape {shape}: {reason}") from error
    if not isinstance(logits, Tensor) or logits.shape != (2, dataset.num_classes) or not logits.requires_grad:
        raise InputError(
            f"{name} makes no logits of shape (2, {dataset.num_classes}) to train by, in training mode, of images of shape {shape}"
        )


def card(spec: str) -> dict[str, Any]:
    """What a card says of such a network: where it is, and a hash of the file, by which changes are noticed."""
    location, _, name = spec.rpartition(":")
    where = Path(location).resolve() if Path(location).is_file() else location
    return {"model": f"{where}:{name}", "model_sha256": _sha256(spec)}


def load(spec: str, card: dict[str, Any], path: Path) -> nn.Module:
    """A network of the class that `spec` names, for the weights in the file `path` with this card.

    Raises InputError where the file or the class is missing or cannot be built.
    """
    from limits.loading import build_network

    try:
        model = build_network(
            find(spec), spec, card["num_channels"], len(card["classes"]), tuple(card["image_size"]), card.get("net")
        )
    except InputError as error:
        raise InputError(f"{path} needs the network {spec}, and {error}; say where it is now with --model FILE.py:CLASS") from error
    if card.get("model_sha256") not in (None, _sha256(spec)):
        print(f"note: {spec.rpartition(':')[0]} has changed since {path} was trained with it", file=sys.stderr)
    return model


def _sha256(spec: str) -> str | None:
    """Of the file in FILE.py:CLASS; None for a class of an installed module."""
    file = Path(spec.rpartition(":")[0])
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
