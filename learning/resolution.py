"""Training with fewer pixels at first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def scaled(inputs: Tensor, resolutions: Sequence[tuple[float, int]], progress: float) -> Tensor:
    """`inputs` (N, C, H, W), float, with the height and width that `resolutions` (see TrainConfig) give at `progress` (0 to below
    1, the share of all steps that is done)."""
    for share, pixels in resolutions:
        if progress < share:
            small = F.interpolate(inputs, (pixels, pixels), mode="bilinear", antialias=True)
            return small.contiguous(memory_format=torch.channels_last)
    return inputs
