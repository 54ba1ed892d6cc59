"""Training with fewer pixels at first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import InputError


def demand_taken(model: nn.Module, num_channels: int, resolutions: Sequence[tuple[float, int]], device: torch.device) -> None:
    """Raises InputError where `model` does not take images of the fewest pixels of `resolutions`."""
    if not resolutions:
        return
    pixels, was_training = min(pixels for _, pixels in resolutions), model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, num_channels, pixels, pixels, device=device))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"the network does not take images of {pixels}x{pixels} pixels (resolutions): {reason}") from error
    finally:
        model.train(was_training)


def scaled(inputs: Tensor, resolutions: Sequence[tuple[float, int]], progress: float) -> Tensor:
    """`inputs` (N, C, H, W), float, with the height and width that `resolutions` (see TrainConfig) give at `progress` (0 to below
    1, the share of all steps that is done)."""
    for share, pixels in resolutions:
        if progress < share:
            small = F.interpolate(inputs, (pixels, pixels), mode="bilinear", antialias=True)
            return small.contiguous(memory_format=torch.channels_last)
    return inputs
