"""Copies of networks that may be anybody's."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


def copy_of(model: nn.Module) -> nn.Module:
    """A deep copy, also of a model that has kept results of its forward pass, as some do for Grad-CAM: these are copied without
    the graph that they are part of, which has no copy."""
    kept = (tensor for module in model.modules() for tensor in _tensors_in(vars(module)) if not tensor.is_leaf)
    return copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in kept})


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _tensors_in(each)
    elif isinstance(value, (list, tuple, set)):
        for each in value:
            yield from _tensors_in(each)
